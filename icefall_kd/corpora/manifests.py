"""Write manifests, and split a corpus into train, dev and test by lists of ids."""

import argparse
import logging
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Callable

from lhotse import CutSet

from icefall_kd.core.cli import create_parser, exit_on_error
from icefall_kd.core.files import read_text, write_atomically, write_text
from icefall_kd.core.logs import setup_logging
from icefall_kd.corpora.audio import AudioClip, store_clips

SPLITS = ("train", "dev", "test")
EXCLUDED = "excluded"


def create_corpus_parser(description: str) -> argparse.ArgumentParser:
    """Return the parser of a script that prepares a corpus.

    Args:
      description: docstring of the script.
    """
    parser = create_parser(description)
    for option, text in (
        ("--source", "folder of the unpacked release"),
        ("--audio", "folder for 16 kHz flac files"),
        ("--output", "folder for the manifest"),
    ):
        parser.add_argument(option, type=Path, required=True, help=text)
    parser.add_argument("--name", required=True, help="name of the set")
    return parser


def write_corpus(
    command: str,
    args: argparse.Namespace,
    find_clips: Callable[..., Iterable[AudioClip]],
    *further: Any,
) -> None:
    """Store the clips of a corpus as flac, and write their manifest.

    An expected error ends the script with one line.

    Args:
      command: name of the script, for that line.
      args: options of :func:`create_corpus_parser`.
      find_clips: called with ``args.source`` and ``further``.
    """
    setup_logging()
    with exit_on_error(command):
        cuts = store_clips(find_clips(args.source, *further), args.audio)
        write_manifest(cuts, args.output / f"{args.name}.jsonl.gz")


def write_manifest(cuts: CutSet, path: Path) -> None:
    """Write cuts as JSON lines and log their number and hours."""
    with write_atomically(path) as temporary:
        cuts.to_file(temporary)
    hours = sum(cut.duration for cut in cuts) / 3600
    logging.info("wrote %s: %d cuts, %.2f h", path, len(cuts), hours)


def check_release(
    texts: Mapping[str, str], num_texts: int, digest: str, release: str
) -> None:
    """Check that the texts of a corpus are those of the release that a recipe reads.

    Args:
      texts: name -> text, not normalised.
      digest: SHA-256 of the sorted lines ``name<TAB>text``, joined by newlines.
      release: for the message.
    Raises:
      ValueError: if a text differs.
    """
    lines = "\n".join(sorted(f"{name}\t{text}" for name, text in texts.items()))
    if len(texts) != num_texts or sha256(lines.encode()).hexdigest() != digest:
        raise ValueError(
            f"{len(texts)} clips with text, which are not the {num_texts} of the "
            f"release; use {release}"
        )


def write_splits(
    cuts: CutSet, splits_dir: Path, output: Path, splits: Sequence[str] = SPLITS
) -> None:
    """Write ``<output>/<split>.jsonl.gz`` for each list of ids in ``splits_dir``.

    Raises:
      FileNotFoundError: if a list is missing.
      ValueError: if an id is listed twice or is not in ``cuts``.
    """
    lists = read_id_lists(splits_dir, splits)
    by_id = {cut.id: cut for cut in cuts}
    for split, ids in lists.items():
        missing = [id for id in ids if id not in by_id]
        if missing:
            raise ValueError(
                f"{splits_dir / split}.txt: {len(missing)} of {len(ids)} ids are not "
                f"in the corpus ({', '.join(missing[:5])}); use the release "
                "that the lists were made for"
            )
    for split, ids in lists.items():
        chosen = CutSet.from_cuts(by_id[id] for id in ids)
        write_manifest(chosen, output / f"{split}.jsonl.gz")


def read_id_lists(
    directory: Path, splits: Sequence[str] = SPLITS
) -> dict[str, list[str]]:
    """Return split -> ids of ``<split>.txt``.

    Raises:
      FileNotFoundError: if a list is missing.
      ValueError: if an id is listed twice.
    """
    lists: dict[str, list[str]] = {}
    split_of: dict[str, str] = {}
    for split in splits:
        path = directory / f"{split}.txt"
        if not path.exists():
            raise FileNotFoundError(
                f"{path}: the list of {split} ids is missing; write one id a line"
            )
        lists[split] = read_text(path).split()
        for id in lists[split]:
            if id in split_of:
                raise ValueError(f"{path}: {id} is also in {split_of[id]}; remove one")
            split_of[id] = split
    return lists


def write_id_lists(
    lists: Mapping[str, Sequence[str]], directory: Path, reason: str
) -> None:
    """Write ``<split>.txt`` for each split, one id a line.

    Args:
      lists: split -> ids.
      reason: why ids are excluded; it follows each id in ``excluded.txt``.
    """
    for split, ids in lists.items():
        note = f"\t{reason}" if split == EXCLUDED else ""
        write_text(directory / f"{split}.txt", "".join(f"{id}{note}\n" for id in ids))


def draw_splits(
    texts: Mapping[str, str],
    *,
    num_test: int = 100,
    num_dev: int = 30,
    min_words: int = 3,
    max_words: int = 20,
    seed: int = 42,
) -> dict[str, list[str]]:
    """Draw dev and test utterances at random.

    Dev and test texts have ``min_words`` to ``max_words`` words, and no other text
    contains them.  Utterances with equal texts are in one split, so dev and test may
    exceed their sizes by a few utterances.

    Args:
      texts: id -> normalised text.
      num_test, num_dev: number of utterances.
    Returns:
      sorted ids of "train", "dev", "test" and, with an empty text, "excluded".
    Raises:
      ValueError: if too few texts qualify.
    """
    ids_of: dict[str, list[str]] = defaultdict(list)
    for id, text in texts.items():
        ids_of[text].append(id)
    splits: dict[str, list[str]] = {EXCLUDED: sorted(ids_of.pop("", []))}
    padded = [f" {text} " for text in ids_of]
    candidates = sorted(
        text
        for text in ids_of
        if min_words <= len(text.split()) <= max_words
        and sum(f" {text} " in other for other in padded) == 1
    )
    random.Random(seed).shuffle(candidates)
    for split, size in (("test", num_test), ("dev", num_dev)):
        ids: list[str] = []
        while len(ids) < size:
            if not candidates:
                raise ValueError(
                    f"{split}: only {len(ids)} of {size} utterances have a text of "
                    f"{min_words} to {max_words} words that is in no other text; "
                    f"reduce num_{split}"
                )
            ids += ids_of.pop(candidates.pop())
        splits[split] = sorted(ids)
    splits["train"] = sorted(id for ids in ids_of.values() for id in ids)
    return splits
