"""Bigrams of tokens, for shallow fusion and the denominator of LF-MMI."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Optional

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


def load_bigram(path: Pathlike, vocab_sha256: Optional[str] = None) -> Tensor:
    """Return the (V, V) table of a file of :func:`save_bigram`.

    Args:
      vocab_sha256: SHA-256 of the expected BPE model; None if unknown.
    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is not a bigram, or belongs to another BPE model.
    """
    saved = load_dict(
        path,
        "bigram of tokens",
        {"log_probs", "vocab_sha256"},
        "python -m icefall_kd.bin.make_bigram",
    )
    if vocab_sha256 not in (None, saved["vocab_sha256"]):
        raise ValueError(
            f"{path}: a bigram of the BPE model {saved['vocab_sha256'][:12]}, not of "
            f"{vocab_sha256[:12]} (SHA-256); write one for the second with 'python -m "
            "icefall_kd.bin.make_bigram'"
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
