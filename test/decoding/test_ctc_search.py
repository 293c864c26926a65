"""CTC searches, compared with all paths and with slow references."""

import itertools
import math
from collections import defaultdict

from icefall_kd.decoding import Hypothesis

VOCAB = 9
METHODS = ["ctc_greedy_search", "ctc_prefix_beam_search"]


def log_add(a: float, b: float) -> float:
    """Return the log of the sum of two probabilities."""
    high, low = max(a, b), min(a, b)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))


def collapse(path):
    """Return tokens and first frames of a path: no repetitions, then no blanks."""
    kept = [
        (token, t)
        for t, token in enumerate(path)
        if token != 0 and (t == 0 or token != path[t - 1])
    ]
    return tuple(token for token, _ in kept), tuple(t for _, t in kept)


def all_paths(log_probs):
    """Return prefix -> (sum over its paths, its best path's score and frames)."""
    rows = log_probs.tolist()
    found = defaultdict(lambda: (-math.inf, -math.inf, ()))
    for path in itertools.product(range(len(rows[0])), repeat=len(rows)):
        score = sum(row[token] for row, token in zip(rows, path))
        tokens, times = collapse(path)
        total, best, best_times = found[tokens]
        if score > best:
            best, best_times = score, times
        found[tokens] = log_add(total, score), best, best_times
    return found


def slow_prefix_beam(log_probs, beam):
    """Algorithm 1 of Hannun et al. with dicts: prefix -> (ends in blank, in token)."""
    prefixes = {(): (0.0, -math.inf)}
    for frame in log_probs.tolist():
        moved = defaultdict(lambda: [-math.inf, -math.inf])
        for prefix, (blank, token) in prefixes.items():
            both = log_add(blank, token)
            for k, log_prob in enumerate(frame):
                if k == 0:
                    moved[prefix][0] = log_add(moved[prefix][0], both + log_prob)
                    continue
                longer = prefix + (k,)
                if prefix and prefix[-1] == k:
                    moved[prefix][1] = log_add(moved[prefix][1], token + log_prob)
                    moved[longer][1] = log_add(moved[longer][1], blank + log_prob)
                else:
                    moved[longer][1] = log_add(moved[longer][1], both + log_prob)
        ranked = sorted(moved.items(), key=lambda item: -log_add(*item[1]))
        prefixes = dict(ranked[:beam])
    best = max(prefixes, key=lambda prefix: log_add(*prefixes[prefix]))
    return best, log_add(*prefixes[best])


def is_same(a: Hypothesis, b: Hypothesis) -> bool:
    return (a.tokens, a.timestamps) == (b.tokens, b.timestamps) and math.isclose(
        a.score, b.score, abs_tol=1e-3
    )
