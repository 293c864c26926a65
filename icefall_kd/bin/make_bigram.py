"""Estimate a bigram of tokens from the transcripts of Shar folders.

    python -m icefall_kd.bin.make_bigram --shar-dir data/shar/train \\
        --bpe-model data/lang_bpe_150/bpe.model --output data/lang_bpe_150/bigram.pt

The term ``lfmmi`` reads the file (option ``bigram``), and so do teachers of family
``vocab_teacher`` (option ``lm``).
"""

import argparse
import logging

from icefall_kd.core.cli import create_parser, exit_on_error
from icefall_kd.core.logs import setup_logging
from icefall_kd.data.tokens import Tokenizer
from icefall_kd.fields.reader import read_texts
from icefall_kd.transducer.bigram import make_bigram_table, save_bigram


def get_parser() -> argparse.ArgumentParser:
    """Return the command's arguments."""
    p = create_parser(__doc__)
    p.add_argument("--shar-dir", required=True, nargs="+", help="labelled Shar folders")
    p.add_argument("--bpe-model", required=True, help="BPE model of the tokens")
    p.add_argument("--output", required=True, help="output file")
    return p


def main() -> None:
    """Run the command."""
    args = get_parser().parse_args()
    setup_logging()
    with exit_on_error("make_bigram"):
        tokenizer = Tokenizer(args.bpe_model)
        tokens = [tokenizer.encode(text) for text in read_texts(args.shar_dir)]
        table = make_bigram_table(tokens, tokenizer.vocab_size)
        save_bigram(table, tokenizer.sha256, args.output)
        logging.info("%s: bigram of %d texts", args.output, len(tokens))


if __name__ == "__main__":
    main()
