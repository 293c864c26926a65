"""Time the encoder in inference, beside the reference recipe's if it is there.

    python test/bench/encoder.py [--reference /path/to/icefall] [--autocast bf16] ...

Front end and Zipformer encoder, in evaluation mode and without gradients, on random
features.  With ``--reference`` those of an icefall checkout run in turn with ours on
the same weights, see `side_by_side`; ``value`` is the mean absolute value of the
output, equal for both.  Prints one JSON object.  Not collected by pytest.

Ours runs after ``tune_cpu``, as ``bin.decode`` does; the reference as its
users run it, or after the same with ``--tune-reference``.
"""

import argparse
import copy
import dataclasses

import reference
import side_by_side
import torch

from icefall_kd.transducer.model import build_model


def parse() -> argparse.Namespace:
    """Parse the command line."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    side_by_side.add_arguments(p)
    return p.parse_args()


def build_pass(args: argparse.Namespace, name: str) -> side_by_side.Turn:
    """Return the pass of ours or of the reference, on the same weights and batch."""
    torch.manual_seed(args.seed)
    config = side_by_side.model_config(args)
    if args.causal:  # evaluation has one chunk
        chunk = dict(chunk_size=(16,), left_context_frames=(64,))
        encoder = dataclasses.replace(config.encoder, **chunk)
        config = dataclasses.replace(config, encoder=encoder)
    model = build_model(config).to(args.device).eval()
    x = torch.randn(args.batch, args.frames, 80, device=args.device) - 6.0
    x_lens = torch.full((args.batch,), args.frames, device=args.device)
    encode = model.forward_encoder
    if name == "reference":
        model = copy.deepcopy(model)
        icefall = reference.load(args.reference)
        reference.replace_encoder(icefall, model, config.encoder, 0.0)
        model.eval()
        encode = reference.forward_encoder(model)
        if args.device == "cpu":
            args.autocast = "none"  # its own functions do not run under it on a CPU

    @torch.no_grad()
    def turn() -> float:
        with side_by_side.autocast(args):
            out, _ = encode(x, x_lens)
        return float(out.float().abs().mean())

    return turn


if __name__ == "__main__":
    side_by_side.run(parse(), build_pass)
