"""Estimate a bigram of tokens from the transcripts of Shar folders.

    python -m icefall_kd.bin.make_bigram --shar-dir data/shar/train \\
        --bpe-model data/lang_bpe_150/bpe.model --output data/lang_bpe_150/bigram.pt

The term ``lfmmi`` reads the file (option ``bigram``), and so do teachers of family
``vocab_teacher`` (option ``lm``).
"""

import argparse
import logging
from collections.abc import Sequence

from icefall_kd.core.cli import create_parser, exit_on_error
from icefall_kd.core.logs import setup_logging
from icefall_kd.data.cuts import check_cuts
from icefall_kd.data.tokens import Tokenizer
from icefall_kd.fields.format import cuts_path, shard_ids
from icefall_kd.fields.shards import Shard
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


def read_texts(shar_dirs: Sequence[str]) -> list[str]:
    """Return the distinct transcripts of Shar folders, sorted."""
    texts = set()
    for shar_dir in shar_dirs:
        shards = [
            Shard(cuts_path(shar_dir, shard), {}) for shard in shard_ids(shar_dir)
        ]
        check_cuts(shards, str(shar_dir), labelled=True)
        for line in (line for shard in shards for line in shard.lines()):
            texts |= {
                s["text"] for s in line.get("supervisions") or [] if s.get("text")
            }
    return sorted(texts)


if __name__ == "__main__":
    main()
