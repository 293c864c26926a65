"""Read audio files of any kind as 16 kHz mono, and store clips as flac files.

Files are read through PyAV: wav, flac, mp3, ogg, m4a, mp4, webm, G.722 and others.
Several channels are averaged.
"""

import logging
import struct
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import (
    Any,
    BinaryIO,
    Dict,
    Iterable,
    Iterator,
    List,
    Optional,
    Tuple,
    Union,
)

import numpy as np
import soundfile
from lhotse import MonoCut, Recording, SupervisionSegment

from icefall_kd import SAMPLE_RATE
from icefall_kd.data.progress import progress
from icefall_kd.io import sha256_file, write_aside

# What PyAV cannot tell from the bytes alone: raw G.722 has no header.
CONTAINER_FORMATS: Dict[str, str] = {".g722": "g722", ".mp3": "mp3", ".ogg": "ogg"}
# Formats of FFmpeg whose header declares the length.
DECLARING = {"flac", "aiff", "au", "mp3", "matroska,webm", "mov,mp4,m4a,3gp,3g2,mj2"}
TOLERANCE = 0.1  # s, less than declared; compressed audio comes in frames
BLOCK = SAMPLE_RATE  # samples read at a time


@dataclass(frozen=True)
class Clip:
    """One piece of audio of a corpus, not yet decoded.

    Attributes:
      id: of the recording to be; a file name without folders.
      source: a file, or the encoded bytes themselves.
      container: as in :data:`CONTAINER_FORMATS`; None lets the decoder find out.
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


class AudioError(ValueError):
    """An audio file cannot be read, is truncated, or holds no numbers."""


def read_blocks(
    source: Union[Path, bytes], container: Optional[str] = None
) -> Iterator[np.ndarray]:
    """Decode audio block by block, so that memory does not grow with its length.

    Channels are averaged; other rates are resampled to 16 kHz.

    Args:
      source: a file, or its bytes.
      container: as in :data:`CONTAINER_FORMATS`; None: by the bytes.
    Yields:
      blocks (S,) float32 of about :data:`BLOCK` samples, the last one shorter.
    Raises:
      AudioError: if the audio cannot be decoded, is shorter than its header declares,
        or has no samples or samples that are not finite.
    """
    import av

    file = BytesIO(source) if isinstance(source, bytes) else str(source)
    seconds, declared = 0.0, None
    try:
        # Tags may be in any encoding.
        with av.open(file, format=container, metadata_errors="replace") as stream:
            if not stream.streams.audio:
                raise AudioError("has no audio stream")
            declared = _declared_seconds(stream, source)
            pieces: List[np.ndarray] = []
            for samples, seconds in _resample(stream):
                if not np.isfinite(samples).all():
                    raise AudioError(
                        f"has NaN or infinite samples near {seconds:.2f} s; write it "
                        "again from its source"
                    )
                pieces.append(samples)
                if sum(map(len, pieces)) >= BLOCK:
                    yield np.concatenate(pieces)
                    pieces.clear()
            if any(map(len, pieces)):
                yield np.concatenate(pieces)
    except (av.error.FFmpegError, ValueError) as e:
        if isinstance(e, AudioError):
            raise
        reason = f"cannot be decoded as {container or 'audio'}: {_one_line(e)}"
        if isinstance(e, OSError):
            reason = f"cannot be read: {_one_line(e)}"
        if seconds:
            total = f" of {declared:.2f} s" if declared else ""
            reason = f"is truncated or damaged after {seconds:.2f} s{total}"
        raise AudioError(reason) from e
    if not seconds:
        raise AudioError("holds no samples")
    if declared is not None and seconds < declared - TOLERANCE:
        raise AudioError(
            f"is truncated: {seconds:.2f} s are there of the {declared:.2f} s that its "
            "header declares; copy the file again"
        )


def _one_line(error: Exception) -> str:
    return " ".join(str(getattr(error, "strerror", None) or error).split())


def read_file(path: Path) -> Iterator[np.ndarray]:
    """Decode an audio file block by block, as :func:`read_blocks` does."""
    return read_blocks(path, CONTAINER_FORMATS.get(path.suffix.lower()))


def _resample(stream: Any) -> Iterator[Tuple[np.ndarray, float]]:
    """Yield samples (S,) float32, 16 kHz, and the time in s up to which they are."""
    import av

    # One resampler's mix of stereo to mono would be sqrt(2) too loud in floats.
    resampler = av.AudioResampler(format="fltp", rate=SAMPLE_RATE)
    end, decoded = 0.0, 0
    for frame in stream.decode(audio=0):
        decoded += frame.samples
        # Pauses that a codec leaves out are in the frames' times alone.
        end = max((frame.time or 0.0) + frame.samples / frame.rate, end)
        end = max(end, decoded / frame.rate)
        for resampled in resampler.resample(frame):
            yield resampled.to_ndarray().mean(axis=0), end
    if decoded:
        for resampled in resampler.resample(None):
            yield resampled.to_ndarray().mean(axis=0), end


def _declared_seconds(stream: Any, source: Union[Path, bytes]) -> Optional[float]:
    """Return the length in s that a header declares; None: none does, or an estimate.

    Raw streams and Ogg declare none.  MP3 does in the header that LAME writes.
    """
    if stream.format.name == "wav":  # FFmpeg trims the declared length to the file's
        with BytesIO(source) if isinstance(source, bytes) else source.open("rb") as f:
            return _wav_seconds(f)
    audio = stream.streams.audio[0]
    if stream.format.name not in DECLARING or (
        stream.format.name == "mp3" and not audio.start_time
    ):
        return None
    if audio.duration is not None:
        return float(audio.duration * audio.time_base)
    if stream.duration is not None and len(stream.streams) == 1:
        return stream.duration / 1e6
    return None


def _wav_seconds(file: BinaryIO) -> Optional[float]:
    """Return the length in s that the header of a wav file declares."""
    riff, _, wave = struct.unpack("<4sI4s", file.read(12).ljust(12))
    byte_rate = 0
    while riff == b"RIFF" and wave == b"WAVE":
        head = file.read(8)
        if len(head) < 8:
            break
        name, size = struct.unpack("<4sI", head)
        if name == b"data":
            # A program that writes to a pipe leaves one of these.
            unknown = size == 0 or size >= 0x7FFFF000 or byte_rate == 0
            return None if unknown else size / byte_rate
        body = file.tell()
        if name == b"fmt ":
            byte_rate = struct.unpack("<I", file.read(12)[8:].ljust(4, b"\0"))[0]
        file.seek(body + size + size % 2)
    return None


def decode(source: Union[Path, bytes], container: Optional[str] = None) -> np.ndarray:
    """Return audio as (S,) int16, 16 kHz, channels averaged.

    Raises:
      AudioError: as :func:`read_blocks`.
    """
    samples = np.concatenate(list(read_blocks(source, container)))
    return np.clip(np.rint(samples * 32768), -32768, 32767).astype(np.int16)


def store_clips(
    clips: Iterable[Clip], audio_dir: Path, description: str
) -> Tuple[List[MonoCut], List[Tuple[str, str]]]:
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
            with write_aside(path) as aside:
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
