"""Transcribe with sherpa-onnx from an export folder.

    python -m icefall_kd.bin.transcribe --model-dir exp/export a.wav b.flac c.m4a

prints a line for each file.  A file that cannot be read gets a line on stderr with the
reason; the others are transcribed, and the exit status is 1.  Channels are averaged.
Without --streaming, audio longer than --max-utterance is cut into windows in pauses.
With a Shar set in place of the files,

    python -m icefall_kd.bin.transcribe --model-dir exp/export --streaming \\
      --shar-dir data/shar/test --out-dir exp/decode

writes and keeps result files as bin.decode does, the real-time
factor measured one utterance at a time on --threads threads.  --alignment, a CTM file
of bin.align, adds how late words are recognised, --hotwords finds phrases rather than
misses them, as they do there.
"""

import argparse
import sys
from pathlib import Path

from icefall_kd.core.cli import (
    create_parser,
    exit_on_error,
    positive_int,
    require_packages,
)
from icefall_kd.core.cpu import default_num_threads
from icefall_kd.core.files import as_path
from icefall_kd.core.logs import setup_logging
from icefall_kd.decoding import DECODERS, DecodeOptions, get_search_class
from icefall_kd.decoding.hotwords import add_hotwords
from icefall_kd.recognition.ctm import count_transcripts
from icefall_kd.recognition.delay import WordAlignment
from icefall_kd.recognition.long_audio import add_max_utterance
from icefall_kd.recognition.options import add_chunking, add_search, warn_of_empty
from icefall_kd.recognition.result_cache import cached_result, input_hashes
from icefall_kd.recognition.result_files import result_line, result_path, write_results


def get_parser() -> argparse.ArgumentParser:
    p = create_parser(__doc__)
    p.add_argument("--model-dir", type=Path, required=True, help="of bin.export")
    p.add_argument("audio", type=Path, nargs="*", help="files of any format and rate")
    p.add_argument("--shar-dir", type=as_path, help="folder or URL")
    p.add_argument("--out-dir", type=Path, help="for the results of --shar-dir")
    p.add_argument("--alignment", type=Path, help="of the set, a file of bin.align")
    add_search(p, DECODERS, "greedy_search")
    add_hotwords(p)
    add_chunking(p, "one streaming encoder in the folder")
    add_max_utterance(p)
    p.add_argument("--int8", action="store_true", help="the .int8.onnx files")
    p.add_argument(
        "--threads",
        type=positive_int,
        default=default_num_threads(),
        help="CPU threads",
    )
    p.add_argument("--force", action="store_true", help="transcribe again")
    return p


def run(args: argparse.Namespace) -> None:
    """Transcribe as ``args`` say."""
    from icefall_kd.export import transcribe
    from icefall_kd.export.files import ModelFiles, find_chunking
    from icefall_kd.fields.reader import open_shar

    if bool(args.audio) == bool(args.shar_dir):
        raise ValueError("give audio files or --shar-dir, one of the two")
    if args.shar_dir and not args.out_dir:
        raise ValueError("--shar-dir needs --out-dir for its results")
    require_packages("onnx", "sherpa_onnx")
    head = get_search_class(args.method).head
    chunking = None
    if args.streaming:
        asked = (args.chunk_size, args.left_context)
        chunking = find_chunking(args.model_dir, *asked, args.int8, head)
    files = ModelFiles.of(args.model_dir, chunking, args.int8, head)
    options = DecodeOptions(
        args.method,
        args.beam,
        args.blank_penalty,
        hotwords=args.hotwords
        and transcribe.hotwords(files, args.hotwords, args.hotwords_score),
        max_utterance=args.max_utterance,
    )
    if args.audio:
        failed = empty = 0
        found = transcribe.files(files, args.audio, options, args.threads)
        for path, text, reason in found:
            if reason is None:
                print(f"{path}\t{text}", flush=True)
                empty += not text
            else:
                failed += 1
                print(f"transcribe: {path}: {reason}", file=sys.stderr)
        read = len(args.audio) - failed
        warn_of_empty(empty, read, args.method, "sherpa-onnx")
        if failed:
            raise SystemExit(
                f"transcribe: {failed} of {len(args.audio)} files not transcribed"
            )
        return
    cuts = open_shar(args.shar_dir)
    count_transcripts(args.shar_dir)
    facts = transcribe.facts(files, options, args.threads, args.int8)
    suffix = transcribe.suffix(options, chunking, args.int8)
    name = args.shar_dir.name
    done = result_path(args.out_dir, name, suffix)
    alignment = WordAlignment.load(args.alignment, args.shar_dir)
    facts.update(alignment.facts, **input_hashes(args.shar_dir))
    result = cached_result(done, facts, args.force)
    if result is None:
        found, rtf = transcribe.cuts(files, cuts, options, args.threads)
        facts["rtf"] = round(rtf, 5)
        figures = alignment.figures(found, chunking)
        result = write_results(args.out_dir, name, suffix, found, facts, figures)
    print(f"{result_line(result)}, real-time factor {result['rtf']}")


def main() -> None:
    setup_logging()
    with exit_on_error("transcribe"):
        run(get_parser().parse_args())


if __name__ == "__main__":
    main()
