"""Shape of the student as frozen dataclasses, and conversion to plain dictionaries.

A checkpoint contains its :class:`ModelConfig`, so decoding and export need no other
configuration.  The options of a training run are in ``icefall_kd.training.config``.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Optional, TypeVar, get_args, get_origin

T = TypeVar("T")

# Former -> current name of an option; YAML files and checkpoints may have either.
RENAMED_OPTIONS = {
    "model.adapter": "model.field_encoder",
    "terms.lfmmi.graph": "terms.lfmmi.bigram",
}
# Removed option -> what to set instead.  Checkpoints may have it, a run may not.
REMOVED_OPTIONS = {
    "model.encoder.warmup_batches": "set model.encoder.warmup_hours to hours of audio: "
    "warmup_batches x seconds of audio of an update / 3600",
}


@dataclass(frozen=True)
class ZipformerConfig:
    """Shape of the Zipformer encoder.

    A tuple with one value applies it to every stack, as in icefall.  Names follow
    icefall's ``zipformer/train.py``.
    Source: Yao et al., Zipformer, 2023, arXiv:2310.11230, table 2.

    Attributes:
      feature_dim: mel bins of the input.
      frontend_channels: channels of the front end's three convolutions; sherpa-onnx's
        streaming recogniser needs 128 in the last.
      convnext_expansion: hidden width of the ConvNeXt layer relative to its channels.
      downsampling_factor: 50 Hz frames per frame of each stack.
      output_downsampling_factor: 50 Hz frames per frame of the encoder's output.
      num_encoder_layers: layers of each stack.
      encoder_dim: channels of each stack.
      encoder_unmasked_dim: channels of each stack that training never masks.
      feedforward_dim: hidden width of the feed-forward modules of each stack.
      num_heads: attention heads of each stack.
      query_head_dim: dimension of the queries and keys of a head, for each stack.
      pos_head_dim: dimension of the projected positions of a head, for each stack.
      value_head_dim: dimension of the values of a head, for each stack.
      pos_dim: dimension of the positional encoding.
      cnn_module_kernel: odd kernel size of the convolution modules of each stack.
      causal: True for streaming: a frame depends on no frame after its chunk.
      chunk_size: 50 Hz frames; -1 is full context.  Training draws one value for each
        batch, evaluation uses the first.
      left_context_frames: 50 Hz frames before a chunk; -1 is unlimited.  Training draws
        one value for each batch, evaluation uses the first.
      dropout: rate at the first update, 0 to 1; it falls to a third over
        5 * ``warmup_hours``.
      warmup_hours: hours of training audio until the last layer is warm, over all
        processes and epochs; the other schedules (dropout, layer skipping,
        regularisers) are stretched in proportion.  The default is icefall's 4000
        batches of 600 s.
    """

    feature_dim: int = 80
    frontend_channels: tuple[int, int, int] = (8, 32, 128)
    convnext_expansion: int = 3
    downsampling_factor: tuple[int, ...] = (1, 2, 4, 8, 4, 2)
    output_downsampling_factor: int = 2
    num_encoder_layers: tuple[int, ...] = (2, 2, 3, 4, 3, 2)
    encoder_dim: tuple[int, ...] = (192, 256, 384, 512, 384, 256)
    encoder_unmasked_dim: tuple[int, ...] = (192, 192, 256, 256, 256, 192)
    feedforward_dim: tuple[int, ...] = (512, 768, 1024, 1536, 1024, 768)
    num_heads: tuple[int, ...] = (4, 4, 4, 8, 4, 4)
    query_head_dim: tuple[int, ...] = (32,)
    pos_head_dim: tuple[int, ...] = (4,)
    value_head_dim: tuple[int, ...] = (12,)
    pos_dim: int = 48
    cnn_module_kernel: tuple[int, ...] = (31, 31, 15, 15, 15, 31)
    causal: bool = False
    chunk_size: tuple[int, ...] = (-1,)
    left_context_frames: tuple[int, ...] = (-1,)
    dropout: float = 0.3
    warmup_hours: float = 666.7

    def __post_init__(self) -> None:
        stacks = len(self.downsampling_factor)
        for name in (
            "num_encoder_layers",
            "encoder_dim",
            "encoder_unmasked_dim",
            "feedforward_dim",
            "num_heads",
            "query_head_dim",
            "pos_head_dim",
            "value_head_dim",
            "cnn_module_kernel",
        ):
            value = getattr(self, name)
            if len(value) == 1:
                object.__setattr__(self, name, tuple(value) * stacks)
            elif len(value) != stacks:
                raise ValueError(
                    f"model.encoder.{name} has {len(value)} values {value}; set 1 or "
                    f"{stacks}, the number of values in downsampling_factor"
                )


@dataclass(frozen=True)
class FieldEncoderConfig:
    """Shape of an encoder over cached embeddings, see ``transducer.field_encoder``.

    Attributes:
      fields: Shar fields of kind ``embedding``; the input is their concatenation.
      dims: dimension of each field; training reads them from the fields.
      dim: C, dimension of the output, even: half for each direction of the GRU.
      num_layers: number of bidirectional GRU layers.
      input_dropout: dropout rate of the embeddings.
      dropout: dropout rate before each layer.
      mask_prob: share of an utterance's frames that training masks.
      mask_frames: length of a mask, frames of 40 ms.
    """

    fields: tuple[str, ...] = ()
    dims: tuple[int, ...] = ()
    dim: int = 256
    num_layers: int = 2
    input_dropout: float = 0.2
    dropout: float = 0.3
    mask_prob: float = 0.15
    mask_frames: int = 5


@dataclass(frozen=True)
class ModelConfig:
    """Shape of the transducer.

    Attributes:
      encoder: shape of the Zipformer; not used with ``field_encoder``.
      vocab_size: number of tokens, including the blank; training replaces 0 by the
        size of ``data.bpe_model``.
      decoder_dim: dimension of the decoder's (predictor's) output.
      joiner_dim: hidden dimension of the joiner.
      context_size: previous tokens that the decoder reads.
      field_encoder: shape of an encoder over cached embeddings, which replace the
        audio as the input; None encodes audio.
    """

    encoder: ZipformerConfig = field(default_factory=ZipformerConfig)
    vocab_size: int = 500
    decoder_dim: int = 512
    joiner_dim: int = 512
    context_size: int = 2
    field_encoder: Optional[FieldEncoderConfig] = None


def to_dict(config: Any) -> dict:
    """Return a dataclass as dicts and lists, for JSON, YAML and checkpoints."""

    def convert(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: convert(v) for k, v in value.items()}
        if isinstance(value, (tuple, list)):
            return [convert(v) for v in value]
        return value

    return convert(dataclasses.asdict(config))


def rename_option(name: str) -> str:
    """Return the current name of a dotted option.

    >>> rename_option("model.adapter.dim")
    'model.field_encoder.dim'
    """
    for old, new in RENAMED_OPTIONS.items():
        if name == old or name.startswith(f"{old}."):
            return new + name[len(old) :]
    return name


def rename_options(values: Mapping[str, Any], prefix: str = "") -> dict:
    """Return nested option values with every former name replaced.

    Options in :data:`REMOVED_OPTIONS` stay, see :func:`drop_removed_options`.

    Args:
      prefix: dotted name of the group that holds ``values``, for example "model.".
    """
    renamed = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        current = rename_option(name)
        if isinstance(value, Mapping):
            value = rename_options(value, f"{current}.")
        renamed[key if current == name else current.rpartition(".")[2]] = value
    return renamed


def drop_removed_options(values: Mapping[str, Any], prefix: str = "") -> dict:
    """Return nested option values without :data:`REMOVED_OPTIONS`.

    Args:
      prefix: dotted name of the group that holds ``values``, for example "model.".
    """
    return {
        key: drop_removed_options(value, f"{prefix}{key}.")
        if isinstance(value, Mapping)
        else value
        for key, value in values.items()
        if f"{prefix}{key}" not in REMOVED_OPTIONS
    }


def from_dict(cls: type[T], values: Mapping[str, Any]) -> T:
    """Return an instance of the dataclass ``cls``; the inverse of :func:`to_dict`.

    A single text for a tuple of texts is a tuple of one.

    Raises:
      ValueError: if a key is unknown or missing.
    """
    known = {f.name: f for f in dataclasses.fields(cls)}
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ValueError(
            f"{cls.__name__}: unknown keys {unknown}. Available: {sorted(known)}."
        )
    missing = [
        name
        for name, f in known.items()
        if name not in values
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(f"{cls.__name__}: missing keys {missing}.")
    arguments = {}
    for name, value in values.items():
        kind = known[name].type
        for option in get_args(kind):  # Optional[a dataclass]
            if dataclasses.is_dataclass(option):
                kind = option
        if dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
            value = from_dict(kind, value)
        elif isinstance(value, list):
            value = tuple(value)
        elif isinstance(value, str) and get_origin(kind) is tuple:
            value = (value,)
        arguments[name] = value
    return cls(**arguments)


def config_differences(new: Any, old: Any, prefix: str = "") -> list[str]:
    """Return "name: old -> new" for every value that differs.

    Args:
      new, old: nested mappings of plain values.
      prefix: dotted name of both.
    """
    if isinstance(new, Mapping) and isinstance(old, Mapping):
        return [
            line
            for key in {**new, **old}
            for line in config_differences(
                new.get(key), old.get(key), f"{prefix}.{key}" if prefix else key
            )
        ]
    return [] if new == old else [f"{prefix}: {old} -> {new}"]
