"""The table of results: systems side by side, with the gain over a baseline."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Callable, Optional

from icefall_kd.recognition.scoring import PairedDifference, compare_systems
from icefall_kd.report.results import Result, check_comparable
from icefall_kd.report.runs import Run, budget_differences


@dataclass(frozen=True)
class Row:
    """A result and how it stands to the baseline's.

    Attributes:
      result: as decoding wrote it.
      paired: its difference from the baseline; None for the baseline itself, and where
        the baseline was not decoded so.
      werr: relative WER reduction in percent; positive is better.
      is_baseline: whether it is a result of the baseline.
      notes: numbers of the table's notes, from 1.
    """

    result: Result
    paired: Optional[PairedDifference] = None
    werr: Optional[float] = None
    is_baseline: bool = False
    notes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Table:
    """All rows, and what must be known to read them.

    Attributes:
      notes: of single rows, which give their numbers.
      remarks: of all rows; they stand above the table.
    """

    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    baseline: Optional[str] = None
    remarks: tuple[str, ...] = ()

    @property
    def columns(self) -> list["Column"]:
        """The columns in which any row says something."""
        return [c for c in COLUMNS if any(c.text(row) for row in self.rows)]

    def cells(self) -> list[tuple[str, ...]]:
        """Return the texts, the header first."""
        columns = self.columns
        texts = [tuple(c.text(row) for c in columns) for row in self.rows]
        return [tuple(c.name for c in columns), *texts]


@dataclass(frozen=True)
class Column:
    """A column: its header, a row's text, and the number that sorts it if any."""

    name: str
    text: Callable[[Row], str]
    value: Optional[Callable[[Row], Optional[float]]] = None


def _wer(row: Row) -> str:
    facts = row.result.facts
    low, high = facts["interval"]
    return f"{facts['wer']:.2f} [{low:.1f}, {high:.1f}]"


def _werr(row: Row) -> str:
    if row.is_baseline:
        return "baseline"
    return "" if row.werr is None else f"{row.werr:+.1f} %"


def _each(row: Row) -> str:
    """Return the WER of each run, where there are several."""
    runs = row.result.runs
    return ", ".join(f"{r.facts['wer']:.1f}" for r in runs) if len(runs) > 1 else ""


def _difference(row: Row) -> str:
    if row.paired is None:
        return ""
    low, high = row.paired.interval
    return f"{row.paired.difference:+.1f} [{low:+.1f}, {high:+.1f}]"


def _delay(name: str) -> Column:
    """Return the column of a delay: its mean and its 90th percentile, if known."""

    def text(row: Row) -> str:
        told = [row.result.facts.get(f"{name}_{x}_ms") for x in ("mean", "p90")]
        return "" if None in told else " / ".join(f"{ms:.0f}" for ms in told)

    return Column(
        f"{name.replace('_', ' ')} ms, mean / 90 %",
        text,
        lambda row: row.result.facts.get(f"{name}_mean_ms"),
    )


COLUMNS = (
    Column("system", lambda row: row.result.system),
    Column("set", lambda row: row.result.facts["set"]),
    Column("decoding", lambda row: row.result.decoding),
    Column("engine", lambda row: row.result.engine),
    Column("WER % [95 %]", _wer, lambda row: row.result.facts["wer"]),
    Column("of each run", _each),
    Column("WERR", _werr, lambda row: row.werr),
    Column(
        "difference [95 %]",
        _difference,
        lambda row: row.paired and row.paired.difference,
    ),
    Column(
        "P(better)",
        lambda row: f"{row.paired.probability:.3f}" if row.paired else "",
        lambda row: row.paired and row.paired.probability,
    ),
    Column(
        "params",
        lambda row: f"{row.result.facts['parameters'] / 1e6:.2f} M",
        lambda row: row.result.facts["parameters"],
    ),
    Column(
        "RTF",
        lambda row: f"{row.result.facts['rtf']:.4f}",
        lambda row: row.result.facts["rtf"],
    ),
    _delay("emission_delay"),
    _delay("latency"),
    Column("notes", lambda row: ", ".join(map(str, row.notes))),
)


def summarise(
    results: Sequence[Result],
    baseline: Optional[str] = None,
    runs: Optional[Mapping[str, Run]] = None,
) -> Table:
    """Compare all results with the baseline's of the same set and decoding.

    Args:
      results: of all systems, in the order of the rows within a setting.
      baseline: the system that the others are compared with; None: no gains.
      runs: the training of each system; None: budgets are not compared.
    Returns:
      the table; its notes say where a gain is missing and why, and which systems
      differ from the baseline (without one: from the first system) in parameters or in
      what fine-tuning was given.
    Raises:
      ValueError: if the baseline is no system, has no result to compare with, or the
        results of a set are not of the same utterances and references.
    """
    systems = list(dict.fromkeys(r.system for r in results))
    if baseline is not None and baseline not in systems:
        raise ValueError(f"baseline {baseline!r} is not among the systems {systems}")
    check_comparable(results)
    of_baseline = {r.setting: r for r in results if r.system == baseline}
    if of_baseline and not any(
        r.setting in of_baseline for r in results if r.system != baseline
    ):
        _refuse_without_pairs(systems, baseline)
    first = {r.system: r for r in reversed(results)}
    notes = _Notes()
    rows: list[Row] = []
    for setting in dict.fromkeys(r.setting for r in results):
        side = [r for r in results if r.setting == setting]
        yardstick = of_baseline.get(setting, None if baseline else side[0])
        for r in side:
            marks = _marks(r, yardstick, baseline, runs)
            marks += _other_checkpoint(r, first[r.system])
            numbers = notes.of(marks)
            rows.append(_row(r, of_baseline.get(setting), baseline, numbers))
    return Table(tuple(rows), tuple(notes.texts), baseline, _remarks(rows))


def _remarks(rows: Sequence[Row]) -> tuple[str, ...]:
    """Return what the figures of a whole table leave out, and who aligned."""
    remarks = []
    runs = {row.result.system: len(row.result.decodings) for row in rows}
    single = [system for system, count in runs.items() if count == 1]
    is_compared = any(row.paired for row in rows)
    what = "P(better) and the 95 % intervals" if is_compared else "95 % intervals"
    if len(single) == len(runs) and len(runs) > 1:
        remarks.append(
            f"Each row is ONE TRAINING RUN: {what} are over utterances, not over "
            "training noise. Another seed can change a WER by more; train several "
            "seeds (systems NAME@SEED) before you call a system better."
        )
    elif single and len(runs) > 1:
        remarks.append(
            f"ONE TRAINING RUN alone of {', '.join(single)}: there {what} leave out "
            "training noise."
        )
    aligners = dict.fromkeys(_aligner(row.result) for row in rows)
    named = [name for name in aligners if name]
    if named:
        remarks.append(
            f"Delays are from the ends of words as aligned by {'; '.join(named)}."
        )
    return tuple(remarks)


def _aligner(result: Result) -> Optional[str]:
    """Return the name of what aligned the words that delays are measured from."""
    facts = result.facts
    if not facts.get("alignment_sha256"):
        return None
    unknown = f"an unknown aligner ({facts.get('alignment')})"
    digest = (facts.get("aligner_sha256") or "")[:8]
    return f"{facts['aligner']} ({digest})" if facts.get("aligner") else unknown


def _other_checkpoint(result: Result, first: Result) -> list[str]:
    """Return a note if a result is of another checkpoint than its system's first."""
    ours, theirs = (r.facts.get("checkpoint_sha256") for r in (result, first))
    if ours == theirs or not (ours and theirs):
        return []
    return [
        f"Not of one checkpoint: {result.system}, {result.decoding}, {result.engine}, "
        f"against {first.decoding}, {first.engine}; decode both with one."
    ]


def _refuse_without_pairs(systems: Sequence[str], baseline: str) -> None:
    others = [s for s in systems if s != baseline]
    if others:
        raise ValueError(
            f"nothing of {others} was decoded on the same set and in the same way as "
            f"anything of baseline {baseline!r}: no gain can be shown; decode them "
            "alike, or leave out --baseline"
        )


class _Notes:
    """Notes in the order of first use, each text once."""

    def __init__(self) -> None:
        self.texts: dict[str, int] = {}

    def of(self, texts: Sequence[str]) -> tuple[int, ...]:
        """Return the numbers of ``texts``."""
        return tuple(self.texts.setdefault(t, len(self.texts) + 1) for t in texts)


def _marks(
    result: Result,
    yardstick: Optional[Result],
    baseline: Optional[str],
    runs: Optional[Mapping[str, Run]],
) -> list[str]:
    """Say what a reader must know before comparing ``result``."""
    stages = runs[result.system].stages if runs is not None else ()
    marks = [f"{result.system}, {s.name}: {c}." for s in stages for c in s.changes]
    if yardstick is None:
        return [
            *marks,
            f"No gain: {baseline} was not decoded so ({result.decoding}, "
            f"{result.engine}, set {result.facts['set']}).",
        ]
    name = f"{result.system} against {yardstick.system}"
    ours, theirs = result.facts["parameters"], yardstick.facts["parameters"]
    if ours != theirs:
        marks.append(
            f"Not of one size: {name}, {ours:,} parameters against {theirs:,}."
        )
    if _alignment(result) and _alignment(yardstick) not in (None, _alignment(result)):
        marks.append(
            f"Delays held against different alignments: {name}; "
            f"{_aligner(result)} against {_aligner(yardstick)}."
        )
    ours, theirs = (r.facts.get("set_sha256") for r in (result, yardstick))
    if ours and theirs and ours != theirs:
        marks.append(
            f"Not of one set: {name}, the texts are the same, the files of "
            f"{result.facts['set']} are not."
        )
    if runs is not None and result.system != yardstick.system:
        budget = budget_differences(runs[result.system], runs[yardstick.system])
        if budget:
            marks.append(f"Not of one fine-tuning: {name}, {'; '.join(budget)}.")
    return marks


def _alignment(result: Result) -> Optional[str]:
    return result.facts.get("alignment_sha256")


def _row(
    result: Result,
    of_baseline: Optional[Result],
    baseline: Optional[str],
    notes: tuple[int, ...],
) -> Row:
    if result.system == baseline:
        return Row(result, is_baseline=True, notes=notes)
    if of_baseline is None:
        return Row(result, notes=notes)
    paired = compare_systems(of_baseline.decodings, result.decodings)
    wer = of_baseline.facts["wer"]
    werr = -100 * paired.difference / wer if wer else None
    return Row(result, paired, werr, notes=notes)


def numbered(table: Table) -> list[str]:
    """Return the notes of a table with their numbers."""
    return [f"{number}. {text}" for number, text in enumerate(table.notes, 1)]


def plain(table: Table) -> str:
    """Return the table in aligned columns for a terminal."""
    cells = table.cells()
    widths = [max(len(cell) for cell in column) for column in zip(*cells)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
        for row in cells
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join([*table.remarks, *lines, *numbered(table)]) + "\n"


def markdown(table: Table) -> str:
    """Return the table in Markdown, its notes as a list."""
    cells = [[_escape(cell) for cell in row] for row in table.cells()]
    rows = ["| " + " | ".join(row) + " |" for row in cells]
    rows.insert(1, "|" + "---|" * len(cells[0]))
    if table.notes:
        rows += ["", *(_escape(line) for line in numbered(table))]
    remarks = [f"**{_escape(remark)}**\n" for remark in table.remarks]
    return "\n".join([*remarks, *rows]) + "\n"


def _escape(text: str) -> str:
    """Keep a name from ending a cell or becoming HTML."""
    for character, safe in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|")):
        text = text.replace(character, safe)
    return " ".join(text.split())
