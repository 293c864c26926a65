"""Transcribe an unlabelled Shar folder with Whisper.

    python -m icefall_kd.bin.pseudo_label --shar-dir data/shar/unlabelled_en \\
        --model-dir download/teachers/whisper_base \\
        --output data/shar/unlabelled_en_whisper_base

The output is a Shar folder with the same cuts and their pseudo-labels; audio and fields
are links to the input.  A cut gets no supervision if it is longer than 30 s, or if its
transcript is empty, has a low confidence or has too many words.  Loss terms that need
text skip this cut.

The texts are normalised to --case and to the letters of --language.  --numbers is the
style of numbers: EIGHTEEN FORTY TWO (spoken), ONE EIGHT FOUR TWO (digits, as in
telephone prompts), or 1842 (keep, not for English).  With --bpe-model of the student,
transcripts with unknown tokens are rejected too:

    python -m icefall_kd.bin.pseudo_label --language fr --case lower \\
        --bpe-model own/lang/bpe.model ...

The processes of torchrun share the shards; with --device cuda each uses its own GPU.
The process that finishes last logs the counts.  After a crash, the same command with
any number of processes continues with the shards that were being written:

    torchrun --nproc_per_node 8 -m icefall_kd.bin.pseudo_label --device cuda ...
"""

import argparse
import contextlib
import logging

import torch

from icefall_kd.core.cli import create_parser, exit_on_error
from icefall_kd.core.cpu import default_num_threads, keep_freed_memory
from icefall_kd.core.distributed import (
    World,
    assign_device,
    check_device,
    close_world,
    init_world,
)
from icefall_kd.core.logs import AudioProgress, setup_logging
from icefall_kd.data.normalise import CASES, STYLES
from icefall_kd.data.tokens import Tokenizer
from icefall_kd.pseudo.progress import format_histogram
from icefall_kd.pseudo.pseudo_label import (
    PseudoLabelSummary,
    TranscriptFilter,
    pseudo_label,
)
from icefall_kd.teachers.whisper_ct2 import WhisperText


def get_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = create_parser(__doc__)
    add = parser.add_argument
    add("--shar-dir", required=True, help="Shar folder to transcribe")
    add("--output", required=True, help="new Shar folder")

    add = parser.add_argument_group("Whisper").add_argument
    add("--model-dir", required=True, help="folder of a CTranslate2 model")
    add("--language", default="en", help="language code of the audio and the texts")
    add("--beam", type=int, default=1, help="beam size; 1 is greedy search")
    add("--compute-type", default="int8", help="compute type of CTranslate2")
    add("--batch-size", type=int, default=8, help="utterances per batch")
    add("--device", default="cpu", help="cpu, cuda or cuda:<number>")
    threads = "CPU threads (default: this process's share of the CPUs)"
    add("--num-threads", type=int, default=default_num_threads(), help=threads)

    add = parser.add_argument_group("transcripts").add_argument
    add("--case", choices=CASES, default="upper", help="case of the texts")
    add("--numbers", choices=STYLES, default="spoken", help="style of numbers")
    bpe_model = "BPE model of the student, to reject transcripts with unknown tokens"
    add("--bpe-model", metavar="FILE", help=bpe_model)
    confidence = "minimum mean log-probability of a transcript's tokens in nats"
    add("--min-confidence", type=float, default=-0.7, help=confidence)
    words = "maximum number of words per second of audio"
    add("--max-words-per-second", type=float, default=6.0, help=words)
    return parser


def main() -> None:
    """Run the command."""
    args = get_parser().parse_args()
    setup_logging()
    torch.set_num_threads(args.num_threads)
    with exit_on_error("pseudo_label"):
        check_device(args.device)
        world = init_world("cpu")
        summary = transcribe(args, world)
        close_world()
    log_summary(args.output, summary)


def transcribe(args: argparse.Namespace, world: World) -> PseudoLabelSummary:
    """Transcribe this process's shards, and return the counts of all processes."""
    transcript_filter = TranscriptFilter(
        args.min_confidence,
        args.max_words_per_second,
        args.language,
        args.case,
        args.numbers,
        None if args.bpe_model is None else Tokenizer(args.bpe_model),
    )
    whisper = WhisperText(
        args.model_dir,
        args.language,
        args.beam,
        compute_type=args.compute_type,
        num_threads=args.num_threads,
        device=assign_device(args.device),
    )
    rank = f" (process 1 of {world.size})" if world.size > 1 else ""
    with contextlib.closing(AudioProgress(f"{args.shar_dir}{rank}")) as progress:
        return pseudo_label(
            args.shar_dir,
            args.output,
            whisper,
            transcript_filter,
            batch_size=args.batch_size,
            world=world,
            progress=progress if world.is_main else None,
        )


def log_summary(output: str, summary: PseudoLabelSummary) -> None:
    """Log the counts of all cuts, or the number of missing shards."""
    if summary.missing:
        logging.info(
            "%s: not complete, other processes have to finish %d shards; the last "
            "process logs the counts",
            output,
            summary.missing,
        )
        return
    counts = ", ".join(
        f"{n} {verdict}" for verdict, n in sorted(summary.counts.items())
    )
    logging.info("%s: %s", output, counts)
    if summary.confidences:
        logging.info(
            "%s: confidence (see --min-confidence), cuts, share of cuts with at least "
            "this confidence\n%s",
            output,
            format_histogram(summary.confidences),
        )


if __name__ == "__main__":
    # Affects the whole process, hence not in main(), which other code may call.  Called
    # before the model is loaded, so that its buffers are reused too.
    keep_freed_memory(one_arena=True)
    main()
