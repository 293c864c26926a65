"""A bigram of tokens: how probable one is after another, counted in texts.

The graph of all token sequences, weighted by a bigram, and sums over its paths.

A denominator graph as LF-MMI has it: the CTC topology composed with a bigram of tokens.
Source: Povey et al., Purely sequence-trained neural networks for ASR based on
lattice-free MMI, 2016, Interspeech; the bigram in the place of phones as in k2's
recipes.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from icefall_kd import BLANK_ID
from icefall_kd.core.files import Pathlike, write_atomically
from icefall_kd.core.weights import load_dict

END = -1  # in the place of a token: the end of an utterance
Bigram = dict[tuple[int, int], float]


def estimate_bigram(
    sequences: Iterable[Sequence[int]], vocab_size: int
) -> tuple[Bigram, dict[int, float], dict[int, float]]:
    """Return a bigram of tokens, smoothed by what follows anywhere.

    Witten and Bell's estimate: after a, which was followed n times by t different
    tokens, a seen b has (count(a, b) + t p(b)) / (n + t), an unseen one t / (n + t)
    p(b); p(b) itself is the share of b with one added to every count.

    Args:
      sequences:  token ids of each text, without blanks.
      vocab_size: V, the blank included.
    Returns:
      log-probability of each seen pair (a, b), with 0 for the start and -1 for the end;
      of each b alone; and the log-weight with which a falls back on these.
    Raises:
      ValueError: if there is no text.
    """
    pairs: Counter = Counter()
    for tokens in sequences:
        walk = [BLANK_ID, *tokens, END]
        pairs.update(zip(walk, walk[1:]))
    if not pairs:
        raise ValueError("no text to estimate a bigram of tokens from")
    ends: Counter = Counter()
    followers: dict[int, list[int]] = {}
    for (a, b), count in pairs.items():
        ends[b] += count
        followers.setdefault(a, []).append(count)
    outcomes = [*range(1, vocab_size), END]
    total = sum(ends.values()) + len(outcomes)
    alone = {b: (ends[b] + 1) / total for b in outcomes}
    back = {a: len(n) / (sum(n) + len(n)) for a, n in followers.items()}
    seen = {
        (a, b): math.log(
            count / (sum(followers[a]) + len(followers[a])) + back[a] * alone[b]
        )
        for (a, b), count in pairs.items()
    }
    return (
        seen,
        {b: math.log(p) for b, p in alone.items()},
        {a: math.log(p) for a, p in back.items()},
    )


def make_bigram_table(sequences: Iterable[Sequence[int]], vocab_size: int) -> Tensor:
    """Return log p(b | a) of all tokens, (V, V) float32, a in rows.

    Row 0 is of the start; column 0, the blank's, is 0: it is no token.  What is missing
    in a row to a sum of 1 is the probability of the end.

    Args:
      sequences:  token ids of each text, without blanks.
      vocab_size: V, the blank included.
    Raises:
      ValueError: if there is no text.
    """
    seen, alone, back = estimate_bigram(sequences, vocab_size)
    table = torch.zeros(vocab_size, vocab_size)
    for b in range(1, vocab_size):
        table[:, b] = alone[b]
    for a, weight in back.items():
        table[a, 1:] += weight
    for (a, b), score in seen.items():
        if b != END:
            table[a, b] = score
    return table


def save_bigram(table: Tensor, vocab_sha256: str, path: Pathlike) -> None:
    """Write a table and the BPE model's hash that its tokens are of, or nothing."""
    with write_atomically(path) as aside:
        torch.save({"log_probs": table, "vocab_sha256": vocab_sha256}, aside)


def load_bigram(path: Pathlike, vocab_sha256: str) -> Tensor:
    """Return the table of a file.

    Args:
      vocab_sha256: of the BPE model whose tokens it must be of.
    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it holds something else, or is over other tokens.
    """
    saved = load_dict(
        path,
        "bigram of tokens",
        {"log_probs", "vocab_sha256"},
        "python -m icefall_kd.bin.make_denominator --bigram",
    )
    if saved["vocab_sha256"] != vocab_sha256:
        raise ValueError(
            f"{path} is over the tokens of the BPE model {saved['vocab_sha256'][:12]}, "
            f"not of {vocab_sha256[:12]} (SHA-256); make it again with the latter"
        )
    return saved["log_probs"]


def fuse(log_probs: Tensor, before: Tensor, table: Tensor, scale: float) -> Tensor:
    """Return distributions with a language model's opinion of the next token.

    p(k) goes with p(k) p_lm(k | before)^scale over the tokens.  The blank keeps its
    probability, since a language knows what comes next and not when; the tokens share
    the rest of it.
    Source: shallow fusion into the targets of one-best path distillation, 2021,
    arXiv:2110.03334; that the blank keeps its probability is ours.

    Args:
      log_probs: (..., V) float, normalised.
      before:    (...) int64, the token before; 0 at the start.
      table:     (V, V) float, of :func:`make_bigram_table`.
      scale:     of the language model; 0 changes nothing.
    Returns:
      (..., V) float32, normalised.
    """
    log_probs = log_probs.float()
    tokens = log_probs[..., 1:]
    fused = tokens + scale * table.to(log_probs.device)[before][..., 1:]
    fused = fused.log_softmax(dim=-1) + tokens.logsumexp(dim=-1, keepdim=True)
    return torch.cat([log_probs[..., :1], fused], dim=-1)


def build_denominator(
    sequences: Iterable[Sequence[int]], vocab_size: int, modified: bool = False
):
    """Return the denominator graph of a corpus, a ``k2.Fsa``.

    Every pair has an arc of its own, seen or not, so that a sequence has one path: a
    graph that falls back through epsilons would count the seen ones twice.

    Args:
      sequences:  token ids of each text of the corpus.
      vocab_size: V, the blank included.
      modified:   whether equal neighbours may go without a blank between them, which
                  makes the graph smaller.
    """
    import k2

    seen, alone, back = estimate_bigram(sequences, vocab_size)
    final = vocab_size  # states 0 .. V - 1: the token before; 0 also the start
    lines = []
    for a in range(vocab_size):
        for b in [*range(1, vocab_size), END]:
            weight = seen.get((a, b), back.get(a, 0.0) + alone[b])
            to, label = (final, -1) if b == END else (b, b)
            lines.append(f"{a} {to} {label} {weight:.6f}")
    lines.append(str(final))
    bigram = k2.add_epsilon_self_loops(
        k2.arc_sort(k2.Fsa.from_str("\n".join(lines), acceptor=True))
    )
    # Its labels are the tokens, its auxiliary labels what a frame says.
    topology = k2.invert(k2.ctc_topo(vocab_size - 1, modified=modified))
    graph = k2.intersect(k2.arc_sort(topology), k2.arc_sort(bigram), False)
    graph = k2.invert(k2.connect(graph))
    del graph.aux_labels
    return k2.arc_sort(graph)


def save_denominator(graph, vocab_size: int, path: Pathlike) -> None:
    """Write a denominator graph, whole or not at all."""
    with write_atomically(path) as aside:
        torch.save({"vocab_size": vocab_size, "graph": graph.as_dict()}, aside)


def load_denominator(path: Pathlike) -> tuple[Any, int]:
    """Return the graph, a ``k2.Fsa``, and the vocabulary's size.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it holds something else.
    """
    import k2

    saved = load_dict(
        path,
        "denominator graph",
        {"vocab_size", "graph"},
        "python -m icefall_kd.bin.make_denominator",
    )
    return k2.Fsa.from_dict(saved["graph"]), saved["vocab_size"]


def total_scores(
    log_probs: Tensor, lens: Tensor, graph, output_beam: float = 10.0
) -> Tensor:
    """Return the log-sum over all paths of the graph, (N,) float64, with gradient.

    Args:
      log_probs: (N, T, V) float32.
      lens:      (N,) int64, valid frames.
      graph:     of :func:`build_denominator`.
      output_beam: paths worse than the best by more are left out.
    """
    import k2

    order = torch.argsort(lens, descending=True)
    segments = torch.stack([order, torch.zeros_like(order), lens[order]], dim=1).to(
        torch.int32
    )
    dense = k2.DenseFsaVec(log_probs.float(), segments.cpu())
    first = torch.zeros(len(lens), dtype=torch.int32, device=graph.device)
    graphs = k2.index_fsa(k2.create_fsa_vec([graph]), first)
    lattice = k2.intersect_dense(graphs, dense, output_beam=output_beam)
    scores = lattice.get_tot_scores(log_semiring=True, use_double_scores=True)
    return scores[torch.argsort(order)]
