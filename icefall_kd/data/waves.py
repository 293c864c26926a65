"""The samples of a cut, of the one form that everything here hears: 16 kHz mono."""

import torch
from lhotse.cut import Cut
from torch import Tensor

from icefall_kd import SAMPLE_RATE
from icefall_kd.data.gate import REMEDIES


def load_wave(cut: Cut) -> Tensor:
    """Return the samples (S,) float32 in [-1, 1] of a cut.

    Raises:
      ValueError: if it is not 16 kHz mono, or cannot be read; the message names it.
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
        return torch.from_numpy(cut.load_audio()[0])
    except Exception as e:  # whatever a decoder raises: the cut is named
        reason = " ".join(str(e).split())[:300]
        raise ValueError(
            f"cut '{cut.id}': its audio is damaged, as a bad disk or copy leaves it; "
            f"copy its shard again, or make it again ({reason})"
        ) from e
