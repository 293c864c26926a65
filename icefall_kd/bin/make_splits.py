"""Draw train, dev and test of the Asterisk prompts: how the lists of a recipe came.

python -m icefall_kd.bin.make_splits --source download/asterisk --output splits
"""

import argparse
import logging
from pathlib import Path

from icefall_kd.core.cli import create_parser, exit_on_error
from icefall_kd.core.logs import setup_logging
from icefall_kd.corpora.asterisk import (
    find_prompts,
    match_texts,
    prompt_id,
    read_transcripts,
    spell_prompt,
)
from icefall_kd.corpora.splits import choose_splits, write_splits


def get_parser() -> argparse.ArgumentParser:
    parser = create_parser(__doc__)
    # fmt: off
    parser.add_argument("--source", type=Path, required=True, help="with transcripts")
    parser.add_argument("--output", type=Path, required=True, help="<split>.txt")
    parser.add_argument("--language", default="en", help="of the prompts")
    parser.add_argument("--num-test", type=int, default=100, help="utterances")
    parser.add_argument("--num-dev", type=int, default=30, help="utterances")
    parser.add_argument("--seed", type=int, default=42, help="of the choice")
    # fmt: on
    return parser


def main() -> None:
    args = get_parser().parse_args()
    setup_logging()
    with exit_on_error("make_splits"):
        shipped = read_transcripts(args.source, args.language)
        texts = {
            prompt_id(prompt, args.language): spell_prompt(
                shipped[prompt], args.language
            )
            for prompt in match_texts(find_prompts(args.source), shipped)
        }
        splits = choose_splits(
            texts, num_test=args.num_test, num_dev=args.num_dev, seed=args.seed
        )
        write_splits(splits, args.output, "tones or silence: nothing is said")
        known = {w for id in splits["train"] for w in texts[id].split()}
        for split, ids in splits.items():
            words = [w for id in ids for w in texts[id].split()]
            unknown = sum(w not in known for w in words)
            logging.info(
                "%s: %d prompts, %d words, %.1f %% of them not in train",
                split, len(ids), len(words), 100 * unknown / max(1, len(words)),
            )  # fmt: skip


if __name__ == "__main__":
    main()
