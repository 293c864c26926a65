"""Load the audio and text of cuts, and check the cuts of a Shar set before its use.

A Shar folder that Lhotse wrote without the data gate may have cuts that it would drop.
:func:`check_cuts` finds them in the cuts' JSON lines, without reading audio.
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
from icefall_kd.data.gate_audio import TOLERANCE, Fault, decode_cut, get_tolerance
from icefall_kd.data.tokens import MAX_UNKNOWN, Tokenizer, UnknownLetters

BLOCK_SECONDS = 60.0  # duration of a block of a long cut
MAX_EXAMPLES = 2  # cuts of each reason in a message
# Character without a glyph -> replacement by sentencepiece's default normaliser.
# Direction marks, zero-width spaces and byte order marks become spaces; control codes
# are removed.
INVISIBLE = {
    **dict.fromkeys((0x061C, 0x200B, 0x200C, 0x200E, 0x200F, 0xFEFF), " "),
    **dict.fromkeys((*range(0x01, 0x09), 0x0B, *range(0x0E, 0x20), 0x7F), None),
}


def load_wave(cut: Cut) -> Tensor:
    """Return the samples (S,) float32 in [-1, 1] of a 16 kHz mono cut.

    S may be up to 25 ms less than the manifest declares; the wave is not padded.

    Raises:
      ValueError: if the cut is not 16 kHz mono, cannot be decoded, or has non-finite
        samples.
    """
    if cut.num_channels != 1:
        raise ValueError(
            f"cut '{cut.id}' has {cut.num_channels} channels, not 1. Remedy: "
            f"{REMEDIES['not_mono']}"
        )
    if cut.sampling_rate != SAMPLE_RATE:
        raise ValueError(
            f"cut '{cut.id}' is {cut.sampling_rate} Hz, not {SAMPLE_RATE}; write its "
            "Shar again with 'python -m icefall_kd.bin.make_shar', which resamples"
        )
    try:
        wave = torch.from_numpy(_decode(cut))
    except Exception as e:  # decoders raise errors of any type
        reason = " ".join(str(e).split())[:300]
        raise ValueError(
            f"cut '{cut.id}': its audio is damaged ({reason}); copy its shard again, "
            "or write its Shar again with 'python -m icefall_kd.bin.make_shar'"
        ) from e
    if not torch.isfinite(wave).all():
        raise ValueError(
            f"cut '{cut.id}': its audio has NaN or infinite samples; write its Shar "
            "again with 'python -m icefall_kd.bin.make_shar', which drops such cuts"
        )
    return wave


def _decode(cut: Cut) -> np.ndarray:
    if not isinstance(cut, DataCut):
        return cut.load_audio()[0]
    # cut.load_audio() pads by reflection if up to 0.5 s are missing.
    read_all = cut.start == 0 and math.isclose(
        cut.duration, cut.recording.duration, abs_tol=1e-3
    )
    samples = decode_cut(cut, read_all)[0, : cut.num_samples]
    if cut.num_samples - len(samples) > get_tolerance(cut) * SAMPLE_RATE:
        raise ValueError(f"it has {len(samples)} of {cut.num_samples} samples")
    return samples


def load_blocks(cut: Cut) -> Iterator[Tensor]:
    """Yield the samples of a cut in blocks (S,) of up to :data:`BLOCK_SECONDS`.

    Raises:
      ValueError: see :func:`load_wave`.
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


def get_transcript(cut: Cut) -> str:
    """Return the text of a cut's supervision, "" without a text.

    Accents are composed (NFC) and invisible characters are replaced.  sentencepiece
    does the same, so references match tokens and hypotheses.

    Raises:
      ValueError: if several supervisions have text.
    """
    texts = [s.text.strip() for s in cut.supervisions if s.text and s.text.strip()]
    if len(texts) > 1:
        raise ValueError(
            f"cut '{cut.id}' has {len(texts)} supervisions with text, not 1. Remedy: "
            f"{REMEDIES['two_supervisions']}"
        )
    text = texts[0] if texts else ""
    return unicodedata.normalize("NFC", text.translate(INVISIBLE)).strip()


class HasLines(Protocol):
    """A shard of cuts, such as :class:`icefall_kd.fields.shards.Shard`."""

    def lines(self) -> Iterable[Mapping[str, Any]]:
        """Yield every cut as parsed JSON."""
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
    """Raise an error if a Shar set has cuts that the data gate would drop.

    Cuts without a supervision are accepted.

    Args:
      shards: shards of the set.
      name: name of the set, for messages.
      labelled: whether transcripts are used; a cut then has at most one supervision.
      trained: whether a student is trained on the set; a cut then needs enough frames
        for the encoder.
      tokenizer: tokenizer of the transcripts, if a student is trained on them; a cut
        then needs known tokens, and more frames than tokens.
      max_unknown: maximum share of ``<unk>`` among the tokens, 0 to 1.
    Returns:
      the number of cuts.
    Raises:
      ValueError: if the set has unusable cuts, with examples and the remedy for each
        reason; or if the share of ``<unk>`` is larger than ``max_unknown``.
    """
    letters = UnknownLetters(tokenizer) if tokenizer is not None else None
    seen: set[str] = set()
    drops: list[Drop] = []
    num_cuts = num_without_text = 0
    for line in (line for shard in shards for line in shard.lines()):
        num_cuts += 1
        fault = _check_form(line, seen)
        seen.add(line.get("id"))
        texts = [s.get("text") or "" for s in line.get("supervisions") or ()]
        num_without_text += not any(text.strip() for text in texts)
        if fault is None and labelled and len(texts) > 1:
            fault = "two_supervisions", f"{len(texts)} supervisions"
        if fault is None and letters is not None and texts:
            tokens = letters.add(texts[0])
            fault = check_text(texts[0], tokens, tokenizer.encode, tokenizer.unk_id)
            fault = fault or check_frames(line["duration"], tokens)
        if fault is None and trained:
            fault = check_frames(line["duration"], None)
        if fault is not None:
            drops.append(Drop(str(line.get("id")), *fault))
    if drops:
        reasons = "; ".join(describe_drops(drops, MAX_EXAMPLES))
        raise ValueError(
            f"{name}: {len(drops)} of {num_cuts} cuts cannot be used: {reasons}. Write "
            "the set without them, or from its manifest with 'python -m "
            "icefall_kd.bin.make_shar', which drops them and lists them in a report"
        )
    if letters is not None:
        letters.check(name, "data.max_unknown", max_unknown)
    if labelled and tokenizer is None and 0 < num_without_text < num_cuts:
        logging.warning(
            "%s: %d of %d cuts have no text; each recognised word counts as an error",
            name,
            num_without_text,
            num_cuts,
        )
    return num_cuts


def _check_form(line: Mapping[str, Any], seen: set[str]) -> Fault:
    """Check id, type, channels, rate and span of a cut's JSON line.

    Args:
      seen: ids of earlier cuts.
    """
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
