"""How a field's frames are stored.  One file a codec, one dict of names.

A codec is written as its name and, where it has a size, the bytes of a frame:
``fp16``, ``int8``, ``pq16``.  To add one: a subclass of
:class:`~icefall_kd.fields.codecs.base.Codec` in a file of its own, and a line in
:data:`CODECS`.
"""

import re
from collections.abc import Mapping
from typing import Any, Optional

import numpy as np

from icefall_kd.fields.codecs.base import Codec
from icefall_kd.fields.codecs.mvq import Mvq
from icefall_kd.fields.codecs.pq import Pq
from icefall_kd.fields.codecs.simple import Fp16, Int8, TopK

__all__ = [
    "CODECS",
    "Codec",
    "bytes_per_frame",
    "find_codec",
    "make_codec",
    "train_codec",
    "training_options",
]

CODECS: dict[str, type[Codec]] = {c.name: c for c in (Fp16, Int8, Pq, Mvq, TopK)}


def find_codec(spec: str) -> tuple[type[Codec], Optional[int]]:
    """Return the class and the size that ``spec`` names, for example "pq16".

    Raises:
      ValueError: if there is none; the message lists those that there are.
    """
    if spec in CODECS and not CODECS[spec].sized:
        return CODECS[spec], None
    match = re.fullmatch(r"([a-z]+)([1-9]\d*)", spec)
    if match and match.group(1) in CODECS and CODECS[match.group(1)].sized:
        return CODECS[match.group(1)], int(match.group(2))
    known = [name + ("<bytes>" if c.sized else "") for name, c in CODECS.items()]
    raise ValueError(f"unknown codec '{spec}'; known are {sorted(known)}")


def bytes_per_frame(spec: str, dim: int) -> float:
    """Return the bytes that a frame of ``dim`` values takes, trained or not yet.

    Raises:
      ValueError: if there is no such codec, or it cannot hold such frames.
    """
    cls, size = find_codec(spec)
    return cls(size, {}).bytes_per_frame(dim)


def make_codec(spec: str, state: Optional[Mapping[str, np.ndarray]] = None) -> Codec:
    """Return the codec ``spec``.

    Args:
      state: what :meth:`Codec.state` of a trained one returned; needed by codecs that
        are trained.
    Raises:
      ValueError: if there is no such codec, or its state is missing.
    """
    cls, size = find_codec(spec)
    if cls.trained and not state:
        raise ValueError(f"codec '{spec}' must be trained; its state is missing")
    return cls(size, state or {})


def training_options(spec: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return all options of a training of ``spec``: those given, and the defaults.

    Raises:
      ValueError: if there is no such codec or option.
    """
    cls, _ = find_codec(spec)
    unknown = sorted(set(given) - set(cls.options))
    if unknown:
        raise ValueError(
            f"codec '{spec}' has no options {unknown}; it has {sorted(cls.options)}"
        )
    return {**cls.options, **given}


def train_codec(spec: str, frames: np.ndarray, seed: int = 0, **options: Any) -> Codec:
    """Return the codec ``spec`` trained on ``frames``, (F, W) float32.

    Args:
      options: as :func:`training_options`.
    Raises:
      ValueError: as :func:`training_options`; if the frames are too few or not finite;
        if the package that trains it is not installed.
    """
    cls, size = find_codec(spec)
    options = training_options(spec, options)
    cls(size, {})  # refuses a size that it cannot have
    if not np.isfinite(frames).all():
        raise ValueError(f"frames to train codec '{spec}' on are not finite")
    return cls(size, cls.train(size, frames, seed, **options) if cls.trained else {})
