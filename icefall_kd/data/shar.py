"""Read manifests and write Shar folders: flac audio in numbered shards."""

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
from icefall_kd.core.files import Pathlike, as_path, is_local, write_text
from icefall_kd.core.logs import progress
from icefall_kd.core.processes import parallel_map

PLAN = "plan.sha256"  # file of an incomplete folder: hash of its cuts and shard size
FIELDS_SUFFIX = ".fields"


def read_cuts(manifest: Path) -> list[Cut]:
    """Return the cuts of a manifest, with 16 kHz audio and texts in NFC.

    Audio is resampled when it is loaded.  The log has the numbers of resampled cuts and
    changed texts.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is empty or has no cuts.
    """
    if not Path(manifest).exists():
        raise FileNotFoundError(f"{manifest}: no such manifest")
    cuts, rates, num_composed = [], Counter(), 0
    for cut in CutSet.from_file(manifest) or ():  # None for an empty file
        if not isinstance(cut, Cut):
            raise ValueError(
                f"{manifest}: has a {type(cut).__name__}, not cuts. Remedy: 'lhotse "
                "cut simple -r RECORDINGS -s SUPERVISIONS CUTS'; if a recording has "
                "several utterances, also 'lhotse cut trim-to-supervisions CUTS CUTS'"
            )
        if cut.has_recording and cut.sampling_rate != SAMPLE_RATE:
            rates[cut.sampling_rate] += 1
            cut = cut.resample(SAMPLE_RATE)
        composed = _compose_accents(cut)
        num_composed += composed is not cut
        cuts.append(composed)
    if not cuts:
        raise ValueError(
            f"{manifest}: has no cuts; check the log of the command that wrote it, and "
            "write it again"
        )
    if num_composed:
        logging.info(
            "%s: composed the accents (NFC) of %d texts", manifest, num_composed
        )
    for rate, count in sorted(rates.items()):
        logging.info(
            "%s: resampling %d cuts of %d Hz to %d Hz",
            manifest,
            count,
            rate,
            SAMPLE_RATE,
        )
    return cuts


def _compose_accents(cut: Cut) -> Cut:
    """Return the cut with NFC texts; the same object if nothing changes."""
    if not isinstance(cut, DataCut):
        return cut
    texts = [s.text or "" for s in cut.supervisions]
    if all(unicodedata.is_normalized("NFC", text) for text in texts):
        return cut
    return cut.map_supervisions(
        lambda s: fastcopy(s, text=unicodedata.normalize("NFC", s.text or ""))
    )


def perturb_speeds(cuts: Iterable[Cut], speeds: Sequence[float]) -> list[Cut]:
    """Return every cut at every speed, with the factor in ``cut.custom["speed"]``.

    At speeds other than 1, ids end in ``_sp<factor>``, as lhotse does it.
    """
    perturbed = []
    for cut in cuts:
        if not isinstance(cut, DataCut) or not cut.has_recording:
            perturbed.append(cut)  # the data gate drops and reports it
            continue
        for speed in speeds:
            new = cut if speed == 1.0 else cut.perturb_speed(speed)
            perturbed.append(new.with_custom("speed", float(speed)))
    return perturbed


def write_shar(
    cuts: Iterable[Cut],
    directory: Path,
    *,
    shard_size: int = 200,
    seed: int = 0,
    num_jobs: int = 1,
) -> None:
    """Write ``cuts``, shuffled by ``seed``, as a Shar folder with flac audio.

    The shards are first written to a hidden folder next to ``directory``, which is
    renamed when it is complete.  After a kill, the same call writes the missing shards.

    Args:
      shard_size: cuts in a shard.
      num_jobs: number of processes.
    Raises:
      ValueError: if there are no cuts, or ``directory`` or its fields exist.
    """
    directory = Path(directory)
    check_absent(directory)
    cuts = list(cuts)
    if not cuts:
        raise ValueError(f"{directory}: no cuts to write")
    random.Random(seed).shuffle(cuts)
    partial = directory.with_name(f".{directory.name}.partial")
    _prepare_partial(partial, _hash_plan(cuts, shard_size))
    shards = [cuts[i : i + shard_size] for i in range(0, len(cuts), shard_size)]
    missing = [
        (partial, number, shard)
        for number, shard in enumerate(shards)
        if not (partial / _get_file_names(number)[-1]).exists()
    ]
    if len(missing) < len(shards):
        num_found = len(shards) - len(missing)
        logging.info("%s: reusing %d of %d shards", partial, num_found, len(shards))
    written = parallel_map(_write_shard, missing, num_jobs)
    for _ in progress(written, f"Shar {directory.name}", "shard", len(missing)):
        pass
    (partial / PLAN).unlink()
    os.replace(partial, directory)
    hours = sum(cut.duration for cut in cuts) / 3600
    logging.info("wrote %s: %d cuts, %.2f h", directory, len(cuts), hours)


def check_absent(directory: Path) -> None:
    """Check that neither a Shar folder exists, nor fields of a deleted one.

    Raises:
      ValueError: if one exists, with the folder to delete.
    """
    if directory.exists():
        raise ValueError(f"{directory}: exists; delete it to write it again")
    fields = fields_dir(directory)
    if fields.exists():
        raise ValueError(
            f"{fields}: describes fields of {directory}, which does not exist; delete "
            "it, too"
        )


def _prepare_partial(partial: Path, plan: str) -> None:
    """Create the folder for shards; keep the finished shards of the same plan."""
    path = partial / PLAN
    if not path.exists() or path.read_text(encoding="utf-8") != plan:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write_text(path, plan)
    for unfinished in partial.glob(".[0-9]*"):
        shutil.rmtree(unfinished)


def _get_file_names(number: int) -> tuple[str, str]:
    """Return the names of a shard's files; the last one is written last."""
    return f"recording.{number:06d}.tar", f"cuts.{number:06d}.jsonl.gz"


def _write_shard(shard: tuple[Path, int, Sequence[Cut]]) -> None:
    """Write one shard atomically.

    Args:
      shard: (folder, number, cuts), one argument for :func:`parallel_map`.
    """
    folder, number, cuts = shard
    temporary = folder / f".{number:06d}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    with SharWriter(
        temporary, {"recording": "flac"}, shard_size=len(cuts), shard_offset=number
    ) as writer:
        for cut in cuts:
            writer.write(cut)
    for name in _get_file_names(number):
        os.replace(temporary / name, folder / name)
    temporary.rmdir()


def hash_cuts(cuts: Iterable[Cut]) -> str:
    """Return the SHA-256 of the cuts' ids, spans and texts, in order."""
    digest = hashlib.sha256()
    for cut in cuts:
        texts = [s.text for s in cut.supervisions]
        samples = cut.num_samples if cut.has_recording else None
        content = (cut.id, cut.start, cut.duration, samples, texts)
        digest.update(f"{content}\n".encode())
    return digest.hexdigest()


def _hash_plan(cuts: Sequence[Cut], shard_size: int) -> str:
    """Return the SHA-256 of the cuts, their audio paths and the size of shards."""
    sources = [
        [s.source for s in cut.recording.sources if isinstance(s.source, str)]
        for cut in cuts
    ]
    content = (shard_size, hash_cuts(cuts), sources)
    return hashlib.sha256(f"{content}\n".encode()).hexdigest()


def fields_dir(shar_dir: Pathlike) -> Path:
    """Return the folder with the descriptions of fields, ``<shar_dir>.fields``.

    If ``shar_dir`` is a symbolic link, the folder is next to the link's target.

    Raises:
      ValueError: if ``shar_dir`` is a root folder.
    """
    folder = as_path(shar_dir)
    if is_local(folder) and (folder.name in ("", "..") or folder.is_symlink()):
        folder = Path(os.path.realpath(folder))
    if not folder.name:
        raise ValueError(
            f"{shar_dir}: a Shar folder cannot be the root, because its fields are "
            "described in a folder next to it; use a subfolder"
        )
    return folder.with_name(folder.name + FIELDS_SUFFIX)
