"""Write the denominator graph of the term ``lfmmi``, and a bigram of tokens.

    python -m icefall_kd.bin.make_denominator --shar-dir data/shar/train \\
        --bpe-model data/lang_bpe_150/bpe.model \\
        --output data/lang_bpe_150/denominator.pt \\
        --bigram data/lang_bpe_150/bigram.pt

The bigram is estimated from the transcripts.  The graph is the CTC topology composed
with the bigram.  The option ``lm`` of teachers of family ``vocab_teacher`` is the file
of the bigram.
"""

import argparse
import logging
from collections.abc import Sequence

from icefall_kd.core.cli import create_parser, exit_on_error, require_packages
from icefall_kd.core.logs import setup_logging
from icefall_kd.data.cuts import check_cuts
from icefall_kd.data.tokens import Tokenizer
from icefall_kd.fields.format import cuts_path, shard_ids
from icefall_kd.fields.shards import Shard
from icefall_kd.transducer.denominator import (
    build_denominator,
    make_bigram_table,
    save_bigram,
    save_denominator,
)


def get_parser() -> argparse.ArgumentParser:
    """Return the command's arguments."""
    p = create_parser(__doc__)
    p.add_argument("--shar-dir", required=True, nargs="+", help="labelled Shar folders")
    p.add_argument("--bpe-model", required=True, help="BPE model of the tokens")
    p.add_argument("--output", help="output file of the graph")
    p.add_argument("--bigram", help="output file of the bigram")
    p.add_argument(
        "--modified",
        action="store_true",
        help="use the modified CTC topology, without a blank between equal tokens",
    )
    return p


def main() -> None:
    """Run the command."""
    parser = get_parser()
    args = parser.parse_args()
    if not args.output and not args.bigram:
        parser.error("give --output, --bigram, or both")
    setup_logging()
    with exit_on_error("make_denominator"):
        if args.output:
            require_packages("k2")
        tokenizer = Tokenizer(args.bpe_model)
        tokens = [tokenizer.encode(text) for text in read_texts(args.shar_dir)]
        if args.bigram:
            table = make_bigram_table(tokens, tokenizer.vocab_size)
            save_bigram(table, tokenizer.sha256, args.bigram)
            logging.info("%s: bigram of %d texts", args.bigram, len(tokens))
        if args.output:
            graph = build_denominator(tokens, tokenizer.vocab_size, args.modified)
            save_denominator(graph, tokenizer.vocab_size, args.output)
            logging.info(
                "%s: graph of %d texts, %d arcs",
                args.output,
                len(tokens),
                graph.num_arcs,
            )


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
