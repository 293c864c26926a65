"""Write transcripts by Whisper into a copy of a Shar folder's cuts.

    python -m icefall_kd.bin.pseudo_label --shar-dir data/shar/unlabelled_en \\
        --model-dir download/teachers/whisper_base \\
        --output data/shar/unlabelled_en_whisper_base

The output is a Shar folder of the same cuts with supervisions; audio and teachers'
fields are links to those of the input.  A cut whose transcript is empty, uncertain, in
too many words for its length, or longer than Whisper hears has none, and is counted:
terms that need text pass it by.

Texts are written in --case, with the letters of --language.  --numbers is the style of
numbers: EIGHTEEN FORTY TWO (spoken), ONE EIGHT FOUR TWO (digits, as telephone prompts
read extensions), or 1842 (keep, not in English).  With --bpe-model of the student, a
transcript that its tokens cannot write has none either:

    python -m icefall_kd.bin.pseudo_label --language fr --case lower \\
        --bpe-model own/lang/bpe.model ...

The processes that torchrun starts share the shards (with --device cuda each takes a GPU
of its own), and the last one tells what became of all cuts.  Run again after a crash,
in any number, they go on with the shards that were being written:

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
from icefall_kd.data.normalise import CASES
from icefall_kd.data.numbers import STYLES
from icefall_kd.data.tokens import Tokenizer
from icefall_kd.pseudo.progress import histogram
from icefall_kd.pseudo.pseudo_label import PseudoLabelSummary, pseudo_label
from icefall_kd.teachers.whisper_text import WhisperText


def get_parser() -> argparse.ArgumentParser:
    """Return the command's arguments."""
    p = create_parser(__doc__)
    p.add_argument("--shar-dir", required=True, help="Shar folder to transcribe")
    p.add_argument("--model-dir", required=True, help="Whisper in CTranslate2's form")
    p.add_argument("--output", required=True, help="the new Shar folder")
    p.add_argument("--language", default="en", help="of the speech and the spelling")
    p.add_argument("--case", choices=CASES, default="upper", help="of the transcripts")
    p.add_argument("--numbers", choices=STYLES, default="spoken", help="as words: how")
    p.add_argument(
        "--bpe-model",
        metavar="FILE",
        help="of the student: what has tokens that it does not know is not taken",
    )
    p.add_argument("--beam", type=int, default=1, help="hypotheses of the search")
    p.add_argument("--compute-type", default="int8", help="of CTranslate2")
    p.add_argument(
        "--num-threads",
        type=int,
        default=default_num_threads(),
        help="CPU threads of this process; by default its share of the machine's CPUs",
    )
    p.add_argument("--device", default="cpu", help="cpu or cuda")
    p.add_argument("--batch-size", type=int, default=8, help="utterances")
    p.add_argument(
        "--min-confidence",
        type=float,
        default=-0.7,
        help="least mean log-probability of a transcript's tokens",
    )
    p.add_argument(
        "--max-words-per-second",
        type=float,
        default=6.0,
        help="of a transcript; one with more is left out",
    )
    return p


def main() -> None:
    """Run the command."""
    args = get_parser().parse_args()
    setup_logging()
    torch.set_num_threads(args.num_threads)
    with exit_on_error("pseudo_label"):
        check_device(args.device)
        world = init_world("cpu")
        report = make(args, world)
        close_world()
    tell(args.output, report)


def make(args: argparse.Namespace, world: World) -> PseudoLabelSummary:
    """Write this process's share of the transcripts."""
    tokenizer = None if args.bpe_model is None else Tokenizer(args.bpe_model)
    reader = WhisperText(
        args.model_dir,
        args.language,
        args.beam,
        compute_type=args.compute_type,
        num_threads=args.num_threads,
        device=assign_device(args.device),
    )
    place = f" (process 1 of {world.size})" if world.size > 1 else ""
    with contextlib.closing(AudioProgress(f"{args.shar_dir}{place}")) as progress:
        return pseudo_label(
            args.shar_dir,
            args.output,
            reader,
            batch_size=args.batch_size,
            min_confidence=args.min_confidence,
            max_words_per_second=args.max_words_per_second,
            language=args.language,
            case=args.case,
            numbers=args.numbers,
            tokenizer=tokenizer,
            world=world,
            progress=progress if world.is_main else None,
        )


def tell(output: str, report: PseudoLabelSummary) -> None:
    """Log what became of all cuts, or what is left for others to do."""
    if report.missing:
        logging.info(
            "%s: not complete, %d shards are missing: they are other processes' to "
            "make; the last one tells the totals",
            output,
            report.missing,
        )
        return
    logging.info(
        "%s: %s",
        output,
        ", ".join(f"{n} {what}" for what, n in sorted(report.counts.items())),
    )
    if report.confidences:
        logging.info(
            "%s: mean log-probability of a transcript's tokens, cuts, and share of the "
            "cuts from there up (--min-confidence chooses)\n%s",
            output,
            histogram(report.confidences),
        )


if __name__ == "__main__":
    # Of this process as a whole, so not in main(), which others may call.
    keep_freed_memory(one_arena=True)  # before the first model: its buffers come again
    main()
