"""Transcribe with sherpa-onnx from an export folder.

    python -m icefall_kd.bin.transcribe --model-dir exp/export a.wav b.flac

prints a line for each file.  With a Shar set in place of the files,

    python -m icefall_kd.bin.transcribe --model-dir exp/export --streaming \\
      --shar-dir data/shar/test --out-dir exp/decode

writes recogs-, errs-, wer-summary- and result- files as bin.decode does, the real-time
factor measured one utterance at a time on --threads threads.  --alignment, a CTM file
of bin.align, adds how late words are recognised, --hotwords finds phrases rather than
misses them, as they do there.
"""

import argparse
from pathlib import Path

from icefall_kd.cli import command_parser, expected_failures
from icefall_kd.cpu import default_threads
from icefall_kd.decoding import DECODERS, DecodeOptions, search_class
from icefall_kd.decoding.alignment import SetAlignment
from icefall_kd.decoding.hotwords import add_hotwords
from icefall_kd.decoding.scoring import result_path, write_results
from icefall_kd.decoding.setting import Chunking, kept_result
from icefall_kd.io import as_path
from icefall_kd.logs import setup_logging


def get_parser() -> argparse.ArgumentParser:
    p = command_parser(__doc__)
    p.add_argument("--model-dir", type=Path, required=True, help="of bin.export")
    p.add_argument("audio", type=Path, nargs="*", help="files of any rate")
    p.add_argument("--shar-dir", type=as_path, help="folder or URL")
    p.add_argument("--out-dir", type=Path, help="for the results of --shar-dir")
    p.add_argument("--alignment", type=Path, help="of the set, a file of bin.align")
    p.add_argument(
        "--method",
        choices=sorted(DECODERS),
        default="greedy_search",
        help="search",
    )
    p.add_argument("--beam", type=int, default=4)
    p.add_argument("--blank-penalty", type=float, default=0.0)
    add_hotwords(p)
    p.add_argument("--streaming", action="store_true", help="chunk by chunk")
    p.add_argument("--chunk-size", type=int, default=16, help="20 ms frames")
    p.add_argument("--left-context", type=int, default=64, help="20 ms frames")
    p.add_argument("--int8", action="store_true", help="the .int8.onnx files")
    p.add_argument("--threads", type=int, default=default_threads(), help="CPU threads")
    p.add_argument("--force", action="store_true", help="transcribe again")
    return p


def run(args: argparse.Namespace) -> None:
    """Transcribe as ``args`` say."""
    from icefall_kd.cache.reader import open_shar
    from icefall_kd.export import transcribe
    from icefall_kd.export.files import ModelFiles

    if bool(args.audio) == bool(args.shar_dir):
        raise ValueError("give audio files or --shar-dir, one of the two")
    if args.shar_dir and not args.out_dir:
        raise ValueError("--shar-dir needs --out-dir for its results")
    chunking = Chunking(args.chunk_size, args.left_context) if args.streaming else None
    head = search_class(args.method).head
    files = ModelFiles.of(args.model_dir, chunking, args.int8, head)
    options = DecodeOptions(
        args.method,
        args.beam,
        args.blank_penalty,
        hotwords=args.hotwords
        and transcribe.hotwords(files, args.hotwords, args.hotwords_score),
    )
    if args.audio:
        for path, text in transcribe.files(files, args.audio, options, args.threads):
            print(f"{path}\t{text}")
        return
    cuts = open_shar(args.shar_dir)
    facts = transcribe.facts(files, options, args.threads, args.int8)
    suffix = transcribe.suffix(options, chunking, args.int8)
    name = args.shar_dir.name
    done = result_path(args.out_dir, name, suffix)
    alignment = SetAlignment.load(args.alignment, args.shar_dir)
    digest = facts["checkpoint_sha256"]
    result = kept_result(done, digest, args.force, alignment.sha256)
    if result is None:
        found, rtf = transcribe.cuts(files, cuts, options, args.threads)
        facts.update(alignment.facts, rtf=round(rtf, 5))
        figures = alignment.figures(found, chunking)
        result = write_results(args.out_dir, name, suffix, found, facts, figures)
    print(
        f"{name} {suffix}: WER {result['wer']:.2f} %, real-time factor {result['rtf']}"
    )


def main() -> None:
    setup_logging()
    with expected_failures("transcribe"):
        run(get_parser().parse_args())


if __name__ == "__main__":
    main()
