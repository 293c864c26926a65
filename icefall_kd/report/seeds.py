"""Runs of one system from several seeds, counted together.

A run's name may end in ``@SEED``, as ``train.sh`` names them: ``baseline`` and
``baseline@43`` are two runs of ``baseline``.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from icefall_kd.decoding.bootstrap import wer_interval
from icefall_kd.decoding.scoring import run_errors
from icefall_kd.report.results import Result

_DELAYS = ("emission_delay", "latency")


def system_of(run: str) -> str:
    """Return the name of a system from that of one of its runs.

    >>> system_of("both_pool+pseudo@43")
    'both_pool+pseudo'
    """
    name, at, seed = run.rpartition("@")
    return name if at and seed.isdigit() else run


def over_seeds(results: Sequence[Result]) -> list[Result]:
    """Return the mean over the runs of each system, set and way of decoding.

    Args:
      results: of all runs.
    Returns:
      one result for each that was decoded so, those of a single run as well, in the
      order of the first of each; none where no system has several runs.
    Raises:
      ValueError: if the runs of a system were not decoded on the same utterances.
    """
    groups: dict[tuple[str, ...], list[Result]] = {}
    for r in results:
        groups.setdefault((system_of(r.system), *r.setting), []).append(r)
    if all(len(runs) == 1 for runs in groups.values()):
        return []
    return [_mean(system, runs) for (system, *_), runs in groups.items()]


def _mean(system: str, runs: Sequence[Result]) -> Result:
    first = runs[0]
    errors, words = run_errors([r.recognitions for r in runs])
    facts: dict[str, Any] = {
        **first.facts,
        "wer": statistics.mean(r.facts["wer"] for r in runs),
        "interval": wer_interval(errors, words),
        "rtf": statistics.mean(r.facts["rtf"] for r in runs),
        **_delays([r.facts for r in runs]),
    }
    return Result(system, first.path, facts, first.recognitions, tuple(runs))


def _delays(facts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the means of the delays; None of one that a run does not tell."""
    keys = [f"{name}_{what}_ms" for name in _DELAYS for what in ("mean", "p90")]
    told = {key: [f.get(key) for f in facts] for key in keys}
    return {
        key: None if None in values else statistics.mean(values)
        for key, values in told.items()
    }
