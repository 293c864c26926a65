"""Compare a model of ours with tensors that a reference implementation computed.

A parity file is an ``.npz`` with the shape of the model (``config``, JSON), all its
weights (``param/<name>``), an input (``x``, ``x_lens``, ``decoder_in``, ``y``) and what
the reference makes of it.  Every tensor of the file that is an output is compared.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Callable, NamedTuple, Union

import numpy as np
import torch
from torch import Tensor

from icefall_kd.core.config import ModelConfig, ZipformerConfig, from_dict
from icefall_kd.transducer.icefall import PARTS, frontend_fields
from icefall_kd.transducer.loss import ctc_loss, pruned_transducer_loss
from icefall_kd.transducer.model import AsrModel, build_model
from icefall_kd.zipformer.streaming import hop_frames, window_frames

Arrays = Mapping[str, np.ndarray]

PREFIX = "param/"
# Of the whole model rather than of the encoder.
MODEL_FIELDS = ("vocab_size", "decoder_dim", "joiner_dim", "context_size")
INPUTS = ("config", "x", "x_lens", "decoder_in", "y")
# Outputs, and the parts beside the encoder that compute them.
PARTS_OF = {
    "decoder_out": ("decoder",),
    "joiner_logits": ("decoder", "joiner"),
    "ctc_log_probs": ("ctc_output",),
    "ctc_loss": ("ctc_output",),
    "simple_loss": ("decoder", "joiner", "simple_am_proj", "simple_lm_proj"),
    "pruned_loss": ("decoder", "joiner", "simple_am_proj", "simple_lm_proj"),
}
PRUNE_RANGE, AM_SCALE, LM_SCALE = 5, 0.0, 0.25  # of the file's transducer losses


def load_arrays(path: Union[str, Path]) -> dict[str, np.ndarray]:
    """Read a parity file.

    Raises:
      FileNotFoundError: if there is none.
      ValueError: if it is not an ``.npz`` or lacks an input.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such parity file")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, AttributeError) as e:
        raise ValueError(f"{path}: not an .npz file ({e})") from e
    missing = [name for name in ("config", "x", "x_lens") if name not in arrays]
    if missing:
        raise ValueError(f"{path}: not a parity file, it lacks {missing}")
    return arrays


def read_config(arrays: Arrays) -> ModelConfig:
    """Return the model's shape from ``config``, and the front end's from its weights.

    Raises:
      ValueError: if ``config`` has an unknown key or sizes that do not fit.
    """
    fields = json.loads(str(arrays["config"]))
    model = {name: fields.pop(name) for name in MODEL_FIELDS if name in fields}
    tuples = {f.name for f in ZipformerConfig.__dataclass_fields__.values()}
    for name in tuples & set(fields):
        default = ZipformerConfig.__dataclass_fields__[name].default
        if isinstance(default, tuple) and not isinstance(fields[name], list):
            fields[name] = [fields[name]]
    fields = {**frontend_fields(_weights(arrays)), **fields}
    return ModelConfig(encoder=from_dict(ZipformerConfig, fields), **model)


def _weights(arrays: Arrays) -> dict[str, np.ndarray]:
    """Return the file's weights by their names in the model."""
    return {k[len(PREFIX) :]: v for k, v in arrays.items() if k.startswith(PREFIX)}


def load_model(arrays: Arrays) -> AsrModel:
    """Return the model with the file's weights, in evaluation.

    A part of which the file has no weight, such as the CTC head, is None.

    Raises:
      ValueError: if a weight is missing, unexpected or of another shape, or the file
        has an output of a part without weights.
    """
    model = build_model(read_config(arrays))
    weights = {k: torch.from_numpy(v) for k, v in _weights(arrays).items()}
    present = {name.split(".")[0] for name in weights}
    for part in set(PARTS) - present - {"encoder_embed", "encoder"}:
        needing = [name for name in arrays if part in PARTS_OF.get(name, ())]
        if needing:
            raise ValueError(f"the file has {needing}, but no weights of '{part}'")
        setattr(model, part, None)
    try:
        model.load_state_dict(weights, strict=True)
    except RuntimeError as e:
        problems = " ".join(str(e).split())
        raise ValueError(f"the file's weights do not fit its config: {problems}") from e
    return model.eval()


class Gap(NamedTuple):
    """How far an output is from the reference.

    Attributes:
      name: of the output.
      largest: absolute difference, infinite for another shape.
      resolution: below which float32 cannot tell two values of a loss apart: a sum
        of thousands of terms is right to a few units in its last place.
    """

    name: str
    largest: float
    resolution: float = 0.0

    def within(self, tolerance: float) -> bool:
        """Return whether the difference is no larger than ``tolerance`` or counts."""
        return self.largest <= max(tolerance, self.resolution)


@torch.no_grad()
def compare(arrays: Arrays) -> Iterator[Gap]:
    """Yield the gap of each output that the file holds.

    An output that is not known how to compute is infinitely far, so that nothing
    passes unseen.
    """
    ours = _Outputs(load_model(arrays), arrays)
    for name, expected in arrays.items():
        if name.startswith(PREFIX) or name in INPUTS:
            continue
        if name == "state_shapes":
            shapes = json.loads(str(expected))
            yield Gap(name, _shapes_differ(ours.state_shapes(), shapes))
            continue
        resolution = 0.0
        if expected.ndim == 0:
            resolution = 4 * float(np.spacing(np.float32(abs(expected))))
        yield Gap(name, difference(ours.get(name), expected), resolution)


def difference(ours: Any, expected: np.ndarray) -> float:
    """Return the largest absolute difference, infinite if the shapes differ or NaN."""
    if ours is None or tuple(ours.shape) != expected.shape:
        return float("inf")
    gap = np.abs(ours.double().numpy() - expected.astype(np.float64))
    largest = float(gap.max()) if gap.size else 0.0
    return largest if largest == largest else float("inf")


def _shapes_differ(ours: list[list[int]], expected: list[list[int]]) -> float:
    """Return 0 for equal lists, with or without the count of frames at the end."""
    return 0.0 if expected in (ours, ours[:-1]) else float("inf")


class _Outputs:
    """What our model makes of the file's input, each computed once when asked."""

    def __init__(self, model: AsrModel, arrays: Arrays) -> None:
        self.model = model
        self.arrays = arrays
        self.x = torch.from_numpy(arrays["x"])
        self.x_lens = torch.from_numpy(arrays["x_lens"])
        self.encoder_out, self.encoder_out_lens = model.forward_encoder(
            self.x, self.x_lens
        )

    def get(self, name: str) -> Union[Tensor, None]:
        """Return the named output, None if the name is not known."""
        table: dict[str, Callable[[], Tensor]] = {
            "embed_out": lambda: self._embed()[0],
            "embed_out_lens": lambda: self._embed()[1],
            "encoder_out": lambda: self.encoder_out,
            "encoder_out_lens": lambda: self.encoder_out_lens,
            "decoder_out": self._decoder_out,
            "joiner_logits": self._joiner_logits,
            "ctc_log_probs": lambda: self.model.ctc_output(self.encoder_out),
            "simple_loss": lambda: self._transducer_losses()[0],
            "pruned_loss": lambda: self._transducer_losses()[1],
            "ctc_loss": self._ctc_loss,
            "streaming_out": self._streaming_out,
        }
        return table[name]() if name in table else None

    def _embed(self) -> tuple[Tensor, Tensor]:
        return self.model.encoder_embed(self.x, self.x_lens)

    def _decoder_out(self) -> Tensor:
        return self.model.decoder(torch.from_numpy(self.arrays["decoder_in"]))

    def _joiner_logits(self) -> Tensor:
        decoder_out = self._decoder_out()
        frames = self.encoder_out[:, : decoder_out.shape[1]]
        return self.model.joiner(frames, decoder_out)

    def _tokens(self) -> list[list[int]]:
        return json.loads(str(self.arrays["y"]))

    def _transducer_losses(self) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():  # the pruning bounds are a gradient
            losses = pruned_transducer_loss(
                self.model,
                self.encoder_out,
                self.encoder_out_lens,
                self._tokens(),
                prune_range=PRUNE_RANGE,
                am_scale=AM_SCALE,
                lm_scale=LM_SCALE,
            )
        return losses[0].detach(), losses[1].detach()

    def _ctc_loss(self) -> Tensor:
        log_probs = self.model.ctc_output(self.encoder_out)
        return ctc_loss(log_probs, self.encoder_out_lens, self._tokens())

    def state_shapes(self) -> list[list[int]]:
        return [list(state.shape) for state in self.model.init_states(1)]

    def _streaming_out(self) -> Tensor:
        """Return the first utterance encoded chunk by chunk, whole windows only."""
        chunk_size = self.model.encoder.chunk_size[0]
        states = self.model.init_states(1)
        chunks = []
        window, hop = window_frames(chunk_size), hop_frames(chunk_size)
        for start in range(0, int(self.x_lens[0]) - window + 1, hop):
            x = self.x[:1, start : start + window]
            y, _, states = self.model.streaming_forward(x, states)
            chunks.append(y)
        return torch.cat(chunks, dim=1)
