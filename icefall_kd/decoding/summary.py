"""One table of results: baseline against distilled student."""

from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Mapping, Optional, Sequence, Tuple

from icefall_kd.decoding.scoring import compare_results
from icefall_kd.io import Pathlike, read_json

HEADER = ("system", "set", "decoding", "engine", "WER % [95 %]", "params", "RTF")
GAIN_HEADER = ("relative gain", "P(better)")
CHUNK_SECONDS = 0.02  # of a 50 Hz frame
METHOD_LABELS = {
    "greedy_search": "greedy",
    "modified_beam_search": "beam",
    "ctc_greedy_search": "CTC greedy",
    "ctc_prefix_beam_search": "CTC prefix beam",
}


@dataclass(frozen=True)
class Result:
    """A result JSON and what it says."""

    system: str
    path: Path
    facts: Mapping

    @property
    def setting(self) -> Tuple[str, str]:
        """Set and way of decoding; results are compared within one."""
        return self.facts["set"], self.facts["suffix"]


def find_results(system: str, path: Pathlike) -> List[Result]:
    """Return the results of a system: one JSON, or all in a folder.

    Raises:
      FileNotFoundError: if there is none.
    """
    path = Path(path)
    paths = [path] if path.is_file() else sorted(path.glob("result-*.json"))
    if not paths:
        raise FileNotFoundError(
            f"{path}: no result-*.json for {system}; bin.decode and bin.transcribe "
            "write them"
        )
    return [Result(system, p, read_json(p)) for p in paths]


def decoding_label(facts: Mapping) -> str:
    """Say for people how a result was decoded."""
    label = METHOD_LABELS.get(facts["method"], facts["method"])
    if facts.get("beam"):
        label += f" {facts['beam']}"
    if facts.get("blank_penalty"):
        label += f", blank penalty {facts['blank_penalty']:g}"
    if not facts["streaming"]:
        return f"full context, {label}"
    milliseconds = 1000 * CHUNK_SECONDS * facts["chunk_size"]
    return f"streaming {milliseconds:.0f} ms, {label}"


def gain_cells(baseline: Optional[Result], result: Result) -> Tuple[str, str]:
    """Return relative WER reduction and probability of improvement.

    Raises:
      ValueError: if the baseline was not decoded the same way.
    """
    if baseline is None:
        raise ValueError(
            f"no baseline for {result.system}, {' '.join(result.setting)}: a gain "
            "needs the baseline decoded the same way on the same set"
        )
    paired = compare_results(baseline.path, result.path)
    wer = baseline.facts["wer"]
    relative = f"{-100 * paired.difference / wer:+.1f} %" if wer else "-"
    return relative, f"{paired.probability:.3f}"


def summarise(
    results: Sequence[Result], baseline: Optional[str] = None
) -> List[Tuple[str, ...]]:
    """Return the table, its header first.

    Args:
      results: of all systems, in the order of the rows within a setting.
      baseline: the system that the others are compared with; None: no gains.
    Raises:
      ValueError: if the baseline is missing or was not decoded as another system.
    """
    systems = list(dict.fromkeys(r.system for r in results))
    if baseline is not None and baseline not in systems:
        raise ValueError(f"baseline {baseline!r} is not among the systems {systems}")
    of_baseline: Dict[Tuple[str, str], Result] = {
        r.setting: r for r in results if r.system == baseline
    }
    table: List[Tuple[str, ...]] = [HEADER + (GAIN_HEADER if baseline else ())]
    for setting in dict.fromkeys(r.setting for r in results):
        for r in (r for r in results if r.setting == setting):
            row = _row(r)
            if baseline == r.system:
                row += ("", "")
            elif baseline:
                row += gain_cells(of_baseline.get(setting), r)
            table.append(row)
    return table


def _row(result: Result) -> Tuple[str, ...]:
    facts = result.facts
    low, high = facts["interval"]
    engine = facts["engine"] + (" int8" if facts.get("int8") else "")
    return (
        result.system,
        facts["set"],
        decoding_label(facts),
        engine,
        f"{facts['wer']:.2f} [{low:.1f}, {high:.1f}]",
        f"{facts['parameters'] / 1e6:.2f} M",
        f"{facts['rtf']:.4f}",
    )


def plain(table: Sequence[Sequence[str]]) -> str:
    """Return the table in aligned columns for a terminal."""
    widths = [max(len(cell) for cell in column) for column in zip(*table)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
        for row in table
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines) + "\n"


def markdown(table: Sequence[Sequence[str]]) -> str:
    """Return the table in Markdown."""
    rows = ["| " + " | ".join(row) + " |" for row in table]
    rows.insert(1, "|" + "---|" * len(table[0]))
    return "\n".join(rows) + "\n"
