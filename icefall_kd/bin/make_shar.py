"""Pass a manifest through the data gate and write it as Shar.

    python -m icefall_kd.bin.make_shar --manifest data/manifests/train.jsonl.gz \\
        --bpe-model data/lang_bpe_150/bpe.model --speeds 0.9 1.0 1.1 \\
        --output data/shar/train

Audio is resampled to 16 kHz.  A cut that ends up to 25 ms (400 samples) after its audio
is shortened to its audio.  <output>.gate.json lists the dropped cuts and their reasons.

After a kill, the same command writes the missing shards.  A complete folder is kept; it
is an error if that folder was written from other cuts or with other options.
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
    """Return the command's arguments."""
    parser = create_parser(__doc__)
    parser.add_argument("--manifest", type=Path, required=True, help="manifest of cuts")
    parser.add_argument("--output", type=Path, required=True, help="Shar folder")
    parser.add_argument(
        "--bpe-model",
        type=Path,
        help="bpe.model for the texts of a labelled set; without it, the set is "
        "unlabelled and texts are not checked",
    )
    parser.add_argument(
        "--max-unknown",
        type=float,
        default=MAX_UNKNOWN,
        help="maximum share of <unk> among the tokens, 0 to 1",
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
        help="number of processes (default: one for each CPU, at most one for each "
        f"{MIN_CUTS_PER_JOB} cuts)",
    )
    return parser


def describe_input(args: argparse.Namespace, cuts: Sequence[Cut]) -> dict[str, Any]:
    """Return the options and checksums that determine the content of the folder."""
    return {
        "cuts_sha256": hash_cuts(cuts),
        "bpe_model_sha256": sha256_file(args.bpe_model) if args.bpe_model else None,
        "speeds": args.speeds,
        "max_duration": args.max_duration,
        "shard_size": args.shard_size,
        "seed": args.seed,
    }


def check_inputs(output: Path, report: Path, inputs: dict[str, Any]) -> None:
    """Compare the inputs of an existing folder with those of this command.

    Args:
      report: report of the data gate for the existing folder.
      inputs: see :func:`describe_input`.
    Raises:
      ValueError: with the differences, if there are any.
    """
    existing = read_json(report).get("made_of") if report.is_file() else None
    if existing is None:  # written by an earlier version
        return
    differences = [
        f"{key}: {existing.get(key)} -> {value}"
        for key, value in inputs.items()
        if existing.get(key) != value
    ]
    if differences:
        raise ValueError(
            f"{output}: exists and differs ({'; '.join(differences)}); delete it and "
            f"{fields_dir(output)} to write it again, or choose another --output"
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
    """Return the number of processes for a set.

    Args:
      requested: ``--num-jobs``; None chooses by the CPUs and the number of cuts.
    """
    if requested is not None:
        return requested
    return max(1, min(count_cpus(), num_cuts // MIN_CUTS_PER_JOB))


def main() -> None:
    """Run the command."""
    args = get_parser().parse_args()
    setup_logging()
    torch.set_num_threads(1)  # speed perturbation is not faster with two
    report = args.output.with_name(f"{args.output.name}.gate.json")
    with exit_on_error("make_shar"):
        tokenizer = Tokenizer(args.bpe_model) if args.bpe_model else None
        cuts = read_cuts(args.manifest)
        inputs = describe_input(args, cuts)
        if args.output.exists():
            check_inputs(args.output, report, inputs)
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
        write_gate_report(report, drops, len(cuts), inputs, letters)
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
