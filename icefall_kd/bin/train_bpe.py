"""Train BPE tokens on the texts of a manifest.

    python -m icefall_kd.bin.train_bpe --manifest data/manifests/train.jsonl.gz \\
        --vocab-size 150 --output data/lang_bpe_150

It writes bpe.model, bpe.vocab and tokens.txt into the output folder.
"""

import argparse
import logging
from pathlib import Path

from icefall_kd.core.cli import create_parser, exit_on_error
from icefall_kd.core.logs import setup_logging
from icefall_kd.data.shar import read_cuts
from icefall_kd.data.tokens import count_signs, train_bpe, write_lang


def get_parser() -> argparse.ArgumentParser:
    """Return the command's arguments."""
    parser = create_parser(__doc__)
    parser.add_argument(
        "--manifest", type=Path, required=True, help="manifest of labelled cuts"
    )
    parser.add_argument(
        "--vocab-size",
        type=int,
        default=150,
        help="number of tokens, including <blk>, <sos/eos> and <unk>",
    )
    parser.add_argument("--output", type=Path, required=True, help="output folder")
    return parser


def main() -> None:
    """Run the command."""
    args = get_parser().parse_args()
    setup_logging()
    with exit_on_error("train_bpe"):
        texts = [s.text for c in read_cuts(args.manifest) for s in c.supervisions]
        texts = [text for text in texts if text]
        signs = count_signs(texts)
        if signs:
            logging.warning(
                "%s: the texts have %d digits and signs, which become tokens: %s. "
                "Remedy: normalise the texts, with numbers as words and ’ as '",
                args.manifest,
                sum(signs.values()),
                ", ".join(f"{s} (U+{ord(s):04X}) {n}" for s, n in signs.most_common()),
            )
        tokenizer = write_lang(train_bpe(texts, args.vocab_size), args.output)
    num_tokens = sum(len(tokenizer.encode(text)) for text in texts)
    num_words = sum(len(text.split()) for text in texts)
    logging.info(
        "wrote %s: %d tokens, trained on %d texts, %.2f tokens a word",
        args.output, tokenizer.vocab_size, len(texts), num_tokens / num_words,
    )  # fmt: skip


if __name__ == "__main__":
    main()
