"""Align the transcripts of a Shar set with the CTC head of a checkpoint.

    python -m icefall_kd.bin.align --checkpoint exp/pretrained.pt \\
      --shar-dir data/shar/test --output data/alignment/test.ctm

This writes the times of all words to a CTM file, and the checkpoint to test.ctm.json.
bin.decode --alignment uses them to measure emission delay and latency.  Align a set
once, with the best model, and measure all systems with this alignment.  If the
checkpoint reads fields, they must be in --shar-dir.  An existing alignment is reused if
set, checkpoint and code are unchanged.
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
        "--checkpoint", type=Path, required=True, help="file of bin.average or a run"
    )
    p.add_argument("--shar-dir", required=True, help="folder or URL of the set")
    p.add_argument("--output", required=True, help="CTM file to write")
    p.add_argument("--force", action="store_true", help="ignore an existing alignment")
    p.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="cpu, cuda or cuda:<number>",
    )
    return p


def is_modified(ctm: Pathlike, info_path: Path) -> bool:
    """Return whether a CTM file is missing or was changed after bin.align wrote it."""
    sha256 = read_json(info_path).get("alignment_sha256", "")
    return not as_path(ctm).is_file() or sha256_file(ctm) != sha256


def run(args: argparse.Namespace) -> dict:
    """Run the command; return the aligned words of each cut."""
    from icefall_kd.fields.codecs.storage import load_codecs
    from icefall_kd.fields.reader import open_shar
    from icefall_kd.recognition.ctm import (
        ctm_info_path,
        read_channels,
        read_ctm,
        read_transcripts,
        write_ctm,
    )
    from icefall_kd.recognition.forced_alignment import align_cuts
    from icefall_kd.recognition.recognise import load_recogniser
    from icefall_kd.recognition.result_cache import cached_result, input_hashes

    check_device(args.device)
    if not any(read_transcripts(args.shar_dir).values()):
        raise ValueError(
            f"{args.shar_dir}: no transcripts to align; choose a labelled set"
        )
    model, tokenizer, _ = load_recogniser(args.checkpoint, "ctc", args.device)
    info = {
        "checkpoint": str(args.checkpoint),
        "checkpoint_sha256": sha256_file(args.checkpoint),
        "device": str(args.device),
        **input_hashes(args.shar_dir, model.fields),
    }
    info_path, force = ctm_info_path(args.output), args.force
    if info_path.is_file() and not force and is_modified(args.output, info_path):
        force = True
        logging.info(
            "%s is computed again: it differs from the file that %s describes",
            args.output,
            info_path,
        )
    if cached_result(info_path, info, force):
        return read_ctm(args.output)
    channels = read_channels(args.shar_dir)
    cuts = open_shar(args.shar_dir, model.fields)
    codecs = load_codecs(args.shar_dir, model.fields)
    times = align_cuts(model, cuts, tokenizer, codecs, len(channels))
    write_ctm(args.output, times, channels, info)
    return times


def main() -> None:
    setup_logging()
    args = get_parser().parse_args()
    with exit_on_error("align"):
        times = run(args)
    words = sum(len(items) for items in times.values())
    logging.info("%s: %d words of %d cuts", args.output, words, len(times))


if __name__ == "__main__":
    tune_cpu()  # not in main(), because it changes the whole process
    main()
