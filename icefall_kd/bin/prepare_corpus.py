"""From a corpus as shipped to manifests.

    python -m icefall_kd.bin.prepare_corpus asterisk --source download/asterisk \
        --audio data/audio/asterisk_en --splits splits --output data/manifests

With --splits it writes one manifest for each of train, dev and test; without, one
unlabelled manifest of the name --name.
"""

import argparse
import logging
from pathlib import Path

from lhotse import CutSet

from icefall_kd.corpora import CORPORA
from icefall_kd.data.splits import read_splits, split_by_ids
from icefall_kd.io import write_aside
from icefall_kd.logs import setup_logging


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    # fmt: off
    parser.add_argument("corpus", choices=sorted(CORPORA))
    parser.add_argument("--source", type=Path, required=True, help="folder as shipped")
    parser.add_argument("--audio", type=Path, required=True, help="16 kHz flac files")
    parser.add_argument("--output", type=Path, required=True, help="manifests")
    parser.add_argument("--splits", type=Path, help="lists of ids: a labelled corpus")
    parser.add_argument("--name", help="of an unlabelled manifest")
    parser.add_argument("--language", default="en", help="asterisk")
    parser.add_argument("--languages", nargs="+", help="tuxpaint, fillets; default all")
    parser.add_argument("--max-minutes", type=float, help="queen: a slice of the game")
    # fmt: on
    return parser


def prepare(args: argparse.Namespace) -> CutSet:
    """Call the corpus's function with the options that it knows."""
    options = {
        "asterisk": {"language": args.language, "labelled": args.splits is not None},
        "queen": {"max_minutes": args.max_minutes},
        "tuxpaint": {"languages": args.languages},
        "fillets": {"languages": args.languages},
    }
    return CORPORA[args.corpus](args.source, args.audio, **options[args.corpus])


def write_manifest(cuts: CutSet, path: Path) -> None:
    with write_aside(path) as aside:
        cuts.to_file(aside)
    hours = sum(cut.duration for cut in cuts) / 3600
    logging.info("wrote %s: %d cuts, %.2f h", path, len(cuts), hours)


def main() -> None:
    args = get_parser().parse_args()
    setup_logging()
    if (args.splits is None) == (args.name is None):
        raise SystemExit("give --splits for a labelled corpus, --name for another")
    try:
        if args.splits is None:
            cuts = prepare(args)
            write_manifest(cuts, args.output / f"{args.name}.jsonl.gz")
            return
        listed = read_splits(args.splits)
        cuts = prepare(args)
        by_id = {cut.id: cut for cut in cuts}
        for split, ids in split_by_ids(listed, list(by_id)).items():
            chosen = CutSet.from_cuts(by_id[id] for id in ids)
            write_manifest(chosen, args.output / f"{split}.jsonl.gz")
    except (FileNotFoundError, ValueError) as e:
        raise SystemExit(f"ERROR: {e}") from e


if __name__ == "__main__":
    main()
