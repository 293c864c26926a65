"""Bigrams of tokens, and LF-MMI denominator graphs made from them.

A denominator graph is the CTC topology composed with a bigram of tokens.

Source: Povey et al., Purely sequence-trained neural networks for ASR based on
lattice-free MMI, 2016, Interspeech.  As in k2's recipes, the bigram is of tokens
instead of phones.
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

END = -1  # end of an utterance, as a token of the bigram
Bigram = dict[tuple[int, int], float]


def estimate_bigram(
    sequences: Iterable[Sequence[int]], vocab_size: int
) -> tuple[Bigram, dict[int, float], dict[int, float]]:
    """Return a bigram of tokens with Witten-Bell smoothing.

    p(b | a) = (count(a, b) + t p(b)) / (n + t), where n is the count of a, and t is the
    number of different tokens after a.  p(b) is the unigram with add-one smoothing.
    The start of a text is a = 0, its end is b = -1.

    Args:
      sequences:  token ids of each text, without blanks.
      vocab_size: V, the blank included.
    Returns:
      (a, b) -> log p(b | a) of each seen pair; b -> log p(b); and a -> the logarithm of
      the back-off weight t / (n + t).
    Raises:
      ValueError: if there is no text.
    """
    pairs: Counter = Counter()
    for tokens in sequences:
        padded = [BLANK_ID, *tokens, END]
        pairs.update(zip(padded, padded[1:]))
    if not pairs:
        raise ValueError(
            "bigram: no text to count tokens in. Give a Shar folder with transcripts"
        )
    ends: Counter = Counter()
    followers: dict[int, list[int]] = {}
    for (a, b), count in pairs.items():
        ends[b] += count
        followers.setdefault(a, []).append(count)
    outcomes = [*range(1, vocab_size), END]
    total = sum(ends.values()) + len(outcomes)
    unigram = {b: (ends[b] + 1) / total for b in outcomes}
    backoff = {a: len(n) / (sum(n) + len(n)) for a, n in followers.items()}
    seen = {
        (a, b): math.log(
            count / (sum(followers[a]) + len(followers[a])) + backoff[a] * unigram[b]
        )
        for (a, b), count in pairs.items()
    }
    return (
        seen,
        {b: math.log(p) for b, p in unigram.items()},
        {a: math.log(p) for a, p in backoff.items()},
    )


def make_bigram_table(sequences: Iterable[Sequence[int]], vocab_size: int) -> Tensor:
    """Return log p(b | a) of all pairs of tokens, see :func:`estimate_bigram`.

    Args:
      sequences:  token ids of each text, without blanks.
      vocab_size: V, the blank included.
    Returns:
      (V, V) float32, a in rows.  Row 0 is the start of a text.  Column 0 (the blank) is
      0 and unused.  The probabilities of a row and that of the end sum to 1.
    Raises:
      ValueError: if there is no text.
    """
    seen, unigram, backoff = estimate_bigram(sequences, vocab_size)
    table = torch.zeros(vocab_size, vocab_size)
    for b in range(1, vocab_size):
        table[:, b] = unigram[b]
    for a, weight in backoff.items():
        table[a, 1:] += weight
    for (a, b), score in seen.items():
        if b != END:
            table[a, b] = score
    return table


def save_bigram(table: Tensor, vocab_sha256: str, path: Pathlike) -> None:
    """Write a table of :func:`make_bigram_table`, with the SHA-256 of the BPE model."""
    with write_atomically(path) as temporary:
        torch.save({"log_probs": table, "vocab_sha256": vocab_sha256}, temporary)


def load_bigram(path: Pathlike, vocab_sha256: str) -> Tensor:
    """Return the (V, V) table of a file of :func:`save_bigram`.

    Args:
      vocab_sha256: SHA-256 of the expected BPE model.
    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is not a bigram, or belongs to another BPE model.
    """
    saved = load_dict(
        path,
        "bigram of tokens",
        {"log_probs", "vocab_sha256"},
        "python -m icefall_kd.bin.make_denominator --bigram",
    )
    if saved["vocab_sha256"] != vocab_sha256:
        raise ValueError(
            f"{path}: a bigram of the BPE model {saved['vocab_sha256'][:12]}, not of "
            f"{vocab_sha256[:12]} (SHA-256); write one for the second with 'python -m "
            "icefall_kd.bin.make_denominator --bigram'"
        )
    return saved["log_probs"]


def fuse_bigram(
    log_probs: Tensor, before: Tensor, table: Tensor, scale: float
) -> Tensor:
    """Return distributions after shallow fusion with a bigram.

    Token probabilities become proportional to p(k) p_lm(k | before)^scale.  The blank
    keeps its probability, because a language model predicts tokens but not their times.

    Source: shallow fusion for one-best path distillation, 2021, arXiv:2110.03334.  That
    the blank keeps its probability is an addition of this project.

    Args:
      log_probs: (..., V) float, normalised log-probabilities.
      before:    (...) int64, the previous token; 0 at the start.
      table:     (V, V) float, from :func:`make_bigram_table`.
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

    The bigram has one arc for every pair, seen or not, so a token sequence has one
    path.  Back-off through epsilons would count the seen pairs twice.

    Args:
      sequences:  token ids of each text of the corpus, without blanks.
      vocab_size: V, the blank included.
      modified:   whether equal neighbours need no blank between them, as in k2's
        modified CTC topology; the graph is smaller.
    Raises:
      ValueError: if there is no text.
    """
    import k2

    seen, unigram, backoff = estimate_bigram(sequences, vocab_size)
    final = vocab_size  # states 0 .. V - 1 are the previous token; 0 is the start
    lines = []
    for a in range(vocab_size):
        for b in [*range(1, vocab_size), END]:
            weight = seen.get((a, b), backoff.get(a, 0.0) + unigram[b])
            to, label = (final, -1) if b == END else (b, b)
            lines.append(f"{a} {to} {label} {weight:.6f}")
    lines.append(str(final))
    bigram = k2.add_epsilon_self_loops(
        k2.arc_sort(k2.Fsa.from_str("\n".join(lines), acceptor=True))
    )
    # After the inversion, labels are tokens and auxiliary labels are frames' symbols.
    topology = k2.invert(k2.ctc_topo(vocab_size - 1, modified=modified))
    graph = k2.intersect(k2.arc_sort(topology), k2.arc_sort(bigram), False)
    graph = k2.invert(k2.connect(graph))
    del graph.aux_labels
    return k2.arc_sort(graph)


def save_denominator(graph, vocab_size: int, path: Pathlike) -> None:
    """Write a graph of :func:`build_denominator`, with its V."""
    with write_atomically(path) as temporary:
        torch.save({"vocab_size": vocab_size, "graph": graph.as_dict()}, temporary)


def load_denominator(path: Pathlike) -> tuple[Any, int]:
    """Return the graph, a ``k2.Fsa``, and V from a file of :func:`save_denominator`.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is not a denominator graph.
    """
    import k2

    saved = load_dict(
        path,
        "denominator graph",
        {"vocab_size", "graph"},
        "python -m icefall_kd.bin.make_denominator",
    )
    return k2.Fsa.from_dict(saved["graph"]), saved["vocab_size"]


def compute_total_scores(
    log_probs: Tensor, lens: Tensor, graph, output_beam: float = 10.0
) -> Tensor:
    """Return the log-sum of the scores of all paths of the graph, with gradient.

    Args:
      log_probs:   (N, T, V) float.
      lens:        (N,) int64, valid frames.
      graph:       from :func:`build_denominator`.
      output_beam: nats below the best path, beyond which paths are pruned.
    Returns:
      (N,) float64.
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
