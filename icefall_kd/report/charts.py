"""Select the curves of the training metrics, and compute their positions in SVG."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional

from icefall_kd.report.runs import Run, Stage, stage_names

# Size and margins of a chart in the units of its SVG.
WIDTH, HEIGHT = 440, 280
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 10, 40
MAX_TICKS = 6
MIN_LOG_RATIO = 4.0  # of the largest to the smallest value; below, the axis is linear
KINDS = ("train", "dev")
WER = "wer_"  # prefix of the word error rates on dev
TITLES = {
    "wer_ctc": "WER % on dev, greedy search of the CTC head",
    "wer_transducer": "WER % on dev, greedy search of the transducer",
}

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Chart:
    """One metric of one training stage.

    Attributes:
      stage: name of the training stage.
      metric: name of the metric.
      curves: (system, "train" or "dev") -> (update, value) pairs.
    """

    stage: str
    metric: str
    curves: Mapping[tuple[str, str], Points]

    def last_value(self, system: str) -> Optional[float]:
        """Return the last value of a system on dev; None if it has none."""
        points = self.curves.get((system, "dev"))
        return points[-1][1] if points else None


@dataclass(frozen=True)
class Axis:
    """A linear or logarithmic axis from ``low`` to ``high``.

    Attributes:
      low, high: values at its ends.
      begin, end: positions of its ends in the SVG.
      is_log: whether it is logarithmic.
    """

    low: float
    high: float
    begin: float
    end: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        """Return the position of a value."""
        low, high, value = (
            (math.log(x) if self.is_log else x) for x in (self.low, self.high, value)
        )
        fraction = (value - low) / (high - low) if high > low else 0.5
        return self.begin + fraction * (self.end - self.begin)

    def ticks(self) -> list[float]:
        """Return round values within the axis."""
        if self.is_log:
            first, last = (math.floor(math.log10(x)) for x in (self.low, self.high))
            decades = [10.0**e for e in range(first, last + 1)]
            found = [d * m for d in decades for m in (1, 2, 5)]
            found = [t for t in found if self.low <= t <= self.high]
            if len(found) > 1:
                return found
        return round_ticks(self.low, self.high)


def round_ticks(low: float, high: float) -> list[float]:
    """Return at most ``MAX_TICKS`` multiples of 1, 2 or 5 times a power of ten.

    >>> round_ticks(0.0, 1450.0)
    [0.0, 500.0, 1000.0]
    """
    if not high > low:
        return [low]
    power = 10.0 ** math.floor(math.log10((high - low) / MAX_TICKS))
    steps = (power * m for m in (1, 2, 5, 10, 20))
    step = next(s for s in steps if (high - low) / s < MAX_TICKS)
    first, last = math.ceil(low / step), math.floor(high / step)
    return [round(i * step, 12) for i in range(first, last + 1)]


def make_charts(runs: Mapping[str, Run], metrics: Sequence[str] = ()) -> list[Chart]:
    """Return the charts of all stages.

    Args:
      runs: system -> its training.
      metrics: names of metrics; empty: those of :func:`default_metrics`.
    Raises:
      ValueError: if no run has one of ``metrics``.
    """
    by_stage: dict[str, dict[str, Stage]] = {n: {} for n in stage_names(runs.values())}
    for system, run in runs.items():
        for stage in run.stages:
            by_stage[stage.name][system] = stage
    charts = []
    for name, stages in by_stage.items():
        for metric in metrics or default_metrics(stages.values()):
            curves = {
                (system, kind): points
                for system, stage in stages.items()
                for kind in KINDS
                if (points := stage.points(kind, metric))
            }
            if curves:
                charts.append(Chart(name, metric, curves))
    unknown = set(metrics) - {chart.metric for chart in charts}
    if unknown:
        stages = (stage for group in by_stage.values() for stage in group.values())
        known = {key for stage in stages for line in stage.lines for key in line}
        raise ValueError(
            f"--metric: no run has {sorted(unknown)}. Available: "
            f"{sorted(known - {'kind', 'step', 'epoch'})}"
        )
    return charts


def default_metrics(stages: Iterable[Stage]) -> list[str]:
    """Return the names of the WERs on dev, of the loss and of its terms.

    Omits the loss if it has only one term.
    """
    names = dict.fromkeys(
        key
        for stage in stages
        for line in stage.lines
        if line["kind"] == "dev"
        for key in line
        if key not in ("kind", "step", "epoch") and "." not in key
    )
    if sum(not name.startswith(WER) for name in names) == 2:
        names.pop("loss", None)
    return sorted(names, key=lambda name: not name.startswith(WER)) or ["loss"]


def layout(chart: Chart, systems: Sequence[str]) -> dict[str, Any]:
    """Return the positions of a chart for the template of the page.

    Args:
      chart: the chart.
      systems: all systems of the page; their order gives the colours.
    Returns:
      ``title``; ``x_ticks``, ``y_ticks``: (position, text) pairs; ``curves``: for each
      curve ``index`` of the system, ``kind``, ``points`` of the polyline, and ``dots``,
      (x, y, text) of each value on dev.
    """
    steps = [x for points in chart.curves.values() for x, _ in points]
    values = [y for points in chart.curves.values() for _, y in points]
    low, high = min(values), max(values)
    is_log = low > 0 and high > MIN_LOG_RATIO * low
    x = Axis(0, max(steps), LEFT, WIDTH - RIGHT)
    y = Axis(low, high, HEIGHT - BOTTOM, TOP, is_log)
    curves = []
    for (system, kind), points in chart.curves.items():
        positions = [(f"{x(step):.1f}", f"{y(value):.1f}") for step, value in points]
        texts = [f"{system}, {step} updates: {value:.4g}" for step, value in points]
        dots = [(*position, text) for position, text in zip(positions, texts)]
        curves.append(
            {
                "index": systems.index(system),
                "kind": kind,
                "points": " ".join(",".join(position) for position in positions),
                "dots": dots if kind == "dev" else [],
            }
        )
    title = f"{chart.stage}: {TITLES.get(chart.metric, chart.metric)}"
    return {
        "title": title + (", logarithmic" if is_log else ""),
        "x_ticks": [(f"{x(value):.1f}", f"{value:g}") for value in x.ticks()],
        "y_ticks": [(f"{y(value):.1f}", f"{value:g}") for value in y.ticks()],
        "curves": curves,
    }
