"""Compile a decoding graph of words for the CTC head: HLG.fst.

    python -m icefall_kd.bin.compile_hlg --bpe-model data/lang_bpe_150/bpe.model \\
      --text data/shar/train data/shar/unlabelled_whisper_base book.txt \\
      --held-out data/shar/dev data/shar/test --output data/lang_bpe_150/HLG.fst

The graph contains a word n-gram of the distinct texts, the BPE spelling of the words
and the CTC topology.  --arpa FILE reads an n-gram from elsewhere.  --grammar FILE
replaces the n-gram by a list of phrases; an utterance is any sequence of them.  Words
outside these lists are possible with a penalty.

bin.decode and bin.transcribe read the graph with --method ctc_hlg --graph HLG.fst, and
sherpa-onnx with its option ctc_graph.  bin.tune_hlg chooses the weights.
"""

import argparse
import logging
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Optional

from icefall_kd.core.cli import (
    create_parser,
    exit_on_error,
    non_negative_float,
    require_packages,
)
from icefall_kd.core.files import as_path, is_local, read_text
from icefall_kd.core.logs import setup_logging
from icefall_kd.data.tokens import Tokenizer, UnknownLetters
from icefall_kd.decoding.hlg import HlgOptions, compile_hlg, save_graph
from icefall_kd.decoding.word_lm import (
    WordGraph,
    build_phrase_graph,
    parse_arpa,
    train_ngram,
)
from icefall_kd.fields.reader import read_texts

MAX_SHOWN = 5  # held-out texts in a message
# Fields of HlgOptions -> type and help of the option.
WEIGHTS = {
    "lm_scale": (non_negative_float, "factor of the log-probabilities of the n-gram"),
    "word_bonus": (
        float,
        "value in nats that is added to the score of each word of the lexicon",
    ),
    "oov_penalty": (non_negative_float, "cost in nats of a word outside the lexicon"),
    "blank_penalty": (non_negative_float, "cost in nats of each blank frame"),
}


def get_parser() -> argparse.ArgumentParser:
    p = create_parser(__doc__)
    p.add_argument("--bpe-model", type=Path, required=True, help="BPE model")
    add_graph_options(p)
    return p


def add_graph_options(p: argparse.ArgumentParser, nargs: Optional[str] = None) -> None:
    """Add --output, the options of the language model, and the weights to a command.

    Args:
      nargs: "+" if the command reads several values of each weight.
    """
    p.add_argument("--output", type=Path, required=True, help="file of the graph")
    source = p.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--text",
        nargs="+",
        help="labelled Shar folders, and text files with one sentence per line, "
        "for the n-gram",
    )
    source.add_argument("--arpa", type=Path, help="n-gram of words in ARPA format")
    source.add_argument("--grammar", help="text file of phrases, one per line")
    p.add_argument(
        "--held-out",
        nargs="+",
        default=[],
        help="Shar folders or text files of the test sets, whose texts are removed "
        "from --text",
    )
    p.add_argument("--words", help="text file of further words of the lexicon")
    p.add_argument(
        "--order",
        type=int,
        choices=(2, 3, 4),
        default=2,
        help="longest n-gram in words",
    )
    for name, (kind, text) in WEIGHTS.items():
        default = getattr(HlgOptions, name)
        p.add_argument(
            f"--{name.replace('_', '-')}",
            type=kind,
            nargs=nargs,
            default=[default] if nargs else default,
            help=text,
        )


def read_sentences(sources: Iterable[str]) -> list[str]:
    """Return the distinct texts of Shar folders and text files, sorted.

    Raises:
      FileNotFoundError: if a file or folder does not exist.
    """
    texts: set[str] = set()
    for source in sources:
        path = as_path(source)
        if is_local(path) and not path.exists():
            raise FileNotFoundError(
                f"{source}: not found; give a Shar folder or a text file"
            )
        texts |= set(
            read_text(path).split("\n") if path.is_file() else read_texts([source])
        )
    return sorted({" ".join(text.split()) for text in texts} - {""})


def remove_held_out(texts: list[str], held_out: list[str]) -> list[str]:
    """Return the texts that are not in ``held_out``, and log the others."""
    found = sorted(set(texts) & set(held_out))
    if found:
        logging.warning(
            "--held-out: removed %d of %d texts that are also in the test sets: %s%s",
            len(found),
            len(texts),
            "; ".join(found[:MAX_SHOWN]),
            "; ..." if len(found) > MAX_SHOWN else "",
        )
    return sorted(set(texts) - set(found))


def load_word_graph(args: argparse.Namespace, tokenizer: Tokenizer) -> WordGraph:
    """Return the graph of words that the options describe.

    Raises:
      FileNotFoundError: if a file or folder does not exist.
      ValueError: if a file is invalid, or the BPE model lacks letters of the texts.
    """
    graph = _load_language_model(args, tokenizer)
    if args.words:
        graph.add_words(" ".join(read_sentences([args.words])).split())
    return graph


def _load_language_model(args: argparse.Namespace, tokenizer: Tokenizer) -> WordGraph:
    if args.arpa:
        if not args.arpa.is_file():
            raise FileNotFoundError(f"--arpa {args.arpa}: file not found")
        return parse_arpa(read_text(args.arpa), str(args.arpa))
    texts = read_sentences(args.text or [args.grammar])
    letters = UnknownLetters(tokenizer)
    for text in texts:
        letters.add(text)
    letters.check("--text" if args.text else "--grammar")
    if args.grammar:
        return build_phrase_graph(texts)
    texts = remove_held_out(texts, read_sentences(args.held_out))
    return parse_arpa(train_ngram(texts, args.order), "n-gram")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    require_packages("kaldifst", "kaldingram")
    start = time.perf_counter()
    tokenizer = Tokenizer(args.bpe_model)
    options = HlgOptions(**{name: getattr(args, name) for name in WEIGHTS})
    graph = load_word_graph(args, tokenizer)
    fst = compile_hlg(graph, tokenizer, options)
    save_graph(fst, args.output)
    logging.info(
        "%s: %d words, %d n-grams or phrases, %d states, %.1f MB, %.1f s",
        args.output,
        len(graph.words),
        sum(map(len, graph.arcs.values())),
        fst.num_states,
        args.output.stat().st_size / 1e6,
        time.perf_counter() - start,
    )


def main() -> None:
    setup_logging()
    with exit_on_error("compile_hlg"):
        run(get_parser().parse_args())


if __name__ == "__main__":
    main()
