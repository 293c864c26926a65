"""Compare our model with the outputs of a reference implementation.

A parity file is an ``.npz`` with

- ``config``: options of ModelConfig and ZipformerConfig in one JSON object;
- ``param/<name>``: all weights;
- inputs: ``x`` (N, T, F), ``x_lens`` (N,), and for some outputs ``decoder_in`` (N, U)
  and ``y`` (JSON lists of token ids);
- outputs of the reference, all of which are compared: see :func:`compute_outputs`.

A parity file of the pruned RNN-T has the values and gradients of k2 instead of weights:
see :func:`compare_rnnt`.
"""

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Optional

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from icefall_kd import BLANK_ID
from icefall_kd.core.config import ModelConfig, ZipformerConfig, from_dict
from icefall_kd.core.files import Pathlike
from icefall_kd.transducer.checkpoint import load_weights
from icefall_kd.transducer.icefall import PARTS, infer_frontend
from icefall_kd.transducer.loss import (
    ctc_loss,
    pruned_transducer_loss,
    sum_smoothed_paths,
)
from icefall_kd.transducer.model import AsrModel, build_model
from icefall_kd.transducer.rnnt import Backend, load_backend
from icefall_kd.zipformer.streaming import hop_frames, window_frames

Arrays = Mapping[str, np.ndarray]

PREFIX = "param/"
# Fields of ModelConfig; the others are of ZipformerConfig.
MODEL_FIELDS = ("vocab_size", "decoder_dim", "joiner_dim", "context_size")
INPUTS = ("config", "x", "x_lens", "decoder_in", "y")
_CPU = torch.device("cpu")
RNNT_INPUTS = ("am", "lm", "y", "y_lens", "x_lens", "ranges", "logits", "prune_range")
# Output -> parts that compute it, in addition to the encoder.
PARTS_OF = {
    "decoder_out": ("decoder",),
    "joiner_logits": ("decoder", "joiner"),
    "ctc_log_probs": ("ctc_output",),
    "ctc_loss": ("ctc_output",),
    "simple_loss": ("decoder", "joiner", "simple_am_proj", "simple_lm_proj"),
    "pruned_loss": ("decoder", "joiner", "simple_am_proj", "simple_lm_proj"),
}
PRUNE_RANGE, AM_SCALE, LM_SCALE = 5, 0.0, 0.25  # options of the transducer losses


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
    needed = RNNT_INPUTS if is_rnnt(arrays) else ("config", "x", "x_lens")
    missing = [name for name in needed if name not in arrays]
    if missing:
        raise ValueError(f"{path}: not a parity file: the arrays {missing} are missing")
    return arrays


def read_config(arrays: Arrays) -> ModelConfig:
    """Return the configuration of a parity file.

    The front end's sizes come from its weights if ``config`` does not have them.

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
    """Return the model with the weights of a parity file, in evaluation mode.

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
            raise ValueError(
                f"parity file: it has {outputs}, but no weights of '{part}'; add them"
            )
        setattr(model, part, None)
    load_weights(model, weights, "parity file")
    return model.eval()


class Difference(NamedTuple):
    """The difference between our output and the reference's.

    Attributes:
      name: name of the output.
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
def compare(arrays: Arrays, backend: Backend = "auto") -> Iterator[Difference]:
    """Yield the difference of each output in a parity file of a model.

    It is infinite if our model does not compute an output of that name.

    Args:
      backend: of the transducer losses, see ``transducer.rnnt``.
    """
    ours = compute_outputs(load_model(arrays), arrays, backend)
    for name, expected in arrays.items():
        if name.startswith(PREFIX) or name in INPUTS:
            continue
        if name == "state_shapes":
            shapes, found = json.loads(str(expected)), ours[name]
            # The reference may omit the number of processed frames at the end.
            is_equal = shapes in (found, found[:-1])
            yield Difference(name, 0.0 if is_equal else float("inf"))
            continue
        resolution = 0.0
        if expected.ndim == 0:  # a loss: a sum of thousands of terms
            resolution = 4 * float(np.spacing(np.float32(abs(expected))))
        yield Difference(name, largest_difference(ours.get(name), expected), resolution)


def largest_difference(ours: Optional[Tensor], expected: np.ndarray) -> float:
    """Return the largest absolute difference; infinite for NaN and other shapes."""
    if ours is None or tuple(ours.shape) != expected.shape:
        return float("inf")
    difference = np.abs(ours.double().cpu().numpy() - expected.astype(np.float64))
    largest = float(difference.max()) if difference.size else 0.0
    return float("inf") if np.isnan(largest) else largest


def is_rnnt(arrays: Arrays) -> bool:
    """Return whether a parity file is one of the pruned RNN-T."""
    return "am" in arrays


def compare_rnnt(
    arrays: Arrays, backend: Backend, device: torch.device = _CPU
) -> Iterator[Difference]:
    """Yield the difference of each value and gradient of the pruned RNN-T.

    A file has the inputs ``am`` (N, T, V), ``lm`` (N, U + 1, V), ``y`` (N, U), their
    lengths ``y_lens`` and ``x_lens``, ``logits`` (N, T, R, V) and ``prune_range``; and
    in the precision of ``am``

    - ``simple_lm0.25_am0.1`` (N,), loss of k2's ``rnnt_loss_smoothed`` with these
      scales, in nats; ``px_grad_``, ``py_grad_`` (occupancies), ``am_grad_`` and
      ``lm_grad_`` with the same ending;
    - ``ranges`` (N, T, R) of ``get_rnnt_prune_ranges`` for am 0 and lm 0.25;
    - ``pruned`` (N,) of ``rnnt_loss_pruned`` for ``logits``, and ``logits_grad``.
    """
    rnnt = load_backend(backend, device)
    tensors = {k: torch.from_numpy(v).to(device) for k, v in arrays.items()}
    y = tensors["y"]
    boundary = F.pad(torch.stack([tensors["y_lens"], tensors["x_lens"]], 1), (2, 0))
    found = {}
    for name in arrays:
        match = re.fullmatch(r"simple_(lm(.+)_am(.+))", name)
        if match is None:
            continue
        am, lm = (tensors[k].clone().requires_grad_() for k in ("am", "lm"))
        scales = float(match[2]), float(match[3])
        scores, *arcs = sum_smoothed_paths(rnnt, lm, am, y, boundary, *scales)
        gradients = torch.autograd.grad(-scores.sum(), (am, lm))
        found[name] = -scores.detach()
        for kind, value in zip(("px", "py", "am", "lm"), (*arcs, *gradients)):
            found[f"{kind}_grad_{match[1]}"] = value
        if scales == (LM_SCALE, AM_SCALE):
            size = int(arrays["prune_range"])
            found["ranges"] = rnnt.get_rnnt_prune_ranges(*arcs, boundary, size)
    logits, ranges = tensors["logits"].clone().requires_grad_(), tensors["ranges"]
    pruned = rnnt.rnnt_loss_pruned(
        logits=logits,
        symbols=y,
        ranges=ranges,
        termination_symbol=BLANK_ID,
        boundary=boundary,
        reduction="none",
    )
    (found["logits_grad"],) = torch.autograd.grad(pruned.sum(), logits)
    found["pruned"] = pruned.detach()
    for name, expected in arrays.items():
        if name not in RNNT_INPUTS or name == "ranges":
            yield Difference(name, largest_difference(found.get(name), expected))


def compute_outputs(
    model: AsrModel, arrays: Arrays, backend: Backend = "auto"
) -> dict[str, Any]:
    """Return name -> output of our model, for the inputs of a parity file."""
    x, x_lens = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["x_lens"])
    embed_out, embed_out_lens = model.encoder_embed(x, x_lens)
    encoder_out, lens = model.forward_encoder(x, x_lens)
    found = {
        "embed_out": embed_out,
        "embed_out_lens": embed_out_lens,
        "encoder_out": encoder_out,
        "encoder_out_lens": lens,
    }
    tokens = json.loads(str(arrays["y"])) if "y" in arrays else []
    if "decoder_out" in arrays or "joiner_logits" in arrays:
        decoder_out = model.decoder(torch.from_numpy(arrays["decoder_in"]))
        found["decoder_out"] = decoder_out
        if "joiner_logits" in arrays:
            frames = encoder_out[:, : decoder_out.shape[1]]
            found["joiner_logits"] = model.joiner(frames, decoder_out)
    if "ctc_log_probs" in arrays or "ctc_loss" in arrays:
        found["ctc_log_probs"] = log_probs = model.ctc_output(encoder_out)
        if "ctc_loss" in arrays:
            found["ctc_loss"] = ctc_loss(log_probs, lens, tokens)
    if "simple_loss" in arrays or "pruned_loss" in arrays:
        with torch.enable_grad():  # the pruning bounds are a gradient
            simple, pruned = pruned_transducer_loss(
                model,
                encoder_out,
                lens,
                tokens,
                prune_range=PRUNE_RANGE,
                am_scale=AM_SCALE,
                lm_scale=LM_SCALE,
                backend=backend,
            )
        found |= {"simple_loss": simple.detach(), "pruned_loss": pruned.detach()}
    if "state_shapes" in arrays:
        found["state_shapes"] = [list(s.shape) for s in model.init_states(1)]
    if "streaming_out" in arrays:
        found["streaming_out"] = encode_by_chunks(model, x[:1, : int(x_lens[0])])
    return found


def encode_by_chunks(model: AsrModel, x: Tensor) -> Tensor:
    """Return the encoder's output for the complete chunks of a stream.

    Args:
      x: (N, T, F) float32, fbank.
    """
    chunk_size = model.encoder.config.chunk_size[0]
    states = model.init_states(x.size(0))
    chunks = []
    window = window_frames(chunk_size)
    for start in range(0, x.size(1) - window + 1, hop_frames(chunk_size)):
        y, _, states = model.streaming_forward(x[:, start : start + window], states)
        chunks.append(y)
    return torch.cat(chunks, dim=1)
