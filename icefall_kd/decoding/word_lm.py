"""Language models of words as graphs: n-grams in ARPA format, and lists of phrases.

n-grams have Kneser-Ney smoothing, estimated by kaldingram in the same way as SRILM's
``ngram-count -ukndiscount``.  In the graph, a word without an n-gram goes through the
back-off arc to a shorter history; see Mohri et al., Weighted finite-state transducers
in speech recognition, 2002, section 3.1.
"""

import contextlib
import io
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

BOS, EOS = "<s>", "</s>"
UNKNOWN = ("<unk>", "<UNK>")
NEVER = -90.0  # log10; ARPA files have -99 for the probability 0


@dataclass
class WordGraph:
    """A weighted graph over words.  Costs are negative natural logarithms.

    Attributes:
      start: first state.
      hub: state after a word that is not in the graph.
      arcs: state -> (word, next state, cost) of its words.
      backoff: state -> (next state, cost) of its arc without a word.
      finals: state -> cost of the end.
    """

    start: int = 0
    hub: int = 0
    arcs: dict[int, list[tuple[str, int, float]]] = field(default_factory=dict)
    backoff: dict[int, tuple[int, float]] = field(default_factory=dict)
    finals: dict[int, float] = field(default_factory=dict)

    @property
    def words(self) -> set[str]:
        """The words of all arcs."""
        return {word for arcs in self.arcs.values() for word, _, _ in arcs}

    def add_words(self, words: Iterable[str]) -> None:
        """Add words to the hub that it lacks, each as probable as its rarest word."""
        arcs = self.arcs.setdefault(self.hub, [])
        known = {word for word, _, _ in arcs}
        cost = max((cost for _, _, cost in arcs), default=0.0)
        new = sorted(set(words) - known)
        arcs.extend((word, self.hub, cost) for word in new)


def train_ngram(texts: Iterable[str], order: int) -> str:
    """Return an n-gram of words in ARPA format, with Kneser-Ney smoothing.

    Args:
      texts: sentences, words separated by spaces.
      order: longest n-gram in words, at least 2.
    Raises:
      ValueError: if there is no word.
    """
    from kaldingram.train import NgramCounts

    counts = NgramCounts(order)
    lines = [" ".join(words) for text in texts if (words := text.split())]
    if not lines:
        raise ValueError(
            "n-gram: no word to count. Give text files or labelled Shar folders in "
            "--text"
        )
    with contextlib.redirect_stderr(io.StringIO()):  # progress bars
        for line in lines:
            counts.add_raw_counts_from_line(line)
        counts.cal_discounting_constants()
        counts.cal_f()
        counts.cal_bow()
        arpa = io.StringIO()
        counts.print_as_arpa(arpa)
    return arpa.getvalue()


def parse_arpa(text: str, name: str) -> WordGraph:
    """Return the graph of an n-gram in ARPA format; n-grams of ``<unk>`` are ignored.

    Args:
      name: name of the file, for messages.
    Raises:
      ValueError: if the text is not ARPA; the message names the line.
    """
    scores, backoffs = _read_ngrams(text, name)
    longest = max(map(len, scores))
    histories = {ngram[:-1] for ngram in scores}
    histories |= {ngram for ngram, b in backoffs.items() if b and len(ngram) < longest}
    histories = {h for h in histories if not h or h[-1] != EOS} | {()}
    numbers = {h: n for n, h in enumerate(sorted(histories, key=lambda h: (len(h), h)))}

    def find_state(words: tuple[str, ...]) -> int:
        while words not in numbers:
            words = words[1:]
        return numbers[words]

    graph = WordGraph(start=find_state((BOS,)), hub=numbers[()])
    for history, number in numbers.items():
        if history:
            cost = -math.log(10) * backoffs.get(history, 0.0)
            graph.backoff[number] = find_state(history[1:]), cost
    for ngram, score in scores.items():
        *history, word = ngram
        if score <= NEVER or word == BOS:
            continue
        state, cost = numbers[tuple(history)], -math.log(10) * score
        if word == EOS:
            graph.finals[state] = cost
        else:
            target = find_state(ngram[-(longest - 1) :] if longest > 1 else ())
            graph.arcs.setdefault(state, []).append((word, target, cost))
    graph.finals.setdefault(graph.hub, 0.0)  # a model without </s>
    return graph


Ngrams = dict[tuple[str, ...], float]


def _read_ngrams(text: str, name: str) -> tuple[Ngrams, Ngrams]:
    """Return n-gram -> log10 probability, and n-gram -> log10 back-off weight."""
    scores: Ngrams = {}
    backoffs: Ngrams = {}
    order = 0
    for number, line in enumerate(text.split("\n"), start=1):
        fields = line.split()
        if not fields:
            continue
        if fields[0].startswith("\\"):
            section = re.fullmatch(r"\\(\d+)-grams:", fields[0])
            order = int(section[1]) if section else 0
            if fields[0] == "\\end\\" and scores:
                return scores, backoffs
        elif order:
            ngram = tuple(fields[1 : order + 1])
            try:
                score, *backoff = map(float, (fields[0], *fields[order + 1 :]))
            except ValueError:
                backoff = [0.0, 0.0]
            if len(ngram) < order or len(backoff) > 1:
                raise ValueError(
                    f"{name}: line {number}: '{line.strip()}' is not a {order}-gram "
                    f"with its log10 probability. Write the file again"
                )
            if not set(UNKNOWN) & set(ngram):
                scores[ngram] = score
                backoffs[ngram] = backoff[0] if backoff else 0.0
    raise ValueError(
        f"{name}: not an ARPA file, or incomplete: no n-grams before \\end\\. Write it "
        "with lmplz, ngram-count or kaldingram"
    )


def build_phrase_graph(phrases: Iterable[str]) -> WordGraph:
    """Return the graph of any sequence of phrases, each with cost 0.

    Raises:
      ValueError: if there is no phrase.
    """
    graph = WordGraph(finals={0: 0.0})
    states: dict[tuple[str, ...], int] = {(): 0}
    for words in sorted({tuple(phrase.split()) for phrase in phrases} - {()}):
        for n in range(1, len(words) + 1):
            _add_prefix(graph, states, words[:n])
        graph.backoff[states[words]] = 0, 0.0
    if len(states) == 1:
        raise ValueError("--grammar: no phrase in the file; write one phrase per line")
    return graph


def _add_prefix(
    graph: WordGraph, states: dict[tuple[str, ...], int], words: Sequence[str]
) -> None:
    """Add the arc of the last word of a prefix, whose other words are in ``states``."""
    if words not in states:
        states[words] = len(states)
        arc = words[-1], states[words], 0.0
        graph.arcs.setdefault(states[words[:-1]], []).append(arc)
