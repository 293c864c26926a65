"""Join the stored targets of a field with the cuts of its folder.

A target belongs to a cut if recording, start, duration and speed agree, within 1 ms.
The position in a file does not decide.  The key of a cut is
[cut id, recording id, start in s, duration in s, speed factor].
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Optional

from icefall_kd.core.files import Pathlike, open_text
from icefall_kd.data.gate import REMEDIES

Problems = dict[str, list[str]]  # kind of problem -> one line for each case

TOLERANCE = 1e-3  # s
_SPEED = re.compile(r"_sp(\d+(?:\.\d+)?)$")
_EXAMPLES = 5


def read_keys(cuts_file: Pathlike) -> list[list]:
    """Return the key of each cut, in order.

    Parses plain JSON instead of building lhotse's objects, which would delay the start
    of every training run.

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
    """Return the speed factor of a cut; 1.0 if the cut does not have one.

    lhotse drops the speed transform when it writes the audio to Shar.  The factor is
    then in ``custom["speed"]``, which bin.make_shar writes, or in lhotse's suffix of
    the recording id, for example ``_sp0.9``.

    Args:
      cut: cut as JSON.
    """
    speed = (cut.get("custom") or {}).get("speed")
    if speed is not None:
        return float(speed)
    match = _SPEED.search(cut["recording"]["id"])
    return float(match.group(1)) if match else 1.0


def compare_keys(cuts: Sequence[list], stored: Sequence[list]) -> Problems:
    """Return the problems that prevent stored targets from joining the cuts.

    Args:
      cuts: current keys of a shard's cuts, see :func:`read_keys`.
      stored: keys of the cuts when the targets were written.
    Returns:
      the problems; empty if all cuts join.
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
    """Return the exceptions: cuts whose target is missing or has another id.

    A renamed cut gets the target of its audio if there is exactly one, and no other cut
    has that target's id.  Targets are read in the order of the tar: a target that comes
    before that of the previous cut counts as missing.

    Args:
      cuts, stored: see :func:`compare_keys`.
    Returns:
      cut id -> id of its target, None for a cut without a target; cuts whose target has
      their own id are absent.
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
    """Add the cases of ``found``, for example those of one shard, to ``problems``."""
    for kind, cases in found.items():
        problems.setdefault(kind, []).extend(cases)


def describe_problems(problems: Mapping[str, Sequence[str]]) -> str:
    """Return one line for each kind of problem: the number of cases, five examples."""
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
