"""Decoding graphs for a CTC head: topology, lexicon and language model in one FST.

The graph is the composition H o L o G of k2/icefall and Kaldi:

- G is a graph of words, see :mod:`icefall_kd.decoding.word_lm`.
- L spells each word with its BPE pieces.  The words that may follow a state of G form a
  prefix tree, and each arc of the tree has the smallest cost of the words behind it.
- H is the CTC topology: repeated frames of a token, blanks, and a blank between equal
  tokens.

A word outside the lexicon is spelled: a piece that starts a word, then any others.  It
has a fixed cost, and then the next word has no history.  An utterance may also end
inside a word, with the same cost, so that a search always has a result.

The FST is an acceptor of frames, as sherpa-onnx reads it: label 1 + id for each token,
label 0 for arcs without a frame.  It has no word labels, because sherpa-onnx and
:class:`.CtcHlgSearch` return the tokens.  Its input symbols are the BPE pieces.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from icefall_kd import BLANK_ID
from icefall_kd.core.files import Pathlike, sha256_file, write_atomically
from icefall_kd.data.tokens import SOS_EOS, WORD_START, Tokenizer
from icefall_kd.decoding.word_lm import WordGraph

FST_MAGIC = b"\xd6\xfd\xb2\x7e"  # first bytes of an OpenFst file
Spelled = tuple[Sequence[int], int, float]  # tokens of a word, next node, cost


@dataclass(frozen=True)
class HlgOptions:
    """Weights of a decoding graph, in nats.

    Attributes:
      lm_scale: factor of the language model's log-probabilities.
      word_bonus: added to the score of each word of the lexicon.
      oov_penalty: cost of a word outside the lexicon, and of an unfinished word.
      blank_penalty: cost of each blank frame; also in sherpa-onnx, whose CTC search has
        no blank penalty.
    """

    lm_scale: float = 0.5
    word_bonus: float = 3.0
    oov_penalty: float = 8.0
    blank_penalty: float = 0.0

    def __post_init__(self) -> None:
        for name in ("lm_scale", "oov_penalty", "blank_penalty"):
            if getattr(self, name) < 0:
                option = name.replace("_", "-")
                raise ValueError(
                    f"--{option} {getattr(self, name):g}: must be at least 0"
                )


@dataclass(frozen=True, eq=False)
class DecodingGraph:
    """A decoding graph for a CTC head.

    Attributes:
      path: file of the graph.
      sha256: SHA-256 of the file.
      fst: ``kaldifst.StdVectorFst`` with labels 1 + id.
    """

    path: Path
    sha256: str
    fst: Any


@dataclass
class _TokenGraph:
    """L o G: nodes with arcs of tokens, and arcs without a token.

    The first nodes are the states of G.

    Attributes:
      arcs: node -> (token, next node, cost).
      skips: node -> (next node, cost) of its arcs without a token.
      finals: node -> cost of the end.
      free: nodes whose tokens may equal the token before them without a blank.
    """

    arcs: dict[int, list[tuple[int, int, float]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    skips: dict[int, list[tuple[int, float]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    finals: dict[int, float] = field(default_factory=dict)
    free: set[int] = field(default_factory=set)
    num_nodes: int = 0

    def add_node(self) -> int:
        """Return a new node."""
        self.num_nodes += 1
        return self.num_nodes - 1


def spell_words(words: set[str], tokenizer: Tokenizer) -> dict[str, list[int]]:
    """Return word -> token ids of the words that need no ``<unk>``."""
    spelled = {word: tokenizer.encode(word) for word in sorted(words)}
    return {w: ids for w, ids in spelled.items() if tokenizer.unk_id not in ids}


def compile_hlg(graph: WordGraph, tokenizer: Tokenizer, options: HlgOptions) -> Any:
    """Return the decoding graph, a ``kaldifst.StdVectorFst``.

    Args:
      graph: language model; words with letters that the tokenizer lacks are ignored.
    Raises:
      ValueError: if no token starts a word, or no word can be spelled.
    """
    tokens = _compose_lexicon(graph, tokenizer, options)
    fst = _compose_topology(tokens, graph.start, options.blank_penalty)
    fst.input_symbols = _input_symbols(tokenizer)
    return fst


def _compose_lexicon(
    graph: WordGraph, tokenizer: Tokenizer, options: HlgOptions
) -> _TokenGraph:
    """Return L o G, with the spelling of unknown words."""
    spelling = spell_words(graph.words, tokenizer)
    if not spelling:
        raise ValueError(
            "language model: the BPE model can spell none of its "
            f"{len(graph.words)} words; write them with the letters of the transcripts"
        )
    states = {graph.start, graph.hub, *graph.arcs, *graph.backoff, *graph.finals}
    states |= {to for arcs in graph.arcs.values() for _, to, _ in arcs}
    out = _TokenGraph(num_nodes=max(states) + 1)
    for state in sorted(states):
        words = [
            (spelling[word], to, options.lm_scale * cost - options.word_bonus)
            for word, to, cost in graph.arcs.get(state, [])
            if word in spelling
        ]
        _add_tree(out, state, words, 0, 0.0, options.oov_penalty)
        if state in graph.backoff:
            to, cost = graph.backoff[state]
            out.skips[state].append((to, options.lm_scale * cost))
        if state in graph.finals:
            out.finals[state] = options.lm_scale * graph.finals[state]
        elif state not in graph.backoff:  # inside a phrase
            out.finals[state] = options.oov_penalty
    _add_unknown_words(out, graph.hub, tokenizer, options.oov_penalty)
    return out


def _add_tree(
    out: _TokenGraph,
    node: int,
    words: list[Spelled],
    depth: int,
    passed: float,
    unfinished: float,
) -> None:
    """Add the prefix tree of words whose first ``depth`` tokens lead to ``node``.

    Args:
      passed: cost of the words that is already on the arcs before ``node``.
      unfinished: cost of an end inside a word.
    """
    groups: dict[int, list[Spelled]] = defaultdict(list)
    for tokens, to, cost in words:
        if len(tokens) == depth + 1:
            out.arcs[node].append((tokens[depth], to, cost - passed))
        else:
            groups[tokens[depth]].append((tokens, to, cost))
    for token, group in groups.items():
        best = min(cost for _, _, cost in group)
        child = out.add_node()
        out.arcs[node].append((token, child, best - passed))
        out.finals[child] = unfinished
        _add_tree(out, child, group, depth + 1, best, unfinished)


def _add_unknown_words(
    out: _TokenGraph, hub: int, tokenizer: Tokenizer, penalty: float
) -> None:
    """Add the words outside the lexicon, which start and end at ``hub``.

    All tokens inside such a word are without cost, so equal tokens need no blank
    between them: the search returns them as one token, and its path has the same cost.
    """
    special = {BLANK_ID, tokenizer.unk_id}
    pieces = {
        i: tokenizer.piece(i)
        for i in range(tokenizer.vocab_size)
        if i not in special and tokenizer.piece(i) != SOS_EOS
    }
    first, inside, more = (out.add_node() for _ in range(3))
    for token, piece in pieces.items():
        source = first if piece.startswith(WORD_START) else more
        out.arcs[source].append((token, inside, 0.0))
    if first not in out.arcs:
        raise ValueError(
            f"--bpe-model: no piece starts with {WORD_START}, so words have no start; "
            "use a BPE model of texts with spaces"
        )
    out.free.add(more)
    out.skips[hub].append((first, penalty))
    out.skips[inside] += [(more, 0.0), (hub, 0.0)]


def _compose_topology(tokens: _TokenGraph, start: int, blank_cost: float) -> Any:
    """Return H o L o G.

    A state is a node and the last label on the way to it:

    - a token k: frames with k and with blanks may follow, and all tokens except k;
    - the blank: blanks and all tokens may follow;
    - after arcs without a token: all tokens, or all except k.  Blanks are only before
      these arcs, so that each alignment has one path.
    """
    import kaldifst

    firsts: dict[int, set[int]] = {}

    def first_tokens(node: int) -> set[int]:
        """Return the tokens that may follow a node and need a blank to be repeated."""
        if node in tokens.free:
            return set()
        if node not in firsts:
            firsts[node] = {token for token, _, _ in tokens.arcs.get(node, [])}
            for to, _ in tokens.skips.get(node, []):
                firsts[node] |= first_tokens(to)
        return firsts[node]

    def skip_to(node: int, last: Optional[int]) -> tuple:
        """Return the state after an arc without a token."""
        return node, last if last in first_tokens(node) else None, True

    def arcs_of(state: tuple) -> Iterator[tuple[int, float, tuple]]:
        """Yield label, cost and next state of each arc."""
        node, last, is_skipped = state
        if not is_skipped:
            if last != BLANK_ID:
                yield 1 + last, 0.0, state  # a further frame
            yield 1 + BLANK_ID, blank_cost, (node, BLANK_ID, False)
        for token, to, cost in tokens.arcs.get(node, []):
            if token != last:
                yield 1 + token, cost, (to, token, False)
        for to, cost in tokens.skips.get(node, []):
            yield 0, cost, skip_to(to, last)

    fst = kaldifst.StdVectorFst()
    numbers: dict[tuple, int] = {}
    queue: list[tuple] = []

    def number_of(state: tuple) -> int:
        if state not in numbers:
            numbers[state] = fst.add_state()
            queue.append(state)
        return numbers[state]

    fst.start = number_of((start, BLANK_ID, False))
    while queue:
        state = queue.pop()
        for label, cost, to in arcs_of(state):
            fst.add_arc(numbers[state], kaldifst.StdArc(label, 0, cost, number_of(to)))
        if state[0] in tokens.finals:
            fst.set_final(numbers[state], tokens.finals[state[0]])
    return fst


def _input_symbols(tokenizer: Tokenizer) -> Any:
    """Return the ``kaldifst.SymbolTable`` of the labels."""
    import kaldifst

    table = kaldifst.SymbolTable()
    table.add_symbol("<eps>", 0)
    for token in range(tokenizer.vocab_size):
        table.add_symbol(tokenizer.piece(token), 1 + token)
    return table


def save_graph(fst: Any, path: Pathlike) -> None:
    """Write a graph of :func:`compile_hlg`, atomically."""
    with write_atomically(path) as temporary:
        fst.write(str(temporary))


def read_graph(path: Pathlike, tokenizer: Tokenizer) -> DecodingGraph:
    """Read a graph of bin.compile_hlg.

    Raises:
      FileNotFoundError: if the file does not exist.
      ValueError: if it is not a graph, or its symbols are not those of the tokenizer.
    """
    import kaldifst

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: graph not found; write it with bin.compile_hlg"
        )
    with path.open("rb") as f:
        is_fst = f.read(len(FST_MAGIC)) == FST_MAGIC
    fst = kaldifst.StdVectorFst.read(str(path)) if is_fst else None
    if fst is None or fst.input_symbols is None:
        raise ValueError(
            f"{path}: not a graph with input symbols, or damaged; write it with "
            "bin.compile_hlg"
        )
    expected = [tokenizer.piece(i) for i in range(tokenizer.vocab_size)]
    found = [
        fst.input_symbols.find(1 + i)
        for i in range(fst.input_symbols.num_symbols() - 1)
    ]
    if found != expected:
        raise ValueError(
            f"{path}: the graph has other tokens than the model ({len(found)} and "
            f"{len(expected)} tokens); compile it with the bpe.model of the model"
        )
    return DecodingGraph(path, sha256_file(path), fst)
