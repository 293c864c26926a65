"""Write transcripts by Whisper into a copy of a Shar folder's cuts.

    python -m icefall_kd.bin.pseudo_label --shar-dir data/shar/unlabelled_en \\
        --model-dir download/teachers/whisper_base \\
        --output data/shar/unlabelled_en_whisper_base

The output is a Shar folder of the same cuts with supervisions; audio and teachers'
fields are links to those of the input.  A cut whose transcript is empty, uncertain, in
too many words for its length, or longer than Whisper hears has none, and is counted:
terms that need text pass it by.
"""

import argparse
import logging
from collections import Counter

import torch

from icefall_kd.cache.pseudo import pseudo_label
from icefall_kd.cpu import keep_freed_memory
from icefall_kd.logs import setup_logging
from icefall_kd.teachers.whisper_text import WhisperText


def get_parser() -> argparse.ArgumentParser:
    """Return the command's arguments."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--shar-dir", required=True)
    p.add_argument("--model-dir", required=True, help="Whisper in CTranslate2's form")
    p.add_argument("--output", required=True, help="the new Shar folder")
    p.add_argument("--language", default="en")
    p.add_argument("--beam", type=int, default=1)
    p.add_argument("--compute-type", default="int8")
    p.add_argument("--num-threads", type=int, default=2)
    p.add_argument("--device", default="cpu")
    p.add_argument("--batch-size", type=int, default=8, help="utterances")
    p.add_argument(
        "--min-confidence",
        type=float,
        default=-0.7,
        help="least mean log-probability of a transcript's tokens",
    )
    p.add_argument("--max-words-per-second", type=float, default=6.0)
    return p


def main() -> None:
    """Run the command."""
    args = get_parser().parse_args()
    setup_logging()
    keep_freed_memory(one_arena=True)  # before the first model: its buffers come again
    torch.set_num_threads(args.num_threads)
    try:
        reader = WhisperText(
            args.model_dir,
            args.language,
            args.beam,
            compute_type=args.compute_type,
            num_threads=args.num_threads,
            device=args.device,
        )
        counts: Counter = pseudo_label(
            args.shar_dir,
            args.output,
            reader,
            batch_size=args.batch_size,
            min_confidence=args.min_confidence,
            max_words_per_second=args.max_words_per_second,
        )
    except (ValueError, OSError) as e:
        raise SystemExit(f"pseudo_label: {e}") from e
    logging.info(
        "%s: %s",
        args.output,
        ", ".join(f"{n} {what}" for what, n in sorted(counts.items())),
    )


if __name__ == "__main__":
    main()
