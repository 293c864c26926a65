"""Codec ``mvq``: multi-codebook vector quantisation, as in icefall's recipes.

A frame is the sum of one centre from each of several codebooks of 256 centres, which
are trained together; ``mvq8`` has 8 codebooks and stores 8 bytes per frame.
Source: Guo et al., Predicting multi-codebook vector quantization indexes for knowledge
distillation, 2022, arXiv:2211.00508; the authors' package ``multi_quantization`` trains
and encodes.

The stored array is the ``codebook_indexes`` of icefall's recipes: (T, codebooks) uint8,
a TemporalArray of Lhotse.  For icefall's ``--enable-distillation``, rename the field,
here ``hubert``, in the cuts of :func:`icefall_kd.fields.reader.open_shar`:

    cut.codebook_indexes = cut.custom.pop("hubert")

The codebooks quantise frames normalised in each dimension.  This does not affect
icefall's recipes, which predict the indexes and never decode them.
"""

import logging
import random
import time
from collections.abc import Iterator, Mapping
from typing import Any, Optional

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding

from icefall_kd.fields.codecs.base import Codec, check_num_frames, mean_and_std

CODEBOOK_SIZE = 256
SIZES = (1, 2, 4, 8, 16, 32)  # possible numbers of codebooks
_BATCH = 512  # frames of a training step, as in icefall
_CHUNK = 256  # frames encoded at once, which bounds the memory
_LOG_INTERVAL = 30.0  # s


class Mvq(Codec):
    """x is about ``mean + std * sum_c centers[c, q_c]`` with q_c in 0 .. 255.

    State, float32, from a ``multi_quantization.Quantizer`` with its scales multiplied
    in: ``mean`` and ``std`` (W,); ``centers`` (C, 256, W); ``weight`` (C * 256, W) and
    ``bias`` (C * 256,), from which the encoder initialises the indexes.
    """

    name = "mvq"
    sized = True
    trained = True
    packages = ("multi_quantization",)
    # icefall uses 20,000, on a GPU.
    options = {"iterations": 1000}

    def __init__(self, size: Optional[int], state: Mapping[str, np.ndarray]) -> None:
        super().__init__(size, state)
        if size not in SIZES:
            raise ValueError(f"mvq{size}: the bytes per frame must be one of {SIZES}")
        self._quantizer: Optional[torch.nn.Module] = None

    def constants(self) -> Mapping[str, np.ndarray]:
        tables = self._state["centers"] * self._state["std"]
        return {"mean": self._state["mean"], "tables": tables}

    @classmethod
    def train(
        cls, size: Optional[int], frames: np.ndarray, seed: int, **options: Any
    ) -> dict[str, np.ndarray]:
        """Train, on CUDA if available; see :class:`Codec`.

        Args:
          options: ``iterations``, the number of batches of 512 frames.  The first half
            trains 2 C codebooks of 16 centres; the package combines them in pairs.
        Raises:
          ValueError: if there are fewer frames than centres in a codebook, or
            ``iterations`` is not an integer of at least 2.
        """
        iterations = options["iterations"]
        if not isinstance(iterations, int) or iterations < 2:
            raise ValueError(
                f"--codec-option iterations={iterations!r}: mvq needs an integer of at "
                "least 2"
            )
        check_num_frames(frames, CODEBOOK_SIZE, f"mvq{size}")
        mean, std = mean_and_std(frames)
        x = torch.from_numpy((frames - mean) / std)
        state = random.getstate()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            random.seed(seed)  # the trainer also uses Python's generator
            try:
                quantizer = cls._train_quantizer(size, x, iterations, seed)
            finally:
                random.setstate(state)
        return {"mean": mean, "std": std, **quantizer_state(quantizer)}

    @classmethod
    def _train_quantizer(
        cls, size: int, x: Tensor, iterations: int, seed: int
    ) -> torch.nn.Module:
        """Return a Quantizer trained on (F, W) float32; log the progress."""
        (package,) = cls.import_packages()
        trainer = package.QuantizerTrainer(
            dim=x.shape[1],
            bytes_per_frame=size,
            device=_device(),
            phase_one_iters=iterations // 2,
            phase_two_iters=iterations - iterations // 2,
        )
        start = last_log = time.monotonic()
        for n, batch in zip(range(1, iterations + 1), _draw_batches(x, seed)):
            batch = batch.to(_device())
            trainer.step(batch)
            now = time.monotonic()
            if now - last_log >= _LOG_INTERVAL or n == iterations:
                with torch.no_grad():
                    loss = trainer.quantizer.compute_loss(batch, 1)[0].item()
                logging.info(
                    "mvq%d: %d of %d iterations, relative error %.3f, %.0f s left",
                    size,
                    n,
                    iterations,
                    loss**0.5,  # the package's loss is the squared error
                    (now - start) / n * (iterations - n),
                )
                last_log = now
        return trainer.get_quantizer()

    def encode(self, x: np.ndarray) -> np.ndarray:
        self.check_frames(x)
        z = torch.from_numpy((x - self._state["mean"]) / self._state["std"])
        if self._quantizer is None:
            self._quantizer = self._make_quantizer().to(_device())
        with torch.no_grad():
            parts = [self._quantizer.encode(p.to(_device())) for p in z.split(_CHUNK)]
        return torch.cat(parts).cpu().numpy()

    def _make_quantizer(self) -> torch.nn.Module:
        """Return the Quantizer of the state; its scales are 1 and its id is new."""
        (package,) = self.import_packages()
        codebooks, _, dim = self._state["centers"].shape
        with torch.random.fork_rng(devices=[]):
            quantizer = package.Quantizer(
                dim=dim, codebook_size=CODEBOOK_SIZE, num_codebooks=codebooks
            )
        parameters = {
            "centers": quantizer.centers,
            "weight": quantizer.to_logits.weight,
            "bias": quantizer.to_logits.bias,
        }
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(torch.from_numpy(self._state[name]))
        return quantizer

    def decode_tensor(self, stored: Tensor) -> Tensor:
        constants = self.constants_on(stored.device)
        x = constants["mean"].expand(*stored.shape[:-1], -1).clone()
        for n, table in enumerate(constants["tables"]):
            x += embedding(stored[..., n].long(), table)
        return x


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _draw_batches(x: Tensor, seed: int) -> Iterator[Tensor]:
    """Yield batches of ``x`` without end, in a new random order each epoch."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(x), generator=generator)
        for start in range(0, max(1, len(x) - _BATCH + 1), _BATCH):
            yield x[order[start : start + _BATCH]]


def quantizer_state(quantizer: torch.nn.Module) -> dict[str, np.ndarray]:
    """Return the parameters of a Quantizer, its scales multiplied in."""
    with torch.no_grad():
        scale = (quantizer.logits_scale * quantizer.scale_speed).exp()
        tensors = {
            "centers": quantizer.get_centers(),
            "weight": quantizer.to_logits.weight * scale,
            "bias": quantizer.to_logits.bias,
        }
    return {name: x.detach().cpu().numpy().copy() for name, x in tensors.items()}
