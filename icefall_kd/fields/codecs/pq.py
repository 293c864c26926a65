"""Codec ``pq``: product quantisation, one byte per sub-quantiser.

Source: Jegou et al., Product quantization for nearest neighbor search, 2011,
doi:10.1109/TPAMI.2010.57; rotation: Ge et al., Optimized product quantization for
approximate nearest neighbor search, 2013, doi:10.1109/CVPR.2013.379.  The rotation is
initialised with the principal components, allocated to the sub-quantisers so that the
product of the variances is about the same in each.  faiss runs the k-means.

Each preprocessing step reduces the error.  Error |x' - x| / |x| of frames normalised in
each dimension, of Whisper on the dev set of the Asterisk recipe, trained on 20,000
frames of its train set:

                                          tiny.en       base
    bytes per frame                          16       16       32
    no preprocessing                       0.759    0.780    0.712
    + normalisation of each dimension      0.720    0.742    0.675
    + principal components, allocated      0.662    0.683    0.583
    + first half of the components only    0.665    0.683    0.584
    + 10 iterations of OPQ                 0.655    0.671    0.581
"""

import logging
from collections.abc import Mapping
from typing import Any, Optional

import numpy as np
from torch import Tensor
from torch.nn.functional import embedding

from icefall_kd.fields.codecs.base import Codec, check_num_frames, mean_and_std

CENTROIDS = 256  # per sub-quantiser: one byte
_ADVISED_FRAMES = 39  # per centroid; with fewer, faiss warns
_KEPT_DIMS = 0.5  # share of the dimensions that the rotation keeps
_OPQ_ITERATIONS = 10


class Pq(Codec):
    """x is about ``mean + std * (rotation @ y)``, y the centroids with the indexes q.

    State, float32, for M bytes per frame and P = M times the values of a
    sub-quantiser: ``mean`` and ``std`` (W,); ``rotation`` (W, P) with orthonormal
    columns (rows if P > W); ``centroids`` (M, 256, P / M).  P is about W / 2: the
    remaining principal components are smaller than the quantisation error, and cost
    time.
    """

    name = "pq"
    sized = True
    trained = True
    packages = ("faiss",)

    def __init__(self, size: Optional[int], state: Mapping[str, np.ndarray]) -> None:
        super().__init__(size, state)
        self._quantizer: Any = None

    def constants(self) -> Mapping[str, np.ndarray]:
        state = self._state
        return {
            "mean": state["mean"],
            # (P, W), from the rotated to the teacher's space
            "inverse": (state["rotation"] * state["std"][:, None]).T.copy(),
            "centroids": state["centroids"].reshape(self.size * CENTROIDS, -1),
            # row of each sub-quantiser's centroid 0
            "offsets": CENTROIDS * np.arange(self.size),
        }

    @classmethod
    def train(
        cls, size: Optional[int], frames: np.ndarray, seed: int, **options: Any
    ) -> dict[str, np.ndarray]:
        """Train; deterministic for given frames, seed and number of threads.

        Raises:
          ValueError: if there are fewer frames than centroids, or faiss is missing.
        """
        (faiss,) = cls.import_packages()
        check_num_frames(frames, CENTROIDS, f"pq{size}")
        if len(frames) < _ADVISED_FRAMES * CENTROIDS:
            logging.warning(
                "pq%d: only %d training frames; give --codec-frames of %d or more",
                size,
                len(frames),
                _ADVISED_FRAMES * CENTROIDS,
            )
        mean, std = mean_and_std(frames)
        z = (frames - mean) / std
        dim = size * _values_per_byte(_KEPT_DIMS * z.shape[1] / size)
        z = np.pad(z, ((0, 0), (0, max(0, dim - z.shape[1]))))
        quantizer = faiss.ProductQuantizer(dim, size, 8)
        quantizer.cp.seed = seed
        quantizer.cp.min_points_per_centroid = 1  # the warning is above
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
        self.check_frames(x)
        if self._quantizer is None:
            self._quantizer = self._make_quantizer()
        z = (x - self._state["mean"]) / self._state["std"]
        return self._quantizer.compute_codes(z @ self._state["rotation"])

    def decode_tensor(self, stored: Tensor) -> Tensor:
        constants = self.constants_on(stored.device)
        y = embedding(stored + constants["offsets"], constants["centroids"])
        return y.flatten(-2) @ constants["inverse"] + constants["mean"]

    def _make_quantizer(self) -> Any:
        (faiss,) = self.import_packages()
        centroids = self._state["centroids"]
        quantizer = faiss.ProductQuantizer(self.size * centroids.shape[2], self.size, 8)
        faiss.copy_array_to_vector(centroids.ravel(), quantizer.centroids)
        return quantizer


def _values_per_byte(wanted: float) -> int:
    """Round the values per sub-quantiser; from 4 on, to a multiple of 4.

    faiss encodes 4 or 8 values seven times as fast as 6.
    """
    if wanted < 4:
        return max(1, round(wanted))
    return 4 * round(wanted / 4)


def _train_rotation(quantizer: Any, z: np.ndarray) -> np.ndarray:
    """Return the rotation (W, P) float32 to apply before quantising ``z``, (F, W).

    Each iteration trains the centroids for the rotation, then computes the rotation
    that best maps the frames to their centroids (orthogonal Procrustes; Ge et al.,
    section 3.1).  faiss has the same algorithm, but its LAPACK crashes in a process
    that has loaded CTranslate2.
    """
    rotation = _allocate_components(z, quantizer.M, quantizer.dsub)
    num_iterations, quantizer.cp.niter = quantizer.cp.niter, 4
    for n in range(_OPQ_ITERATIONS):
        quantizer.train_type = (
            quantizer.Train_hot_start if n else quantizer.Train_default
        )
        y = z @ rotation
        quantizer.train(y)
        y = quantizer.decode(quantizer.compute_codes(y))
        u, _, vt = np.linalg.svd(z.T @ y, full_matrices=False)
        rotation = u @ vt
    quantizer.cp.niter = num_iterations
    quantizer.train_type = quantizer.Train_default
    return rotation


def _allocate_components(z: np.ndarray, groups: int, size: int) -> np.ndarray:
    """Return the first principal components of (F, W), (W, groups * size) float32.

    Each component, the largest first, goes to the group with the smallest product of
    variances that is not full (eigenvalue allocation, Ge et al., section 3.2).
    """
    variances, vectors = np.linalg.eigh(np.cov(z, rowvar=False, bias=True))
    kept = np.argsort(-variances)[: groups * size]
    # Relative to the smallest one kept: every component increases the product.
    logs = np.log(np.maximum(variances[kept], 1e-9))
    logs -= logs.min() - 1e-3
    products, members = np.zeros(groups), [[] for _ in range(groups)]
    for component, log in zip(kept, logs):
        room = [g for g in range(groups) if len(members[g]) < size]
        group = min(room, key=products.__getitem__)
        members[group].append(component)
        products[group] += log
    return vectors[:, np.concatenate(members)].astype(np.float32)
