"""Draw the sets of the adventure corpus: the lists of ids in ``splits/``.

    python local/make_splits.py --manifests data/manifests/queen.jsonl.gz \\
        data/manifests/sky.jsonl.gz --output splits

Texts of dev, test_queen and test_sky occur once in both games; texts that repeat, as
greetings do, are for training.  ``rest_queen`` and ``rest_sky`` have all other clips.
"""

import argparse
import logging
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from lhotse import MonoCut

from icefall_kd.core.cli import create_parser, exit_on_error
from icefall_kd.core.logs import setup_logging
from icefall_kd.corpora.manifests import write_id_lists
from icefall_kd.data.shar import read_cuts

# Set -> game and minutes.
HELD_OUT = {"test_queen": ("queen", 25), "dev": ("queen", 15), "test_sky": ("sky", 25)}
TRAIN = ("queen", 45)


def get_game(id: str) -> str:
    """Return "queen" for the id "queen-020006J1"."""
    return id.partition("-")[0]


def draw(cuts: list[MonoCut], minutes: float) -> list[MonoCut]:
    """Remove cuts from the end of a list until they have this duration; return them.

    Raises:
      ValueError: if the list is too short.
    """
    drawn: list[MonoCut] = []
    while sum(cut.duration for cut in drawn) < 60 * minutes:
        if not cuts:
            raise ValueError(f"the manifests have fewer than {minutes} minutes to draw")
        drawn.append(cuts.pop())
    return drawn


def draw_sets(cuts: Sequence[MonoCut], seed: int = 42) -> dict[str, list[str]]:
    """Return set -> sorted ids."""
    rng = random.Random(seed)
    count = Counter(cut.supervisions[0].text for cut in cuts)
    shuffled = sorted(cuts, key=lambda cut: cut.id)
    rng.shuffle(shuffled)
    sets: dict[str, list[MonoCut]] = {}
    unique = {
        game: [
            cut
            for cut in shuffled
            if get_game(cut.id) == game and count[cut.supervisions[0].text] == 1
        ]
        for game in ("queen", "sky")
    }
    for name, (game, minutes) in HELD_OUT.items():
        sets[name] = draw(unique[game], minutes)
    held_out = {cut.id for drawn in sets.values() for cut in drawn}
    rest = {
        game: [c for c in shuffled if get_game(c.id) == game and c.id not in held_out]
        for game in ("queen", "sky")
    }
    game, minutes = TRAIN
    sets["train"] = draw(rest[game], minutes)
    sets |= {f"rest_{game}": remaining for game, remaining in rest.items()}
    return {name: sorted(cut.id for cut in cuts) for name, cuts in sets.items()}


def get_parser() -> argparse.ArgumentParser:
    parser = create_parser(__doc__)
    parser.add_argument(
        "--manifests", type=Path, nargs="+", required=True, help="of queen and sky"
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="folder for <set>.txt"
    )
    return parser


def log_set(name: str, cuts: Sequence[MonoCut], train_words: set[str]) -> None:
    words = [word for cut in cuts for word in cut.supervisions[0].text.split()]
    unseen = sum(word not in train_words for word in words)
    logging.info(
        "%s: %d clips, %.1f minutes, %d words, %.1f %% of them not in train",
        name, len(cuts), sum(cut.duration for cut in cuts) / 60, len(words),
        100 * unseen / len(words),
    )  # fmt: skip


def main() -> None:
    args = get_parser().parse_args()
    setup_logging()
    with exit_on_error("make_splits", ValueError):
        cuts = [cut for path in args.manifests for cut in read_cuts(path)]
        sets = draw_sets(cuts)
        write_id_lists(sets, args.output, "")
    by_id = {cut.id: cut for cut in cuts}
    train_words = {
        word for id in sets["train"] for word in by_id[id].supervisions[0].text.split()
    }
    for name, ids in sets.items():
        log_set(name, [by_id[id] for id in ids], train_words)


if __name__ == "__main__":
    main()
