"""Compare the results with those of a baseline, in a table with one row per result."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Callable, Optional, Protocol

from icefall_kd.recognition.scoring import PairedDifference, compare_systems
from icefall_kd.report.results import Result, check_comparable
from icefall_kd.report.runs import Run, compare_budgets


@dataclass(frozen=True)
class Row:
    """A result and its comparison with the baseline.

    Attributes:
      result: the result.
      paired: difference from the baseline's result with the same decoding; None for the
        baseline itself, or if that result is missing.
      werr: relative WER reduction in percent; positive is better.
      is_baseline: whether the system is the baseline.
      notes: numbers of the notes in the table, from 1.
    """

    result: Result
    paired: Optional[PairedDifference] = None
    werr: Optional[float] = None
    is_baseline: bool = False
    notes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Table:
    """Rows, notes and remarks.

    Attributes:
      rows: the rows; each lists the numbers of its notes.
      notes: notes on single rows.
      baseline: name of the baseline; None: no gains.
      remarks: notes on the complete table, printed above it.
    """

    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    baseline: Optional[str] = None
    remarks: tuple[str, ...] = ()

    @property
    def columns(self) -> list["Column"]:
        """The columns with a text in at least one row."""
        return [c for c in COLUMNS if any(c.text(row) for row in self.rows)]

    @property
    def numbered_notes(self) -> list[str]:
        """The notes with their numbers."""
        return [f"{number}. {text}" for number, text in enumerate(self.notes, 1)]

    def cells(self) -> list[tuple[str, ...]]:
        """Return the texts of all cells, the header first."""
        columns = self.columns
        texts = [tuple(c.text(row) for c in columns) for row in self.rows]
        return [tuple(c.name for c in columns), *texts]


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
      name: header.
      text: function that returns the text of a row.
      value: function that returns the number by which the page sorts the row; None:
        rows are sorted by text.
    """

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


def _wer_of_runs(row: Row) -> str:
    runs = row.result.runs
    return ", ".join(f"{r.facts['wer']:.1f}" for r in runs) if len(runs) > 1 else ""


def _difference(row: Row) -> str:
    if row.paired is None:
        return ""
    low, high = row.paired.interval
    return f"{row.paired.difference:+.1f} [{low:+.1f}, {high:+.1f}]"


def _delay_column(name: str) -> Column:
    """Return the column of a delay: mean and 90th percentile."""

    def text(row: Row) -> str:
        values = [row.result.facts.get(f"{name}_{x}_ms") for x in ("mean", "p90")]
        return "" if None in values else " / ".join(f"{ms:.0f}" for ms in values)

    header = f"{name.replace('_', ' ')} ms, mean / 90 %"
    return Column(header, text, lambda row: row.result.facts.get(f"{name}_mean_ms"))


COLUMNS = (
    Column("system", lambda row: row.result.system),
    Column("set", lambda row: row.result.facts["set"]),
    Column("decoding", lambda row: row.result.decoding),
    Column("engine", lambda row: row.result.engine),
    Column("WER % [95 %]", _wer, lambda row: row.result.facts["wer"]),
    Column("WER of each run", _wer_of_runs),
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
    _delay_column("emission_delay"),
    _delay_column("latency"),
    Column("notes", lambda row: ", ".join(map(str, row.notes))),
)


def make_table(
    results: Sequence[Result],
    baseline: Optional[str] = None,
    runs: Optional[Mapping[str, Run]] = None,
) -> Table:
    """Compare each result with that of the baseline on the same set and decoding.

    Args:
      results: results of all systems, in the order of the rows within a group.
      baseline: system to compare with; None: no gains.
      runs: system -> its training; None: trainings are not compared.
    Returns:
      the table.  Its notes name missing gains, and systems whose size or fine-tuning
      differs from the baseline's (without a baseline: from the first system's).
    Raises:
      ValueError: if the baseline is unknown or has no result to compare with, or if the
        results of a set differ in utterances or references.
    """
    systems = list(dict.fromkeys(r.system for r in results))
    if baseline is not None and baseline not in systems:
        raise ValueError(
            f"--baseline: no system '{baseline}'. Available: {', '.join(systems)}"
        )
    check_comparable(results)
    of_baseline = {r.group: r for r in results if r.system == baseline}
    others = [r for r in results if r.system != baseline]
    if of_baseline and others and not any(r.group in of_baseline for r in others):
        raise ValueError(
            f"--baseline {baseline}: no result has the same set and decoding as one of "
            f"{[s for s in systems if s != baseline]}. Decode them in the same way, or "
            "leave out --baseline"
        )
    first = {r.system: r for r in reversed(results)}
    numbers: dict[str, int] = {}  # note -> its number
    rows: list[Row] = []
    for group in dict.fromkeys(r.group for r in results):
        in_group = [r for r in results if r.group == group]
        reference = of_baseline.get(group, None if baseline else in_group[0])
        for r in in_group:
            notes = _list_differences(r, reference, baseline, runs)
            notes += _checkpoint_note(r, first[r.system])
            found = tuple(numbers.setdefault(n, len(numbers) + 1) for n in notes)
            rows.append(_make_row(r, of_baseline.get(group), baseline, found))
    remarks = filter(None, (describe_noise(rows), _describe_aligners(rows)))
    return Table(tuple(rows), tuple(numbers), baseline, tuple(remarks))


def _make_row(
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
    werr = 0.0 - 100 * paired.difference / wer if wer else None  # never -0.0
    return Row(result, paired, werr, notes=notes)


def describe_noise(rows: Sequence[Row]) -> Optional[str]:
    """Return a remark on training noise if systems with one run are compared."""
    runs = {row.result.system: len(row.result.decodings) for row in rows}
    single = [system for system, count in runs.items() if count == 1]
    is_compared = any(row.paired for row in rows)
    what = "P(better) and the 95 % intervals" if is_compared else "the 95 % intervals"
    if len(single) == len(runs) and len(runs) > 1:
        return (
            f"Each row is ONE TRAINING RUN: {what} cover the choice of utterances, not "
            "training noise. Another seed can change a WER by more. Train several "
            "seeds (systems NAME@SEED) to compare systems."
        )
    if single and len(runs) > 1:
        return (
            f"ONE TRAINING RUN of {', '.join(single)}: {what} of these systems do not "
            "cover training noise."
        )
    return None


def _describe_aligners(rows: Sequence[Row]) -> Optional[str]:
    """Return a remark on the aligners to which delays are relative."""
    aligners = dict.fromkeys(_describe_aligner(row.result) for row in rows)
    names = "; ".join(filter(None, aligners))
    if not names:
        return None
    return f"Delays are relative to the ends of words, aligned by {names}."


def _describe_aligner(result: Result) -> Optional[str]:
    """Return the name of the aligner to which delays are relative."""
    facts = result.facts
    if not facts.get("alignment_sha256"):
        return None
    if not facts.get("aligner"):
        return f"an unknown aligner ({facts.get('alignment')})"
    return f"{facts['aligner']} ({(facts.get('aligner_sha256') or '')[:8]})"


def _checkpoint_note(result: Result, first: Result) -> list[str]:
    """Return a note if the checkpoint is not that of the system's first result."""
    if not _is_different("checkpoint_sha256", result, first):
        return []
    return [
        f"Different checkpoints of {result.system}: {result.decoding}, {result.engine} "
        f"against {first.decoding}, {first.engine}. Decode both with the same one."
    ]


def _is_different(key: str, a: Result, b: Result) -> bool:
    """Return whether both results have a key, with different values."""
    values = [r.facts.get(key) for r in (a, b)]
    return all(values) and values[0] != values[1]


def _list_differences(
    result: Result,
    reference: Optional[Result],
    baseline: Optional[str],
    runs: Optional[Mapping[str, Run]],
) -> list[str]:
    """Return notes on differences from the reference that bias a comparison."""
    stages = runs[result.system].stages if runs is not None else ()
    notes = [f"{result.system}, {s.name}: {c}." for s in stages for c in s.changes]
    set_name = result.facts["set"]
    if reference is None:
        return [
            *notes,
            f"No gain: {baseline} has no result for {result.decoding}, "
            f"{result.engine}, set {set_name}.",
        ]
    name = f"{result.system} against {reference.system}"
    sizes = [r.facts["parameters"] for r in (result, reference)]
    if sizes[0] != sizes[1]:
        notes.append(
            f"Different sizes: {name}, {sizes[0]:,} against {sizes[1]:,} parameters."
        )
    if _is_different("alignment_sha256", result, reference):
        notes.append(
            f"Delays from different alignments: {name}, {_describe_aligner(result)} "
            f"against {_describe_aligner(reference)}."
        )
    if _is_different("set_sha256", result, reference):
        notes.append(
            f"Different files of set {set_name}: {name}; the references are the same."
        )
    if runs is not None and result.system != reference.system:
        budget = compare_budgets(runs[result.system], runs[reference.system])
        if budget:
            notes.append(f"Different fine-tuning: {name}, {'; '.join(budget)}.")
    return notes


class Printable(Protocol):
    """A table that can be formatted, for example :class:`Table`."""

    remarks: tuple[str, ...]
    numbered_notes: Sequence[str]

    def cells(self) -> Sequence[tuple[str, ...]]:
        """Return the texts of all cells, the header first."""


def format_text(table: Printable) -> str:
    """Return the table in aligned columns for a terminal."""
    cells = table.cells()
    widths = [max(len(cell) for cell in column) for column in zip(*cells)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
        for row in cells
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join([*table.remarks, *lines, *table.numbered_notes]) + "\n"


def format_markdown(table: Printable) -> str:
    """Return the table in Markdown, followed by its notes."""
    cells = [[_escape(cell) for cell in row] for row in table.cells()]
    rows = ["| " + " | ".join(row) + " |" for row in cells]
    rows.insert(1, "|" + "---|" * len(cells[0]))
    if table.numbered_notes:
        rows += ["", *(_escape(line) for line in table.numbered_notes)]
    remarks = [f"**{_escape(remark)}**\n" for remark in table.remarks]
    return "\n".join([*remarks, *rows]) + "\n"


def _escape(text: str) -> str:
    """Escape the characters that end a cell or start HTML."""
    for character, safe in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|")):
        text = text.replace(character, safe)
    return " ".join(text.split())
