"""Read audio files of any format as 16 kHz mono, block by block, with PyAV."""

import struct
from collections.abc import Iterator
from io import SEEK_END, BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Optional, Union

import numpy as np

from icefall_kd import SAMPLE_RATE

# Suffix -> FFmpeg format.  FFmpeg cannot detect raw G.722, which has no header.
CONTAINER_FORMATS: dict[str, str] = {".g722": "g722", ".mp3": "mp3", ".ogg": "ogg"}
# FFmpeg formats whose header has the duration.
FORMATS_WITH_DURATION = {
    "flac", "aiff", "au", "mp3", "matroska,webm", "mov,mp4,m4a,3gp,3g2,mj2",
}  # fmt: skip
# s that a file may be shorter than its header declares; codecs store complete frames.
TOLERANCE = 0.1
OGG_PAGE = 65307  # bytes, maximum
OGG_PAGE_HEADER = 27  # bytes, the number of segments included
BLOCK = SAMPLE_RATE  # samples read at a time


class AudioError(ValueError):
    """An audio file cannot be decoded, is truncated, or has non-finite samples.

    The message is a predicate, such as "has no samples".  Callers put the name of the
    file in front of it.
    """


def read_blocks(
    source: Union[Path, bytes], container: Optional[str] = None
) -> Iterator[np.ndarray]:
    """Decode audio block by block, resample it to 16 kHz and average its channels.

    Args:
      source: a file or its bytes.
      container: FFmpeg format; None detects it from the suffix or the bytes.
    Yields:
      (S,) float32, in [-1, 1]; S is about :data:`BLOCK`, less in the last block.
    Raises:
      AudioError: if the audio cannot be decoded, is shorter than its header declares,
        is empty, or has non-finite samples.
    """
    import av

    if isinstance(source, bytes):
        file = BytesIO(source)
    else:
        file = str(source)
        container = container or CONTAINER_FORMATS.get(source.suffix.lower())
    seconds, declared = 0.0, None
    try:
        # "replace", because tags may be in any encoding.
        with av.open(file, format=container, metadata_errors="replace") as stream:
            if not stream.streams.audio:
                raise AudioError("has no audio stream")
            declared = _read_declared_seconds(stream, source)
            is_truncated = stream.format.name == "ogg" and _ends_within_page(source)
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
    except AudioError:
        raise
    except (av.error.FFmpegError, ValueError) as e:
        reason = " ".join(str(getattr(e, "strerror", None) or e).split())
        if seconds:
            total = f" of {declared:.2f} s" if declared else ""
            message = f"is truncated or damaged after {seconds:.2f} s{total}"
        elif isinstance(e, OSError):
            message = f"cannot be read: {reason}"
        else:
            message = f"cannot be decoded as {container or 'audio'}: {reason}"
        raise AudioError(message) from e
    if not seconds:
        raise AudioError("has no samples")
    if is_truncated:
        raise AudioError(
            f"is truncated: it ends within a page after {seconds:.2f} s; copy the file "
            "again"
        )
    if declared is not None and seconds < declared - TOLERANCE:
        raise AudioError(
            f"is truncated: it has {seconds:.2f} s of the {declared:.2f} s that its "
            "header declares; copy the file again"
        )


def decode(source: Union[Path, bytes], container: Optional[str] = None) -> np.ndarray:
    """Return audio as (S,) int16, 16 kHz, with its channels averaged.

    Args:
      source, container: as in :func:`read_blocks`.
    Raises:
      AudioError: see :func:`read_blocks`.
    """
    samples = np.concatenate(list(read_blocks(source, container)))
    return np.clip(np.rint(samples * 32768), -32768, 32767).astype(np.int16)


def _resample(stream: Any) -> Iterator[tuple[np.ndarray, float]]:
    """Yield samples (S,) float32 at 16 kHz, and the time of their end in seconds."""
    import av

    # Channels are averaged here: the resampler's mono would be sqrt(2) too loud.
    resampler = av.AudioResampler(format="fltp", rate=SAMPLE_RATE)
    end, decoded = 0.0, 0
    for frame in stream.decode(audio=0):
        decoded += frame.samples
        # A codec may skip pauses; then only the times of the frames include them.
        end = max((frame.time or 0.0) + frame.samples / frame.rate, end)
        end = max(end, decoded / frame.rate)
        for resampled in resampler.resample(frame):
            yield resampled.to_ndarray().mean(axis=0), end
    if decoded:
        for resampled in resampler.resample(None):
            yield resampled.to_ndarray().mean(axis=0), end


def _read_declared_seconds(stream: Any, source: Union[Path, bytes]) -> Optional[float]:
    """Return the duration in seconds that the header declares.

    None means unknown or estimated: raw streams and Ogg declare no duration, and MP3
    only in LAME's header.  The headers of w64, caf and RF64 are not read.
    """
    if stream.format.name == "wav":  # FFmpeg computes it from the size of the file
        with _open_bytes(source) as file:
            return read_wav_seconds(file)
    audio = stream.streams.audio[0]
    if stream.format.name not in FORMATS_WITH_DURATION or (
        stream.format.name == "mp3" and not audio.start_time
    ):
        return None
    if audio.duration is not None:
        return float(audio.duration * audio.time_base)
    if stream.duration is not None and len(stream.streams) == 1:
        return stream.duration / 1e6
    return None


def read_wav_seconds(file: BinaryIO) -> Optional[float]:
    """Return the duration in seconds that a wav file's header declares, if known."""
    riff, _, wave = struct.unpack("<4sI4s", file.read(12).ljust(12))
    byte_rate = 0
    while riff == b"RIFF" and wave == b"WAVE":
        head = file.read(8)
        if len(head) < 8:
            break
        name, size = struct.unpack("<4sI", head)
        if name == b"data":
            # Programs that write to a pipe leave one of these sizes.
            is_unknown = size == 0 or size >= 0x7FFFF000 or byte_rate == 0
            return None if is_unknown else size / byte_rate
        body = file.tell()
        if name == b"fmt ":
            byte_rate = struct.unpack("<I", file.read(12)[8:].ljust(4, b"\0"))[0]
        file.seek(body + size + size % 2)
    return None


def _ends_within_page(source: Union[Path, bytes]) -> bool:
    """Return whether the last page of an Ogg file is incomplete."""
    with _open_bytes(source) as file:
        size = file.seek(0, SEEK_END)
        file.seek(max(0, size - 2 * OGG_PAGE))
        end = file.read()
    page = end[max(0, end.rfind(b"OggS")) :]
    if len(page) < OGG_PAGE_HEADER:
        return True
    num_segments = page[OGG_PAGE_HEADER - 1]
    segments = page[OGG_PAGE_HEADER : OGG_PAGE_HEADER + num_segments]
    complete = OGG_PAGE_HEADER + num_segments + sum(segments)
    return len(segments) < num_segments or len(page) < complete


def _open_bytes(source: Union[Path, bytes]) -> BinaryIO:
    return BytesIO(source) if isinstance(source, bytes) else source.open("rb")
