"""The interface of codecs, and functions that several codecs share."""

import hashlib
import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any, ClassVar, Optional

import numpy as np
import torch
from torch import Tensor

_PIP_NAMES = {"faiss": "faiss-cpu"}


class Codec:
    """Encode a teacher's frames for storage, and decode them.

    Decoding needs only numpy and torch, so that a training run needs no other package.
    It accepts any slice of the stored array in time, on any device.  A pickled codec
    contains its size and its state.

    Attributes:
      name: key in :data:`icefall_kd.fields.codecs.CODECS`.
      sized: True if a spec is the name and a number of bytes per frame.
      trained: True if the codec has a state that is trained on frames.
      packages: packages that training and encoding import.
      kinds: kinds of teacher output that the codec can store.
      bytes_per_value: bytes of a stored value, for codecs without a size.
      options: training options and their defaults.
    """

    name: ClassVar[str]
    sized: ClassVar[bool] = False
    trained: ClassVar[bool] = False
    packages: ClassVar[tuple[str, ...]] = ()
    kinds: ClassVar[tuple[str, ...]] = ("embedding",)
    bytes_per_value: ClassVar[float] = 1.0
    options: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, size: Optional[int], state: Mapping[str, np.ndarray]) -> None:
        """Store size and state.

        Args:
          size: bytes per frame of the spec; None for a codec without a size.
          state: arrays of the training, see :meth:`train`; empty without training.
        """
        self.size = size
        self._state = dict(state)
        self._on_device: dict[torch.device, dict[str, Tensor]] = {}

    def __reduce__(self) -> tuple:
        # Other attributes may be large or on a GPU, or cannot be pickled.
        return type(self), (self.size, self._state)

    @property
    def spec(self) -> str:
        """The name and the size, for example "pq16"."""
        return self.name + (str(self.size) if self.sized else "")

    def state(self) -> dict[str, np.ndarray]:
        """Return the arrays that restore this codec; empty without training."""
        return dict(self._state)

    def sha256(self) -> Optional[str]:
        """Return the SHA-256 of spec and state; None for a codec without training."""
        if not self._state:
            return None
        digest = hashlib.sha256(self.spec.encode())
        for name, array in sorted(self._state.items()):
            array = np.ascontiguousarray(array)
            digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
            digest.update(array.tobytes())
        return digest.hexdigest()

    @classmethod
    def train(
        cls, size: Optional[int], frames: np.ndarray, seed: int, **options: Any
    ) -> dict[str, np.ndarray]:
        """Return the state trained on frames.

        Args:
          size: bytes per frame; None for a codec without a size.
          frames: (F, W) float32.
          seed: seed of the training.
          options: value of each of :attr:`options`.
        """
        raise NotImplementedError(f"codec '{cls.name}' is not trained")

    @classmethod
    def import_packages(cls) -> list[ModuleType]:
        """Import and return the packages that training and encoding need.

        Raises:
          ValueError: if a package is not installed; the message names it.
        """
        try:
            return [importlib.import_module(package) for package in cls.packages]
        except ImportError as e:
            package = _PIP_NAMES.get(e.name, e.name)
            raise ValueError(
                f"codec {cls.name} needs '{e.name}' for training and encoding: pip "
                f"install {package} ({e})"
            ) from e

    def encode(self, x: np.ndarray) -> np.ndarray:
        """Return the compressed frames; the first axis is time.

        Args:
          x: (T, W) float32.
        Raises:
          ValueError: if a value is not finite or out of range, the codec was trained
            on frames of another dimension, or a package is not installed.
        """
        raise NotImplementedError

    def decode(self, stored: np.ndarray) -> np.ndarray:
        """Return a stored array, or a slice of it in time, as (T, W) float32.

        Raises:
          ValueError: if the array was not written by this codec.
        """
        stored = np.require(stored, requirements=["C", "W"])  # for torch.from_numpy
        try:
            return self.decode_tensor(torch.from_numpy(stored)).numpy()
        except (RuntimeError, IndexError) as e:
            raise ValueError(
                f"{stored.dtype} {stored.shape} is not of codec {self.spec}: {e}"
            ) from e

    def decode_tensor(self, stored: Tensor) -> Tensor:
        """Return stored arrays, (..., B), as (..., W) float32 on the same device."""
        raise NotImplementedError

    def constants(self) -> Mapping[str, np.ndarray]:
        """Return the arrays that decoding reads; by default the state."""
        return self._state

    def constants_on(self, device: torch.device) -> dict[str, Tensor]:
        """Return :meth:`constants` on a device, copied there once."""
        if device not in self._on_device:
            self._on_device[device] = {
                k: torch.from_numpy(v).to(device) for k, v in self.constants().items()
            }
        return self._on_device[device]

    def bytes_per_frame(self, dim: int) -> float:
        """Return the bytes of a stored frame of ``dim`` values."""
        return float(self.size) if self.sized else self.bytes_per_value * dim

    def check_frames(self, x: np.ndarray) -> None:
        """Raise ValueError if ``x`` is not finite, or has not the trained dimension."""
        if not np.isfinite(x).all():
            raise ValueError(
                "the teacher's output has a value that is not finite; "
                f"{self.spec} cannot store it"
            )
        if self.trained and x.shape[1:] != self._state["mean"].shape:
            raise ValueError(
                f"frames are {x.shape}, but {self.spec} was trained on frames of "
                f"{len(self._state['mean'])} values; it belongs to another teacher"
            )


def check_num_frames(frames: np.ndarray, centroids: int, spec: str) -> None:
    """Raise ValueError if there are fewer training frames than centroids."""
    if len(frames) < centroids:
        raise ValueError(
            f"{spec} trains {centroids} centroids, which needs more than {len(frames)} "
            f"frames: give --codec-frames of at least {centroids} (20,000 is better), "
            "a larger set, or --codec fp16"
        )


def mean_and_std(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and the standard deviation of each dimension, (W,) float32.

    Codecs quantise normalised frames, as the loss terms compare them: Whisper and
    similar teachers have a few dimensions that would otherwise dominate the error.
    """
    mean = frames.mean(axis=0, dtype=np.float64)
    std = frames.std(axis=0, dtype=np.float64)
    # A constant dimension must not cause a division by zero.
    return mean.astype(np.float32), np.maximum(std, 1e-5).astype(np.float32)
