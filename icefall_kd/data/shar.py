"""Writing Shar: flac audio in numbered shards, whole or absent."""

import logging
import os
import random
import shutil
from pathlib import Path
from typing import Iterable, List, Sequence

from lhotse.cut import Cut
from lhotse.shar import SharWriter

from icefall_kd.data.progress import progress


def at_speeds(cuts: Iterable[Cut], speeds: Sequence[float]) -> List[Cut]:
    """Return every cut at every speed, ``cut.custom["speed"]`` set to the factor.

    The ids at another speed than 1 end in lhotse's ``_sp<factor>``.
    """
    out = []
    for cut in cuts:
        for speed in speeds:
            new = cut if speed == 1.0 else cut.perturb_speed(speed)
            new = new.with_custom("speed", float(speed))
            out.append(new)
    return out


def write_shar(
    cuts: Iterable[Cut], directory: Path, *, shard_size: int = 200, seed: int = 0
) -> None:
    """Write ``cuts`` in a random order (the same for a ``seed``), audio as flac.

    The folder appears when it is complete, so one that is there is complete.

    Raises:
      ValueError: if there are no cuts, or ``directory`` exists.
    """
    directory = Path(directory)
    if directory.exists():
        raise ValueError(f"{directory}: is there already; delete it to write it again")
    cuts = list(cuts)
    if not cuts:
        raise ValueError(f"{directory}: no cuts to write")
    random.Random(seed).shuffle(cuts)
    aside = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)  # of a run that was killed
    aside.mkdir(parents=True)
    with SharWriter(aside, {"recording": "flac"}, shard_size=shard_size) as writer:
        for cut in progress(cuts, f"Shar {directory.name}", "cut"):
            writer.write(cut)
    os.replace(aside, directory)
    hours = sum(cut.duration for cut in cuts) / 3600
    logging.info("wrote %s: %d cuts, %.2f h", directory, len(cuts), hours)
