"""Codec ``pq``: product quantisation, one byte a sub-quantiser.

Source: Jegou et al., Product quantization for nearest neighbor search, 2011,
doi:10.1109/TPAMI.2010.57; the rotation: Ge et al., Optimized product quantization for
approximate nearest neighbor search, 2013, doi:10.1109/CVPR.2013.379 (begun with the
principal components, spread over the sub-quantisers so that the product of the
variances is about the same in each).  The k-means is faiss's.

What comes before the sub-quantisers decides what they lose.  Error |x' - x| / |x| after
each dimension's mean and standard deviation, where targets are compared, of Whisper on
the dev set of the Asterisk recipe, trained on 20,000 frames of its train set:

                                     tiny.en       base
    bytes a frame                       16       16       32
    frames as they are                0.759    0.780    0.712
    each dimension normalised         0.720    0.742    0.675
    and principal components, spread  0.662    0.683    0.583
    the first half of them            0.665    0.683    0.584
    and 10 turns of OPQ               0.655    0.671    0.581
"""

import logging
from collections.abc import Mapping
from types import ModuleType
from typing import Any, Optional

import numpy as np
from torch import Tensor
from torch.nn.functional import embedding

from icefall_kd.fields.codecs.base import (
    Codec,
    check_dim,
    check_finite,
    check_number,
    mean_and_std,
)

CENTROIDS = 256  # of a sub-quantiser: one byte
_ADVISED = 39  # frames a centroid; with fewer, faiss warns
_KEPT = 0.5  # share of the dimensions that are left after the rotation
_ITERATIONS = 10  # of the rotation


class Pq(Codec):
    """x is about ``mean + std * (rotation @ y)``, y of the centroids that q names.

    State, float32, for M = bytes a frame and P = M times what a sub-quantiser holds:
    ``mean`` and ``std`` (W,), ``rotation`` (W, P) with orthonormal columns (rows where
    P is more than W), ``centroids`` (M, 256, P / M).  P is about W / 2: the principal
    components beyond are less than what such codes lose, and cost time.
    """

    name = "pq"
    sized = True
    trained = True
    packages = ("faiss",)

    def __init__(self, size: Optional[int], state: Mapping[str, np.ndarray]) -> None:
        super().__init__(size, state)
        self._quantizer: Any = None

    def constants(self) -> Mapping[str, np.ndarray]:
        """See :class:`Codec`."""
        state = self._state
        return {
            "mean": state["mean"],
            # (P, W): from the rotated to the teacher's space.
            "back": (state["rotation"] * state["std"][:, None]).T.copy(),
            "rows": state["centroids"].reshape(self.size * CENTROIDS, -1),
            # The row of a table's centroid 0.
            "first": CENTROIDS * np.arange(self.size),
        }

    @classmethod
    def prepare(cls) -> None:
        """See :class:`Codec`."""
        _faiss()

    @classmethod
    def train(
        cls, size: Optional[int], frames: np.ndarray, seed: int, **options: Any
    ) -> dict[str, np.ndarray]:
        """Train; the same for the same frames, seed and number of threads.

        Raises:
          ValueError: if there are fewer frames than centroids, or no faiss.
        """
        faiss = _faiss()
        check_number(frames, CENTROIDS, f"pq{size}")
        if len(frames) < _ADVISED * CENTROIDS:
            logging.warning(
                "pq%d: %d frames are few to train on, %d or more are better",
                size,
                len(frames),
                _ADVISED * CENTROIDS,
            )
        mean, std = mean_and_std(frames)
        z = (frames - mean) / std
        dim = size * _values_held(_KEPT * z.shape[1] / size)
        z = np.pad(z, ((0, 0), (0, max(0, dim - z.shape[1]))))
        quantizer = faiss.ProductQuantizer(dim, size, 8)
        quantizer.cp.seed = seed
        quantizer.cp.min_points_per_centroid = 1  # told above
        rotation = _train_rotation(quantizer, z)
        quantizer.train(z @ rotation)
        centroids = faiss.vector_to_array(quantizer.centroids)
        return {
            "mean": mean,
            "std": std,
            "rotation": rotation[: len(mean)].copy(),
            "centroids": centroids.reshape(size, CENTROIDS, -1),
        }

    def encode(self, x: np.ndarray) -> np.ndarray:
        """See :class:`Codec`.

        Raises:
          ValueError: if a value is not finite, the dimension is another, or faiss is
            not installed.
        """
        check_finite(x, self.spec)
        check_dim(x, len(self._state["mean"]), self.spec)
        if self._quantizer is None:
            self._quantizer = self._make_quantizer()
        z = (x - self._state["mean"]) / self._state["std"]
        return self._quantizer.compute_codes(z @ self._state["rotation"])

    def decode_tensor(self, stored: Tensor) -> Tensor:
        """See :class:`Codec`."""
        constants = self.constants_on(stored.device)
        y = embedding(stored + constants["first"], constants["rows"])
        return y.flatten(-2) @ constants["back"] + constants["mean"]

    def bytes_per_frame(self, dim: int) -> float:
        """See :class:`Codec`."""
        return float(self.size)

    def _make_quantizer(self) -> Any:
        faiss = _faiss()
        centroids = self._state["centroids"]
        quantizer = faiss.ProductQuantizer(self.size * centroids.shape[2], self.size, 8)
        faiss.copy_array_to_vector(centroids.ravel(), quantizer.centroids)
        return quantizer


def _values_held(wanted: float) -> int:
    """Return what a sub-quantiser holds: a multiple of 4 near ``wanted`` if it is more.

    faiss encodes 4 or 8 values seven times as fast as 6.
    """
    if wanted < 4:
        return max(1, round(wanted))
    return 4 * round(wanted / 4)


def _train_rotation(quantizer: Any, z: np.ndarray) -> np.ndarray:
    """Return (W, P) float32 after which ``quantizer`` loses little of ``z``, (F, W).

    In turns: the best centroids for the rotation, the best rotation for what they make
    of the frames (orthogonal Procrustes; Ge et al., section 3.1).  faiss can do it too,
    but its LAPACK crashes in a process that has loaded CTranslate2.
    """
    rotation = _spread_components(z, quantizer.M, quantizer.dsub)
    first, quantizer.cp.niter = quantizer.cp.niter, 4
    for n in range(_ITERATIONS):
        quantizer.train_type = (
            quantizer.Train_hot_start if n else quantizer.Train_default
        )
        y = z @ rotation
        quantizer.train(y)
        y = quantizer.decode(quantizer.compute_codes(y))
        u, _, vt = np.linalg.svd(z.T @ y, full_matrices=False)
        rotation = u @ vt
    quantizer.cp.niter, quantizer.train_type = first, quantizer.Train_default
    return rotation


def _spread_components(z: np.ndarray, groups: int, size: int) -> np.ndarray:
    """Return the first principal components of (F, W), (W, groups * size) float32.

    Each, from the largest on, goes to the group with the least product of variances
    that still has room (eigenvalue allocation, Ge et al., section 3.2).
    """
    variances, vectors = np.linalg.eigh(np.cov(z, rowvar=False, bias=True))
    kept = np.argsort(-variances)[: groups * size]
    # Relative to the least one kept, so that a product grows with every component.
    logs = np.log(np.maximum(variances[kept], 1e-9))
    logs -= logs.min() - 1e-3
    products, members = np.zeros(groups), [[] for _ in range(groups)]
    for component, log in zip(kept, logs):
        room = [g for g in range(groups) if len(members[g]) < size]
        group = min(room, key=products.__getitem__)
        members[group].append(component)
        products[group] += log
    return vectors[:, np.concatenate(members)].astype(np.float32)


def _faiss() -> ModuleType:
    try:
        import faiss
    except ImportError as e:
        raise ValueError(
            f"codec pq is trained and encoded by faiss: pip install faiss-cpu ({e})"
        ) from e
    return faiss
