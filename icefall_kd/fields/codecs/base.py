"""What a codec is."""

from collections.abc import Mapping
from typing import Any, ClassVar, Optional

import numpy as np
import torch
from torch import Tensor


class Codec:
    """Turns a teacher's frames into what is stored, and back.

    Decoding needs numpy and torch alone, so that training needs no library of the
    encoder's; it works on any slice of the stored array in time, and on any device.  A
    codec can be pickled: its size and its state are what travels.

    Attributes:
      name:    in :data:`icefall_kd.fields.codecs.CODECS`.
      sized:   True if a spec is the name and a number of bytes.
      trained: True if it has a state that is learned from frames.
      packages: that training and encoding import.
      kinds:   kinds of output that it can hold.
      options: of its training, each with its default.
    """

    name: ClassVar[str]
    sized: ClassVar[bool] = False
    trained: ClassVar[bool] = False
    packages: ClassVar[tuple[str, ...]] = ()
    kinds: ClassVar[tuple[str, ...]] = ("embedding",)
    options: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, size: Optional[int], state: Mapping[str, np.ndarray]) -> None:
        self.size = size
        self._state = dict(state)
        self._on_device: dict[torch.device, dict[str, Tensor]] = {}

    def __reduce__(self) -> tuple:
        # What a codec keeps beside its state may be large, or not fit to travel.
        return type(self), (self.size, self._state)

    @property
    def spec(self) -> str:
        """The codec as it is written: its name and its size."""
        return self.name + (str(self.size) if self.sized else "")

    def state(self) -> dict[str, np.ndarray]:
        """Return the arrays that make this codec again; empty when not trained."""
        return dict(self._state)

    @classmethod
    def train(
        cls, size: Optional[int], frames: np.ndarray, seed: int, **options: Any
    ) -> dict[str, np.ndarray]:
        """Return the state learned from ``frames``, (F, W) float32.

        Args:
          options: all of :attr:`options`, as given or by default.
        """
        raise NotImplementedError(f"codec '{cls.name}' is not trained")

    @classmethod
    def prepare(cls) -> None:
        """Import what training needs, so that what is absent is told before it.

        Raises:
          ValueError: naming the package to install.
        """

    def encode(self, x: np.ndarray) -> np.ndarray:
        """(T, W) float32 -> the stored array; its first axis is time."""
        raise NotImplementedError

    def decode(self, stored: np.ndarray) -> np.ndarray:
        """The stored array, or a slice of it in time -> (T, W) float32.

        Raises:
          ValueError: if it is not of this codec.
        """
        stored = np.require(stored, requirements=["C", "W"])  # as torch needs it
        try:
            return self.decode_tensor(torch.from_numpy(stored)).numpy()
        except (RuntimeError, IndexError) as e:
            raise ValueError(
                f"{stored.dtype} {stored.shape} is not of codec {self.spec}: {e}"
            ) from e

    def decode_tensor(self, stored: Tensor) -> Tensor:
        """Stored arrays, (..., B) -> (..., W) float32 on the same device."""
        raise NotImplementedError

    def constants(self) -> Mapping[str, np.ndarray]:
        """Return what decoding needs; the state, if not made of it."""
        return self._state

    def constants_on(self, device: torch.device) -> dict[str, Tensor]:
        """Return :meth:`constants` on a device, where they are kept."""
        if device not in self._on_device:
            self._on_device[device] = {
                k: torch.from_numpy(v).to(device) for k, v in self.constants().items()
            }
        return self._on_device[device]

    def bytes_per_frame(self, dim: int) -> float:
        """Bytes that one frame of ``dim`` values takes."""
        raise NotImplementedError


def check_finite(x: np.ndarray, spec: str) -> None:
    """Refuse frames that no codec can hold.

    Raises:
      ValueError: if a value is not finite.
    """
    if not np.isfinite(x).all():
        raise ValueError(
            f"the teacher's output holds a value that is not finite, which {spec} "
            "cannot store"
        )


def check_dim(x: np.ndarray, dim: int, spec: str) -> None:
    """Refuse frames of another dimension than the codec was trained on.

    Raises:
      ValueError: with both dimensions.
    """
    if x.ndim != 2 or x.shape[1] != dim:
        raise ValueError(
            f"frames are {x.shape}, but {spec} was trained on frames of {dim} values; "
            "it belongs to another teacher"
        )


def check_number(frames: np.ndarray, centroids: int, spec: str) -> None:
    """Refuse to train on fewer frames than there are centroids.

    Raises:
      ValueError: with both numbers.
    """
    if len(frames) < centroids:
        raise ValueError(
            f"{spec} learns {centroids} centroids and cannot do with {len(frames)} "
            f"frames: give the codec at least {centroids}, better 20,000, of a larger "
            "set, or take fp16"
        )


def mean_and_std(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and the standard deviation of each dimension, (W,) float32.

    They make the space in which targets are compared: there every dimension counts
    the same, where Whisper and its like have a few that dwarf the rest.
    """
    mean = frames.mean(axis=0, dtype=np.float64)
    std = frames.std(axis=0, dtype=np.float64)
    # A dimension that never moves must not become a division by zero.
    return mean.astype(np.float32), np.maximum(std, 1e-5).astype(np.float32)
