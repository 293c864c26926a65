"""Summarise results in a row per system and decoding, and choose example utterances."""

import statistics
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional

from icefall_kd.recognition.scoring import utterance_errors
from icefall_kd.report.results import METHOD_LABELS, Result
from icefall_kd.report.runs import Run
from icefall_kd.report.table import COLUMNS, Row, Table, describe_noise, make_table

SHOWN = ("WER % [95 %]", "WERR", "P(better)")  # columns of each set


@dataclass(frozen=True)
class Section:
    """A table of texts.

    Attributes:
      texts: rows of cells, the header first.
      remarks: lines above the table.
      numbered_notes: lines below it.
    """

    texts: tuple[tuple[str, ...], ...]
    remarks: tuple[str, ...] = ()
    numbered_notes: tuple[str, ...] = ()

    def cells(self) -> tuple[tuple[str, ...], ...]:
        """Return the texts of all cells, the header first."""
        return self.texts


def summarise(
    results: Sequence[Result],
    baseline: Optional[str] = None,
    runs: Optional[Mapping[str, Run]] = None,
    num_examples: int = 3,
) -> list[Section]:
    """Return a table with one row per system and decoding, and example utterances.

    The table has the columns of :data:`SHOWN` for each set, and the WER and real-time
    factor of sherpa-onnx with the same head and chunks.

    Args:
      results: results or means over seeds, in the order of the systems.
      baseline: system to compare with; None: no gains.
      runs: system -> its training; None: trainings are not compared.
      num_examples: number of example utterances.
    Raises:
      ValueError: see :func:`.make_table`.
    """
    selected = select_searches(results)
    exported = {_key(r): r for r in selected if r.is_sherpa}
    shown = {_key(r): r for r in selected if not r.is_sherpa}
    systems = list(dict.fromkeys(r.system for r in results))
    found = sorted(
        {**exported, **shown}.values(),
        key=lambda r: (systems.index(r.system), r.facts["streaming"]),
    )
    table = make_table(found, baseline, runs)
    sections = [_make_section(table, found, exported)]
    if num_examples:
        sections.append(_choose_examples(found, baseline, num_examples))
    return sections


def select_searches(results: Sequence[Result]) -> list[Result]:
    """Return one result per system, set, engine, head, chunks and hotwords.

    Of several searches, it is the one that most systems share; of several such, the
    most thorough one: the last in ``METHOD_LABELS`` with the largest beam.
    """
    groups: dict[Hashable, list[Result]] = {}
    for r in results:
        groups.setdefault((r.is_sherpa, *_key(r)[1:]), []).append(r)
    selected = []
    for members in groups.values():
        counts = Counter(map(_rank, members))
        best: dict[str, Result] = {}
        for r in sorted(members, key=lambda r: (counts[_rank(r)], _rank(r))):
            best[r.system] = r
        selected += best.values()
    return selected


def _key(result: Result) -> tuple[Hashable, ...]:
    facts = result.facts
    options = (facts.get("blank_penalty") or 0, facts.get("hotwords_sha256"))
    return (result.system, facts["set"], result.head, result.context, *options)


def _rank(result: Result) -> tuple[Any, ...]:
    """Return a key that sorts searches: the most thorough one is last."""
    facts, methods = result.facts, list(METHOD_LABELS)
    method = facts["method"]
    position = methods.index(method) if method in methods else len(methods)
    is_float = not facts.get("int8")
    return (position, facts.get("beam") or 0, is_float, facts["suffix"])


def _make_section(
    table: Table, found: Sequence[Result], exported: Mapping[Hashable, Result]
) -> Section:
    has_one_search = len({(r.search, r.engine) for r in found}) == 1
    sets = list(dict.fromkeys(r.facts["set"] for r in found))
    by_result = {id(row.result): row for row in table.rows}
    lines: dict[tuple[str, str], dict[str, Row]] = {}
    for r in found:
        label = r.context if has_one_search else r.decoding
        if not has_one_search and r.engine != "pytorch":
            label += f", {r.engine}"
        lines.setdefault((r.system, label), {})[r.facts["set"]] = by_result[id(r)]
    columns = {
        "system": [system for system, _ in lines],
        "decoding": [label for _, label in lines],
    }
    num_runs = [max(len(row.result.runs) for row in x.values()) for x in lines.values()]
    if max(num_runs) > 1:
        columns["runs"] = list(map(str, num_runs))
    of_sherpa = [
        {name: exported.get(_key(row.result)) for name, row in line.items()}
        for line in lines.values()
    ]
    for name in sets:
        start = f"{name}: " if len(sets) > 1 else ""
        rows = [line.get(name) for line in lines.values()]
        for column in COLUMNS:
            if column.name in SHOWN:
                texts = [column.text(row) if row else "" for row in rows]
                columns[start + column.name] = texts
        columns[f"{start}sherpa-onnx WER %"] = [
            f"{line[name].facts['wer']:.2f}" if line.get(name) else ""
            for line in of_sherpa
        ]
    columns["RTF"] = [_mean_rtf(list(filter(None, x.values()))) for x in of_sherpa]
    columns["notes"] = [
        ", ".join(map(str, sorted({n for row in line.values() for n in row.notes})))
        for line in lines.values()
    ]
    columns = {name: texts for name, texts in columns.items() if any(texts)}
    notes = (*_describe(table, found, exported), *table.numbered_notes)
    return Section((tuple(columns), *zip(*columns.values())), (), notes)


def _mean_rtf(results: Sequence[Result]) -> str:
    if not results:
        return ""
    return f"{statistics.mean(r.facts['rtf'] for r in results):.4f}"


def _describe(
    table: Table, found: Sequence[Result], exported: Mapping[Hashable, Result]
) -> Iterator[str]:
    """Yield the lines that explain the columns."""
    for name, r in {r.facts["set"]: r for r in found}.items():
        words = sum(len(x.ref) for x in r.recognitions)
        yield f"Set {name}: {len(r.recognitions)} utterances, {words} words."
    searches = {f"{r.engine}, {r.search}" for r in found if not r.is_sherpa}
    if len(searches) == 1:
        yield f"WER: {searches.pop()}."
    if table.baseline is not None:
        yield (
            f"WERR: relative WER reduction from {table.baseline}. P(better): share of "
            "bootstrap test sets with fewer errors."
        )
    if exported:
        labels = dict.fromkeys(f"{r.engine}, {r.search}" for r in exported.values())
        counts = sorted({str(r.facts.get("threads", "?")) for r in exported.values()})
        threads = f"{', '.join(counts)} thread{'' if counts == ['1'] else 's'}"
        yield f"{'; '.join(labels)}. RTF: its real-time factor on {threads}."
    if noise := describe_noise(table.rows):
        yield noise


def _choose_examples(
    found: Sequence[Result], baseline: Optional[str], count: int
) -> Section:
    """Return utterances at even positions of their order by the WER of one system.

    The system is the best one in streaming, or in full context if nothing was streamed.
    """
    first = [r for r in found if r.facts["set"] == found[0].facts["set"]]
    first = [r for r in first if r.facts["streaming"]] or first
    others = [r for r in first if r.system != baseline] or first
    best = min(others, key=lambda r: r.facts["wer"])
    compared = [r for r in first if r.group == best.group and r.system == baseline]
    compared += [best] if best not in compared else []
    utterances = [{x.cut_id: x for x in r.recognitions} for r in compared]
    errors = utterance_errors(best.recognitions)
    wer = {x.cut_id: e.wer for x, e in zip(best.recognitions, errors) if x.ref}
    order = sorted(wer, key=lambda i: (wer[i], i))
    count = min(count, len(order))
    positions = [rank * len(order) // (count + 1) for rank in range(1, count + 1)]
    texts = [("utterance", "system", "words")]
    for cut_id in (order[i] for i in positions):
        texts.append((cut_id, "reference", " ".join(utterances[0][cut_id].ref)))
        for r, by_id in zip(compared, utterances):
            texts.append(("", r.system, " ".join(by_id[cut_id].hyp)))
    percents = ", ".join(f"{100 * i / len(order):.0f}" for i in positions)
    caption = (
        f"Utterances of {best.facts['set']}, {best.decoding}: those after {percents} % "
        f"of all, sorted by the WER of {best.system}"
    )
    return Section(tuple(texts), (caption,))
