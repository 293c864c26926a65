"""Transcribe audio files or a Shar set with sherpa-onnx.

    python -m icefall_kd.bin.transcribe --model-dir exp/export a.wav b.flac c.m4a

This prints one line per file.  Channels are averaged.  If a file cannot be read, the
command prints the reason to stderr, continues with the other files, and exits with
status 1.

    python -m icefall_kd.bin.transcribe --model-dir exp/export --streaming \\
      --shar-dir data/shar/test --out-dir exp/decode

This writes the same result files as bin.decode and reuses them in the same way.  The
real-time factor is that of one utterance at a time.  --alignment and --hotwords are
those of bin.decode.  The default of --graph is HLG.fst in the export folder.
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
from icefall_kd.decoding import DecodeOptions, get_search_class
from icefall_kd.recognition.options import add_decoding_options
from icefall_kd.recognition.result_files import result_line, warn_about_empty


def get_parser() -> argparse.ArgumentParser:
    p = create_parser(__doc__)
    p.add_argument("--model-dir", type=Path, required=True, help="export folder")
    p.add_argument(
        "audio", type=Path, nargs="*", help="audio files of any format and rate"
    )
    p.add_argument("--shar-dir", type=as_path, help="folder or URL of the set")
    p.add_argument("--out-dir", type=Path, help="folder of the results of --shar-dir")
    p.add_argument("--alignment", type=Path, help="CTM file of the set, from bin.align")
    add_decoding_options(p, "only streaming encoder in the folder")
    p.add_argument("--int8", action="store_true", help="use the .int8.onnx files")
    threads = default_num_threads()
    p.add_argument("--threads", type=positive_int, default=threads, help="CPU threads")
    p.add_argument("--force", action="store_true", help="ignore an existing result")
    return p


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from icefall_kd.export.files import ModelFiles, find_chunking
    from icefall_kd.export.transcribe import read_export_graph, read_export_hotwords

    if bool(args.audio) == bool(args.shar_dir):
        raise ValueError("name either audio files or a set with --shar-dir")
    if args.shar_dir and not args.out_dir:
        raise ValueError("--shar-dir needs a folder for the results; set --out-dir")
    require_packages("onnx", "sherpa_onnx", *get_search_class(args.method).packages)
    head = get_search_class(args.method).head
    chunking = None
    if args.streaming:
        chunking = find_chunking(
            args.model_dir, args.chunk_size, args.left_context, args.int8, head
        )
    files = ModelFiles.in_folder(args.model_dir, chunking, args.int8, head)
    options = DecodeOptions(
        args.method,
        args.beam,
        args.blank_penalty,
        hotwords=args.hotwords
        and read_export_hotwords(files, args.hotwords, args.hotwords_score),
        graph=read_export_graph(files, args.method, args.graph),
        max_utterance=args.max_utterance,
    )
    if args.audio:
        print_transcripts(args, files, options)
    else:
        result = transcribe_set(args, files, options)
        print(f"{result_line(result)}, real-time factor {result['rtf']}")


def print_transcripts(args: argparse.Namespace, files, options: DecodeOptions) -> None:
    """Print the transcript of each audio file.

    Raises:
      SystemExit: if a file cannot be read; the other files are transcribed before.
    """
    from icefall_kd.export.transcribe import transcribe_files

    failed = empty = 0
    for path, text, error in transcribe_files(files, args.audio, options, args.threads):
        if error is None:
            print(f"{path}\t{text}", flush=True)
            empty += not text
        else:
            failed += 1
            print(f"transcribe: {path}: {error}", file=sys.stderr)
    warn_about_empty(empty, len(args.audio) - failed, args.method, "sherpa-onnx")
    if failed:
        raise SystemExit(
            f"transcribe: {failed} of {len(args.audio)} files not transcribed"
        )


def transcribe_set(args: argparse.Namespace, files, options: DecodeOptions) -> dict:
    """Transcribe a Shar set; return the contents of the result JSON."""
    from icefall_kd.export.transcribe import (
        sherpa_info,
        sherpa_suffix,
        transcribe_cuts,
    )
    from icefall_kd.fields.reader import open_shar
    from icefall_kd.recognition.ctm import count_transcripts
    from icefall_kd.recognition.delay import WordAlignment
    from icefall_kd.recognition.result_cache import decode_or_reuse, input_hashes

    cuts = open_shar(args.shar_dir)
    count_transcripts(args.shar_dir)
    info = sherpa_info(files, options, args.threads, args.int8)
    alignment = WordAlignment.load(args.alignment, args.shar_dir)
    return decode_or_reuse(
        args.out_dir,
        args.shar_dir.name,
        sherpa_suffix(options, files.chunking, args.int8),
        {**info, **alignment.info, **input_hashes(args.shar_dir)},
        decode=lambda: transcribe_cuts(files, cuts, options, args.threads),
        measure=lambda found: alignment.delay_metrics(found, files.chunking),
        force=args.force,
    )


def main() -> None:
    setup_logging()
    with exit_on_error("transcribe"):
        run(get_parser().parse_args())


if __name__ == "__main__":
    main()
