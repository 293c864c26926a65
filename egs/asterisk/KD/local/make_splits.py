"""Draw the train, dev and test sets of the Asterisk prompts, the lists in ``splits/``.

python local/make_splits.py --source download/asterisk --output splits
"""

import argparse
import logging
from pathlib import Path

from prepare_asterisk import find_labelled, get_cut_id, normalise_prompt

from icefall_kd.core.cli import create_parser, exit_on_error
from icefall_kd.core.logs import setup_logging
from icefall_kd.corpora.manifests import draw_splits, write_id_lists


def get_parser() -> argparse.ArgumentParser:
    parser = create_parser(__doc__)
    parser.add_argument(
        "--source", type=Path, required=True, help="folder of the unpacked release"
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="folder for <split>.txt"
    )
    parser.add_argument("--language", default="en", help="language code")
    parser.add_argument("--num-test", type=int, default=100, help="test utterances")
    parser.add_argument("--num-dev", type=int, default=30, help="dev utterances")
    parser.add_argument("--seed", type=int, default=42, help="seed of the draw")
    return parser


def main() -> None:
    args = get_parser().parse_args()
    setup_logging()
    with exit_on_error("make_splits", ValueError):
        audio, transcripts = find_labelled(args.source, args.language)
        texts = {
            get_cut_id(p, args.language): normalise_prompt(
                transcripts[p], args.language
            )
            for p in audio
        }
        splits = draw_splits(
            texts, num_test=args.num_test, num_dev=args.num_dev, seed=args.seed
        )
        write_id_lists(splits, args.output, "tones or silence, no words")
    train_words = {word for id in splits["train"] for word in texts[id].split()}
    for split, ids in splits.items():
        words = [word for id in ids for word in texts[id].split()]
        unseen = sum(word not in train_words for word in words)
        logging.info(
            "%s: %d prompts, %d words, %.1f %% of them not in train",
            split, len(ids), len(words), 100 * unseen / max(1, len(words)),
        )  # fmt: skip


if __name__ == "__main__":
    main()
