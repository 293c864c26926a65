"""The shape of a model that icefall trained, read from its weights.

What icefall's ``export.py`` writes (``pretrained.pt``, ``{"model": state_dict}``) says
nothing of the model's configuration.  The names and shapes of the tensors determine all
of it but one number a stack: they hold products of the number of heads with the
dimensions of a head.  So these dimensions are given, or told by a training checkpoint
(``epoch-N.pt``), or icefall's defaults, and what they imply must be what the tensors
have.

What serves training alone (dropout, masks of features, chunk sizes) is not recovered.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any, Union

from torch import Tensor

from icefall_kd import NUM_MEL_BINS
from icefall_kd.core.config import ModelConfig, ZipformerConfig, to_dict
from icefall_kd.transducer.model import AsrModel, build_model

PerStack = Union[int, str, Sequence[int]]

# Of a head, icefall's defaults.
HEAD_DIMS = {"query_head_dim": 32, "pos_head_dim": 4, "value_head_dim": 12}
HEAD_OPTIONS = (*HEAD_DIMS, "num_heads")
PARTS = (
    "encoder_embed",
    "encoder",
    "decoder",
    "joiner",
    "simple_am_proj",
    "simple_lm_proj",
    "ctc_output",
)
_LAYER = re.compile(r"encoder\.encoders\.(\d+)\.(?:encoder\.)?layers\.(\d+)\.")
_IN_PROJ = "self_attn_weights.in_proj.weight"
_LINEAR_POS = "self_attn_weights.linear_pos.weight"
_VALUES = "self_attn1.in_proj.weight"


def build_icefall_model(
    checkpoint: Mapping[str, Any],
    heads: Mapping[str, PerStack],
    needed: Sequence[str] = (),
) -> tuple[AsrModel, dict[str, Tensor]]:
    """Return a fresh model of the shape of icefall's weights, and the weights.

    A part of the model of which there is no tensor (the CTC head, or all that a
    transducer has beside the encoder) is None; parts that our model does not know
    (an attention decoder) are left out of the weights.

    Args:
      checkpoint: holds the state dict as "model"; ``epoch-N.pt`` also the options.
      heads: any of :data:`HEAD_OPTIONS`, before the file's own; one number, one a
        stack, or icefall's "4,4,8".
      needed: parts that must be there.
    Raises:
      ValueError: if it is no Zipformer, lacks a part, or its heads are others.
    """
    weights = checkpoint["model"]
    told = {k: checkpoint[k] for k in HEAD_OPTIONS if k in checkpoint}
    model = build_model(infer_model_config(weights, {**told, **heads}))
    present = {name.split(".")[0] for name in weights}
    for part in PARTS:
        if part not in present:
            setattr(model, part, None)
    absent = [part for part in needed if part not in present]
    if absent:
        raise ValueError(f"the model of icefall has no {' and no '.join(absent)}")
    unknown = sorted(present - set(PARTS))
    if unknown:
        logging.info("left out of icefall's weights, of no use here: %s", unknown)
    return model, {k: v for k, v in weights.items() if k.split(".")[0] in PARTS}


def infer_model_config(
    weights: Mapping[str, Any], heads: Mapping[str, PerStack]
) -> ModelConfig:
    """Return the shape of the model that ``weights`` are of.

    Raises:
      ValueError: if they are no Zipformer's, or the dimensions of the heads do not fit.
    """
    unknown = sorted(set(heads) - set(HEAD_OPTIONS))
    if unknown:
        raise ValueError(f"{unknown} tells nothing of heads; what does: {HEAD_OPTIONS}")
    return ModelConfig(encoder=_encoder_config(weights, heads), **_sizes(weights))


def infer_icefall_config(
    checkpoint: Mapping[str, Any], encoder: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the fields of ``ModelConfig`` that the weights of icefall determine.

    Args:
      checkpoint: as of :func:`build_icefall_model`.
      encoder: fields of ``ZipformerConfig``; of these the dimensions of the heads,
        where the file has none.
    Raises:
      ValueError: as :func:`infer_model_config`.
    """
    weights = checkpoint["model"]
    heads = {k: checkpoint.get(k, encoder[k]) for k in HEAD_OPTIONS if k in encoder}
    found = to_dict(_encoder_config(weights, heads))
    unknown = ("encoder_unmasked_dim", "feature_dim")
    found = {k: v for k, v in found.items() if k not in unknown}
    return {"encoder": found, **_sizes(weights)}


def _sizes(weights: Mapping[str, Any]) -> dict[str, int]:
    """Return the sizes of the parts beside the encoder that are there."""
    sizes: dict[str, int] = {}
    if "decoder.embedding.weight" in weights:
        vocab_size, decoder_dim = _shape(weights, "decoder.embedding.weight")
        sizes = dict(vocab_size=vocab_size, decoder_dim=decoder_dim)
        conv = weights.get("decoder.conv.weight")
        sizes["context_size"] = 1 if conv is None else conv.shape[2]
    elif "ctc_output.1.weight" in weights:
        sizes["vocab_size"] = _shape(weights, "ctc_output.1.weight")[0]
    if "joiner.output_linear.weight" in weights:
        sizes["joiner_dim"] = _shape(weights, "joiner.output_linear.weight")[1]
    return sizes


def frontend_fields(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Return the front end's fields of ``ZipformerConfig`` from its weights."""
    *channels, hidden = (
        _shape(weights, f"encoder_embed.{layer}.weight")[0]
        for layer in ("conv.0", "conv.4", "conv.7", "convnext.pointwise_conv1")
    )
    return {
        "frontend_channels": tuple(channels),
        "convnext_expansion": hidden // channels[-1],
    }


def _encoder_config(
    weights: Mapping[str, Any], heads: Mapping[str, PerStack]
) -> ZipformerConfig:
    num_layers = _num_layers(weights)
    stacks = [_stack_fields(weights, i) for i in range(len(num_layers))]
    fields: dict[str, Any] = {
        name: tuple(stack[name] for stack in stacks)
        for name in (
            "downsampling_factor",
            "encoder_dim",
            "feedforward_dim",
            "cnn_module_kernel",
        )
    }
    fields["causal"] = any(stack["causal"] for stack in stacks)
    fields["pos_dim"] = stacks[0]["pos_dim"]
    return ZipformerConfig(
        feature_dim=NUM_MEL_BINS,
        num_encoder_layers=tuple(num_layers),
        encoder_unmasked_dim=fields["encoder_dim"],
        output_downsampling_factor=_shape(weights, "encoder.downsample_output.bias")[0],
        **frontend_fields(weights),
        **_head_fields(stacks, heads),
        **fields,
    )


def _num_layers(weights: Mapping[str, Any]) -> list[int]:
    """Return the number of layers of each stack."""
    found = {m.groups() for m in map(_LAYER.match, weights) if m is not None}
    stacks = sorted({int(stack) for stack, _ in found})
    if not stacks or stacks != list(range(len(stacks))):
        raise ValueError(
            "the weights are not those of a Zipformer of icefall: they have stacks "
            f"{stacks} by the names encoder.encoders.<stack>"
        )
    return [sum(int(stack) == i for stack, _ in found) for i in stacks]


def _stack_fields(weights: Mapping[str, Any], i: int) -> dict[str, Any]:
    """Return what the first layer of a stack tells of it."""
    stack = f"encoder.encoders.{i}."
    factor = 1
    layer = f"{stack}layers.0."
    if f"{stack}downsample.bias" in weights:
        factor = _shape(weights, f"{stack}downsample.bias")[0]
        layer = f"{stack}encoder.layers.0."
    hidden, channels = _shape(weights, f"{layer}feed_forward2.in_proj.weight")
    conv = f"{layer}conv_module1.depthwise_conv."
    causal = f"{conv}chunkwise_conv.weight" in weights
    kernel = f"{conv}chunkwise_conv.weight" if causal else f"{conv}weight"
    return {
        "downsampling_factor": factor,
        "encoder_dim": channels,
        "feedforward_dim": hidden,
        "cnn_module_kernel": _shape(weights, kernel)[2],
        "causal": causal,
        "pos_dim": _shape(weights, layer + _LINEAR_POS)[1],
        "layer": layer,
        "rows": {
            name: _shape(weights, layer + name)[0]
            for name in (_IN_PROJ, _LINEAR_POS, _VALUES)
        },
    }


def _head_fields(
    stacks: Sequence[Mapping[str, Any]], heads: Mapping[str, PerStack]
) -> dict[str, tuple[int, ...]]:
    """Return the dimensions of the heads, as given or by default, and their number.

    Raises:
      ValueError: if the tensors have other shapes; the message names them, and what
        would fit them.
    """
    given = {n: _per_stack(n, v, len(stacks)) for n, v in heads.items()}
    dims = {
        name: given.get(name, (default,) * len(stacks))
        for name, default in HEAD_DIMS.items()
    }
    numbers = []
    for i, stack in enumerate(stacks):
        query, pos, value = (dims[name][i] for name in HEAD_DIMS)
        rows = stack["rows"]
        number = given["num_heads"][i] if "num_heads" in given else None
        if number is None:
            number = max(1, rows[_LINEAR_POS] // pos)
        expected = {
            _IN_PROJ: number * (2 * query + pos),
            _LINEAR_POS: number * pos,
            _VALUES: number * value,
        }
        if expected != rows:
            raise ValueError(_misfit(i, stack, expected, (number, query, pos, value)))
        numbers.append(number)
    return {**dims, "num_heads": tuple(numbers)}


def _misfit(
    i: int,
    stack: Mapping[str, Any],
    expected: Mapping[str, int],
    assumed: tuple[int, int, int, int],
) -> str:
    rows = stack["rows"]
    wrong = [
        f"{stack['layer']}{name} has {rows[name]} rows, not {expected[name]}"
        for name in rows
        if rows[name] != expected[name]
    ]
    fitting = [
        f"{n} heads of {(rows[_IN_PROJ] - rows[_LINEAR_POS]) // (2 * n)}, "
        f"{rows[_LINEAR_POS] // n}, {rows[_VALUES] // n}"
        for n in range(1, rows[_LINEAR_POS] + 1)
        if rows[_LINEAR_POS] % n == 0
        and rows[_VALUES] % n == 0
        and (rows[_IN_PROJ] - rows[_LINEAR_POS]) % (2 * n) == 0
    ]
    return (
        "stack {} has not {} heads with query_head_dim {}, pos_head_dim {}, "
        "value_head_dim {}: ".format(i, *assumed)
        + "; ".join(wrong)
        + ". Give the dimensions that it was trained with; what fits it: "
        + "; ".join(fitting)
    )


def _per_stack(name: str, value: PerStack, num_stacks: int) -> tuple[int, ...]:
    if isinstance(value, str):
        value = [int(v) for v in value.split(",")]
    values = (value,) if isinstance(value, int) else tuple(value)
    if len(values) == 1:
        values = values * num_stacks
    if len(values) != num_stacks or min(values) < 1:
        raise ValueError(f"{name} is {value!r} for {num_stacks} stacks")
    return values


def _shape(weights: Mapping[str, Any], name: str) -> tuple[int, ...]:
    if name not in weights:
        raise ValueError(
            f"the weights are not those of a Zipformer of icefall: '{name}' is missing"
        )
    return tuple(weights[name].shape)
