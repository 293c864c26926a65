"""The page: one HTML file that needs no other, and lets nothing in from elsewhere."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Union

from icefall_kd.report.curves import (
    Chart,
    Html,
    colour_class,
    data_block,
    draw,
    element,
    join,
    legend,
)
from icefall_kd.report.results import Result
from icefall_kd.report.runs import Run, seeds, stage_names
from icefall_kd.report.table import Column, Row, Table, numbered
from icefall_kd.report.utterances import utterances

HERE = Path(__file__).parent
BAR = (120, 10)  # width and height of a WER with its interval

Cell = Union[str, Html]
Audio = Mapping[str, Mapping[str, str]]


def render(
    table: Table,
    runs: Mapping[str, Run],
    charts: Sequence[Chart] = (),
    audio: Union[Audio, None] = None,
    means: Union[Table, None] = None,
) -> str:
    """Return the page.

    Args:
      table: of all results.
      runs: the training of each system, in the order that gives the colours.
      charts: of the training.
      audio: set -> id -> data URI.
      means: of the runs of each system over their seeds.
    """
    systems = list(runs)
    results = [row.result for row in table.rows]
    data = {**utterances(results), "audio": dict(audio or {})}
    data["baseline"] = table.baseline
    style, script = (_asset(name) for name in ("page.css", "page.js"))
    return Template(_asset("page.html")).substitute(
        title=element("title", f"Report: {', '.join(systems)}"),
        policy=element(
            "meta", http_equiv="Content-Security-Policy", content=_policy(style, script)
        ),
        style=element("style", Html(style)),
        script=element("script", Html(script)),
        data=data_block("data", data),
        about=_about(results),
        results=join(_results(table, systems), _means(means)),
        training=_training(runs, charts, systems),
        heard=_heard(audio),
    )


def _asset(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8").strip()


def _policy(style: str, script: str) -> str:
    """Allow the page's own style and script, by their hashes, and audio within it."""
    hashes = [
        base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
        for text in (style, script)
    ]
    return (
        f"default-src 'none'; media-src data:; style-src 'sha256-{hashes[0]}'; "
        f"script-src 'sha256-{hashes[1]}'"
    )


def _about(results: Sequence[Result]) -> Html:
    """Say what the page is of."""
    of_set = {r.facts["set"]: r for r in results}
    words = {
        name: sum(len(x.ref) for x in r.recognitions) for name, r in of_set.items()
    }
    sets = "; ".join(
        f"{name}: {len(r.recognitions)} utterances, {words[name]} words"
        for name, r in of_set.items()
    )
    return element("p", f"{len(results)} results on {sets}.")


def _grid(header: Sequence[Cell], rows: Sequence[Sequence[Html]], caption: str) -> Html:
    """Return a table that scrolls sideways where the screen is narrow."""
    head = element("tr", *(element("th", h, scope="col") for h in header))
    body = [element("tr", *row) for row in rows]
    table = element(
        "table",
        element("caption", caption),
        element("thead", head),
        element("tbody", *body),
    )
    # With the keyboard too, hence the focus.
    return element(
        "div", table, class_="scroll", tabindex=0, role="region", aria_label=caption
    )


def _results(table: Table, systems: Sequence[str]) -> Html:
    columns = table.columns
    most = max(row.result.facts["interval"][1] for row in table.rows)
    header = [element("button", c.name, type="button") for c in columns]
    rows = [
        [_result_cell(c, row, i, most, systems) for c in columns]
        for i, row in enumerate(table.rows)
    ]
    if table.baseline is None:
        told = "No baseline was named, so no gain is shown."
    else:
        told = (
            f"WERR: relative reduction of the WER from {table.baseline}, decoded in "
            "the same way; difference: absolute, negative is better; P(better): share "
            "of paired bootstrap test sets with fewer errors, over utterances alone."
        )
    how = (
        "WER with its 95 % bootstrap interval over utterances; RTF: seconds of work a "
        f"second of audio. {told}"
    )
    grid = _grid(header, rows, "All results; a header sorts")
    items = [
        element("li", text, id=f"note-{number}")
        for number, text in enumerate(table.notes, 1)
    ]
    notes = element("ol", *items, class_="notes") if items else ""
    return join(
        *_remarks(table),
        element("p", how, class_="how"),
        element("div", grid, class_="sortable"),
        notes,
    )


def _remarks(table: Table) -> list[Html]:
    return [element("p", element("strong", remark)) for remark in table.remarks]


def _means(table: Union[Table, None]) -> Html:
    """Show the means over seeds, if there are any."""
    if table is None:
        return join()
    header, *texts = table.cells()
    rows = [[element("td", text) for text in row] for row in texts]
    return join(
        *_remarks(table),
        _grid(header, rows, "Means over seeds"),
        *(element("p", note, class_="how") for note in numbered(table)),
    )


def _result_cell(
    column: Column, row: Row, index: int, most: float, systems: Sequence[str]
) -> Html:
    text: Cell = column.text(row)
    value = column.value(row) if column.value else None
    number = "number" if column.value else None
    if column.name == "system":
        link = element("a", text, href="#utterances", data_result=index)
        return element("th", link, scope="row", data_value=text)
    if column.name.startswith("WER %"):
        text = join(text, _bar(row.result, most, systems))
    elif column.name == "notes":
        text = join(*(_note_link(n) for n in row.notes))
    return element("td", text, class_=number, data_value=value)


def _note_link(number: int) -> Html:
    return element("a", f"note {number} ", href=f"#note-{number}")


def _bar(result: Result, most: float, systems: Sequence[str]) -> Html:
    """Draw a WER as a dot on its interval, from 0 to the largest of the table."""
    width, height = BAR
    points = (*result.facts["interval"], result.facts["wer"])
    low, high, wer = (f"{4 + x / max(most, 1e-9) * (width - 8):.1f}" for x in points)
    middle = height / 2
    return element(
        "svg",
        element("line", x1=low, x2=high, y1=middle, y2=middle),
        element("circle", cx=wer, cy=middle, r=3),
        viewBox=f"0 0 {width} {height}",
        class_=f"bar {colour_class(systems.index(result.system))}",
        aria_hidden="true",
    )


def _training(
    runs: Mapping[str, Run], charts: Sequence[Chart], systems: Sequence[str]
) -> Html:
    if not any(run.stages for run in runs.values()):
        return element("p", "No metrics.jsonl was found beside the results.")
    names = stage_names(runs.values())
    rows = []
    for system, run in runs.items():
        told = {s.name: s.describe() for s in run.stages}
        seed = ", ".join(dict.fromkeys(str(x) for x in seeds(run).values()))
        commits = dict.fromkeys(s.environment.get("commit") or "" for s in run.stages)
        texts = [*(told.get(name, "none") for name in names), seed, ", ".join(commits)]
        cells = [element("td", text) for text in texts]
        rows.append([element("th", system, scope="row"), *cells])
    header = ["system", *names, "seed", "commit"]
    drawn = element("div", *(draw(c, systems) for c in charts), class_="charts")
    return join(
        _grid(header, rows, "What each system was given"),
        legend(systems) if charts else "",
        drawn,
        _last_values(charts, systems),
    )


def _last_values(charts: Sequence[Chart], systems: Sequence[str]) -> Html:
    """Tell where the curves of dev end, for those who cannot see them."""
    last: dict[str, list[Html]] = {}
    for system in systems:
        cells = []
        for chart in charts:
            points = chart.lines.get((system, "dev"))
            value = points[-1][1] if points else None
            text = "" if value is None else f"{value:.4g}"
            cells.append(element("td", text, class_="number", data_value=value))
        last[system] = [element("th", system, scope="row"), *cells]
    header = ["system", *(f"{c.stage}: {c.metric}" for c in charts)]
    return _grid(header, list(last.values()), "Where the curves of dev end")


def _heard(audio: Union[Audio, None]) -> Html:
    count = sum(len(ids) for ids in (audio or {}).values())
    if not count:
        return element("p", "Audio is embedded with --shar-dir.")
    return element("p", f"The {count} hardest utterances can be listened to.")
