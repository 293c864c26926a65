"""The encoder of a CTranslate2 Whisper, built as ``transformers`` has it.

CTranslate2 says the last layer alone; ``transformers`` says every one.  The weights are
the same, so a folder made by ``ct2-transformers-converter`` serves both.

The encoder of OpenAI Whisper, run by CTranslate2 on CPU or CUDA.

Whisper was trained on windows of 30 s, so a short clip is normally padded to 30 s,
which for prompts of 3 s wastes ten times the work.  Here a clip is followed by a little
silence only.  How much it needs: mean cosine to the embeddings of the padded window
over the 130 dev and test prompts of the Asterisk recipe (403 s), over all frames and
over each prompt's last 0.5 s; and CPU seconds for a second of audio on one thread of an
AMD EPYC (40 of the prompts), by ``test/bench/whisper_context.py``:

                            tiny.en                          base
    context         all  last 0.5 s  CPU s         all  last 0.5 s  CPU s
    0    s        0.971    0.899    0.011        0.945    0.849    0.025
    0.25 s        0.979    0.935    0.012        0.964    0.912    0.028
    0.5  s        0.983    0.952    0.012        0.970    0.939    0.029
    1    s        0.987    0.966    0.014        0.975    0.954    0.033
    2    s        0.990    0.976    0.017        0.980    0.964    0.041
    4    s        0.992    0.981    0.025        0.986    0.974    0.057
    to 30 s       1        1        0.172        1        1        0.387
    1 s, int8     0.986    0.966    0.007        0.975    0.953    0.015

So 1 s is the default: the end of the clip gains most up to there, at a twelfth of the
cost of padding.  int8 halves the cost again and changes the cosine by 0.0005.  A cosine
of 0.98 takes 2 s of context with base, and 0.5 s with tiny.en; what that costs beside
a loop that pads to 30 s is in ``test/bench/extract.py``.

On a CPU two calls of one thread each take a fifth less time than one call of two
threads, and a batch of long utterances no less than as many calls: so calls are small
there, and run side by side (``test/bench/extract.py``).

Whisper has no mask: what pads a batch is context too.  To keep an utterance's embedding
a function of the utterance alone, its padded length is its own (its duration plus the
context, rounded up to the bucket), and only pieces of equal padded length share a call.
"""

import re
import struct
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, Callable, Optional, TypeVar, Union

import numpy as np
import torch
from torch import Tensor, nn

from icefall_kd import SAMPLE_RATE
from icefall_kd.core.cpu import default_num_threads
from icefall_kd.core.weights import cached_sha256
from icefall_kd.teachers.protocol import Output, TeacherOutput, check_waves
from icefall_kd.teachers.whisper_encoder import log_mel
from icefall_kd.teachers.windows import (
    Piece,
    batch_pieces,
    cut_pieces,
    gather,
    padded_samples,
    stitch,
)

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


Item = TypeVar("Item")
Said = TypeVar("Said")
FRAME = 320  # samples in one encoder frame: mel hop 160, halved by a convolution


class WhisperCt2:
    """Whisper's last encoder layer at 50 Hz, without the padding to 30 s.

    For the layers before it, the family ``hugging_face`` reads the same folder.

    Args:
      name:         the teacher's name.
      model_dir:    CTranslate2 folder: model.bin, config.json.
      context:      seconds of silence appended to each utterance.
      bucket:       seconds; the padded length is rounded up to a multiple of it, so
                    that utterances of about one length share a batch.
      compute_type: "float32", "int8" or another of CTranslate2's.
      num_threads:  calls that run side by side on a CPU, each on one thread; None for
                    this process's share of the CPUs.
      device:       "cpu", "cuda", or "cuda:1" for the second of several.
      max_batch:    seconds of padded audio in one call; None for 30 on a CPU and 60
                    elsewhere.
    Attributes:
      model, storage: CTranslate2's Whisper, and its class of arrays.
      calls:        that may run side by side.
    Raises:
      FileNotFoundError: if the folder does not hold a model.
    """

    def __init__(
        self,
        name: str,
        model_dir: Union[str, Path],
        context: float = 1.0,
        bucket: float = 0.5,
        compute_type: str = "float32",
        num_threads: Optional[int] = None,
        device: str = "cpu",
        max_batch: Optional[float] = None,
    ) -> None:
        model_dir = Path(model_dir)
        for file in ("model.bin", "config.json"):
            if not (model_dir / file).is_file():
                raise FileNotFoundError(
                    f"{model_dir / file} is missing: give --model-dir a folder made by "
                    "ct2-transformers-converter, or run "
                    "'python -m icefall_kd.bin.fetch_teacher'"
                )
        import ctranslate2

        self.name = name
        self.context = context
        self.bucket = bucket
        self.storage = ctranslate2.StorageView
        kind, _, index = device.partition(":")
        self.calls = (num_threads or default_num_threads()) if kind == "cpu" else 1
        self.max_batch = max_batch or (30.0 if kind == "cpu" else 60.0)
        self.model = ctranslate2.models.Whisper(
            str(model_dir),
            device=kind,
            device_index=int(index or 0),
            compute_type=compute_type,
            inter_threads=self.calls,
            intra_threads=1,
        )
        self._num_mels = self.model.n_mels
        self._dim = self.encode(torch.zeros(1, FRAME * 2)).shape[2]
        fingerprint = {
            "teacher": name,
            "family": "whisper_ct2",
            "model_sha256": cached_sha256(model_dir / "model.bin"),
            "layer": "last",
            "compute_type": compute_type,
            "context": context,
            "bucket": bucket,
        }
        shift = FRAME / SAMPLE_RATE
        self.outputs = {name: Output("embedding", self._dim, shift, fingerprint)}

    @torch.no_grad()
    def forward(self, waves: Tensor, wave_lens: Tensor) -> dict[str, TeacherOutput]:
        """Return the embeddings of a batch; T = ceil(samples / 320).

        Args:
          waves:     (N, S) float32, 16 kHz, in [-1, 1].
          wave_lens: (N,) int64, valid samples.
        Raises:
          ValueError: if the shapes do not fit.
        """
        check_waves(waves, wave_lens)
        lens = torch.div(wave_lens + FRAME - 1, FRAME, rounding_mode="floor")
        out = torch.zeros(len(waves), int(lens.max()), self._dim)
        limit = int(self.max_batch * SAMPLE_RATE)
        pieces = cut_pieces(wave_lens)
        batches = batch_pieces(pieces, self._heard, limit, equal=True)

        def encode(batch: list[Piece]) -> Tensor:
            return self.encode(gather(waves, batch, self._heard(batch[0])))

        for batch, encoded in zip(batches, self.side_by_side(encode, batches)):
            valid = [-(-piece.samples // FRAME) for piece in batch]
            stitch(encoded, valid, batch, FRAME, out)
        return {self.name: TeacherOutput(out, lens.to(torch.int64))}

    def side_by_side(
        self, function: Callable[[Item], Said], items: Iterable[Item]
    ) -> Iterable[Said]:
        """Call ``function`` on every item, as many at once as there are threads.

        CTranslate2 lets go of Python's lock while it computes.
        """
        items = list(items)
        if min(self.calls, len(items)) < 2:
            return map(function, items)
        with ThreadPoolExecutor(self.calls) as pool:
            return pool.map(function, items)

    def padded_samples(self, num_samples: int) -> int:
        """Return the samples that are encoded for an utterance of ``num_samples``."""
        return padded_samples(num_samples, self.context, self.bucket, FRAME)

    def _heard(self, piece: Piece) -> int:
        return self.padded_samples(piece.samples)

    def encode(self, waves: Tensor) -> Tensor:
        """(N, S) float32, S a multiple of 320 -> (N, S // 320, D) float32."""
        mel = np.ascontiguousarray(log_mel(waves, self._num_mels).cpu().numpy())
        encoded = self.model.encode(self.storage.from_array(mel), to_cpu=True)
        return torch.from_numpy(np.array(encoded, dtype=np.float32))
