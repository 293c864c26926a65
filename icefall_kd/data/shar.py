"""Writing Shar: flac audio in numbered shards, whole or absent."""

import logging
import os
import random
import shutil
from pathlib import Path
from typing import Iterable, List, Sequence

from lhotse import CutSet
from lhotse.cut import Cut
from lhotse.shar import SharWriter
from tqdm import tqdm

from icefall_kd.io import write_json

DONE = "shar.json"  # number of cuts, shards and hours; written last


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
) -> int:
    """Write ``cuts`` in a random order (the same for a ``seed``), audio as flac.

    The folder appears when it is complete; a complete one is left alone.

    Returns:
      the number of cuts in the folder.
    Raises:
      ValueError: if there are no cuts, or ``directory`` holds other files.
    """
    directory = Path(directory)
    cuts = list(cuts)
    if (directory / DONE).exists():
        logging.info("%s: complete, left alone", directory)
        return len(cuts)
    if directory.exists():
        raise ValueError(f"{directory}: exists without {DONE}; delete it or rename it")
    if not cuts:
        raise ValueError(f"{directory}: no cuts to write")
    random.Random(seed).shuffle(cuts)
    aside = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)  # of a run that was killed
    aside.mkdir(parents=True)
    with SharWriter(aside, {"recording": "flac"}, shard_size=shard_size) as writer:
        for cut in tqdm(cuts, desc=f"Shar {directory.name}", unit="cut", mininterval=1):
            writer.write(cut)
    seconds = sum(cut.duration for cut in cuts)
    write_json(
        aside / DONE,
        {"cuts": len(cuts), "hours": seconds / 3600, "shard_size": shard_size},
    )
    os.replace(aside, directory)
    logging.info("%s: %d cuts, %.2f h", directory, len(cuts), seconds / 3600)
    return len(cuts)


def read_shar(directory: Path) -> CutSet:
    """Open a Shar folder's cuts and audio, lazily, in the order written.

    Raises:
      FileNotFoundError: if the folder is not a complete one.
    """
    directory = Path(directory)
    if not (directory / DONE).exists():
        raise FileNotFoundError(f"{directory}: no complete Shar folder ({DONE})")
    return CutSet.from_shar(
        fields={
            "cuts": sorted(map(str, directory.glob("cuts.*.jsonl.gz"))),
            "recording": sorted(map(str, directory.glob("recording.*.tar"))),
        }
    )
