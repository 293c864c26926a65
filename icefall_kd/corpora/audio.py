"""Store audio as corpora ship it (G.722, MP3, Ogg) in 16 kHz mono flac files."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Optional, Union

import soundfile
from lhotse import MonoCut, Recording, SupervisionSegment

from icefall_kd import SAMPLE_RATE
from icefall_kd.core.files import sha256_file, write_atomically
from icefall_kd.core.logs import progress
from icefall_kd.data.audio_files import CONTAINER_FORMATS, decode


@dataclass(frozen=True)
class Clip:
    """One piece of audio of a corpus, not yet decoded.

    Attributes:
      id: of the recording to be; a file name without folders.
      source: a file, or the encoded bytes themselves.
      container: in ``CONTAINER_FORMATS``; None lets the decoder find out.
    """

    id: str
    source: Union[Path, bytes]
    container: Optional[str] = None
    text: Optional[str] = None
    speaker: Optional[str] = None
    language: Optional[str] = None


def clip_of_file(path: Path, id: str, **fields) -> Clip:
    """Return the :class:`Clip` of an audio file; ``fields`` as in :class:`Clip`."""
    return Clip(id, path, CONTAINER_FORMATS.get(path.suffix.lower()), **fields)


def store_clips(
    clips: Iterable[Clip], audio_dir: Path, description: str
) -> tuple[list[MonoCut], list[tuple[str, str]]]:
    """Store each clip as ``audio_dir/<id>.flac`` and return its cut.

    A file that is there already is not decoded again while its source is the same: the
    file's comment is the SHA-256 of the source.  One without a comment is kept.

    Args:
      description: of the progress bar.
    Returns:
      The cuts, in the order of ``clips``, and (id, reason) of what is unreadable.
    Raises:
      ValueError: if two clips have the same id, or if every clip is unreadable.
    """
    clips = list(clips)
    seen = set()
    for clip in clips:
        if clip.id in seen:
            raise ValueError(f"two audio files of the corpus have the id {clip.id}")
        seen.add(clip.id)
    audio_dir.mkdir(parents=True, exist_ok=True)
    cuts, unreadable = [], []
    for clip in progress(clips, description, "clip"):
        path = audio_dir / f"{clip.id}.flac"
        digest = _source_sha256(clip.source)
        if not (path.exists() and _comment(path) in ("", digest)):
            try:
                samples = decode(clip.source, clip.container)
            except ValueError as e:
                unreadable.append((clip.id, str(e)))
                continue
            with write_atomically(path) as aside:
                with soundfile.SoundFile(
                    aside, "w", SAMPLE_RATE, channels=1, format="FLAC"
                ) as file:
                    file.comment = digest
                    file.write(samples)
        cuts.append(_cut(clip, path))
    for id, reason in unreadable:
        logging.warning("%s: %s", id, reason)
    if clips and not cuts:
        raise ValueError(f"no clip is readable; the first, {clip.id}: {reason}")
    return cuts, unreadable


def _source_sha256(source: Union[Path, bytes]) -> str:
    """Return the SHA-256 of encoded audio."""
    if isinstance(source, bytes):
        return sha256(source).hexdigest()
    return sha256_file(source)


def _comment(path: Path) -> str:
    """Return the comment of an audio file, empty where it has none."""
    with soundfile.SoundFile(path) as file:
        return file.comment


def _cut(clip: Clip, path: Path) -> MonoCut:
    recording = Recording.from_file(path, recording_id=clip.id)
    cut = recording.to_cut()
    cut.id = clip.id
    if clip.text is not None:
        cut.supervisions = [
            SupervisionSegment(
                id=clip.id,
                recording_id=clip.id,
                start=0.0,
                duration=cut.duration,
                text=clip.text,
                language=clip.language,
                speaker=clip.speaker,
            )
        ]
    cut.custom = {"language": clip.language} if clip.language else {}
    return cut
