"""Read audio files of any kind as 16 kHz mono, block by block.

Files are read through PyAV: wav, flac, mp3, ogg, m4a, mp4, webm, G.722 and others.
Several channels are averaged.
"""

import struct
from collections.abc import Iterator
from io import SEEK_END, BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Optional, Union

import numpy as np

from icefall_kd import SAMPLE_RATE

# What PyAV cannot tell from the bytes alone: raw G.722 has no header.
CONTAINER_FORMATS: dict[str, str] = {".g722": "g722", ".mp3": "mp3", ".ogg": "ogg"}
# Formats of FFmpeg whose header declares the length.
DECLARING = {"flac", "aiff", "au", "mp3", "matroska,webm", "mov,mp4,m4a,3gp,3g2,mj2"}
TOLERANCE = 0.1  # s, less than declared; compressed audio comes in frames
OGG_PAGE = 65307  # bytes at most
BLOCK = SAMPLE_RATE  # samples read at a time


class AudioError(ValueError):
    """An audio file cannot be read, is truncated, or has NaN samples."""


def read_blocks(
    source: Union[Path, bytes], container: Optional[str] = None
) -> Iterator[np.ndarray]:
    """Decode audio block by block, so that memory does not grow with its length.

    Channels are averaged; other rates are resampled to 16 kHz.

    Args:
      source: a file, or its bytes.
      container: FFmpeg's name of the format; None: by the suffix of the file, or by the
        bytes.
    Yields:
      blocks (S,) float32 of about :data:`BLOCK` samples, the last one shorter.
    Raises:
      AudioError: if the audio cannot be decoded, is shorter than its header declares,
        or has no samples or samples that are not finite.
    """
    import av

    if isinstance(source, bytes):
        file = BytesIO(source)
    else:
        file = str(source)
        container = container or CONTAINER_FORMATS.get(source.suffix.lower())
    seconds, declared = 0.0, None
    try:
        # Tags may be in any encoding.
        with av.open(file, format=container, metadata_errors="replace") as stream:
            if not stream.streams.audio:
                raise AudioError("has no audio stream")
            declared = _declared_seconds(stream, source)
            is_cut = stream.format.name == "ogg" and _ends_within_page(source)
            pieces: list[np.ndarray] = []
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
    if is_cut:
        raise AudioError(
            f"is truncated: it ends within a page after {seconds:.2f} s; copy the file "
            "again"
        )
    if declared is not None and seconds < declared - TOLERANCE:
        raise AudioError(
            f"is truncated: {seconds:.2f} s are there of the {declared:.2f} s that its "
            "header declares; copy the file again"
        )


def _one_line(error: Exception) -> str:
    return " ".join(str(getattr(error, "strerror", None) or error).split())


def _resample(stream: Any) -> Iterator[tuple[np.ndarray, float]]:
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

    Raw streams and Ogg declare none, MP3 does in the header that LAME writes.  The
    headers of w64, caf and RF64 are not read.
    """
    if stream.format.name == "wav":  # FFmpeg trims the declared length to the file's
        with _open_bytes(source) as file:
            return wav_seconds(file)
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


def _open_bytes(source: Union[Path, bytes]) -> BinaryIO:
    return BytesIO(source) if isinstance(source, bytes) else source.open("rb")


def _ends_within_page(source: Union[Path, bytes]) -> bool:
    """Return whether the last page of an Ogg file is not complete."""
    with _open_bytes(source) as file:
        size = file.seek(0, SEEK_END)
        file.seek(max(0, size - 2 * OGG_PAGE))
        end = file.read()
    page = end[max(0, end.rfind(b"OggS")) :]
    if len(page) < 27:  # its header, and the number of its segments
        return True
    segments = page[27 : 27 + page[26]]
    return len(segments) < page[26] or len(page) < 27 + page[26] + sum(segments)


def wav_seconds(file: BinaryIO) -> Optional[float]:
    """Return the length in s that the header of a wav file declares; None: none."""
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
