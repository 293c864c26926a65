"""Train, dev and test as fixed lists of ids, without a text in two of them."""

import random
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from icefall_kd.core.files import read_text, write_text

SPLITS = ("train", "dev", "test")
EXCLUDED = "excluded"


def choose_splits(
    texts: Mapping[str, str],
    *,
    num_test: int = 100,
    num_dev: int = 30,
    min_words: int = 3,
    max_words: int = 20,
    seed: int = 42,
) -> dict[str, list[str]]:
    """Return sorted ids of train, dev and test, and of the texts that are empty.

    Test and dev are drawn from the texts of ``min_words`` to ``max_words`` words that
    occur in no other text, whole or as a part; utterances of the same text stay
    together, so a split may be larger by one or two than asked for.

    Args:
      texts: id -> normalised text.
    Raises:
      ValueError: if too few texts can be drawn.
    """
    by_text: dict[str, list[str]] = defaultdict(list)
    for id, text in texts.items():
        by_text[text].append(id)
    splits: dict[str, list[str]] = {EXCLUDED: sorted(by_text.pop("", []))}
    padded = [f" {text} " for text in by_text]
    drawable = sorted(
        text
        for text in by_text
        if min_words <= len(text.split()) <= max_words
        and sum(f" {text} " in other for other in padded) == 1
    )
    random.Random(seed).shuffle(drawable)
    for split, size in (("test", num_test), ("dev", num_dev)):
        ids: list[str] = []
        while len(ids) < size:
            if not drawable:
                raise ValueError(
                    f"only {len(ids)} of {size} utterances can be drawn for {split}"
                )
            ids += by_text.pop(drawable.pop())
        splits[split] = sorted(ids)
    splits["train"] = sorted(id for ids in by_text.values() for id in ids)
    return splits


def write_splits(splits: Mapping[str, list[str]], directory: Path, reason: str) -> None:
    """Write ``<split>.txt``, one id a line; excluded ids with a tab and ``reason``."""
    for split, ids in splits.items():
        note = f"\t{reason}" if split == EXCLUDED else ""
        write_text(directory / f"{split}.txt", "".join(f"{id}{note}\n" for id in ids))


def read_splits(directory: Path) -> dict[str, tuple[str, ...]]:
    """Return split -> ids of ``train.txt``, ``dev.txt`` and ``test.txt``.

    Raises:
      FileNotFoundError: if a list is missing.
      ValueError: if an id is listed twice.
    """
    splits: dict[str, tuple[str, ...]] = {}
    where: dict[str, str] = {}
    for split in SPLITS:
        path = directory / f"{split}.txt"
        if not path.exists():
            raise FileNotFoundError(f"{path}: the list of {split} ids is missing")
        splits[split] = tuple(read_text(path).split())
        for id in splits[split]:
            if id in where:
                raise ValueError(f"{path}: {id} is listed in {where[id]} already")
            where[id] = split
    return splits


def split_by_ids(
    ids: Mapping[str, tuple[str, ...]], available: list[str]
) -> dict[str, list[str]]:
    """Return split -> its ids, checked against the ids that there are.

    Raises:
      ValueError: if a listed id is not available; the message gives the count and
        five examples.
    """
    known = set(available)
    for split, listed in ids.items():
        missing = [id for id in listed if id not in known]
        if missing:
            raise ValueError(
                f"{len(missing)} of {len(listed)} ids of {split} are not in the "
                f"corpus, {', '.join(missing[:5])} among them. Remedy: use the release "
                "of the corpus that the lists were made for"
            )
    return {split: list(listed) for split, listed in ids.items()}
