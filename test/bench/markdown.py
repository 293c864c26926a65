"""Tables for the pages of results."""

from collections.abc import Sequence


def table(rows: Sequence[dict[str, object]]) -> str:
    """Return rows of equal keys as a Markdown table, the keys as its head."""
    head = list(rows[0])
    lines: list[Sequence[str]] = [head, ["---"] * len(head)]
    lines += [[str(row[key]) for key in head] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
