"""Codec ``mvq``: multi-codebook vector quantisation, as icefall's recipes have it.

A frame is the sum of one centre from each of several codebooks of 256, which are
trained together; ``mvq8`` has 8 and stores as many bytes a frame.
Source: Guo et al., Predicting multi-codebook vector quantization indexes for knowledge
distillation, 2022, arXiv:2211.00508; trained and encoded by the authors' package
``multi_quantization``.

What is stored is what icefall's recipes call ``codebook_indexes``: (T, codebooks)
uint8, in lhotse a TemporalArray.  Its ``--enable-distillation`` finds them in the
cuts of :func:`icefall_kd.fields.reader.open_shar` when the field, here ``hubert``, is
renamed:

    cut.codebook_indexes = cut.custom.pop("hubert")

The indexes are of frames normalised in each dimension, which those recipes need not
know: they predict the indexes and never decode them.
"""

import logging
import random
import time
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any, Optional

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding

from icefall_kd.fields.codecs.base import (
    Codec,
    check_dim,
    check_finite,
    check_number,
    mean_and_std,
)

CODEBOOK_SIZE = 256
SIZES = (1, 2, 4, 8, 16, 32)  # codebooks that the package can train
_BATCH = 512  # frames of a training step, as in icefall
_CHUNK = 256  # frames encoded at once, which bounds the memory
_LOG_INTERVAL = 30.0  # s


class Mvq(Codec):
    """x is about ``mean + std * sum_c centers[c, q_c]`` with q_c in 0 .. 255.

    State, float32, of a ``multi_quantization.Quantizer`` with its scales multiplied in:
    ``mean`` and ``std`` (W,); ``centers`` (C, 256, W); ``weight`` (C * 256, W) and
    ``bias`` (C * 256,), which make the first guess of the indexes.
    """

    name = "mvq"
    sized = True
    trained = True
    packages = ("multi_quantization",)
    # icefall trains 20,000, on a GPU.
    options = {"iterations": 1000}

    def __init__(self, size: Optional[int], state: Mapping[str, np.ndarray]) -> None:
        super().__init__(size, state)
        if size not in SIZES:
            raise ValueError(f"mvq{size}: the bytes of a frame must be one of {SIZES}")
        self._quantizer: Optional[torch.nn.Module] = None

    def constants(self) -> Mapping[str, np.ndarray]:
        """See :class:`Codec`."""
        tables = self._state["centers"] * self._state["std"]
        return {"mean": self._state["mean"], "tables": tables}

    @classmethod
    def prepare(cls) -> None:
        """See :class:`Codec`."""
        _package()

    @classmethod
    def train(
        cls, size: Optional[int], frames: np.ndarray, seed: int, **options: Any
    ) -> dict[str, np.ndarray]:
        """Train, on CUDA where there is one; see :class:`Codec`.

        Args:
          options: ``iterations`` of 512 frames each, half of them with 2 C codebooks
            of 16 centres, which are then multiplied in pairs.
        Raises:
          ValueError: if there are fewer frames than a codebook has centres, or
            ``iterations`` is not an integer of 2 or more.
        """
        iterations = options["iterations"]
        if not isinstance(iterations, int) or iterations < 2:
            raise ValueError(f"mvq: iterations is {iterations!r}, must be 2 or more")
        check_number(frames, CODEBOOK_SIZE, f"mvq{size}")
        mean, std = mean_and_std(frames)
        x = torch.from_numpy((frames - mean) / std)
        state = random.getstate()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            random.seed(seed)  # the trainer draws from Python's generator too
            try:
                quantizer = _train(size, x, iterations, seed)
            finally:
                random.setstate(state)
        return {"mean": mean, "std": std, **_to_state(quantizer)}

    def encode(self, x: np.ndarray) -> np.ndarray:
        """See :class:`Codec`.

        Raises:
          ValueError: if a value is not finite, the dimension is another, or
            multi_quantization is not installed.
        """
        check_finite(x, self.spec)
        check_dim(x, len(self._state["mean"]), self.spec)
        z = torch.from_numpy((x - self._state["mean"]) / self._state["std"])
        if self._quantizer is None:
            self._quantizer = _from_state(self._state).to(_device())
        with torch.no_grad():
            parts = [self._quantizer.encode(p.to(_device())) for p in z.split(_CHUNK)]
        return torch.cat(parts).cpu().numpy()

    def decode_tensor(self, stored: Tensor) -> Tensor:
        """See :class:`Codec`."""
        constants = self.constants_on(stored.device)
        x = constants["mean"].expand(*stored.shape[:-1], -1).clone()
        for n, table in enumerate(constants["tables"]):
            x += embedding(stored[..., n].long(), table)
        return x

    def bytes_per_frame(self, dim: int) -> float:
        """See :class:`Codec`."""
        return float(self.size)


def _package() -> ModuleType:
    try:
        import multi_quantization
    except ImportError as e:
        raise ValueError(
            "codec mvq is trained and encoded by multi_quantization: pip install "
            f"multi_quantization ({e})"
        ) from e
    return multi_quantization


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _train(size: int, x: Tensor, iterations: int, seed: int) -> torch.nn.Module:
    """Return a Quantizer trained on (F, W) float32, with a line of log now and then."""
    trainer = _package().QuantizerTrainer(
        dim=x.shape[1],
        bytes_per_frame=size,
        device=_device(),
        phase_one_iters=iterations // 2,
        phase_two_iters=iterations - iterations // 2,
    )
    start = told = time.monotonic()
    for n, batch in zip(range(1, iterations + 1), _batches(x, seed)):
        batch = batch.to(_device())
        trainer.step(batch)
        now = time.monotonic()
        if now - told >= _LOG_INTERVAL or n == iterations:
            with torch.no_grad():
                loss = trainer.quantizer.compute_loss(batch, 1)[0].item()
            logging.info(
                "mvq%d: %d of %d iterations, relative error %.3f, %.0f s left",
                size,
                n,
                iterations,
                loss**0.5,  # the package's loss is of squares
                (now - start) / n * (iterations - n),
            )
            told = now
    return trainer.get_quantizer()


def _batches(x: Tensor, seed: int) -> Iterator[Tensor]:
    """Yield batches of ``x`` for ever, its frames in a new order each time."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(x), generator=generator)
        for start in range(0, max(1, len(x) - _BATCH + 1), _BATCH):
            yield x[order[start : start + _BATCH]]


def _to_state(quantizer: torch.nn.Module) -> dict[str, np.ndarray]:
    with torch.no_grad():
        scale = (quantizer.logits_scale * quantizer.scale_speed).exp()
        tensors = {
            "centers": quantizer.get_centers(),
            "weight": quantizer.to_logits.weight * scale,
            "bias": quantizer.to_logits.bias,
        }
    return {name: x.detach().cpu().numpy().copy() for name, x in tensors.items()}


def _from_state(state: Mapping[str, np.ndarray]) -> torch.nn.Module:
    """Return the Quantizer of a state; its scales are 1 and its id is a new one."""
    codebooks, _, dim = state["centers"].shape
    with torch.random.fork_rng(devices=[]):
        quantizer = _package().Quantizer(
            dim=dim, codebook_size=CODEBOOK_SIZE, num_codebooks=codebooks
        )
    with torch.no_grad():
        quantizer.centers.copy_(torch.from_numpy(state["centers"]))
        quantizer.to_logits.weight.copy_(torch.from_numpy(state["weight"]))
        quantizer.to_logits.bias.copy_(torch.from_numpy(state["bias"]))
    return quantizer
