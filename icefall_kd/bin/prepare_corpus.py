"""From a corpus as shipped to manifests.

    python -m icefall_kd.bin.prepare_corpus asterisk --source download/asterisk \
        --audio data/audio/asterisk_en --splits splits --output data/manifests

With --splits it writes one manifest for each of train, dev and test; with --name one
unlabelled manifest of this name; with --check it only looks whether all is there.
"""

import argparse
import logging
from pathlib import Path

from lhotse import CutSet

from icefall_kd.corpora import CORPORA
from icefall_kd.corpora.asterisk import find_prompts, match_texts, read_transcripts
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
    parser.add_argument("--audio", type=Path, help="folder for 16 kHz flac files")
    parser.add_argument("--output", type=Path, help="folder for manifests")
    parser.add_argument("--check", action="store_true", help="asterisk: write nothing")
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


def prepare_labelled(args: argparse.Namespace) -> None:
    listed = read_splits(args.splits)
    by_id = {cut.id: cut for cut in prepare(args)}
    for split, ids in split_by_ids(listed, list(by_id)).items():
        chosen = CutSet.from_cuts(by_id[id] for id in ids)
        write_manifest(chosen, args.output / f"{split}.jsonl.gz")


def check(args: argparse.Namespace) -> None:
    texts = read_transcripts(args.source, args.language)
    prompts = match_texts(find_prompts(args.source), texts)
    logging.info("%s: %d prompts with transcripts", args.source, len(prompts))


def main() -> None:
    args = get_parser().parse_args()
    setup_logging()
    try:
        if args.check:
            check(args)
        elif args.audio is None or args.output is None:
            raise ValueError("give --audio and --output, or --check")
        elif (args.splits is None) == (args.name is None):
            raise ValueError("give --splits for a labelled corpus, --name for another")
        elif args.splits is not None:
            prepare_labelled(args)
        else:
            write_manifest(prepare(args), args.output / f"{args.name}.jsonl.gz")
    except (FileNotFoundError, ValueError) as e:
        raise SystemExit(f"ERROR: {e}") from e


if __name__ == "__main__":
    main()
