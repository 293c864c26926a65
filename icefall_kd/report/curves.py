"""HTML that is escaped by construction: text becomes markup through one function.

Training curves as SVG: a chart for each stage and metric, a line for each system.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Optional, Union

from icefall_kd.report.runs import Run, Stage, stage_names


class Html(str):
    """Markup; any other string is text."""


VOID = {"meta", "line", "circle", "polyline"}  # without content


def element(name: str, *children: Union[Html, str], **attributes: Any) -> Html:
    """Return an element.

    >>> element("td", "a < b", class_="number", data_value=0.5, hidden=False)
    '<td class="number" data-value="0.5">a &lt; b</td>'

    Args:
      name: of the element.
      children: its content; strings are escaped, :class:`Html` stays as it is.
      attributes: with ``_`` for ``-`` and one behind a word of Python's; None and
        False leave an attribute out, True gives it no value.
    """
    written = "".join(
        f" {key.rstrip('_').replace('_', '-')}"
        + ("" if value is True else f'="{escape(str(value))}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in VOID and not children:
        return Html(f"<{name}{written}/>")
    return Html(f"<{name}{written}>{join(*children)}</{name}>")


def join(*children: Union[Html, str]) -> Html:
    """Return elements and texts behind each other."""
    return Html("".join(c if isinstance(c, Html) else escape(c) for c in children))


def data_block(identifier: str, data: Any) -> Html:
    """Return data for a script of the page; no text in it can end the element."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return element("script", Html(text), type="application/json", id=identifier)


WIDTH, HEIGHT = 440, 280
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 10, 40
COLOURS = 8  # of the style sheet
TICKS = 6
LOG_FROM = 4.0  # ratio of the largest to the smallest value
KINDS = ("train", "dev")
WER = "wer_"  # begins the names of word error rates on dev
TITLES = {
    "wer_ctc": "WER % on dev, greedy search of the CTC head",
    "wer_transducer": "WER % on dev, greedy search of the transducer",
}

Points = Sequence[tuple[float, float]]


def colour_class(index: int) -> str:
    """Return the class of the style sheet that colours the system of this index."""
    return f"c{index % COLOURS}"


@dataclass(frozen=True)
class Chart:
    """What one chart shows.

    Attributes:
      stage: name of the training stage.
      metric: name of the metric.
      lines: (system, "train" or "dev") -> its (update, value) pairs.
    """

    stage: str
    metric: str
    lines: Mapping[tuple[str, str], Points]


@dataclass(frozen=True)
class Axis:
    """Maps values to positions, in proportion or in proportion to the logarithm."""

    low: float
    high: float
    begin: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (
            (math.log(x) if self.log else x) for x in (self.low, self.high, value)
        )
        share = (value - low) / (high - low) if high > low else 0.5
        return self.begin + share * (self.end - self.begin)

    def ticks(self) -> list[float]:
        """Return round values within the axis."""
        if self.log:
            first, last = (math.floor(math.log10(x)) for x in (self.low, self.high))
            decades = [10.0**e for e in range(first, last + 1)]
            found = [d * m for d in decades for m in (1, 2, 5)]
            found = [t for t in found if self.low <= t <= self.high]
            if len(found) > 1:
                return found
        return round_ticks(self.low, self.high)


def round_ticks(low: float, high: float) -> list[float]:
    """Return at most :data:`TICKS` multiples of 1, 2 or 5 times a power of ten.

    >>> round_ticks(0.0, 1450.0)
    [0.0, 500.0, 1000.0]
    """
    if not high > low:
        return [low]
    power = 10.0 ** math.floor(math.log10((high - low) / TICKS))
    step = next(
        power * m for m in (1, 2, 5, 10, 20) if (high - low) / m / power < TICKS
    )
    first, last = math.ceil(low / step), math.floor(high / step)
    return [round(i * step, 12) for i in range(first, last + 1)]


def charts(runs: Mapping[str, Run], metrics: Sequence[str] = ()) -> list[Chart]:
    """Return the charts of all stages.

    Args:
      runs: the training of each system.
      metrics: names; empty: the loss and every term of it that dev was measured by.
    Raises:
      ValueError: if no run knows one of ``metrics``.
    """
    by_stage: dict[str, dict[str, Stage]] = {n: {} for n in stage_names(runs.values())}
    for system, run in runs.items():
        for stage in run.stages:
            by_stage[stage.name][system] = stage
    found = [
        chart
        for name, stages in by_stage.items()
        for metric in metrics or default_metrics(stages.values())
        if (chart := _chart(name, metric, stages)) is not None
    ]
    unknown = [m for m in metrics if m not in {c.metric for c in found}]
    if unknown:
        known = {
            key
            for stages in by_stage.values()
            for stage in stages.values()
            for line in stage.lines
            for key in line
        }
        raise ValueError(
            f"no run has metrics named {unknown}; there are "
            f"{sorted(known - {'kind', 'step', 'epoch'})}"
        )
    return found


def default_metrics(stages: Sequence[Stage]) -> list[str]:
    """Return the word error rates, the loss and its terms.

    With one term the loss is left out, for it is that term.
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


def _chart(name: str, metric: str, stages: Mapping[str, Stage]) -> Optional[Chart]:
    lines = {
        (system, kind): points
        for system, stage in stages.items()
        for kind in KINDS
        if (points := stage.points(kind, metric))
    }
    return Chart(name, metric, lines) if lines else None


def draw(chart: Chart, systems: Sequence[str]) -> Html:
    """Return a chart as a figure.

    Args:
      chart: what to draw.
      systems: all systems of the page, whose order gives the colours.
    """
    steps = [x for points in chart.lines.values() for x, _ in points]
    values = [y for points in chart.lines.values() for _, y in points]
    low, high = min(values), max(values)
    x = Axis(0, max(steps), LEFT, WIDTH - RIGHT)
    log = low > 0 and high > LOG_FROM * low
    y = Axis(low, high, HEIGHT - BOTTOM, TOP, log)
    title = f"{chart.stage}: {TITLES.get(chart.metric, chart.metric)}"
    parts = [element("title", title), _grid(x, y)]
    for (system, kind), points in chart.lines.items():
        parts.append(_line(system, kind, points, systems.index(system), (x, y)))
    svg = element(
        "svg", *parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=title
    )
    scale = ", logarithmic" if log else ""
    return element("figure", element("figcaption", title + scale), svg)


def _grid(x: Axis, y: Axis) -> Html:
    """Draw ticks and labels."""
    parts = []
    for value in y.ticks():
        at = f"{y(value):.1f}"
        parts.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=at, y2=at))
        label = element(
            "text", f"{value:g}", x=LEFT - 6, y=at, dy="0.35em", text_anchor="end"
        )
        parts.append(label)
    for value in x.ticks():
        parts.append(
            element(
                "text",
                f"{value:g}",
                x=f"{x(value):.1f}",
                y=HEIGHT - BOTTOM + 16,
                text_anchor="middle",
            )
        )
    parts.append(
        element(
            "text",
            "updates",
            x=(LEFT + WIDTH - RIGHT) / 2,
            y=HEIGHT - 6,
            text_anchor="middle",
        )
    )
    return element("g", *parts, class_="grid")


def _line(
    system: str, kind: str, points: Points, index: int, axes: tuple[Axis, Axis]
) -> Html:
    """Draw one system's line; the points of dev tell their values."""
    x, y = axes
    places = [(f"{x(step):.1f}", f"{y(value):.1f}") for step, value in points]
    parts = [element("polyline", points=" ".join(map(",".join, places)))]
    if kind == "dev":
        for (cx, cy), (step, value) in zip(places, points):
            words = element("title", f"{system}, {step} updates: {value:.4g}")
            parts.append(element("circle", words, cx=cx, cy=cy, r=3))
    return element("g", *parts, class_=f"line {kind} {colour_class(index)}")


def legend(systems: Sequence[str]) -> Html:
    """Return which colour is whose."""
    items = [
        element("li", element("span", "", class_=f"swatch {colour_class(i)}"), system)
        for i, system in enumerate(systems)
    ]
    how = element("li", "dots: dev; thin: train, with the weights of that update")
    return element("ul", join(*items), how, class_="legend")
