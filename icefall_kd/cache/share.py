"""Which shards of a Shar folder a process makes."""

from collections.abc import Sequence
from typing import Optional


def select_shards(ids: Sequence[str], selection: Optional[str]) -> list[str]:
    """Return the shards that ``selection`` names, in order and each once.

    Args:
      ids:       sorted numbers of all shards.
      selection: places among ``ids`` from 0 on, with commas between: one place, or
                 START:END[:STEP] as Python has it, the end exclusive.  None is all.
    Raises:
      ValueError: if a part cannot be read, or nothing is selected.

    >>> select_shards(["000000", "000001", "000002", "000003"], "::2,3")
    ['000000', '000002', '000003']
    """
    if selection is None:
        return list(ids)
    places = set()
    for part in selection.split(","):
        places.update(_places(part.strip(), len(ids), selection))
    if not places:
        raise ValueError(
            f"--shards {selection} selects none of the {len(ids)} shards 0:{len(ids)}"
        )
    return [ids[n] for n in sorted(places)]


def _places(part: str, count: int, selection: str) -> range:
    try:
        numbers = [int(text) if text else None for text in part.split(":")]
        if len(numbers) > 1:
            return range(count)[slice(*numbers)]
        place = range(count).index(numbers[0])
    except (TypeError, ValueError) as e:
        raise ValueError(
            f"--shards {selection}: cannot take '{part}' of the {count} shards; give "
            "places such as 0:100, ::4 or 3,7,10:20, counted from 0"
        ) from e
    return range(place, place + 1)
