"""Find when each word of a Shar set was said, by the CTC head of a checkpoint.

    python -m icefall_kd.bin.align --checkpoint exp/pretrained.pt \\
      --shar-dir data/shar/test --output data/alignment/test.ctm

aligns the transcripts with full context and writes a CTM file, and test.ctm.json, which
names the checkpoint.  ``bin.decode --alignment`` measures against it how late words are
recognised; align a set once, with the best model there is, and hold all systems against
that.  A vocabulary teacher's checkpoint reads fields from the folder.  An
alignment of the same set, checkpoint and code is kept.
"""

import argparse
import logging
from pathlib import Path

import torch

from icefall_kd.core.cli import create_parser, exit_on_error
from icefall_kd.core.cpu import tune_cpu
from icefall_kd.core.distributed import check_device
from icefall_kd.core.files import Pathlike, as_path, read_json, sha256_file
from icefall_kd.core.logs import setup_logging


def get_parser() -> argparse.ArgumentParser:
    p = create_parser(__doc__)
    p.add_argument(
        "--checkpoint", type=Path, required=True, help="file of bin.average or of a run"
    )
    p.add_argument("--shar-dir", required=True, help="folder or URL")
    p.add_argument("--output", required=True, help="CTM file")
    p.add_argument("--force", action="store_true", help="align again")
    p.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="cpu, cuda or cuda:<number>",
    )
    return p


def is_unchanged(path: Pathlike, sha256: str) -> bool:
    """Return whether a file exists and has these contents."""
    return as_path(path).is_file() and sha256_file(path) == sha256


def run(args: argparse.Namespace) -> dict:
    """Align as ``args`` say; return the words of each cut."""
    from icefall_kd.fields.codecs.storage import load_codecs
    from icefall_kd.fields.reader import open_shar
    from icefall_kd.recognition.ctm import (
        ctm_info_path,
        read_channels,
        read_ctm,
        transcripts,
        write_ctm,
    )
    from icefall_kd.recognition.forced_alignment import align_cuts
    from icefall_kd.recognition.recognise import load_recogniser
    from icefall_kd.recognition.result_cache import cached_result, input_hashes

    check_device(args.device)
    if not any(transcripts(args.shar_dir).values()):
        raise ValueError(
            f"{args.shar_dir}: no transcripts to align; give a labelled set"
        )
    model, tokenizer, _ = load_recogniser(args.checkpoint, "ctc", args.device)
    facts = {
        "checkpoint": str(args.checkpoint),
        "checkpoint_sha256": sha256_file(args.checkpoint),
        "device": str(args.device),
        **input_hashes(args.shar_dir, model.fields),
    }
    facts_file, force = ctm_info_path(args.output), args.force
    if facts_file.is_file() and not force:
        digest = read_json(facts_file).get("alignment_sha256", "")
        force = not is_unchanged(args.output, digest)
        if force:
            logging.info(
                "%s is computed again: it is not the file that %s describes",
                args.output,
                facts_file,
            )
    if cached_result(facts_file, facts, force):
        return read_ctm(args.output)
    channels = read_channels(args.shar_dir)
    cuts = open_shar(args.shar_dir, model.fields)
    codecs = load_codecs(args.shar_dir, model.fields)
    times = align_cuts(model, cuts, tokenizer, codecs, len(channels))
    write_ctm(args.output, times, channels, facts)
    return times


def main() -> None:
    setup_logging()
    args = get_parser().parse_args()
    with exit_on_error("align"):
        times = run(args)
    words = sum(len(items) for items in times.values())
    logging.info("%s: %d words of %d cuts", args.output, words, len(times))


if __name__ == "__main__":
    tune_cpu()  # of this process as a whole, so not in main(), which others may call
    main()
