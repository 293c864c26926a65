"""Choose the weights of a decoding graph for the CTC head on a development set.

    python -m icefall_kd.bin.tune_hlg --checkpoint exp/pretrained.pt \\
      --shar-dir data/shar/dev --text data/shar/train --held-out data/shar/dev \\
      --lm-scale 0.5 0.7 --word-bonus 2 3 4 --blank-penalty 0 1 --output exp/HLG.fst

The encoder runs once.  The command decodes the set with each combination of the given
weights, in full context, and prints the WER of each.  It writes the graph with the
lowest WER.  The other options are those of bin.compile_hlg.
"""

import argparse
import itertools
from pathlib import Path

import torch
from tqdm import tqdm

from icefall_kd.bin.compile_hlg import WEIGHTS, add_graph_options, load_word_graph
from icefall_kd.core.cli import create_parser, exit_on_error, require_packages
from icefall_kd.core.cpu import tune_cpu
from icefall_kd.core.files import as_path
from icefall_kd.core.logs import setup_logging
from icefall_kd.decoding import DECODERS, DecodeOptions, Hypothesis, decode
from icefall_kd.decoding.hlg import DecodingGraph, HlgOptions, compile_hlg, save_graph

METHOD = "ctc_hlg"


def get_parser() -> argparse.ArgumentParser:
    p = create_parser(__doc__)
    p.add_argument("--checkpoint", type=Path, required=True, help="of the student")
    p.add_argument("--shar-dir", type=as_path, required=True, help="labelled set")
    add_graph_options(p, nargs="+")
    return p


def run(args: argparse.Namespace) -> tuple[float, HlgOptions]:
    """Run the command; return the lowest WER in percent and its weights."""
    from icefall_kd.data.cuts import load_wave
    from icefall_kd.data.features import compute_fbank
    from icefall_kd.fields.reader import open_shar
    from icefall_kd.recognition.recognise import (
        encode_full_context,
        load_recogniser,
        reference_words,
    )
    from icefall_kd.recognition.scoring import Recognition, count_errors

    require_packages("kaldifst", "kaldingram", *DECODERS[METHOD].packages)
    model, tokenizer, _ = load_recogniser(args.checkpoint, "ctc")
    graph = load_word_graph(args, tokenizer)
    encoded = []
    for cut in tqdm(open_shar(args.shar_dir), desc="encode", unit="cut"):
        (features,) = compute_fbank([load_wave(cut)])
        is_long = len(features) >= model.min_frames
        output = encode_full_context(model, [features]) if is_long else None
        encoded.append((cut, output))
    if not any(reference_words(cut) for cut, _ in encoded):
        raise ValueError(f"{args.shar_dir}: no transcripts; name a labelled set")
    results = []
    for weights in itertools.product(*(getattr(args, name) for name in WEIGHTS)):
        options = HlgOptions(**dict(zip(WEIGHTS, weights)))
        fst = compile_hlg(graph, tokenizer, options)
        search = DecodeOptions(
            METHOD,
            unk_id=tokenizer.unk_id,
            graph=DecodingGraph(args.output, "", fst),
        )
        found = []
        for cut, output in encoded:
            # As in bin.decode, a cut shorter than a frame has no words.
            (hyp,) = decode(model, *output, search) if output else (Hypothesis(),)
            words = tokenizer.decode(hyp.tokens).split()
            found.append(Recognition(cut.id, reference_words(cut), words))
        errors = count_errors(found)
        print(f"WER {errors.wer:.2f} %: {options}", flush=True)
        results.append((errors.wer, options))
    wer, options = min(results, key=lambda result: result[0])
    save_graph(compile_hlg(graph, tokenizer, options), args.output)
    print(f"{args.output}: WER {wer:.2f} %, {options}")
    return wer, options


def main() -> None:
    setup_logging()
    with exit_on_error("tune_hlg"), torch.no_grad():
        run(get_parser().parse_args())


if __name__ == "__main__":
    tune_cpu()
    main()
