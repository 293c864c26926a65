"""Write the denominator graph that the term ``lfmmi`` needs.

    python -m icefall_kd.bin.make_denominator --shar-dir data/shar/train \\
        --bpe-model data/lang_bpe_150/bpe.model \\
        --output data/lang_bpe_150/denominator.pt

A bigram of the tokens of the transcripts, composed with the CTC topology.
"""

import argparse
import logging

from icefall_kd.cache.field import cuts_path, shard_ids
from icefall_kd.cache.shards import Shard
from icefall_kd.data.tokens import Tokenizer
from icefall_kd.logs import setup_logging
from icefall_kd.transducer.denominator import build_denominator, save_denominator


def get_parser() -> argparse.ArgumentParser:
    """Return the command's arguments."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--shar-dir", required=True, nargs="+", help="labelled Shar folders")
    p.add_argument("--bpe-model", required=True)
    p.add_argument("--output", required=True, help="receives the graph")
    p.add_argument(
        "--modified",
        action="store_true",
        help="equal neighbours need no blank between them: a smaller graph",
    )
    return p


def main() -> None:
    """Run the command."""
    args = get_parser().parse_args()
    setup_logging()
    try:
        tokenizer = Tokenizer(args.bpe_model)
        texts = sorted(
            {
                supervision["text"]
                for shar_dir in args.shar_dir
                for shard in shard_ids(shar_dir)
                for line in Shard(cuts_path(shar_dir, shard), {}).lines()
                for supervision in line.get("supervisions") or []
                if supervision.get("text")
            }
        )
        tokens = [tokenizer.encode(text) for text in texts]
        graph = build_denominator(tokens, tokenizer.vocab_size, args.modified)
        save_denominator(graph, tokenizer.vocab_size, args.output)
    except (ValueError, OSError) as e:
        raise SystemExit(f"make_denominator: {e}") from e
    logging.info(
        "%s: %d arcs, from %d different texts", args.output, graph.num_arcs, len(texts)
    )


if __name__ == "__main__":
    main()
