"""Write a table and a page with the results of several systems.

    python -m icefall_kd.bin.report --exp exp/full/unified --baseline baseline \\
      --set test --out exp/full/unified/summary.md \\
      --html exp/full/unified/report.html --shar-dir data/shar/test

--exp reads every system below a folder; a system is a folder with decode/ or sherpa/.
--system NAME=PATH reads one system: a folder of result-*.json files, or one file.  The
page shows the training curves of runs next to the results.

A gain is the relative WER reduction, with the share of bootstrap test sets on which the
system has fewer errors than the baseline.  It needs a result of the baseline with the
same decoding on the same utterances.  The bootstrap draws utterances: if each system
has one run, intervals do not cover training noise.  Systems whose names differ only in
@SEED are runs of one system.  The means over runs have intervals and gains that also
cover training noise.

The command prints a summary: a row for each system and each decoding, full context or
streaming, with the most thorough search that most systems share, and the columns of
each set.  Example utterances follow.  --out writes the summary, then all results and
the means over runs.  The page is one HTML file that refers to no other file.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from icefall_kd.core.cli import create_parser, exit_on_error, non_negative_int
from icefall_kd.core.files import write_text
from icefall_kd.core.logs import setup_logging
from icefall_kd.report.charts import make_charts
from icefall_kd.report.page import find_hardest_utterances, load_audio, render
from icefall_kd.report.results import (
    Result,
    average_over_seeds,
    find_results,
    find_systems,
    strip_seed,
)
from icefall_kd.report.runs import Run, find_run
from icefall_kd.report.summary import summarise
from icefall_kd.report.table import Table, format_markdown, format_text, make_table

ALL_RESULTS = "All results"
MEANS = "Means over seeds"


def get_parser() -> argparse.ArgumentParser:
    p = create_parser(__doc__)
    p.add_argument(
        "--system",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="name of a system, and its folder of results or one result; repeatable",
    )
    p.add_argument(
        "--exp",
        type=Path,
        action="append",
        default=[],
        metavar="FOLDER",
        help="folder of systems; repeatable",
    )
    p.add_argument("--baseline", metavar="NAME", help="system to compare with")
    p.add_argument("--set", help="name of the only set to report")
    p.add_argument("--head", choices=("transducer", "ctc"), help="only head to report")
    p.add_argument(
        "--examples",
        type=non_negative_int,
        default=3,
        help="number of example utterances",
    )
    p.add_argument("--out", type=Path, help="Markdown file for the tables")
    p.add_argument("--html", type=Path, help="HTML file for the page")
    p.add_argument(
        "--metric",
        action="append",
        default=[],
        metavar="NAME",
        help="training metric of the page; repeatable (default: WERs, loss and terms)",
    )
    p.add_argument(
        "--shar-dir",
        type=Path,
        action="append",
        default=[],
        metavar="FOLDER",
        help="decoded Shar folder whose audio the page embeds; repeatable",
    )
    p.add_argument(
        "--max-audio",
        type=non_negative_int,
        default=30,
        help="utterances with audio per set, those with the most errors first",
    )
    return p


def load_results(args: argparse.Namespace) -> list[Result]:
    """Return the results of --exp and --system, those of the baseline first."""
    named = [pair for exp in args.exp for pair in find_systems(exp).items()]
    for system in args.system:
        name, equals, path = system.partition("=")
        if not (name and equals and path):
            raise ValueError(f"--system {system}: write NAME=PATH")
        named.append((name, path))
    if not named:
        raise ValueError("no results: give --exp FOLDER or --system NAME=PATH")
    named.sort(key=lambda pair: pair[0] != args.baseline)
    found = [r for name, path in named for r in find_results(name, path)]
    sets = ", ".join(sorted({r.facts["set"] for r in found}))
    if args.set:
        found = [r for r in found if r.facts["set"] == args.set]
    if not found:
        raise ValueError(f"--set: no result of '{args.set}'. Available: {sets}")
    if args.head:
        found = [r for r in found if r.head == args.head]
        if not found:
            raise ValueError(
                f"--head: no result of '{args.head}'. Run bin.decode with another "
                "--method, or give another --head"
            )
    scored = [r for r in found if r.facts["wer"] is not None]
    if not scored:
        raise ValueError(
            f"no result has a WER: {sets} has no transcripts. Decode a labelled set"
        )
    if len(scored) < len(found):
        logging.warning(
            "skip %d results of sets without transcripts, for example %s",
            len(found) - len(scored),
            next(r.path for r in found if r.facts["wer"] is None),
        )
    return scored


def find_runs(results: Sequence[Result]) -> dict[str, Run]:
    """Return system -> its training, in the order of the results."""
    runs: dict[str, Run] = {}
    for result in results:
        if not runs.setdefault(result.system, Run()).stages:
            facts = result.facts
            runs[result.system] = find_run(
                result.path, facts.get("checkpoint"), facts.get("training")
            )
    return runs


def load_hardest_audio(
    args: argparse.Namespace, results: Sequence[Result]
) -> dict[str, dict[str, str]]:
    """Return the audio of the hardest utterances of each set of --shar-dir."""
    sets = {r.facts["set"] for r in results}
    audio = {}
    for shar_dir in args.shar_dir:
        name = shar_dir.name
        if name not in sets:
            raise ValueError(
                f"--shar-dir {shar_dir}: no result of set '{name}'. Available: "
                f"{', '.join(sorted(sets))}"
            )
        ids = find_hardest_utterances(results, name, args.max_audio)
        audio[name] = load_audio(shar_dir, ids)
    return audio


def run(args: argparse.Namespace) -> str:
    """Write --out and --html, and return the summary as text."""
    results = load_results(args)
    runs = find_runs(results)
    table = make_table(results, args.baseline, runs)
    means: Optional[Table] = None
    summarised = (results, args.baseline, runs)
    if averages := average_over_seeds(results):
        baseline = args.baseline and strip_seed(args.baseline)
        first_runs = {r.system: runs[r.runs[0].system] for r in averages}
        summarised = (averages, baseline, first_runs)
        means = make_table(*summarised)
    summary = summarise(*summarised, args.examples)
    if args.html:
        charts = make_charts(runs, args.metric)
        audio = load_hardest_audio(args, results)
        page = render(table, runs, charts, audio, means)
        write_text(args.html, page)
        logging.info("wrote %s, %.2f MB", args.html, len(page.encode("utf-8")) / 1e6)
    if args.out:
        texts = [format_markdown(section) for section in summary]
        texts.append(f"{ALL_RESULTS}:\n\n{format_markdown(table)}")
        texts += [f"{MEANS}:\n\n{format_markdown(means)}"] if means else []
        write_text(args.out, "\n".join(texts))
    return "\n".join(format_text(section) for section in summary)


def main() -> None:
    setup_logging()
    with exit_on_error("report"):
        print(run(get_parser().parse_args()), end="")


if __name__ == "__main__":
    main()
