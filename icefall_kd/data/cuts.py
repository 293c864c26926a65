"""The samples of a cut, of the one form that everything here hears: 16 kHz mono.

Check the cuts of a Shar folder, which plain Lhotse may have written, on reading.

What the data gate drops before it writes a folder is refused here: by the JSON lines of
the cuts alone, before any audio is read.
"""

import logging
import math
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Optional, Protocol

import numpy as np
import torch
from lhotse.cut import Cut
from lhotse.cut.data import DataCut
from torch import Tensor

from icefall_kd import SAMPLE_RATE
from icefall_kd.data.gate import (
    REMEDIES,
    Drop,
    check_frames,
    check_text,
    describe_drops,
)
from icefall_kd.data.gate_audio import TOLERANCE, Finding, decode, tolerance
from icefall_kd.data.tokens import MAX_UNKNOWN, Tokenizer, UnknownLetters

BLOCK_SECONDS = 60.0  # s of a long cut in memory


def load_wave(cut: Cut) -> Tensor:
    """Return the samples (S,) float32 in [-1, 1] of a cut, as many as are there.

    Raises:
      ValueError: if it is not 16 kHz mono, cannot be read, or has samples that are not
        finite; the message names it.
    """
    if cut.num_channels != 1:
        raise ValueError(
            f"cut '{cut.id}' has {cut.num_channels} channels, wanted is mono. Remedy: "
            f"{REMEDIES['not_mono']}"
        )
    if cut.sampling_rate != SAMPLE_RATE:
        raise ValueError(
            f"cut '{cut.id}' is {cut.sampling_rate} Hz, wanted is {SAMPLE_RATE} Hz; "
            "write its Shar again with 'python -m icefall_kd.bin.make_shar', which "
            "resamples"
        )
    try:
        wave = torch.from_numpy(_load(cut))
    except Exception as e:  # whatever a decoder raises: the cut is named
        reason = " ".join(str(e).split())[:300]
        raise ValueError(
            f"cut '{cut.id}': its audio is damaged, as a bad disk or copy leaves it; "
            f"copy its shard again, or make it again ({reason})"
        ) from e
    if not torch.isfinite(wave).all():
        raise ValueError(
            f"cut '{cut.id}': its audio has NaN or infinite samples; write its Shar "
            "again with 'python -m icefall_kd.bin.make_shar', which drops such cuts"
        )
    return wave


def _load(cut: Cut) -> np.ndarray:
    """Return the samples (S,) of a cut that can be decoded."""
    if not isinstance(cut, DataCut):
        return cut.load_audio()[0]
    # cut.load_audio() pads with mirrored audio where up to 0.5 s are missing.
    whole = cut.start == 0 and math.isclose(
        cut.duration, cut.recording.duration, abs_tol=1e-3
    )
    samples = decode(cut, whole)[0, : cut.num_samples]
    if cut.num_samples - len(samples) > tolerance(cut) * SAMPLE_RATE:
        raise ValueError(f"{len(samples)} samples of {cut.num_samples}")
    return samples


def load_blocks(cut: Cut) -> Iterator[Tensor]:
    """Load the samples of a cut in blocks (S,) of :data:`BLOCK_SECONDS`.

    Raises:
      ValueError: as :func:`load_wave`.
    """
    if cut.duration <= BLOCK_SECONDS:
        yield load_wave(cut)
        return
    samples, size = cut.num_samples, round(BLOCK_SECONDS * SAMPLE_RATE)
    for start in range(0, samples, size):
        part = cut.truncate(
            offset=start / SAMPLE_RATE,
            duration=min(size, samples - start) / SAMPLE_RATE,
            preserve_id=True,
        )
        yield load_wave(part)


EXAMPLES = 2  # cuts of each reason in a message
# Characters without a glyph, as sentencepiece's default normaliser reads them: marks of
# direction, zero-width spaces and byte order marks are spaces, control codes nothing.
INVISIBLE = {
    **dict.fromkeys((0x061C, 0x200B, 0x200C, 0x200E, 0x200F, 0xFEFF), " "),
    **dict.fromkeys((*range(0x01, 0x09), 0x0B, *range(0x0E, 0x20), 0x7F), None),
}


class HasLines(Protocol):
    """A shard; see :class:`icefall_kd.fields.shards.Shard`."""

    def lines(self) -> Iterable[Mapping[str, Any]]:
        """Yield every cut as plain JSON."""
        ...


def check_cuts(
    shards: Iterable[HasLines],
    name: str,
    *,
    labelled: bool = False,
    trained: bool = False,
    tokenizer: Optional[Tokenizer] = None,
    max_unknown: float = MAX_UNKNOWN,
) -> int:
    """Refuse a Shar set with cuts that the data gate would drop.

    Cuts without a supervision pass: what needs text leaves them out.

    Args:
      shards: of the set.
      name: of the set, for messages.
      labelled: transcripts are used, so a cut has at most one supervision.
      trained: a student is trained on them, so they have as many frames as it needs.
      tokenizer: it is trained on transcripts, which have tokens, fewer than frames.
      max_unknown: share of the tokens that may be ``<unk>``.
    Returns:
      the number of cuts.
    Raises:
      ValueError: naming the first cuts for each reason, and the remedy.
    """
    letters = UnknownLetters(tokenizer) if tokenizer is not None else None
    seen: set[str] = set()
    drops: list[Drop] = []
    number = without_text = 0
    for shard in shards:
        for line in shard.lines():
            number += 1
            found = _check_form(line, seen)
            texts = [s.get("text") or "" for s in line.get("supervisions") or ()]
            without_text += not any(text.strip() for text in texts)
            if found is None and labelled and len(texts) > 1:
                found = "two_supervisions", f"{len(texts)} supervisions"
            if found is None and letters is not None and texts:
                found = _check_labelled(line["duration"], texts[0], letters, tokenizer)
            if found is None and trained:
                found = check_frames(line["duration"], None)
            if found is not None:
                drops.append(Drop(str(line.get("id")), *found))
            seen.add(line.get("id"))
    if drops:
        reasons = "; ".join(
            f"{reason}: {line}"
            for reason, line in describe_drops(drops, EXAMPLES).items()
        )
        raise ValueError(
            f"{name}: {len(drops)} of {number} cuts cannot be used: {reasons}. Write "
            "the set without them, or from its manifest with 'python -m "
            "icefall_kd.bin.make_shar', which drops them and lists them in a report"
        )
    if letters is not None:
        letters.check(name, "data.max_unknown", max_unknown)
    if labelled and tokenizer is None and 0 < without_text < number:
        logging.warning(
            "%s: %d of %d cuts have no text; every word that is recognised in them "
            "counts as an error",
            name,
            without_text,
            number,
        )
    return number


def _check_form(line: Mapping[str, Any], seen: set[str]) -> Finding:
    if line.get("id") in seen:
        return "duplicate_id", "seen before"
    if line.get("type") not in ("MonoCut", "MultiCut"):
        return "mixed_cut", str(line.get("type"))
    channel, recording = line.get("channel", 0), line.get("recording")
    channels = len(channel) if isinstance(channel, (list, tuple)) else 1
    if channels != 1:
        return "not_mono", f"{channels} channels"
    if recording is None:
        return "unreadable", "no audio"
    rate = recording["sampling_rate"]
    if rate != SAMPLE_RATE:
        return "other_rate", f"{rate} Hz"
    end, length = line["start"] + line["duration"], recording["duration"]
    if not 0 <= line["start"] < length or end > length + TOLERANCE:
        return "outside_recording", f"ends at {end:.3f} s, its audio at {length:.3f} s"
    return None


def _check_labelled(
    duration: float, text: str, letters: UnknownLetters, tokenizer: Tokenizer
) -> Finding:
    tokens = letters.add(text)
    found = check_text(text, tokens, tokenizer.encode, tokenizer.unk_id)
    return found or check_frames(duration, tokens)


def transcript(cut: Cut) -> str:
    """Return the text of a cut's supervision; "" without one.

    Accents are composed (NFC) and invisible characters are spaces or nothing, as in
    tokens and hypotheses: sentencepiece encodes texts in this form.

    Raises:
      ValueError: if several supervisions have text.
    """
    texts = [s.text.strip() for s in cut.supervisions if s.text and s.text.strip()]
    if len(texts) > 1:
        raise ValueError(
            f"cut '{cut.id}' has {len(texts)} supervisions with text, one can be used. "
            f"Remedy: {REMEDIES['two_supervisions']}"
        )
    text = texts[0] if texts else ""
    return unicodedata.normalize("NFC", text.translate(INVISIBLE)).strip()
