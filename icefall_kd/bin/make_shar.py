"""Pass a manifest through the data gate and write it as Shar.

    python -m icefall_kd.bin.make_shar --manifest data/manifests/train.jsonl.gz \\
        --bpe-model data/lang_bpe_150/bpe.model --speeds 0.9 1.0 1.1 \\
        --output data/shar/train

What is not of 16 kHz is resampled.  <output>.gate.json lists the dropped cuts with
their reasons.  A cut may end up to 25 ms (400 samples) after its audio and is shortened
to it; one that ends later is dropped.  Letters that the BPE model does not know are
counted, and refused where they are more than --max-unknown of the tokens.

After a kill the same call goes on with the shards that are missing; a folder that is
there is kept, and refused if it was made of something else.
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
from icefall_kd.data.gate import describe_drops, filter_cuts, write_report
from icefall_kd.data.shar import (
    check_absent,
    cuts_sha256,
    fields_dir,
    perturb_speeds,
    read_cuts,
    write_shar,
)
from icefall_kd.data.tokens import MAX_UNKNOWN, Tokenizer, UnknownLetters

CUTS_OF_A_JOB = 2000  # starting a process takes as long as reading 500


def get_parser() -> argparse.ArgumentParser:
    parser = create_parser(__doc__)
    # fmt: off
    parser.add_argument("--manifest", type=Path, required=True, help="cuts")
    parser.add_argument("--output", type=Path, required=True, help="the Shar folder")
    parser.add_argument("--bpe-model", type=Path, help="of a labelled manifest")
    parser.add_argument("--max-unknown", type=float, default=MAX_UNKNOWN,
                        help="share of the tokens that may be <unk>")
    parser.add_argument("--speeds", type=float, nargs="+", default=[1.0], help="times")
    parser.add_argument("--max-duration", type=float, default=30.0, help="s, a cut")
    parser.add_argument("--shard-size", type=int, default=200, help="cuts")
    parser.add_argument("--seed", type=int, default=0, help="of the order")
    parser.add_argument("--num-jobs", type=int, help="processes (default: one a CPU, "
                        f"of at least {CUTS_OF_A_JOB} cuts each)")
    # fmt: on
    return parser


def describe(args: argparse.Namespace, cuts: Sequence[Cut]) -> dict[str, Any]:
    """Return what a folder is made of, and how; nothing of it is a path."""
    return {
        "cuts_sha256": cuts_sha256(cuts),
        "bpe_model_sha256": sha256_file(args.bpe_model) if args.bpe_model else None,
        "speeds": args.speeds,
        "max_duration": args.max_duration,
        "shard_size": args.shard_size,
        "seed": args.seed,
    }


def check_made_of(output: Path, report: Path, made_of: dict[str, Any]) -> None:
    """Refuse a folder that is there and was made otherwise.

    Raises:
      ValueError: naming what differs.
    """
    there = read_json(report).get("made_of") if report.is_file() else None
    if there is None:  # of an earlier version
        return
    differs = [
        f"{key}: {there.get(key)} -> {value}"
        for key, value in made_of.items()
        if there.get(key) != value
    ]
    if differs:
        raise ValueError(
            f"{output} is there, made otherwise ({'; '.join(differs)}); delete it, "
            f"and {fields_dir(output)}, to make it again, or give another --output"
        )


def check_letters(
    args: argparse.Namespace, cuts: Sequence[Cut], tokenizer: Tokenizer
) -> UnknownLetters:
    """Return the letters of the manifest's texts that the BPE model does not know.

    Raises:
      ValueError: if more than ``--max-unknown`` of the tokens are ``<unk>``.
    """
    letters = UnknownLetters(tokenizer)
    for cut in cuts:
        for supervision in cut.supervisions:
            letters.add(supervision.text or "")
    letters.check(str(args.manifest), "--max-unknown", args.max_unknown)
    return letters


def choose_num_jobs(given: Optional[int], num_cuts: int) -> int:
    """Return the processes for a set: as given, or by its cuts and the CPUs."""
    if given is not None:
        return given
    return max(1, min(count_cpus(), num_cuts // CUTS_OF_A_JOB))


def main() -> None:
    args = get_parser().parse_args()
    setup_logging()
    torch.set_num_threads(1)  # changing the speed of a short clip gains from no second
    report = args.output.with_name(f"{args.output.name}.gate.json")
    with exit_on_error("make_shar"):
        tokenizer = Tokenizer(args.bpe_model) if args.bpe_model else None
        cuts = read_cuts(args.manifest)
        made_of = describe(args, cuts)
        if args.output.exists():
            check_made_of(args.output, report, made_of)
            logging.info("%s is complete: nothing to do", args.output)
            return
        check_absent(args.output)  # the fields of a deleted folder
        letters = check_letters(args, cuts, tokenizer) if tokenizer else None
        cuts = perturb_speeds(cuts, args.speeds)
        num_jobs = choose_num_jobs(args.num_jobs, len(cuts))
        cuts, drops = filter_cuts(
            cuts,
            tokenize=tokenizer.encode if tokenizer else None,
            max_duration=args.max_duration,
            description=f"gate {args.output.name}",
            num_jobs=num_jobs,
        )
        write_report(drops, len(cuts), report, made_of, letters)
        if not cuts:
            reasons = "; ".join(
                f"{reason}: {line}" for reason, line in describe_drops(drops, 1).items()
            )
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
