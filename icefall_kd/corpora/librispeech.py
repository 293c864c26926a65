"""LibriSpeech: read English audiobooks, 960 hours for training.

Panayotov et al., LibriSpeech: an ASR corpus based on public domain audio books, 2015;
CC BY 4.0, https://www.openslr.org/12 .  16 kHz flac, one utterance a file, transcripts
in upper-case words: lhotse's own recipe reads it, and the audio stays where it is.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from lhotse import CutSet, MonoCut, Recording, SupervisionSegment
from lhotse.recipes.librispeech import prepare_librispeech as prepare_manifests

from icefall_kd.core.cpu import count_cpus

# Part -> utterances of the release; what differs was not unpacked completely.
PARTS = {
    "train-clean-100": 28539,
    "train-clean-360": 104014,
    "train-other-500": 148688,
    "dev-clean": 2703,
    "dev-other": 2864,
    "test-clean": 2620,
    "test-other": 2939,
}


def find_parts(source_dir: Path, parts: Sequence[str]) -> Path:
    """Return the folder that holds ``parts``: ``source_dir`` or LibriSpeech/ below it.

    Raises:
      FileNotFoundError: if a part is in neither, or has no transcripts or no audio.
    """
    below = source_dir / "LibriSpeech"
    folder = below if below.is_dir() else source_dir
    for part, files in ((p, f) for p in parts for f in ("*.trans.txt", "*.flac")):
        if next((folder / part).glob(f"*/*/{files}"), None) is None:
            raise FileNotFoundError(
                f"{folder / part}: no */*/{files} in it. Remedy: unpack {part}.tar.gz "
                f"of https://www.openslr.org/12 into {folder.parent}, or name the "
                "folder that has LibriSpeech/ in it"
            )
    return folder


def prepare_librispeech(
    source_dir: Path,
    *,
    parts: Sequence[str] = ("train-clean-100",),
    labelled: bool = True,
    num_jobs: Optional[int] = None,
) -> CutSet:
    """Return the utterances of some parts as cuts, sorted by id.

    Args:
      parts: keys of :data:`PARTS`.
      labelled: False leaves the transcripts out.
      num_jobs: threads that read the headers of the audio; None: one a CPU.
    Raises:
      FileNotFoundError: if a part is not there, see :func:`find_parts`.
    """
    folder = find_parts(Path(source_dir), parts)
    read = prepare_manifests(
        folder, dataset_parts=list(parts), num_jobs=num_jobs or count_cpus()
    )
    cuts = []
    for part in parts:
        recordings, texts = read[part]["recordings"], read[part]["supervisions"]
        _compare(part, len(recordings), folder)
        text_of = {text.recording_id: text for text in texts}
        cuts += [_cut(r, text_of[r.id] if labelled else None) for r in recordings]
    return CutSet.from_cuts(sorted(cuts, key=lambda cut: cut.id))


def _compare(part: str, count: int, folder: Path) -> None:
    released = PARTS.get(part, count)
    if count != released:
        logging.warning(
            "%s: %d utterances, the release has %d", folder / part, count, released
        )


def _cut(recording: Recording, text: Optional[SupervisionSegment]) -> MonoCut:
    cut = recording.to_cut()
    cut.id = recording.id
    cut.supervisions = [] if text is None else [text]
    cut.custom = {"language": "en"}
    return cut
