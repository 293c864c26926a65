"""Build a model from a checkpoint of icefall; read its shape from the weights.

``pretrained.pt`` of icefall's ``export.py`` holds ``{"model": state_dict}`` and no
configuration.  The shapes of the tensors determine all sizes except the dimensions of
attention heads, because a tensor's size is the product of the head dimension and the
number of heads.  The head dimensions come from the caller, from a training checkpoint
(``epoch-N.pt``) or from icefall's defaults, and are checked against the tensors.
Options that matter only in training are not in the weights.  Feature masks are off,
dropout and chunk sizes have the defaults of this project.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any, Union

from torch import Tensor

from icefall_kd import NUM_MEL_BINS
from icefall_kd.core.config import ModelConfig, ZipformerConfig, to_dict
from icefall_kd.transducer.model import AsrModel, build_model

PerStack = Union[int, str, Sequence[int]]  # one value for all stacks, or one for each
Weights = Mapping[str, Any]  # tensors or arrays by name

HEAD_DIMS = {"query_head_dim": 32, "pos_head_dim": 4, "value_head_dim": 12}  # defaults
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
    """Return a new model with the shape of icefall's weights, and these weights.

    A part of the model without tensors (the CTC head, or the transducer) is None.
    Tensors of parts that AsrModel does not have (an attention decoder) are dropped.

    Args:
      checkpoint: has the state dict as "model"; ``epoch-N.pt`` also has the options.
      heads: any of :data:`HEAD_OPTIONS`; they replace the options in the file.  A value
        is a number, a list with one for each stack, or icefall's form "4,4,8".
      needed: parts that must have tensors.
    Raises:
      ValueError: if the model is not a Zipformer, if it lacks a part, or if the heads
        do not fit.
    """
    weights = checkpoint["model"]
    stored = {k: checkpoint[k] for k in HEAD_OPTIONS if k in checkpoint}
    model = build_model(infer_model_config(weights, {**stored, **heads}))
    present = {name.split(".")[0] for name in weights}
    for part in PARTS:
        if part not in present:
            setattr(model, part, None)
    absent = [part for part in needed if part not in present]
    if absent:
        raise ValueError(
            f"the icefall model has no {' and no '.join(absent)}; use another "
            "checkpoint or head"
        )
    unknown = sorted(present - set(PARTS))
    if unknown:
        logging.info("dropped the weights of unknown parts of icefall: %s", unknown)
    return model, {k: v for k, v in weights.items() if k.split(".")[0] in PARTS}


def infer_model_config(weights: Weights, heads: Mapping[str, PerStack]) -> ModelConfig:
    """Return the model configuration of ``weights``.

    Args:
      heads: as in :func:`build_icefall_model`.
    Raises:
      ValueError: if the model is not a Zipformer, or if the heads do not fit.
    """
    unknown = sorted(set(heads) - set(HEAD_OPTIONS))
    if unknown:
        raise ValueError(
            f"unknown head options {unknown}. Available: {', '.join(HEAD_OPTIONS)}."
        )
    return ModelConfig(encoder=_infer_encoder(weights, heads), **_infer_sizes(weights))


def infer_icefall_config(
    checkpoint: Mapping[str, Any], encoder: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the options of ``ModelConfig`` that the weights of icefall determine.

    Args:
      checkpoint: as in :func:`build_icefall_model`.
      encoder: options of ``ZipformerConfig``; its head options are used if the file has
        none.
    Raises:
      ValueError: if the model is not a Zipformer, or if the heads do not fit.
    """
    weights = checkpoint["model"]
    heads = {k: checkpoint.get(k, encoder[k]) for k in HEAD_OPTIONS if k in encoder}
    found = to_dict(_infer_encoder(weights, heads))
    for name in ("encoder_unmasked_dim", "feature_dim"):
        del found[name]
    return {"encoder": found, **_infer_sizes(weights)}


def _infer_sizes(weights: Weights) -> dict[str, int]:
    """Return the sizes of predictor, joiner and vocabulary, if present."""
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


def infer_frontend(weights: Weights) -> dict[str, Any]:
    """Return the options of ``ZipformerConfig`` for the front end, from its weights."""
    *channels, hidden = (
        _shape(weights, f"encoder_embed.{layer}.weight")[0]
        for layer in ("conv.0", "conv.4", "conv.7", "convnext.pointwise_conv1")
    )
    return {
        "frontend_channels": tuple(channels),
        "convnext_expansion": hidden // channels[-1],
    }


def _infer_encoder(weights: Weights, heads: Mapping[str, PerStack]) -> ZipformerConfig:
    num_layers = _count_layers(weights)
    stacks = [_read_stack(weights, i) for i in range(len(num_layers))]
    fields: dict[str, Any] = {
        name: tuple(stack[name] for stack in stacks)
        for name in (
            "downsampling_factor",
            "encoder_dim",
            "feedforward_dim",
            "cnn_module_kernel",
        )
    }
    return ZipformerConfig(
        feature_dim=NUM_MEL_BINS,
        num_encoder_layers=tuple(num_layers),
        encoder_unmasked_dim=fields["encoder_dim"],
        output_downsampling_factor=_shape(weights, "encoder.downsample_output.bias")[0],
        causal=any(stack["causal"] for stack in stacks),
        pos_dim=stacks[0]["pos_dim"],
        **infer_frontend(weights),
        **_check_heads(stacks, heads),
        **fields,
    )


def _count_layers(weights: Weights) -> list[int]:
    """Return the number of layers of each stack."""
    found = {m.groups() for m in map(_LAYER.match, weights) if m is not None}
    stacks = sorted({int(stack) for stack, _ in found})
    if not stacks or stacks != list(range(len(stacks))):
        raise ValueError(
            "not the weights of a Zipformer of icefall: the names "
            f"encoder.encoders.<stack> have stacks {stacks}"
        )
    return [sum(int(stack) == i for stack, _ in found) for i in stacks]


def _read_stack(weights: Weights, i: int) -> dict[str, Any]:
    """Return the sizes of a stack, from its first layer."""
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


def _check_heads(
    stacks: Sequence[Mapping[str, Any]], heads: Mapping[str, PerStack]
) -> dict[str, tuple[int, ...]]:
    """Return the dimensions of heads and the number of heads, for each stack.

    Raises:
      ValueError: if they do not fit the tensors.
    """
    given = {n: _parse_per_stack(n, v, len(stacks)) for n, v in heads.items()}
    dims = {
        name: given.get(name, (default,) * len(stacks))
        for name, default in HEAD_DIMS.items()
    }
    num_heads = []
    for i, stack in enumerate(stacks):
        query, pos, value = (dims[name][i] for name in HEAD_DIMS)
        rows = stack["rows"]
        if "num_heads" in given:
            number = given["num_heads"][i]
        else:
            number = max(1, rows[_LINEAR_POS] // pos)
        expected = {
            _IN_PROJ: number * (2 * query + pos),
            _LINEAR_POS: number * pos,
            _VALUES: number * value,
        }
        if expected != rows:
            wrong = [
                f"{stack['layer']}{name} has {rows[name]} rows, not {expected[name]}"
                for name in rows
                if rows[name] != expected[name]
            ]
            raise ValueError(
                f"stack {i} does not have {number} heads with query_head_dim {query}, "
                f"pos_head_dim {pos}, value_head_dim {value}: {'; '.join(wrong)}. Give "
                "the dimensions of its training. These fit (query, pos, value): "
                f"{'; '.join(_find_fitting_heads(rows))}"
            )
        num_heads.append(number)
    return {**dims, "num_heads": tuple(num_heads)}


def _find_fitting_heads(rows: Mapping[str, int]) -> list[str]:
    pos, values = rows[_LINEAR_POS], rows[_VALUES]
    queries = rows[_IN_PROJ] - pos  # queries and keys
    return [
        f"{n} heads of {queries // (2 * n)}, {pos // n}, {values // n}"
        for n in range(1, pos + 1)
        if pos % n == 0 and values % n == 0 and queries % (2 * n) == 0
    ]


def _parse_per_stack(name: str, value: PerStack, num_stacks: int) -> tuple[int, ...]:
    if isinstance(value, str):
        value = [int(v) for v in value.split(",")]
    values = (value,) if isinstance(value, int) else tuple(value)
    if len(values) == 1:
        values = values * num_stacks
    if len(values) != num_stacks or min(values) < 1:
        raise ValueError(
            f"{name} must be one positive integer for each of {num_stacks} stacks, "
            f"got {value}"
        )
    return values


def _shape(weights: Weights, name: str) -> tuple[int, ...]:
    if name not in weights:
        raise ValueError(
            f"not the weights of a Zipformer of icefall: '{name}' is missing"
        )
    return tuple(weights[name].shape)
