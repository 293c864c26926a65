"""Convert a corpus's audio (G.722, MP3, Ogg, ...) to 16 kHz mono flac files."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Optional, Union

import soundfile
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment

from icefall_kd import SAMPLE_RATE
from icefall_kd.core.files import sha256_file, write_atomically
from icefall_kd.core.logs import progress
from icefall_kd.data.audio_files import decode


@dataclass(frozen=True)
class AudioClip:
    """One encoded utterance of a corpus.

    Attributes:
      id: id of the cut and of the recording, and name of the flac file.
      source: a file or its bytes.
      container: FFmpeg's name of the format; None detects it.
      text: transcript; None for an unlabelled clip.
      speaker: speaker of the supervision, if ``text`` is given.
      language: language code, also stored as ``cut.custom["language"]``.
    """

    id: str
    source: Union[Path, bytes]
    container: Optional[str] = None
    text: Optional[str] = None
    speaker: Optional[str] = None
    language: Optional[str] = None


def store_clips(clips: Iterable[AudioClip], audio_dir: Path) -> CutSet:
    """Write each clip to ``audio_dir/<id>.flac`` and return the cuts in order.

    The comment of a flac file is the SHA-256 of its source.  A file whose comment is
    the same or empty is reused.  Unreadable clips are logged and skipped.

    Raises:
      ValueError: if two clips have the same id, or no clip is readable.
    """
    clips = list(clips)
    seen = set()
    for clip in clips:
        if clip.id in seen:
            raise ValueError(
                f"{audio_dir}: two clips have the id {clip.id}; rename one"
            )
        seen.add(clip.id)
    audio_dir.mkdir(parents=True, exist_ok=True)
    cuts, reason = [], ""
    for clip in progress(clips, f"audio to {audio_dir}", "clip"):
        try:
            cuts.append(_store_clip(clip, audio_dir / f"{clip.id}.flac"))
        except ValueError as e:
            reason = f"{clip.id} {e}"
            logging.warning("skipped: %s", reason)
    if clips and not cuts:
        raise ValueError(
            f"{audio_dir}: none of {len(clips)} clips is readable; check the files of "
            f"the corpus. The last one: {reason}"
        )
    return CutSet.from_cuts(cuts)


def _store_clip(clip: AudioClip, path: Path) -> MonoCut:
    """Write a clip to ``path``, unless that file is up to date, and return its cut."""
    if isinstance(clip.source, bytes):
        digest = sha256(clip.source).hexdigest()
    else:
        digest = sha256_file(clip.source)
    if not (path.exists() and _read_comment(path) in ("", digest)):
        samples = decode(clip.source, clip.container)
        with write_atomically(path) as temporary:
            with soundfile.SoundFile(
                temporary, "w", SAMPLE_RATE, channels=1, format="FLAC"
            ) as file:
                file.comment = digest
                file.write(samples)
    cut = Recording.from_file(path, recording_id=clip.id).to_cut()
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


def _read_comment(path: Path) -> str:
    with soundfile.SoundFile(path) as file:
        return file.comment
