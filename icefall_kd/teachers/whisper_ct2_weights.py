"""The encoder of a CTranslate2 Whisper, built as ``transformers`` has it.

CTranslate2 says the last layer alone; ``transformers`` says every one.  The weights are
the same, so a folder made by ``ct2-transformers-converter`` serves both.
"""

import re
import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor, nn

_VERSIONS = (4, 5, 6)  # of the form: variables carry their types since 4
_TYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
_FLOATS = (np.float32, np.float16)
_PREFIX = "encoder/"
# CTranslate2's name of a module -> transformers', within a block and outside of it.
_BLOCK = {
    "self_attention/layer_norm": "self_attn_layer_norm",
    "self_attention/linear_1": "self_attn.out_proj",
    "ffn/layer_norm": "final_layer_norm",
    "ffn/linear_0": "fc1",
    "ffn/linear_1": "fc2",
}
_POSITIONS = "encoder/position_encodings/encodings"
_COUNTED = re.compile(r"encoder/layer_\d+/ffn/linear_0/bias")  # one a block
_KINDS = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"}


def load_ct2_encoder(transformers: Any, path: Path) -> tuple[nn.Module, Any]:
    """Return ``transformers``' WhisperEncoder, in float32, and its configuration.

    Args:
      transformers: the library.
      path:         model.bin of a Whisper, with weights of 16 or 32 bits.
    Raises:
      ValueError: if the file is of another form or model, is cut off, or its weights
        are quantised.
    """
    values = _read_encoder(path)
    try:
        positions, dim = values[_POSITIONS].shape
        config = transformers.WhisperConfig(
            d_model=dim,
            num_mel_bins=values["encoder/conv1/weight"].shape[1],
            max_source_positions=positions,
            encoder_layers=sum(_COUNTED.fullmatch(name) is not None for name in values),
            encoder_attention_heads=int(values["encoder/num_heads"]),
            encoder_ffn_dim=len(values["encoder/layer_0/ffn/linear_0/bias"]),
            # The decoder is not wanted: as small as one can be.
            decoder_layers=1,
            decoder_attention_heads=1,
            decoder_ffn_dim=8,
            vocab_size=64,
            pad_token_id=0,
        )
        encoder = transformers.WhisperModel(config).get_encoder()
        encoder.load_state_dict(_state(values))
    except (KeyError, ValueError, RuntimeError) as e:
        raise ValueError(f"{path} is not the encoder of a Whisper ({e})") from e
    return encoder, config


def _read_encoder(path: Path) -> dict[str, np.ndarray]:
    """Return name -> value of the encoder's variables; the others are passed over."""
    values = {}
    with open(path, "rb") as f:
        try:
            (version,) = _take(f, "I")
            if version not in _VERSIONS:
                raise ValueError(
                    f"{path} is not of CTranslate2's form, or of version {version} of "
                    f"it; known are {_VERSIONS}"
                )
            spec = _text(f)
            if spec != "WhisperSpec":
                raise ValueError(f"{path} is a '{spec}', not a Whisper")
            _take(f, "I")  # revision of the specification
            for _ in range(_take(f, "I")[0]):
                name = _text(f)
                shape = _take(f, "I" * _take(f, "B")[0])
                kind, size = _take(f, "BI")
                if not name.startswith(_PREFIX):
                    f.seek(size, 1)
                    continue
                data = f.read(size)
                if len(data) < size:
                    raise ValueError(f"{path} is cut off within {name}")
                values[name] = _value(path, name, kind, data).reshape(shape)
        except (struct.error, UnicodeDecodeError) as e:
            raise ValueError(f"{path} is damaged or cut off ({e})") from e
    return values


def _take(f: BinaryIO, form: str) -> tuple[int, ...]:
    return struct.unpack(f"<{form}", f.read(struct.calcsize(f"<{form}")))


def _text(f: BinaryIO) -> str:
    return f.read(_take(f, "H")[0])[:-1].decode()  # a zero byte ends it


def _value(path: Path, name: str, kind: int, data: bytes) -> np.ndarray:
    """Return a variable's values; ``num_heads`` alone is a whole number."""
    dtype = _TYPES.get(kind)
    if dtype not in _FLOATS and not name.endswith("num_heads"):
        raise ValueError(
            f"{path}: {name} is quantised, or of a type that is not known here; "
            "convert the model with '--quantization float16', or with none"
        )
    return np.frombuffer(data, dtype)


def _state(values: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """Return the state of ``transformers``' WhisperEncoder."""
    state = {}
    for name, value in values.items():
        if name.endswith("num_heads"):
            continue
        tensor = torch.from_numpy(value.astype(np.float32))
        renamed = _rename(name)
        if "self_attention/linear_0" not in name:
            state[renamed] = tensor
            continue
        for part, chunk in zip("qkv", tensor.chunk(3)):  # of queries, keys, values
            key = renamed.replace("self_attention/linear_0", f"self_attn.{part}_proj")
            if not key.endswith("k_proj.bias"):
                state[key] = chunk
            elif chunk.any():
                raise ValueError(f"{name} has a bias of keys; Whisper's have none")
    return state


def _rename(name: str) -> str:
    if name == _POSITIONS:
        return "embed_positions.weight"
    parts = name.split("/")
    module, kind = "/".join(parts[1:-1]), _KINDS.get(parts[-1], parts[-1])
    if not parts[1].startswith("layer_") or parts[1] == "layer_norm":
        return f"{module}.{kind}"
    block, _, rest = module.partition("/")
    return f"layers.{block[len('layer_') :]}.{_BLOCK.get(rest, rest)}.{kind}"
