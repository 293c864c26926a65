"""Codecs compress the frames of a field; :data:`CODECS` lists them by name.

A codec's spec is its name and, for some, its bytes per frame: ``fp16``, ``int8``,
``pq16``.  To add a codec, derive a class from
:class:`~icefall_kd.fields.codecs.base.Codec` and add it to :data:`CODECS`.
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
    "codec_for_kind",
    "find_codec",
    "make_codec",
    "train_codec",
    "training_options",
]

CODECS: dict[str, type[Codec]] = {c.name: c for c in (Fp16, Int8, Pq, Mvq, TopK)}


def find_codec(spec: str) -> tuple[type[Codec], Optional[int]]:
    """Return the class and the size of a spec, for example (Pq, 16) for "pq16".

    The size is None for a codec without one.

    Raises:
      ValueError: if the codec is unknown; the message lists the known ones.
    """
    if spec in CODECS and not CODECS[spec].sized:
        return CODECS[spec], None
    match = re.fullmatch(r"([a-z]+)([1-9]\d*)", spec)
    if match and match.group(1) in CODECS and CODECS[match.group(1)].sized:
        return CODECS[match.group(1)], int(match.group(2))
    known = [name + ("<bytes>" if c.sized else "") for name, c in CODECS.items()]
    raise ValueError(f"unknown codec '{spec}'. Available: {', '.join(sorted(known))}")


def codec_for_kind(kind: str, codec: str) -> str:
    """Return the spec of an output: ``codec`` for embeddings, else "topk"."""
    return codec if kind == "embedding" else "topk"


def bytes_per_frame(spec: str, dim: int) -> float:
    """Return the bytes of a stored frame of ``dim`` values, without a trained codec.

    Raises:
      ValueError: if the codec is unknown or cannot have this size.
    """
    cls, size = find_codec(spec)
    return cls(size, {}).bytes_per_frame(dim)


def make_codec(spec: str, state: Optional[Mapping[str, np.ndarray]] = None) -> Codec:
    """Return the codec ``spec``.

    Args:
      state: arrays of :meth:`Codec.state`; codecs with training require them.
    Raises:
      ValueError: if the codec is unknown, or its state is missing.
    """
    cls, size = find_codec(spec)
    if cls.trained and not state:
        raise ValueError(f"codec '{spec}' must be trained; its state is missing")
    return cls(size, state or {})


def training_options(spec: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the training options of ``spec``: the defaults, updated by ``given``.

    Raises:
      ValueError: if the codec or an option is unknown.
    """
    cls, _ = find_codec(spec)
    unknown = sorted(set(given) - set(cls.options))
    if unknown:
        raise ValueError(
            f"codec '{spec}' has no options {unknown}. Available: {sorted(cls.options)}"
        )
    return {**cls.options, **given}


def train_codec(spec: str, frames: np.ndarray, seed: int = 0, **options: Any) -> Codec:
    """Return the codec ``spec``, trained on frames.

    Args:
      frames: (F, W) float32, frames of a teacher.
      seed: seed of the training.
      options: see :func:`training_options`.
    Raises:
      ValueError: if an option is unknown, the frames are too few or not finite, or the
        package that trains the codec is not installed.
    """
    cls, size = find_codec(spec)
    options = training_options(spec, options)
    cls(size, {})  # raises for an invalid size
    if not np.isfinite(frames).all():
        raise ValueError(
            f"codec '{spec}': the training frames are not all finite; check the teacher"
        )
    return cls(size, cls.train(size, frames, seed, **options) if cls.trained else {})
