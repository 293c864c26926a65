"""The graph of all token sequences, weighted by a bigram, and sums over its paths.

A denominator graph as LF-MMI has it: the CTC topology composed with a bigram of tokens.
Source: Povey et al., Purely sequence-trained neural networks for ASR based on
lattice-free MMI, 2016, Interspeech; the bigram in the place of phones as in k2's
recipes.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from icefall_kd.io import Pathlike, write_aside
from icefall_kd.transducer.bigram import END, estimate_bigram
from icefall_kd.weights_only import load_saved


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
    with write_aside(path) as aside:
        torch.save({"vocab_size": vocab_size, "graph": graph.as_dict()}, aside)


def load_denominator(path: Pathlike) -> tuple[Any, int]:
    """Return the graph, a ``k2.Fsa``, and the vocabulary's size.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it holds something else.
    """
    import k2

    saved = load_saved(
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
