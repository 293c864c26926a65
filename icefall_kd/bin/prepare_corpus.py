"""From a corpus as shipped to manifests.

    python -m icefall_kd.bin.prepare_corpus asterisk --source download/asterisk \\
        --audio data/audio/asterisk_en --splits splits --output data/manifests
    python -m icefall_kd.bin.prepare_corpus librispeech --source download \\
        --parts train-clean-100 --labelled --name train_100 --output data/manifests

With --splits it writes one manifest for each of train, dev and test; with --name one of
this name, without transcripts unless --labelled is given; with --check it only looks
whether all is there.  --audio is the folder of corpora whose audio must be converted.
"""

import argparse
import inspect
import logging
from pathlib import Path
from typing import Any, Callable

from lhotse import CutSet

from icefall_kd.core.cli import create_parser, exit_on_error
from icefall_kd.core.files import write_atomically
from icefall_kd.core.logs import setup_logging
from icefall_kd.corpora import CHECKS, CORPORA
from icefall_kd.corpora.splits import read_splits, split_by_ids

OPTIONS = ("parts", "language", "languages", "max_minutes")  # each of some corpora


def get_parser() -> argparse.ArgumentParser:
    parser = create_parser(__doc__)
    # fmt: off
    parser.add_argument("corpus", choices=sorted(CORPORA), help="its form")
    parser.add_argument("--source", type=Path, required=True, help="folder as shipped")
    parser.add_argument("--audio", type=Path, help="folder for 16 kHz flac files")
    parser.add_argument("--output", type=Path, help="folder for manifests")
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--splits", type=Path, help="lists of ids: a labelled corpus")
    parser.add_argument("--name", help="of one manifest")
    parser.add_argument("--labelled", action="store_true", help="transcripts in it too")
    parser.add_argument("--parts", nargs="+", help="librispeech: train-clean-100 ...")
    parser.add_argument("--language", help="asterisk; default en")
    parser.add_argument("--languages", nargs="+", help="tuxpaint, fillets; default all")
    parser.add_argument("--max-minutes", type=float, help="queen: a slice of the game")
    # fmt: on
    return parser


def options_for(corpus: Callable, args: argparse.Namespace) -> dict[str, Any]:
    """Return those of :data:`OPTIONS` that were given.

    Raises:
      ValueError: if ``corpus`` does not know one.
    """
    known = inspect.signature(corpus).parameters
    given = {o: getattr(args, o) for o in OPTIONS if getattr(args, o) is not None}
    for option in given:
        if option not in known:
            raise ValueError(
                f"--{option.replace('_', '-')} is no option of {args.corpus}"
            )
    return given


def prepare(args: argparse.Namespace) -> CutSet:
    """Call the corpus's function with the options that it knows.

    Raises:
      ValueError: if an option is missing, or unknown to the corpus.
    """
    corpus = CORPORA[args.corpus]
    known = inspect.signature(corpus).parameters
    options = options_for(corpus, args)
    labelled = args.labelled or args.splits is not None
    if "labelled" in known:
        options["labelled"] = labelled
    elif labelled:
        raise ValueError(f"{args.corpus} has no transcripts: give --name alone")
    if "audio_dir" in known:
        options["audio_dir"] = args.audio
    return corpus(args.source, **options)


def write_manifest(cuts: CutSet, path: Path) -> None:
    with write_atomically(path) as aside:
        cuts.to_file(aside)
    hours = sum(cut.duration for cut in cuts) / 3600
    logging.info("wrote %s: %d cuts, %.2f h", path, len(cuts), hours)


def prepare_splits(args: argparse.Namespace) -> None:
    """Write a manifest for each list of ids."""
    listed = read_splits(args.splits)
    by_id = {cut.id: cut for cut in prepare(args)}
    for split, ids in split_by_ids(listed, list(by_id)).items():
        chosen = CutSet.from_cuts(by_id[id] for id in ids)
        write_manifest(chosen, args.output / f"{split}.jsonl.gz")


def check(args: argparse.Namespace) -> None:
    """Log what is there; the corpus raises when it is not all.

    Raises:
      ValueError: if the corpus has no such check.
    """
    if args.corpus not in CHECKS:
        raise ValueError(f"--check: {args.corpus} has none; {sorted(CHECKS)} have")
    corpus_check = CHECKS[args.corpus]
    logging.info(corpus_check(args.source, **options_for(corpus_check, args)))


def main() -> None:
    args = get_parser().parse_args()
    setup_logging()
    converts = "audio_dir" in inspect.signature(CORPORA[args.corpus]).parameters
    with exit_on_error("prepare_corpus"):
        if args.check:
            check(args)
        elif args.output is None or (converts and args.audio is None):
            needed = "--audio and --output" if converts else "--output"
            raise ValueError(f"give {needed}, or --check")
        elif (args.splits is None) == (args.name is None):
            raise ValueError("give --splits for lists of ids, --name for one manifest")
        elif args.splits is not None:
            prepare_splits(args)
        else:
            write_manifest(prepare(args), args.output / f"{args.name}.jsonl.gz")


if __name__ == "__main__":
    main()
