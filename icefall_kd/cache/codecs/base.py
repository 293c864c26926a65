"""What a codec is."""

from typing import ClassVar, Dict, Mapping, Optional, Tuple

import numpy as np


class Codec:
    """Turns a teacher's frames into what is stored, and back.

    Decoding needs numpy alone, so that training needs no library of the encoder's; it
    works on any slice of the stored array in time.  A codec can be pickled.

    Attributes:
      name:    in :data:`icefall_kd.cache.codecs.CODECS`.
      sized:   True if a spec is the name and a number of bytes.
      trained: True if it has a state that is learned from frames.
      kinds:   kinds of output that it can hold.
    """

    name: ClassVar[str]
    sized: ClassVar[bool] = False
    trained: ClassVar[bool] = False
    kinds: ClassVar[Tuple[str, ...]] = ("embedding",)

    def __init__(self, size: Optional[int], state: Mapping[str, np.ndarray]) -> None:
        self.size = size
        self._state = dict(state)

    @property
    def spec(self) -> str:
        """The codec as it is written: its name and its size."""
        return self.name + (str(self.size) if self.sized else "")

    def state(self) -> Dict[str, np.ndarray]:
        """Return the arrays that make this codec again; empty when not trained."""
        return dict(self._state)

    @classmethod
    def train(
        cls, size: Optional[int], frames: np.ndarray, seed: int
    ) -> Dict[str, np.ndarray]:
        """Return the state learned from ``frames``, (F, W) float32."""
        raise NotImplementedError(f"codec '{cls.name}' is not trained")

    def encode(self, x: np.ndarray) -> np.ndarray:
        """(T, W) float32 -> the stored array; its first axis is time."""
        raise NotImplementedError

    def decode(self, stored: np.ndarray) -> np.ndarray:
        """The stored array, or a slice of it in time -> (T, W) float32."""
        raise NotImplementedError

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
