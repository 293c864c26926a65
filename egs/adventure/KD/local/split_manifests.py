"""Write the manifests of the sets that ``splits/`` lists.

    python local/split_manifests.py --manifests data/manifests/queen.jsonl.gz \\
        data/manifests/sky.jsonl.gz --splits splits --output data/manifests

``unlabelled_queen`` and ``unlabelled_sky`` have the cuts of ``rest_queen`` and
``rest_sky`` without transcripts.
"""

import argparse
from pathlib import Path

from lhotse import CutSet

from icefall_kd.core.cli import create_parser, exit_on_error
from icefall_kd.core.logs import setup_logging
from icefall_kd.corpora.manifests import write_manifest, write_splits
from icefall_kd.data.shar import read_cuts

SETS = ("train", "rest_queen", "rest_sky", "dev", "test_queen", "test_sky")
UNLABELLED = {"unlabelled_queen": "rest_queen", "unlabelled_sky": "rest_sky"}


def get_parser() -> argparse.ArgumentParser:
    parser = create_parser(__doc__)
    parser.add_argument(
        "--manifests", type=Path, nargs="+", required=True, help="of queen and sky"
    )
    parser.add_argument(
        "--splits", type=Path, required=True, help="folder of <set>.txt, lists of ids"
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="folder for manifests"
    )
    return parser


def main() -> None:
    args = get_parser().parse_args()
    setup_logging()
    with exit_on_error("split_manifests", ValueError):
        cuts = CutSet.from_cuts(c for path in args.manifests for c in read_cuts(path))
        write_splits(cuts, args.splits, args.output, SETS)
        for name, labelled in UNLABELLED.items():
            rest = read_cuts(args.output / f"{labelled}.jsonl.gz")
            unlabelled = CutSet.from_cuts(cut.drop_supervisions() for cut in rest)
            write_manifest(unlabelled, args.output / f"{name}.jsonl.gz")


if __name__ == "__main__":
    main()
