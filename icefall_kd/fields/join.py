"""The strict join: which target belongs to which cut.

A cut and an array belong together when recording, start, duration (within 1 ms) and
speed agree; a position in a file alone is never trusted.  The id of a cut leads to its
array fast; where a cut was renamed, its audio leads there, if to one array only.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Optional, Union

from icefall_kd.core.files import open_text
from icefall_kd.data.gate import REMEDIES

_SPEED = re.compile(r"_sp(\d+(?:\.\d+)?)$")
TOLERANCE = 1e-3  # s


def read_keys(cuts_file: Union[str, Path]) -> list[list]:
    """Return [cut id, recording id, start, duration, speed] of each cut, in order.

    The file is read as plain JSON, without building lhotse's objects, since this is
    done before every training run.

    Raises:
      ValueError: if a line is no cut with one recording.
    """
    keys = []
    with open_text(cuts_file) as f:
        for number, line in enumerate(f, 1):
            try:
                cut = json.loads(line)
                keys.append(
                    [
                        cut["id"],
                        cut["recording"]["id"],
                        round(cut["start"], 6),
                        round(cut["duration"], 6),
                        speed_of(cut),
                    ]
                )
            except (KeyError, TypeError, ValueError) as e:
                raise ValueError(
                    f"{cuts_file}, line {number}: not a cut with one recording "
                    f"({e!r}). Remedy: {REMEDIES['mixed_cut']}"
                ) from e
    return keys


def speed_of(cut: dict) -> float:
    """Return the speed factor of a cut's manifest; 1.0 when it tells of none.

    A Shar holds audio whose speed is already changed, and lhotse drops the transform
    there: what remains is our own ``custom["speed"]``, or the suffix that lhotse
    gives to the recording's id, for example ``_sp0.9``.
    """
    speed = (cut.get("custom") or {}).get("speed")
    if speed is not None:
        return float(speed)
    match = _SPEED.search(cut["recording"]["id"])
    return float(match.group(1)) if match else 1.0


def compare_keys(cuts: Sequence[list], stored: Sequence[list]) -> dict[str, list[str]]:
    """Return what keeps the stored targets of a shard from joining its cuts.

    Args:
      cuts:   keys of the cuts as they are now, see :func:`read_keys`.
      stored: keys when the targets were written.
    Returns:
      kind of problem -> one line a case; empty when all join.
    """
    problems: dict[str, list[str]] = {}
    by_id = {key[0]: key for key in stored}
    by_audio = {_audio(key): key[0] for key in stored}
    for key in cuts:
        known = by_id.get(key[0])
        if known is None:
            other = by_audio.get(_audio(key))
            if other is None:
                problems.setdefault("missing", []).append(str(key[0]))
            else:
                line = f"{key[0]} (stored as {other})"
                problems.setdefault("renamed", []).append(line)
        elif not _same(key, known):
            line = f"{key[0]} is {key[1:]}, stored {known[1:]}"
            problems.setdefault("different audio", []).append(line)
    if not problems and [k[0] for k in cuts] != [k[0] for k in stored]:
        moved = [
            f"{a[0]} (stored: {b[0]})" for a, b in zip(cuts, stored) if a[0] != b[0]
        ]
        extra = [str(k[0]) for k in stored[len(cuts) :]]
        problems["out of order"] = moved or [f"{e} (no such cut)" for e in extra]
    return problems


def join_keys(cuts: Sequence[list], stored: Sequence[list]) -> dict[str, Optional[str]]:
    """Return the cuts whose target is not stored under their own id.

    A renamed cut gets the only target of its audio, unless that is another cut's.
    Targets are read in step with the cuts, so one that would have to be looked for
    behind the place of reading counts as none.

    Args:
      cuts, stored: as :func:`compare_keys` has them.
    Returns:
      cut id -> the id that its target is stored under, None for a cut without.
    """
    places = {key[0]: n for n, key in enumerate(stored)}
    by_audio: dict[tuple, list[str]] = {}
    for key in stored:
        by_audio.setdefault(_audio(key), []).append(key[0])
    ids = {key[0] for key in cuts}
    found: dict[str, Optional[str]] = {}
    last = -1
    for key in cuts:
        name: Optional[str] = key[0]
        if name in places:
            name = name if _same(key, stored[places[name]]) else None
        else:
            same = by_audio.get(_audio(key), [])
            name = same[0] if len(same) == 1 and same[0] not in ids else None
        if name is not None and places[name] <= last:
            name = None
        if name is not None:
            last = places[name]
        if name != key[0]:
            found[key[0]] = name
    return found


def describe(problems: dict[str, list[str]], examples: int = 5) -> str:
    """Return one line a kind: its count and the first examples."""
    return "\n".join(
        f"  {kind}: {len(cases)}, for example {'; '.join(cases[:examples])}"
        for kind, cases in sorted(problems.items())
    )


def _audio(key: list) -> tuple:
    return (key[1], round(key[2], 3), round(key[3], 3), round(key[4], 3))


def _same(a: list, b: list) -> bool:
    return a[1] == b[1] and all(
        abs(x - y) <= TOLERANCE + 1e-9 for x, y in zip(a[2:], b[2:])
    )
