"""Join the stored targets of a field with the cuts of its folder.

A target belongs to a cut if recording, start, duration (within 1 ms) and speed agree;
the position in a file is not enough.  The key of a cut is
[cut id, recording id, start, duration, speed].
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Optional

from icefall_kd.core.files import Pathlike, open_text
from icefall_kd.data.gate import REMEDIES

Problems = dict[str, list[str]]  # kind of problem -> one text for each case

TOLERANCE = 1e-3  # s
_SPEED = re.compile(r"_sp(\d+(?:\.\d+)?)$")
_EXAMPLES = 5


def read_keys(cuts_file: Pathlike) -> list[list]:
    """Return the key of each cut, in order.

    Parses plain JSON without lhotse's objects, since every training run does this.

    Raises:
      ValueError: if a line is not a cut with one recording.
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
                        read_speed(cut),
                    ]
                )
            except (KeyError, TypeError, ValueError) as e:
                raise ValueError(
                    f"{cuts_file}, line {number}: not a cut with one recording "
                    f"({e!r}). Remedy: {REMEDIES['mixed_cut']}"
                ) from e
    return keys


def read_speed(cut: Mapping[str, Any]) -> float:
    """Return the speed factor of a cut in JSON; 1.0 by default.

    lhotse drops the transform when it writes audio at the new speed to Shar.  What
    remains is ``custom["speed"]``, which we write, or lhotse's suffix of the recording
    id, for example ``_sp0.9``.
    """
    speed = (cut.get("custom") or {}).get("speed")
    if speed is not None:
        return float(speed)
    match = _SPEED.search(cut["recording"]["id"])
    return float(match.group(1)) if match else 1.0


def compare_keys(cuts: Sequence[list], stored: Sequence[list]) -> Problems:
    """Return the problems that prevent stored targets from joining the cuts.

    Args:
      cuts:   current keys of the cuts of a shard, see :func:`read_keys`.
      stored: their keys when the targets were written.
    Returns:
      problems; empty when all cuts join.
    """
    problems: Problems = {}
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
        elif not _is_same_audio(key, known):
            line = f"{key[0]} is {key[1:]}, stored {known[1:]}"
            problems.setdefault("different audio", []).append(line)
    if not problems and [k[0] for k in cuts] != [k[0] for k in stored]:
        moved = [
            f"{a[0]} (stored: {b[0]})" for a, b in zip(cuts, stored) if a[0] != b[0]
        ]
        extra = [str(k[0]) for k in stored[len(cuts) :]]
        problems["out of order"] = moved or [f"{e} (no such cut)" for e in extra]
    return problems


def match_keys(
    cuts: Sequence[list], stored: Sequence[list]
) -> dict[str, Optional[str]]:
    """Return the cuts whose target is not stored under their own id.

    A renamed cut gets the only target of its audio, unless another cut has its id.
    Targets are read in the order of the tar, so a target before the previous one
    counts as missing.

    Args:
      cuts, stored: see :func:`compare_keys`.
    Returns:
      cut id -> id of its stored target, None for a cut without a target.
    """
    positions = {key[0]: n for n, key in enumerate(stored)}
    by_audio: dict[tuple, list[str]] = {}
    for key in stored:
        by_audio.setdefault(_audio(key), []).append(key[0])
    ids = {key[0] for key in cuts}
    found: dict[str, Optional[str]] = {}
    last = -1
    for key in cuts:
        name: Optional[str] = key[0]
        if name in positions:
            name = name if _is_same_audio(key, stored[positions[name]]) else None
        else:
            same = by_audio.get(_audio(key), [])
            name = same[0] if len(same) == 1 and same[0] not in ids else None
        if name is not None and positions[name] <= last:
            name = None
        if name is not None:
            last = positions[name]
        if name != key[0]:
            found[key[0]] = name
    return found


def add_problems(problems: Problems, found: Problems) -> None:
    """Add the cases of ``found``, for example of one shard, to ``problems``."""
    for kind, cases in found.items():
        problems.setdefault(kind, []).extend(cases)


def describe_problems(problems: Mapping[str, Sequence[str]]) -> str:
    """Return one line for each kind of problem: its count and five examples."""
    return "\n".join(
        f"  {kind}: {len(cases)}, for example {'; '.join(cases[:_EXAMPLES])}"
        for kind, cases in sorted(problems.items())
    )


def _audio(key: list) -> tuple:
    return (key[1], round(key[2], 3), round(key[3], 3), round(key[4], 3))


def _is_same_audio(a: list, b: list) -> bool:
    return a[1] == b[1] and all(
        abs(x - y) <= TOLERANCE + 1e-9 for x, y in zip(a[2:], b[2:])
    )
