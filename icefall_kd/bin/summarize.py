"""Print one table of decoding results, with the gain over a baseline.

    python -m icefall_kd.bin.summarize --baseline baseline \\
      --system baseline=exp/baseline/decode --system distilled=exp/kd/decode \\
      --out exp/summary.md

A system is a folder of result-*.json files or one of them.  A gain is the relative WER
reduction with the share of bootstrap test sets on which the system beats the baseline;
it is refused where the baseline was not decoded the same way.
"""

import argparse
from pathlib import Path

from icefall_kd.decoding.summary import find_results, markdown, plain, summarise
from icefall_kd.io import write_text
from icefall_kd.logs import setup_logging


def get_parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--system", action="append", required=True, metavar="NAME=PATH")
    p.add_argument("--baseline", metavar="NAME", help="without it no gains are shown")
    p.add_argument("--set", help="only results of this set")
    p.add_argument("--out", type=Path, help="a Markdown file for the table")
    return p


def run(args: argparse.Namespace) -> str:
    """Return the table for a terminal, having written the Markdown."""
    results = []
    for system in args.system:
        name, equals, path = system.partition("=")
        if not (name and equals and path):
            raise ValueError(f"--system {system}: give it as NAME=PATH")
        results += find_results(name, path)
    if args.set:
        results = [r for r in results if r.facts["set"] == args.set]
    table = summarise(results, args.baseline)
    if args.out:
        write_text(args.out, markdown(table))
    return plain(table)


def main() -> None:
    setup_logging()
    try:
        print(run(get_parser().parse_args()), end="")
    except (ValueError, FileNotFoundError) as e:
        raise SystemExit(f"summarize: {e}") from e


if __name__ == "__main__":
    main()
