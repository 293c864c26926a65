"""Pass a manifest through the data gate and write it as Shar.

    python -m icefall_kd.bin.make_shar --manifest data/manifests/train.jsonl.gz \\
        --bpe-model data/lang_bpe_150/bpe.model --speeds 0.9 1.0 1.1 \\
        --output data/shar/train

Audio is resampled to 16 kHz.  A cut that ends up to 25 ms (400 samples) after its audio
is shortened to it; <output>.gate.json lists the dropped cuts and their reasons.

After a kill, the same command writes the missing shards.  A complete folder is kept,
and refused if it was made of other cuts or with other options.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

import torch
from lhotse.cut import Cut

from icefall_kd.core.cli import create_parser, exit_on_error
from icefall_kd.core.cpu import count_cpus
from icefall_kd.core.files import read_json, sha256_file
from icefall_kd.core.logs import setup_logging
from icefall_kd.data.gate import describe_drops, filter_cuts, write_gate_report
from icefall_kd.data.shar import (
    check_absent,
    fields_dir,
    hash_cuts,
    perturb_speeds,
    read_cuts,
    write_shar,
)
from icefall_kd.data.tokens import MAX_UNKNOWN, Tokenizer, UnknownLetters

MIN_CUTS_PER_JOB = 2000  # starting a process takes as long as reading 500


def get_parser() -> argparse.ArgumentParser:
    parser = create_parser(__doc__)
    parser.add_argument("--manifest", type=Path, required=True, help="manifest of cuts")
    parser.add_argument("--output", type=Path, required=True, help="Shar folder")
    parser.add_argument(
        "--bpe-model", type=Path, help="of a labelled set; none: unlabelled"
    )
    parser.add_argument(
        "--max-unknown",
        type=float,
        default=MAX_UNKNOWN,
        help="maximum share of <unk> among the tokens",
    )
    parser.add_argument(
        "--speeds", type=float, nargs="+", default=[1.0], help="speed factors"
    )
    parser.add_argument(
        "--max-duration",
        type=float,
        default=30.0,
        help="maximum duration of a cut in seconds",
    )
    parser.add_argument("--shard-size", type=int, default=200, help="cuts in a shard")
    parser.add_argument("--seed", type=int, default=0, help="seed of the shuffle")
    parser.add_argument(
        "--num-jobs",
        type=int,
        help=f"processes (default: one for each CPU, {MIN_CUTS_PER_JOB} cuts or more)",
    )
    return parser


def describe_input(args: argparse.Namespace, cuts: Sequence[Cut]) -> dict[str, Any]:
    """Return the options and checksums that determine the folder, without paths."""
    return {
        "cuts_sha256": hash_cuts(cuts),
        "bpe_model_sha256": sha256_file(args.bpe_model) if args.bpe_model else None,
        "speeds": args.speeds,
        "max_duration": args.max_duration,
        "shard_size": args.shard_size,
        "seed": args.seed,
    }


def check_made_of(output: Path, report: Path, made_of: dict[str, Any]) -> None:
    """Refuse an existing folder that was made of other cuts or with other options.

    Raises:
      ValueError: with the differences.
    """
    existing = read_json(report).get("made_of") if report.is_file() else None
    if existing is None:  # written by an earlier version
        return
    differences = [
        f"{key}: {existing.get(key)} -> {value}"
        for key, value in made_of.items()
        if existing.get(key) != value
    ]
    if differences:
        raise ValueError(
            f"{output} exists and differs ({'; '.join(differences)}); delete it and "
            f"{fields_dir(output)} to make it again, or choose another --output"
        )


def count_unknown_letters(
    cuts: Sequence[Cut], tokenizer: Tokenizer, args: argparse.Namespace
) -> UnknownLetters:
    """Count the letters that the BPE model lacks.

    Raises:
      ValueError: if more than ``--max-unknown`` of the tokens are ``<unk>``.
    """
    letters = UnknownLetters(tokenizer)
    for cut in cuts:
        for supervision in cut.supervisions:
            letters.add(supervision.text or "")
    letters.check(str(args.manifest), "--max-unknown", args.max_unknown)
    return letters


def choose_num_jobs(requested: Optional[int], num_cuts: int) -> int:
    """Return the number of processes for a set."""
    if requested is not None:
        return requested
    return max(1, min(count_cpus(), num_cuts // MIN_CUTS_PER_JOB))


def main() -> None:
    args = get_parser().parse_args()
    setup_logging()
    torch.set_num_threads(1)  # a second thread does not speed up speed perturbation
    report = args.output.with_name(f"{args.output.name}.gate.json")
    with exit_on_error("make_shar"):
        tokenizer = Tokenizer(args.bpe_model) if args.bpe_model else None
        cuts = read_cuts(args.manifest)
        made_of = describe_input(args, cuts)
        if args.output.exists():
            check_made_of(args.output, report, made_of)
            logging.info("%s is complete: nothing to do", args.output)
            return
        check_absent(args.output)
        letters = count_unknown_letters(cuts, tokenizer, args) if tokenizer else None
        cuts = perturb_speeds(cuts, args.speeds)
        num_jobs = choose_num_jobs(args.num_jobs, len(cuts))
        cuts, drops = filter_cuts(
            cuts,
            tokenize=tokenizer.encode if tokenizer else None,
            max_duration=args.max_duration,
            description=f"gate {args.output.name}",
            num_jobs=num_jobs,
        )
        write_gate_report(report, drops, len(cuts), made_of, letters)
        if not cuts:
            reasons = "; ".join(describe_drops(drops, 1))
            raise ValueError(
                f"{args.manifest}: the gate drops every cut, see {report}; {reasons}"
            )
        write_shar(
            cuts,
            args.output,
            shard_size=args.shard_size,
            seed=args.seed,
            num_jobs=num_jobs,
        )


if __name__ == "__main__":
    main()
