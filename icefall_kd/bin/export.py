"""Export a checkpoint to ONNX files for sherpa-onnx.

    python -m icefall_kd.bin.export --checkpoint exp/pretrained.pt \\
      --out-dir exp/export --check-shar data/shar/dev --check

This writes encoder.onnx (full context), decoder.onnx, joiner.onnx, tokens.txt,
bpe.model, bpe.vocab and export.json.  With --streaming, the encoder reads chunks, and
its name has their size: encoder-streaming-chunk-16-left-128.onnx.  With --head ctc, one
file replaces encoder, decoder and joiner: model.onnx, or
model-streaming-chunk-16-left-128.onnx.  Several encoders of one checkpoint can be
exported to one folder, one after another.  --graph adds HLG.fst for the method ctc_hlg.

--check-shar also writes .int8.onnx files if their WER on the set is at most
--max-int8-loss percent (absolute) higher.  Otherwise the command removes them, prints
the WER and exits with status 3 (1 for other errors); the float32 files are kept.  If no
cut has text, the float32 hypotheses are the references.

--check compares the tokens of PyTorch, ONNX Runtime and sherpa-onnx on the set.  It
prints "match", or "MISMATCH" and exits with status 1.  Ties and flips that rounding
explains count as a match.
"""

import argparse
import sys
from pathlib import Path

from icefall_kd.core.cli import (
    create_parser,
    exit_on_error,
    non_negative_float,
    require_packages,
)
from icefall_kd.core.cpu import tune_cpu
from icefall_kd.core.files import as_path
from icefall_kd.core.logs import setup_logging
from icefall_kd.recognition.options import Chunking, add_chunk_options
from icefall_kd.transducer.checkpoint import HEADS

INT8_REFUSED = 3  # exit status; recipes continue with the float32 files


def get_parser() -> argparse.ArgumentParser:
    p = create_parser(__doc__)
    p.add_argument(
        "--checkpoint", type=Path, required=True, help="file of bin.average or a run"
    )
    p.add_argument("--out-dir", type=Path, required=True, help="export folder")
    p.add_argument(
        "--head", choices=sorted(HEADS), default="transducer", help="head to export"
    )
    p.add_argument(
        "--graph",
        type=Path,
        help="HLG.fst of bin.compile_hlg to copy into the folder, with --head ctc",
    )
    add_chunk_options(p, "checkpoint")
    p.add_argument(
        "--check-shar",
        type=as_path,
        nargs="+",
        default=[],
        help="folders or URLs of the sets for --check and int8",
    )
    p.add_argument("--check", action="store_true", help="compare the three engines")
    p.add_argument("--no-int8", action="store_true", help="write only float32 files")
    p.add_argument(
        "--max-int8-loss",
        type=non_negative_float,
        default=0.3,
        help="maximum increase of the WER by int8, in percent absolute",
    )
    return p


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from icefall_kd.export.convert import Exporter
    from icefall_kd.fields.reader import open_shar

    if args.check and not args.check_shar:
        raise ValueError("--check needs a set; name its folder with --check-shar")
    require_packages("onnx")
    if args.check or (args.check_shar and not args.no_int8):
        require_packages("onnxruntime", "sherpa_onnx")
    if args.graph:
        require_packages("kaldifst")
    cuts = [cut for folder in args.check_shar for cut in open_shar(folder)]
    if args.check_shar and not cuts:
        raise ValueError(
            f"--check-shar: no cuts in {', '.join(map(str, args.check_shar))}"
        )
    exporter = Exporter(args.checkpoint, args.out_dir, args.head, args.graph)
    chunking = None
    if args.streaming:
        chunking = Chunking.from_model(
            exporter.model,
            args.chunk_size,
            args.left_context,
            where=str(args.checkpoint),
        )
    files = exporter.write(chunking)
    print(f"wrote {files.encoder}")
    if args.check:
        lines = exporter.check(files, cuts).lines()
        print(f"{files.encoder.name}: " + "\n".join(lines))
    if cuts and not args.no_int8:
        result = exporter.quantize(files, cuts, args.max_int8_loss)
        print(
            f"{files.int8.encoder.name}: WER {result.wer_int8:.2f} %, float32 "
            f"{result.wer_float:.2f} %: {result.loss:+.2f} absolute"
        )


def main() -> None:
    setup_logging()
    from icefall_kd.export.quantize import Int8Refused

    with exit_on_error("export"):
        try:
            run(get_parser().parse_args())
        except Int8Refused as e:
            print(f"export: {e}", file=sys.stderr)
            raise SystemExit(INT8_REFUSED) from e


if __name__ == "__main__":
    tune_cpu()  # not in main(), because it changes the whole process
    main()
