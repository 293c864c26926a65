"""The samples of a cut, of the one form that everything here hears: 16 kHz mono."""

import math
from collections.abc import Iterator

import numpy as np
import torch
from lhotse.cut import Cut
from lhotse.cut.data import DataCut
from torch import Tensor

from icefall_kd import SAMPLE_RATE
from icefall_kd.data.gate import REMEDIES
from icefall_kd.data.gate_audio import decode, tolerance

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
