"""Put the results of runs into one table, and into one page.

    python -m icefall_kd.bin.report --exp exp/full/unified --baseline baseline \\
      --set test --out exp/full/unified/summary.md \\
      --html exp/full/unified/report.html --shar-dir data/shar/test

--exp takes every system below it, a system being a folder with decode/ or sherpa/;
--system NAME=PATH takes one: a folder of result-*.json files, or one of them.  The
training that lies beside the results gives the curves.

A gain is the relative WER reduction with the share of bootstrap test sets on which the
system beats the baseline; it is shown where the baseline was decoded the same way on
the same utterances, and nowhere else.  It is over utterances: with one training run of
each system it leaves out what another seed changes.  Names that differ in ``@SEED`` at
their end are runs of one system, as train.sh makes them: their means stand in a table
of their own, in whose intervals and gains the runs are drawn as well as the utterances.

The page is one file that needs no other: send it, open it anywhere.
"""

import argparse
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Optional

from icefall_kd.core.cli import create_parser, exit_on_error, non_negative_int
from icefall_kd.core.files import write_text
from icefall_kd.core.logs import setup_logging
from icefall_kd.report.curves import charts
from icefall_kd.report.page import render
from icefall_kd.report.results import (
    Result,
    find_results,
    find_systems,
    over_seeds,
    system_of,
)
from icefall_kd.report.runs import Run, find_run
from icefall_kd.report.table import Table, markdown, plain, summarise
from icefall_kd.report.utterances import hardest, load_audio

MEANS = "Means over seeds"


def get_parser() -> argparse.ArgumentParser:
    p = create_parser(__doc__)
    p.add_argument(
        "--system",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="a system and the folder of its results; repeatable",
    )
    p.add_argument(
        "--exp",
        type=Path,
        action="append",
        default=[],
        metavar="FOLDER",
        help="of runs, each sub-folder a system; repeatable",
    )
    p.add_argument("--baseline", metavar="NAME", help="without it no gains are shown")
    p.add_argument("--set", help="only results of this set")
    p.add_argument("--out", type=Path, help="a Markdown file for the table")
    p.add_argument("--html", type=Path, help="a file for the page")
    p.add_argument(
        "--metric",
        action="append",
        default=[],
        metavar="NAME",
        help="of training, for the page's curves; default: the loss and its terms",
    )
    p.add_argument(
        "--shar-dir",
        type=Path,
        action="append",
        default=[],
        metavar="FOLDER",
        help="a set that was decoded: its audio goes into the page",
    )
    p.add_argument(
        "--max-audio",
        type=non_negative_int,
        default=30,
        help="utterances of each set",
    )
    return p


def named_systems(args: argparse.Namespace) -> list[tuple]:
    """Return (name, path) of what --exp and --system name, the baseline first."""
    named = [pair for exp in args.exp for pair in find_systems(exp).items()]
    for system in args.system:
        name, equals, path = system.partition("=")
        if not (name and equals and path):
            raise ValueError(f"--system {system}: give it as NAME=PATH")
        named.append((name, path))
    if not named:
        raise ValueError("give --exp FOLDER or --system NAME=PATH")
    return sorted(named, key=lambda pair: pair[0] != args.baseline)


def gather(args: argparse.Namespace) -> list[Result]:
    """Return the results that ``args`` ask for."""
    found = [r for name, path in named_systems(args) for r in find_results(name, path)]
    sets = sorted({r.facts["set"] for r in found})
    if args.set:
        found = [r for r in found if r.facts["set"] == args.set]
    if not found:
        raise ValueError(f"--set {args.set}: there are results of {sets} alone")
    scored = [r for r in found if r.facts["wer"] is not None]
    if not scored:
        raise ValueError(
            f"no result has a WER: no utterance of {sets} has a transcript; decode a "
            "labelled set"
        )
    if len(scored) < len(found):
        logging.warning(
            "%d results of sets without transcripts are left out, for example %s",
            len(found) - len(scored),
            next(r.path for r in found if r.facts["wer"] is None),
        )
    return scored


def training_of(results: list[Result]) -> dict[str, Run]:
    """Return the run of each system, in the order of the systems."""
    runs: dict[str, Run] = {}
    for result in results:
        if not runs.setdefault(result.system, Run()).stages:
            facts = result.facts
            runs[result.system] = find_run(
                result.path, facts.get("checkpoint"), facts.get("training")
            )
    return runs


def means_over_seeds(
    results: Sequence[Result], baseline: Optional[str], runs: Mapping[str, Run]
) -> Optional[Table]:
    """Return the table of the means; None where no system has several runs."""
    means = over_seeds(results)
    if not means:
        return None
    trained = {m.system: runs[m.runs[0].system] for m in means}
    return summarise(means, baseline and system_of(baseline), trained)


def sounds(args: argparse.Namespace, results: list[Result]) -> dict[str, dict]:
    """Return the audio of the hardest utterances of each set that --shar-dir names."""
    sets = {r.facts["set"] for r in results}
    audio = {}
    for shar_dir in args.shar_dir:
        if shar_dir.name not in sets:
            raise ValueError(
                f"--shar-dir {shar_dir}: no result is of a set {shar_dir.name!r}; "
                f"there are {sorted(sets)}"
            )
        ids = hardest(results, shar_dir.name, args.max_audio)
        audio[shar_dir.name] = load_audio(shar_dir, ids)
    return audio


def run(args: argparse.Namespace) -> str:
    """Return the table for a terminal, having written the files."""
    results = gather(args)
    runs = training_of(results)
    table = summarise(results, args.baseline, runs)
    means = means_over_seeds(results, args.baseline, runs)
    if args.html:
        curves, audio = charts(runs, args.metric), sounds(args, results)
        page = render(table, runs, curves, audio, means)
        write_text(args.html, page)
        logging.info("%s: %.2f MB", args.html, len(page.encode("utf-8")) / 1e6)
    if args.out:
        below = f"\n{MEANS}:\n\n{markdown(means)}" if means else ""
        write_text(args.out, markdown(table) + below)
    return plain(table) + (f"\n{MEANS}\n{plain(means)}" if means else "")


def main() -> None:
    setup_logging()
    with exit_on_error("report"):
        print(run(get_parser().parse_args()), end="")


if __name__ == "__main__":
    main()
