"""Time the encoder in inference, and optionally icefall's.

    python test/bench/encoder.py [--reference /path/to/icefall] [--autocast bf16] ...

It runs the front end and the Zipformer encoder in evaluation mode, without gradients,
on random features.  With ``--reference``, icefall's modules with the same weights run
in turn with ours, see `side_by_side`.  ``value`` is the mean absolute value of the
output, equal for both.  It prints one JSON object.

Ours runs after ``tune_cpu``, as in ``bin.decode``; the reference only with
``--tune-reference``.
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
    """Return a function that runs our encoder or the reference on one batch."""
    torch.manual_seed(args.seed)
    config = side_by_side.model_config(args)
    if args.causal:  # evaluation uses one chunk size
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
            args.autocast = "none"  # icefall's functions do not support it on a CPU

    @torch.no_grad()
    def turn() -> float:
        with side_by_side.autocast(args):
            out, _ = encode(x, x_lens)
        return float(out.float().abs().mean())

    return turn


if __name__ == "__main__":
    side_by_side.run(parse(), build_pass)
