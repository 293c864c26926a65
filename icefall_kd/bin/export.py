"""Export a checkpoint to the ONNX files that sherpa-onnx runs.

    python -m icefall_kd.bin.export --checkpoint exp/pretrained.pt \\
      --out-dir exp/export --check-shar data/shar/dev --check

writes encoder.onnx (whole utterances), decoder.onnx, joiner.onnx, tokens.txt, bpe.vocab
and export.json; with ``--streaming`` the encoder reads chunks, those of the
checkpoint's configuration unless --chunk-size and --left-context name others, and is
encoder-streaming-chunk-16-left-128.onnx; run it twice for both.  With ``--head ctc``
one file takes the place of the three: model.onnx, or
model-streaming-chunk-16-left-128.onnx; both heads may go to one folder.

With --check-shar also the .int8.onnx files, unless they lose more than --max-int8-loss
percent WER on those cuts: then they are removed, the command prints the figure and
exits with status 3 (1 is any other failure); the float32 files stay.  Where no cut has
text, int8 is compared with the float32 hypotheses.
``--check`` compares PyTorch, ONNX Runtime and sherpa-onnx on the set, token for token,
and prints the verdict: match, ties, explained flips, or MISMATCH with status 1.
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
from icefall_kd.recognition.options import Chunking, add_chunking
from icefall_kd.transducer.checkpoint import HEADS

INT8_REFUSED = 3  # exit status: the recipe may go on with the float32 files


def get_parser() -> argparse.ArgumentParser:
    p = create_parser(__doc__)
    p.add_argument(
        "--checkpoint", type=Path, required=True, help="file of bin.average or of a run"
    )
    p.add_argument("--out-dir", type=Path, required=True, help="receives the files")
    p.add_argument(
        "--head", choices=sorted(HEADS), default="transducer", help="of the student"
    )
    add_chunking(p, "checkpoint")
    p.add_argument(
        "--check-shar", type=as_path, nargs="+", default=[], help="sets to check on"
    )
    p.add_argument("--check", action="store_true", help="compare the three engines")
    p.add_argument("--no-int8", action="store_true", help="float32 only")
    p.add_argument(
        "--max-int8-loss",
        type=non_negative_float,
        default=0.3,
        help="%% WER absolute",
    )
    return p


def run(args: argparse.Namespace) -> None:
    """Export as ``args`` say."""
    from icefall_kd.export.convert import Exporter
    from icefall_kd.fields.reader import open_shar

    if args.check and not args.check_shar:
        raise ValueError(
            "--check needs --check-shar, the set to compare the engines on"
        )
    require_packages("onnx")
    if args.check or (args.check_shar and not args.no_int8):
        require_packages("onnxruntime", "sherpa_onnx")
    cuts = [cut for folder in args.check_shar for cut in open_shar(folder)]
    if args.check_shar and not cuts:
        raise ValueError(
            f"--check-shar: no cut in {', '.join(map(str, args.check_shar))}"
        )
    conversion = Exporter(args.checkpoint, args.out_dir, args.head)
    chunking = None
    if args.streaming:
        asked = (args.chunk_size, args.left_context)
        chunking = Chunking.of(conversion.model, *asked, where=str(args.checkpoint))
    files = conversion.write(chunking)
    print(f"wrote {files.encoder}")
    if args.check:
        lines = conversion.check(files, cuts).lines()
        print(f"{files.encoder.name}: " + "\n".join(lines))
    if cuts and not args.no_int8:
        report = conversion.quantize(files, cuts, args.max_int8_loss)
        print(
            f"{files.int8.encoder.name}: WER {report.wer_int8:.2f} %, float32 "
            f"{report.wer_float:.2f} %: {report.loss:+.2f} absolute"
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
    tune_cpu()  # of this process as a whole, so not in main(), which others may call
    main()
