"""Writing Shar: flac audio in numbered shards, whole or absent."""

import hashlib
import logging
import os
import random
import shutil
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from lhotse import CutSet
from lhotse.cut import Cut
from lhotse.cut.data import DataCut
from lhotse.shar import SharWriter
from lhotse.utils import fastcopy

from icefall_kd import SAMPLE_RATE
from icefall_kd.core.files import (
    Pathlike,
    as_path,
    is_local,
    write_text,
)
from icefall_kd.core.logs import progress
from icefall_kd.core.processes import parallel_map

PLAN = "plan.sha256"  # what the shards of a folder that is not complete are of


def read_cuts(manifest: Path) -> list[Cut]:
    """Return the cuts of a manifest, all at 16 kHz.

    What is of another rate is resampled when it is loaded, and counted.  Accents are
    composed (NFC).

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is empty or holds something else than cuts.
    """
    if not Path(manifest).exists():
        raise FileNotFoundError(f"{manifest}: no such manifest")
    cuts, rates, composed = [], Counter(), 0
    for cut in CutSet.from_file(manifest) or ():  # None for an empty file
        if not isinstance(cut, Cut):
            raise ValueError(
                f"{manifest}: holds a {type(cut).__name__}, not cuts. Remedy: lhotse "
                "cut simple -r RECORDINGS -s SUPERVISIONS CUTS, and, of recordings "
                "with several utterances, lhotse cut trim-to-supervisions CUTS CUTS"
            )
        if cut.has_recording and cut.sampling_rate != SAMPLE_RATE:
            rates[cut.sampling_rate] += 1
            cut = cut.resample(SAMPLE_RATE)
        written, cut = cut, _compose(cut)
        composed += cut is not written
        cuts.append(cut)
    if not cuts:
        raise ValueError(
            f"{manifest}: holds no cuts; write it again, and see whether the command "
            "that wrote it failed"
        )
    if composed:
        logging.info(
            "%s: %d texts have decomposed accents, which are composed (NFC)",
            manifest,
            composed,
        )
    for rate, count in sorted(rates.items()):
        logging.info(
            "%s: %d cuts of %d Hz become %d", manifest, count, rate, SAMPLE_RATE
        )
    return cuts


def _compose(cut: Cut) -> Cut:
    """Return the cut with composed accents (NFC), the cut itself if it has no other."""
    if not isinstance(cut, DataCut):
        return cut
    texts = [s.text or "" for s in cut.supervisions]
    if all(unicodedata.is_normalized("NFC", text) for text in texts):
        return cut
    return cut.map_supervisions(
        lambda s: fastcopy(s, text=unicodedata.normalize("NFC", s.text or ""))
    )


def perturb_speeds(cuts: Iterable[Cut], speeds: Sequence[float]) -> list[Cut]:
    """Return every cut at every speed, ``cut.custom["speed"]`` set to the factor.

    The ids at another speed than 1 end in lhotse's ``_sp<factor>``.
    """
    out = []
    for cut in cuts:
        if not isinstance(cut, DataCut) or not cut.has_recording:
            out.append(cut)  # for the gate to drop by name
            continue
        for speed in speeds:
            new = cut if speed == 1.0 else cut.perturb_speed(speed)
            new = new.with_custom("speed", float(speed))
            out.append(new)
    return out


def write_shar(
    cuts: Iterable[Cut],
    directory: Path,
    *,
    shard_size: int = 200,
    seed: int = 0,
    num_jobs: int = 1,
) -> None:
    """Write ``cuts`` in a random order (the same for a ``seed``), audio as flac.

    The folder appears when it is complete, so one that is there is complete.  Until
    then its shards lie in a hidden folder beside it, and the same call, after a kill,
    makes those that are missing.

    Args:
      num_jobs: processes, which share the shards.
    Raises:
      ValueError: if there are no cuts, or ``directory`` or the folder of its fields
        exists.
    """
    directory = Path(directory)
    check_absent(directory)
    cuts = list(cuts)
    if not cuts:
        raise ValueError(f"{directory}: no cuts to write")
    random.Random(seed).shuffle(cuts)
    aside = directory.with_name(f".{directory.name}.partial")
    _keep_what_is_of(_plan(cuts, shard_size), aside)
    parts = [cuts[i : i + shard_size] for i in range(0, len(cuts), shard_size)]
    missing = [
        (aside, number, part)
        for number, part in enumerate(parts)
        if not (aside / _files(number)[-1]).exists()
    ]
    if len(missing) < len(parts):
        there = len(parts) - len(missing)
        logging.info("%s: %d of %d shards are there", aside, there, len(parts))
    written = parallel_map(_write_shard, missing, num_jobs)
    for _ in progress(written, f"Shar {directory.name}", "shard", len(missing)):
        pass
    (aside / PLAN).unlink()
    os.replace(aside, directory)
    hours = sum(cut.duration for cut in cuts) / 3600
    logging.info("wrote %s: %d cuts, %.2f h", directory, len(cuts), hours)


def check_absent(directory: Path) -> None:
    """Refuse to write a Shar folder where one, or what is left of one, is.

    Raises:
      ValueError: if the folder or that of its fields exists.
    """
    if directory.exists():
        raise ValueError(f"{directory}: is there already; delete it to write it again")
    fields = fields_dir(directory)
    if fields.exists():
        raise ValueError(
            f"{fields}: describes fields of a folder {directory} that is gone; delete "
            "it, too"
        )


def _files(number: int) -> tuple[str, str]:
    """Return the names of a shard's files; the last is there when all are."""
    return f"recording.{number:06d}.tar", f"cuts.{number:06d}.jsonl.gz"


def _write_shard(shard: tuple[Path, int, Sequence[Cut]]) -> None:
    """Write one shard, whole or not at all: (folder, number, cuts)."""
    folder, number, cuts = shard
    own = folder / f".{number:06d}"
    shutil.rmtree(own, ignore_errors=True)
    own.mkdir()
    size = len(cuts)
    with SharWriter(
        own, {"recording": "flac"}, shard_size=size, shard_offset=number
    ) as writer:
        for cut in cuts:
            writer.write(cut)
    for name in _files(number):
        os.replace(own / name, folder / name)
    own.rmdir()


def cuts_sha256(cuts: Iterable[Cut]) -> str:
    """Return the SHA-256 of what cuts are, in order; not of where their audio lies."""
    digest = hashlib.sha256()
    for cut in cuts:
        texts = [s.text for s in cut.supervisions]
        samples = cut.num_samples if cut.has_recording else None
        told = (cut.id, cut.start, cut.duration, samples, texts)
        digest.update(f"{told}\n".encode())
    return digest.hexdigest()


def _plan(cuts: Sequence[Cut], shard_size: int) -> str:
    """Return what tells these shards from those of other cuts, or another order."""
    sources = [
        [s.source for s in cut.recording.sources if isinstance(s.source, str)]
        for cut in cuts
    ]
    told = (shard_size, cuts_sha256(cuts), sources)
    return hashlib.sha256(f"{told}\n".encode()).hexdigest()


def _keep_what_is_of(plan: str, aside: Path) -> None:
    """Make the folder of the shards, without those that a kill left of another plan."""
    told = aside / PLAN
    if not told.exists() or told.read_text(encoding="utf-8") != plan:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        write_text(told, plan)
    for half in aside.glob(".[0-9]*"):  # of a job that was killed
        shutil.rmtree(half)


SUFFIX = ".fields"  # of the folder beside a Shar folder


def fields_dir(shar_dir: Pathlike) -> Path:
    """Return the folder of all that is no shard, ``<shar_dir>.fields``.

    A symbolic link to a Shar folder has the folder beside the original.

    Raises:
      ValueError: if there cannot be a folder beside ``shar_dir``.
    """
    folder = as_path(shar_dir)
    if is_local(folder) and (folder.name in ("", "..") or folder.is_symlink()):
        folder = Path(os.path.realpath(folder))
    if not folder.name:
        raise ValueError(
            f"{shar_dir}: the descriptions of fields are in a folder beside the Shar "
            "folder, so it cannot be the root; put it into a folder"
        )
    return folder.with_name(folder.name + SUFFIX)
