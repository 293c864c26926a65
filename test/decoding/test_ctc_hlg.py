"""Graphs of words: n-grams, compared with ARPA; searches, compared with all paths."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from students import CTC_MODEL, any_tokens, collapse

from icefall_kd.data.tokens import Tokenizer, train_bpe
from icefall_kd.decoding import DecodeOptions, decode, make_search
from icefall_kd.decoding.hlg import DecodingGraph, HlgOptions, compile_hlg, read_graph
from icefall_kd.decoding.word_lm import (
    WordGraph,
    build_phrase_graph,
    parse_arpa,
    train_ngram,
)

PIECES = ["<blk>", "<sos/eos>", "<unk>", "▁A", "▁B", "C"]
SPELLING = {"A": [3], "B": [4], "AC": [3, 5], "BCC": [4, 5, 5]}
TINY = SimpleNamespace(
    vocab_size=len(PIECES),
    unk_id=2,
    piece=PIECES.__getitem__,
    encode=lambda word: SPELLING.get(word, [2]),
)
TEXTS = ["A B", "A A B AC", "AC B", "BCC A", "B BCC", "A A", "B"]


def arpa_score(arpa, words):
    """Return the log10 probability of a sentence, read from ARPA lines."""
    lines = [line.split("\t") for line in arpa.split("\n") if line.count("\t")]
    table = {tuple(fields[1].split()): fields for fields in lines}
    order = max(map(len, table))

    def score(history, word):
        if (*history, word) in table:
            return float(table[(*history, word)][0])
        fields = table.get(history, ())
        backoff = float(fields[2]) if len(fields) > 2 else 0.0
        return backoff + score(history[1:], word)

    total, history = 0.0, ("<s>",)
    for word in (*words, "</s>"):
        total += score(history[max(0, len(history) - order + 1) :], word)
        history = (*history, word)
    return total


def graph_cost(graph, state, words):
    """Return the cost of words from a state, with back-off only where needed."""
    if not words and state in graph.finals:
        return graph.finals[state]
    for word, to, cost in graph.arcs.get(state, []):
        if words and word == words[0]:
            return cost + graph_cost(graph, to, words[1:])
    to, cost = graph.backoff[state]
    return cost + graph_cost(graph, to, words)


@pytest.mark.parametrize("order", [2, 3])
def test_graph_of_an_ngram_has_its_probabilities(order):
    arpa = train_ngram(TEXTS, order)
    graph = parse_arpa(arpa, "lm.arpa")
    for words in itertools.product(SPELLING, repeat=3):
        cost = graph_cost(graph, graph.start, words)
        assert cost == pytest.approx(-math.log(10) * arpa_score(arpa, words), abs=1e-4)
    for state in {*graph.arcs, *graph.backoff}:  # probabilities sum to 1
        total = sum(
            math.exp(-graph_cost(graph, state, [w]) + graph_cost(graph, to, []))
            for w, to in ((w, word_state(graph, state, w)) for w in SPELLING)
        )
        assert total + math.exp(-graph_cost(graph, state, [])) == pytest.approx(1.0)


def word_state(graph, state, word):
    """Return the state after a word."""
    for found, to, _ in graph.arcs.get(state, []):
        if found == word:
            return to
    return word_state(graph, graph.backoff[state][0], word)


def slow_cost(graph, tokens, options):
    """Return the smallest cost of a token sequence, by all ways to read it as words."""
    starts = [i for i, token in enumerate(tokens) if token in (3, 4)]
    if tokens and starts[:1] != [0]:
        return math.inf
    words = [tokens[a:b] for a, b in zip(starts, [*starts[1:], len(tokens)])]

    def cost(state, i):
        ways = [math.inf]
        if i == len(words):
            ways.append(options.lm_scale * graph.finals.get(state, math.inf))
        if state in graph.backoff:
            to, weight = graph.backoff[state]
            ways.append(options.lm_scale * weight + cost(to, i))
        if i < len(words):
            for word, to, weight in graph.arcs.get(state, []):
                weight = options.lm_scale * weight - options.word_bonus
                if SPELLING[word] == words[i]:
                    ways.append(weight + cost(to, i + 1))
                if i + 1 == len(words) and is_start(words[i], SPELLING[word]):
                    ways.append(weight + options.oov_penalty)
            if state == graph.hub:
                ways.append(options.oov_penalty + cost(state, i + 1))
        return min(ways)

    return cost(graph.start, 0)


def is_start(tokens, word):
    return len(tokens) < len(word) and word[: len(tokens)] == tokens


def tiny_options(graph, options):
    fst = compile_hlg(graph, TINY, options)
    return DecodeOptions(
        "ctc_hlg", unk_id=2, graph=DecodingGraph("HLG.fst", "0" * 64, fst)
    )


@torch.no_grad()
@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize(
    "weights", [(0.5, 3.0, 4.0), (1.0, -1.0, 2.0), (0.3, 2.0, 0.0, 1.0)]
)
def test_best_path_equals_all_paths(order, weights):
    graph, weights = parse_arpa(train_ngram(TEXTS, order), "lm"), HlgOptions(*weights)
    options = tiny_options(graph, weights)
    torch.manual_seed(order)
    x = 3 * torch.randn(12, 5, len(PIECES))
    x[..., 1:3] = -torch.inf  # <sos/eos> and <unk> are not tokens of words
    costs, lengths = {}, set()
    hyps = decode(CTC_MODEL, x, torch.full((12,), 5), options)
    for log_probs, hyp in zip(x.log_softmax(-1).tolist(), hyps):
        found = []
        for path in itertools.product((0, 3, 4, 5), repeat=5):
            tokens, times = collapse(path)
            if tokens not in costs:
                costs[tokens] = slow_cost(graph, list(tokens), weights)
            score = sum(row[k] for row, k in zip(log_probs, path)) - costs[tokens]
            score -= path.count(0) * weights.blank_penalty
            found.append((score, tokens, times))
        score, tokens, times = max(found)
        assert (tuple(hyp.tokens), tuple(hyp.timestamps)) == (tokens, times)
        assert hyp.score == pytest.approx(score, abs=1e-3)
        lengths.add(len(tokens))
    assert len(lengths) > 2


@torch.no_grad()
def test_search_without_frames_is_empty():
    options = tiny_options(parse_arpa(train_ngram(TEXTS, 2), "lm"), HlgOptions())
    (hyp,) = decode(CTC_MODEL, torch.zeros(1, 2, 6), torch.tensor([0]), options)
    assert hyp.tokens == []


@torch.no_grad()
def test_graph_without_a_path_gives_an_empty_hypothesis():
    graph = any_tokens(len(PIECES))
    graph.fst.delete_arcs(0, graph.fst.num_arcs(0))
    options = DecodeOptions("ctc_hlg", graph=graph)
    (hyp,) = decode(CTC_MODEL, torch.zeros(1, 2, 6), torch.tensor([2]), options)
    assert hyp.tokens == []


@pytest.fixture(scope="module")
def words():
    """A tokenizer whose pieces are letters, and its letters for frames."""
    texts = ["THE NUMBER FOLLOWED", "THE QUICK BROWN FOX JUMPS OVER A LAZY DOG"]
    return Tokenizer.from_bytes(train_bpe(texts, 33))


def frames_of(tokenizer, text, certainty=6.0):
    """Return (1, T, V) logits that spell a text, three frames for each token."""
    labels = [label for i in tokenizer.encode(text) for label in (0, i, i)]
    x = torch.zeros(1, len(labels), tokenizer.vocab_size)
    x[0, range(len(labels)), labels] = certainty
    return x


def read_words(tokenizer, graph, text, certainty=6.0):
    """Return the words that the search finds in frames that spell a text."""
    x = frames_of(tokenizer, text, certainty)
    fst = compile_hlg(graph, tokenizer, HlgOptions(word_bonus=0.0))
    options = DecodeOptions(
        "ctc_hlg", unk_id=2, graph=DecodingGraph("HLG.fst", "0" * 64, fst)
    )
    (hyp,) = decode(CTC_MODEL, x, torch.tensor([x.size(1)]), options)
    return tokenizer.decode(hyp.tokens)


def test_lexicon_corrects_spelling_and_spells_other_words(words):
    texts = ["THE NUMBER FOLLOWED", "A NUMBER", "THE DOG FOLLOWED"]
    graph = parse_arpa(train_ngram(texts, 2), "lm")
    assert read_words(words, graph, "THE NUMER FOLLOWED", 5.0) == texts[0]
    assert read_words(words, graph, "THE NUMER FOX", 9.0) == "THE NUMER FOX"
    assert read_words(words, graph, "THE NUMBER FOLL", 9.0) == "THE NUMBER FOLL"
    graph.add_words(["NUMER"])
    assert read_words(words, graph, "THE NUMER FOLLOWED", 5.0) == "THE NUMER FOLLOWED"


def test_phrases_may_follow_each_other(words):
    graph = build_phrase_graph(["THE DOG", "THE DOG JUMPS", "A FOX"])
    for text in ("THE DOG", "A FOX THE DOG JUMPS"):
        assert read_words(words, graph, text) == text
    assert read_words(words, graph, "THE DOC A FOX", 5.0) == "THE DOG A FOX"
    assert read_words(words, graph, "THE QUICK FOX", 12.0) == "THE QUICK FOX"


@torch.no_grad()
def test_partial_results_have_unfinished_words(words):
    graph = parse_arpa(train_ngram(["THE NUMBER FOLLOWED"], 2), "lm")
    fst = compile_hlg(graph, words, HlgOptions())
    options = DecodeOptions("ctc_hlg", graph=DecodingGraph("HLG.fst", "0", fst))
    search = make_search(CTC_MODEL, 1, options)
    x = frames_of(words, "THE NUMBER FOLLOWED")
    partial = []
    for begin in range(0, x.size(1), 12):
        chunk = x[:, begin : begin + 12]
        search.advance(chunk, torch.tensor([chunk.size(1)]))
        partial.append(words.decode(search.hypotheses()[0].tokens))
    assert partial[-1] == "THE NUMBER FOLLOWED"
    for before, after in zip(partial, partial[1:]):
        assert after.startswith(before) and after != before


@pytest.mark.parametrize(
    "method, graph, message",
    [
        ("ctc_hlg", None, "--graph: ctc_hlg needs a graph"),
        ("ctc_greedy_search", any_tokens(6), "--graph: ctc_greedy_search does not"),
    ],
)
def test_graph_without_its_method_is_refused(method, graph, message):
    with pytest.raises(ValueError, match=message):
        make_search(CTC_MODEL, 1, DecodeOptions(method, graph=graph))


def test_graph_file_is_read_again(words, tmp_path):
    graph = parse_arpa(train_ngram(["THE FOX"], 2), "lm")
    path = tmp_path / "HLG.fst"
    fst = compile_hlg(graph, words, HlgOptions())
    fst.write(str(path))
    read = read_graph(path, words)
    assert read.fst.num_states == fst.num_states and len(read.sha256) == 64
    with pytest.raises(ValueError, match="HLG.fst: the graph has other tokens"):
        read_graph(path, TINY)


def test_other_files_are_not_graphs(words, tmp_path):
    path = tmp_path / "HLG.fst"
    with pytest.raises(FileNotFoundError, match="HLG.fst: graph not found"):
        read_graph(path, words)
    graph = parse_arpa(train_ngram(["THE FOX"], 2), "lm")
    compile_hlg(graph, words, HlgOptions()).write(str(path))
    truncated = path.read_bytes()[:-100]
    any_tokens(6).fst.write(str(path))  # without symbols
    for content in (b"", b"text\n", truncated, path.read_bytes()):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="HLG.fst: not a graph"):
            read_graph(path, words)


ARPA = "\\data\\\nngram 1=2\n\n\\1-grams:\n-1.0\tA\n{}\n\n\\end\\\n"


@pytest.mark.parametrize(
    "text, message",
    [
        ("A B C\n", "lm.arpa: not an ARPA file"),
        (ARPA.format("-0.5\tB")[:-6], "lm.arpa: not an ARPA file, or incomplete"),
        (ARPA.format("B\t-0.5"), "lm.arpa: line 6: 'B\t-0.5' is not a 1-gram"),
        (ARPA.format("-0.5\tB\t0\t1"), "lm.arpa: line 6"),
        (ARPA.format("-0.5"), "lm.arpa: line 6"),
    ],
)
def test_damaged_arpa_file_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_arpa(text, "lm.arpa")


def test_models_without_words_are_refused(tmp_path):
    with pytest.raises(ValueError, match="Give text files .* in --text"):
        train_ngram(["", " "], 2)
    with pytest.raises(ValueError, match="--grammar: no phrase in the file"):
        build_phrase_graph([" "])
    with pytest.raises(
        ValueError, match="language model: the BPE model can spell none"
    ):
        compile_hlg(WordGraph(arcs={0: [("Ж", 0, 0.0)]}), TINY, HlgOptions())
    with pytest.raises(ValueError, match="--lm-scale -1"):
        HlgOptions(lm_scale=-1.0)
    letters = SimpleNamespace(**{**vars(TINY), "piece": lambda i: PIECES[i].strip("▁")})
    with pytest.raises(ValueError, match="--bpe-model: no piece starts with"):
        compile_hlg(WordGraph(arcs={0: [("A", 0, 0.0)]}), letters, HlgOptions())
