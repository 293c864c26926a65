"""The base class of teachers, checks of their outputs, and the choice of layers."""

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional, Union

import torch
from torch import Tensor

from icefall_kd import SAMPLE_RATE
from icefall_kd.core.frames import matches_duration

KINDS = ("embedding", "ctc", "path")
# Values of the option ``dtype`` of teachers that run in PyTorch.
DTYPES = {"float32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Output:
    """Description of one output of a teacher, which is stored as one field.

    Attributes:
      kind:        one of :data:`KINDS`: "embedding" is (T, D); "ctc" is (T, 2 k + 1),
                   the k best tokens of the CTC head; "path" is (T, 2 k + 2), the k best
                   tokens of the joiner on the one-best path.  The layout of "ctc" and
                   "path" is described in :mod:`icefall_kd.core.frames`.
      dim:         number of values in a frame: D, 2 k + 1, or 2 k + 2.
      frame_shift: seconds; frame k covers k * frame_shift to (k + 1) * frame_shift.
      fingerprint: all that determines the values: model hash, layer, precision, ...
                   Extraction skips a stored field with the same fingerprint.  Kinds
                   "ctc" and "path" need ``vocab_size`` and ``vocab_sha256``, that of
                   :class:`icefall_kd.data.tokens.Tokenizer`.
    Raises:
      ValueError: if the kind is unknown.
    """

    kind: str
    dim: int
    frame_shift: float
    fingerprint: dict[str, Any]

    def __post_init__(self) -> None:
        """Check the kind."""
        if self.kind not in KINDS:
            raise ValueError(
                f"Output.kind: unknown '{self.kind}'. Available: {', '.join(KINDS)}"
            )


@dataclass(frozen=True)
class TeacherOutput:
    """One output of a teacher for a batch.

    Attributes:
      x:    (N, T, W) float32, zero at padding; W is the output's ``dim``.
      lens: (N,) int64, valid frames, 1 <= lens <= T.
    """

    x: Tensor
    lens: Tensor


class Teacher(abc.ABC):
    """A frozen model that computes targets from audio.

    The output for an utterance must not depend on the other utterances of its batch.
    Then a field does not depend on the batches of its extraction.

    The first argument of the constructor is ``name``.  Commands also pass ``device``
    ("cpu", "cuda" or "cuda:<number>"), ``num_threads``, and ``model_dir`` if it is set.
    Further arguments are options in the YAML file of teachers.

    Attributes:
      name:       of the teacher; its fields are called ``<name>`` or ``<name>_...``.
      outputs:    field name -> description.
      needs_text: True if ``forward`` needs the transcripts.
    """

    name: str
    outputs: Mapping[str, Output]
    needs_text: bool = False

    @abc.abstractmethod
    def forward(
        self, waves: Tensor, wave_lens: Tensor, texts: Sequence[str] = ()
    ) -> Mapping[str, TeacherOutput]:
        """Return all outputs for a batch, by field name.

        Args:
          waves:     (N, S) float32, 16 kHz, in [-1, 1], zero-padded.
          wave_lens: (N,) int64, valid samples, 1 <= wave_lens <= S.
          texts:     N transcripts, "" for an utterance without one; the caller passes
                     them if ``needs_text``.
        Raises:
          ValueError: if the shapes do not match.
        """


def run_teacher(
    teacher: Teacher,
    waves: Tensor,
    wave_lens: Tensor,
    texts: Sequence[str] = (),
    cut_ids: Sequence[str] = (),
) -> Mapping[str, TeacherOutput]:
    """Return the outputs of a teacher for a batch, checked against its description.

    Args:
      waves, wave_lens: see :meth:`Teacher.forward`.
      texts:   N transcripts, passed on if the teacher needs them.
      cut_ids: N ids for error messages.
    Raises:
      ValueError: if the outputs contradict ``teacher.outputs``.
    """
    arguments = (list(texts) or [""] * len(waves),) if teacher.needs_text else ()
    outputs = teacher.forward(waves, wave_lens, *arguments)
    if not isinstance(outputs, Mapping):
        raise ValueError(
            f"teacher '{teacher.name}': forward returned a {type(outputs).__name__}. "
            "Return a dict, field name -> TeacherOutput"
        )
    if set(outputs) != set(teacher.outputs):
        raise ValueError(
            f"teacher '{teacher.name}': forward returned the fields {sorted(outputs)}, "
            f"but outputs describes {sorted(teacher.outputs)}. Use the same names"
        )
    for field, output in outputs.items():
        try:
            _check_output(output, teacher.outputs[field], field, wave_lens, cut_ids)
        except ValueError as e:
            raise ValueError(f"teacher '{teacher.name}', field '{field}': {e}") from e
    return outputs


def _check_output(
    output: TeacherOutput,
    described: Output,
    field: str,
    wave_lens: Tensor,
    cut_ids: Sequence[str],
) -> None:
    """Check shapes and lengths of one output of a batch."""
    if not isinstance(output, TeacherOutput):
        raise ValueError(
            f"forward returned a {type(output).__name__}. Return a TeacherOutput"
        )
    shape, num_waves = tuple(output.x.shape), len(wave_lens)
    if len(shape) != 3 or shape[0] != num_waves or output.lens.shape != (num_waves,):
        raise ValueError(
            f"forward returned x {shape} and lens {tuple(output.lens.shape)} for "
            f"{num_waves} utterances. Return x (N, T, {described.dim}) and lens (N,)"
        )
    names = [f"cut '{i}'" for i in cut_ids] or [
        f"utterance {n} of the batch" for n in range(num_waves)
    ]
    for name, length, samples in zip(names, output.lens.tolist(), wave_lens.tolist()):
        if shape[2] != described.dim:
            raise ValueError(
                f"forward returned {(length, shape[2])} for {name}, but "
                f"outputs['{field}'] has dim {described.dim}. Correct dim"
            )
        if not 1 <= length <= shape[1]:
            raise ValueError(
                f"forward returned lens {length} for {name}, but x has {shape[1]} "
                f"frames. Return lens in 1 .. {shape[1]}"
            )
        duration, shift = samples / SAMPLE_RATE, described.frame_shift
        if not matches_duration(length, shift, duration):
            raise ValueError(
                f"forward returned {length} frames for {name} of {duration:.2f} s, but "
                f"its frame_shift of {shift} s gives {duration / shift:.1f}. Correct "
                f"frame_shift in outputs['{field}'], or lens"
            )


def check_waves(waves: Tensor, wave_lens: Tensor) -> None:
    """Check the shapes of a batch.

    Raises:
      ValueError: unless waves is (N, S) and 1 <= wave_lens (N,) <= S.
    """
    if waves.dim() != 2 or wave_lens.shape != waves.shape[:1]:
        raise ValueError(
            f"expected waves (N, S) and wave_lens (N,), got {tuple(waves.shape)} "
            f"and {tuple(wave_lens.shape)}"
        )
    if len(wave_lens) and not (
        1 <= int(wave_lens.min()) and int(wave_lens.max()) <= waves.shape[1]
    ):
        raise ValueError(
            f"wave_lens {wave_lens.tolist()} is outside [1, {waves.shape[1]}]"
        )


Layers = Union[str, int, Sequence[int]]


@dataclass(frozen=True)
class LayerChoice:
    """Layers of an encoder that a teacher outputs; see :func:`choose_layers`.

    Attributes:
      layers:  numbers of the layers, from 0, in the order of the option.
      weights: one for each layer, to sum them into one field; None makes each layer a
               field.
    """

    layers: tuple[int, ...]
    weights: Optional[tuple[float, ...]] = None

    @property
    def highest(self) -> int:
        """Return the highest layer, which is also the number of blocks to run."""
        return max(self.layers)

    def describe_fields(self, name: str) -> dict[str, dict[str, Any]]:
        """Return field name -> entries of its fingerprint on the layers.

        A sum or a single layer is the field ``name``; several layers are the fields
        ``<name>_layer<k>``.
        """
        if self.weights is not None or len(self.layers) == 1:
            weights = list(self.weights) if self.weights is not None else None
            return {name: {"layers": list(self.layers), "layer_weights": weights}}
        return {
            f"{name}_layer{k}": {"layers": [k], "layer_weights": None}
            for k in self.layers
        }

    def select(self, name: str, hidden: Mapping[int, Tensor]) -> dict[str, Tensor]:
        """Return field name -> (N, T, D).

        Args:
          name:   of the teacher.
          hidden: layer -> (N, T, D), for all layers of the choice.
        """
        if self.weights is None:
            values = (hidden[k] for k in self.layers)
            return dict(zip(self.describe_fields(name), values))
        weighted = (w * hidden[k].float() for k, w in zip(self.layers, self.weights))
        return {name: sum(weighted)}


def choose_layers(
    layers: Layers, layer_weights: Optional[Sequence[float]], num_layers: int
) -> LayerChoice:
    """Parse the options ``layers`` and ``layer_weights``.

    Layer k is the input of block k, counted from 0.  Layer ``num_layers`` is the
    encoder's output.  Negative numbers count from the end; -1 is the output.

    Args:
      layers:        "last", a number, or several.
      layer_weights: one for each layer, to sum them; used as given, not normalised.
      num_layers:    number of blocks.
    Raises:
      ValueError: if a layer does not exist or is repeated, or the weights do not match
        the layers.
    """
    if layers == "last":
        layers = num_layers
    wanted = list(layers) if isinstance(layers, (list, tuple)) else [layers]
    if not wanted or not all(type(k) is int for k in wanted):
        raise ValueError(
            f"layers: {layers!r} is neither 'last', nor a number, nor a list of numbers"
        )
    unknown = [k for k in wanted if not -num_layers - 1 <= k <= num_layers]
    if unknown:
        raise ValueError(
            f"layers: no layer {', '.join(map(str, unknown))}. Available: 0 to "
            f"{num_layers}, or from the end -1 to {-num_layers - 1}"
        )
    chosen = tuple(k if k >= 0 else num_layers + 1 + k for k in wanted)
    if len(set(chosen)) != len(chosen):
        raise ValueError(f"layers: {wanted} contains a layer twice. Remove one")
    if layer_weights is None:
        return LayerChoice(chosen)
    if len(layer_weights) != len(chosen):
        raise ValueError(
            f"layer_weights: {len(layer_weights)} weights for {len(chosen)} layers. "
            "Give one weight for each layer"
        )
    return LayerChoice(chosen, tuple(float(w) for w in layer_weights))
