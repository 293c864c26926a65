"""Compare our model with the outputs of a reference implementation.

A parity file is an ``.npz`` with the model configuration (``config``, JSON), all
weights (``param/<name>``), an input (``x``, ``x_lens``, ``decoder_in``, ``y``) and the
reference's outputs.  Every output in the file is compared.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Callable, NamedTuple, Optional

import numpy as np
import torch
from torch import Tensor

from icefall_kd.core.config import ModelConfig, ZipformerConfig, from_dict
from icefall_kd.core.files import Pathlike
from icefall_kd.transducer.checkpoint import load_weights
from icefall_kd.transducer.icefall import PARTS, infer_frontend
from icefall_kd.transducer.loss import ctc_loss, pruned_transducer_loss
from icefall_kd.transducer.model import AsrModel, build_model
from icefall_kd.zipformer.streaming import hop_frames, window_frames

Arrays = Mapping[str, np.ndarray]

PREFIX = "param/"
# Fields of ModelConfig; the others are of ZipformerConfig.
MODEL_FIELDS = ("vocab_size", "decoder_dim", "joiner_dim", "context_size")
INPUTS = ("config", "x", "x_lens", "decoder_in", "y")
# Output -> parts besides the encoder that compute it.
PARTS_OF = {
    "decoder_out": ("decoder",),
    "joiner_logits": ("decoder", "joiner"),
    "ctc_log_probs": ("ctc_output",),
    "ctc_loss": ("ctc_output",),
    "simple_loss": ("decoder", "joiner", "simple_am_proj", "simple_lm_proj"),
    "pruned_loss": ("decoder", "joiner", "simple_am_proj", "simple_lm_proj"),
}
PRUNE_RANGE, AM_SCALE, LM_SCALE = 5, 0.0, 0.25  # of the file's transducer losses


def load_arrays(path: Pathlike) -> dict[str, np.ndarray]:
    """Read a parity file.

    Raises:
      FileNotFoundError: if there is no such file.
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
    """Return the configuration; the front end's sizes come from its weights.

    Raises:
      ValueError: if ``config`` has an unknown key or sizes that do not fit.
    """
    fields = json.loads(str(arrays["config"]))
    model = {name: fields.pop(name) for name in MODEL_FIELDS if name in fields}
    for field in dataclasses.fields(ZipformerConfig):
        value = fields.get(field.name)
        is_scalar = value is not None and not isinstance(value, list)
        if is_scalar and isinstance(field.default, tuple):
            fields[field.name] = [value]
    fields = {**infer_frontend(_weights(arrays)), **fields}
    return ModelConfig(encoder=from_dict(ZipformerConfig, fields), **model)


def _weights(arrays: Arrays) -> dict[str, np.ndarray]:
    """Return the file's weights by their names in the model."""
    return {k[len(PREFIX) :]: v for k, v in arrays.items() if k.startswith(PREFIX)}


def load_model(arrays: Arrays) -> AsrModel:
    """Return the model with the file's weights, in evaluation mode.

    A part without weights, such as the CTC head, is None.

    Raises:
      ValueError: if a weight is missing, unexpected or of another shape, or the file
        has an output of a part without weights.
    """
    model = build_model(read_config(arrays))
    weights = {k: torch.from_numpy(v) for k, v in _weights(arrays).items()}
    present = {name.split(".")[0] for name in weights}
    for part in set(PARTS) - present - {"encoder_embed", "encoder"}:
        outputs = [name for name in arrays if part in PARTS_OF.get(name, ())]
        if outputs:
            raise ValueError(f"the file has {outputs}, but no weights of '{part}'")
        setattr(model, part, None)
    load_weights(model, weights, "parity file")
    return model.eval()


class Difference(NamedTuple):
    """The difference of an output from the reference.

    Attributes:
      name: of the output.
      largest: largest absolute difference; infinite if the shapes differ.
      resolution: rounding error of a loss in float32.
    """

    name: str
    largest: float
    resolution: float = 0.0

    def is_within(self, tolerance: float) -> bool:
        """Return whether the difference is within ``tolerance`` or rounding error."""
        return self.largest <= max(tolerance, self.resolution)


@torch.no_grad()
def compare(arrays: Arrays) -> Iterator[Difference]:
    """Yield the difference of each output in the file; infinite for an unknown one."""
    ours = _Outputs(load_model(arrays), arrays)
    for name, expected in arrays.items():
        if name.startswith(PREFIX) or name in INPUTS:
            continue
        if name == "state_shapes":
            shapes = json.loads(str(expected))
            found = ours.state_shapes()
            # The reference may omit the number of processed frames at the end.
            equal = shapes in (found, found[:-1])
            yield Difference(name, 0.0 if equal else float("inf"))
            continue
        resolution = 0.0
        if expected.ndim == 0:  # a loss: a sum of thousands of terms
            resolution = 4 * float(np.spacing(np.float32(abs(expected))))
        yield Difference(name, largest_difference(ours.get(name), expected), resolution)


def largest_difference(ours: Optional[Tensor], expected: np.ndarray) -> float:
    """Return the largest absolute difference; infinite for NaN and other shapes."""
    if ours is None or tuple(ours.shape) != expected.shape:
        return float("inf")
    difference = np.abs(ours.double().numpy() - expected.astype(np.float64))
    largest = float(difference.max()) if difference.size else 0.0
    return float("inf") if np.isnan(largest) else largest


class _Outputs:
    """The outputs of our model for the file's input."""

    def __init__(self, model: AsrModel, arrays: Arrays) -> None:
        self.model = model
        self.arrays = arrays
        self.x = torch.from_numpy(arrays["x"])
        self.x_lens = torch.from_numpy(arrays["x_lens"])
        self.encoder_out, self.encoder_out_lens = model.forward_encoder(
            self.x, self.x_lens
        )

    def get(self, name: str) -> Optional[Tensor]:
        """Return an output, None if the name is unknown."""
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
        """Return the first utterance, encoded by complete chunks."""
        chunk_size = self.model.encoder.config.chunk_size[0]
        states = self.model.init_states(1)
        chunks = []
        window, hop = window_frames(chunk_size), hop_frames(chunk_size)
        for start in range(0, int(self.x_lens[0]) - window + 1, hop):
            x = self.x[:1, start : start + window]
            y, _, states = self.model.streaming_forward(x, states)
            chunks.append(y)
        return torch.cat(chunks, dim=1)
