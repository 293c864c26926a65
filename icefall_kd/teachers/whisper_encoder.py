"""Whisper's encoder in PyTorch: features, layers, and weights of CTranslate2.

The encoder is that of ``transformers`` without the padding to 30 s.
:mod:`icefall_kd.teachers.whisper_ct2` explains the silence after each clip.
"""

import functools
import math
import re
import struct
from pathlib import Path
from typing import Any, BinaryIO, Optional

import numpy as np
import torch
from torch import Tensor, nn

from icefall_kd import SAMPLE_RATE
from icefall_kd.teachers.base import LayerChoice
from icefall_kd.teachers.windows import OVERLAP, Piece, count_padded_samples

N_FFT = 400  # samples, 25 ms
HOP = 160  # samples, 10 ms
FRAME = 2 * HOP  # samples of a frame of the encoder, 20 ms
# Slaney's mel scale: linear up to 1 kHz (15 mel), then logarithmic.
LINEAR_HZ = 1000.0
LINEAR_MELS = 15.0
LOG_STEP = math.log(6.4) / 27.0  # change of ln(frequency) in a mel


@functools.lru_cache(maxsize=None)
def make_mel_filters(num_mels: int) -> Tensor:
    """Return the Slaney filter bank, (N_FFT // 2 + 1, num_mels) float32, 0 to 8 kHz.

    The filters are triangles of unit area, equally spaced on the mel scale.
    Source: Slaney, Auditory Toolbox, 1998.  torchaudio has them too, but it has no
    release for every version of torch.
    """
    top = LINEAR_MELS + math.log(SAMPLE_RATE / 2 / LINEAR_HZ) / LOG_STEP
    mels = torch.linspace(0.0, top, num_mels + 2, dtype=torch.float64)
    above = LINEAR_HZ * ((mels - LINEAR_MELS) * LOG_STEP).exp()
    corners = torch.where(mels < LINEAR_MELS, mels * LINEAR_HZ / LINEAR_MELS, above)
    low, middle, high = corners[:-2], corners[1:-1], corners[2:]
    bins = torch.linspace(0.0, SAMPLE_RATE / 2, N_FFT // 2 + 1, dtype=torch.float64)
    hz = bins.unsqueeze(1)
    rising, falling = (hz - low) / (middle - low), (high - hz) / (high - middle)
    triangles = torch.minimum(rising, falling).clamp(min=0.0)
    return (triangles * 2 / (high - low)).float()


def compute_log_mel(waves: Tensor, num_mels: int) -> Tensor:
    """Return Whisper's features.

    The steps are: Hann window of 25 ms, hop 10 ms, power spectrum, mel filters, log10,
    a floor of 8 below the maximum of the row (an utterance), and (x + 4) / 4.
    Source: Radford et al., Robust speech recognition via large-scale weak supervision,
    2022, arXiv:2212.04356, section 2.2.

    Args:
      waves:    (N, S) float32, 16 kHz, in [-1, 1]; S > N_FFT // 2, because the borders
                are reflected.
      num_mels: F, number of filters: 80, or 128 for large-v3.
    Returns:
      (N, F, S // HOP) float32.
    """
    spectrum = torch.stft(
        waves,
        N_FFT,
        HOP,
        window=torch.hann_window(N_FFT, device=waves.device),
        center=True,
        pad_mode="reflect",
        return_complex=True,
    )
    power = spectrum[..., :-1].abs().square()  # Whisper drops the last frame
    mel = make_mel_filters(num_mels).to(waves.device).t() @ power
    mel = mel.clamp(min=1e-10).log10()
    floor = mel.amax(dim=(1, 2), keepdim=True) - 8.0
    return (torch.maximum(mel, floor) + 4.0) / 4.0


class WhisperEncoder:
    """The blocks of Whisper's encoder up to the highest chosen layer.

    The methods and attributes are those of
    :class:`~icefall_kd.teachers.wave_encoder.WaveEncoder`.

    The convolutions of frame k cover samples 320 k - 520 to 320 k + 520, so its centre
    is at 20 k ms.  :mod:`icefall_kd.core.frames` assumes 20 k + 10 ms; the difference
    is a quarter of the student's frame.

    Args:
      model:      ``transformers``' WhisperEncoder, in float32; its higher blocks are
                  removed.
      config:     of the model.
      choice:     layers to compute.
      max_window: maximum input in seconds, at most the model's positions (30 s); longer
                  utterances are split into windows.  None is the maximum.
      context:    seconds of silence after each piece.
      bucket:     the padded length is rounded up to a multiple of it, in seconds.
    """

    needs_equal_lengths = True  # without a mask, padding changes the output
    frame = FRAME
    overlap = OVERLAP

    def __init__(
        self,
        model: nn.Module,
        config: Any,
        choice: LayerChoice,
        max_window: Optional[float] = None,
        context: float = 1.0,
        bucket: float = 0.5,
    ) -> None:
        longest = config.max_source_positions * self.frame / SAMPLE_RATE
        max_window = longest if max_window is None else max_window
        if not 2 * self.overlap / SAMPLE_RATE < max_window <= longest:
            raise ValueError(
                f"max_window: {max_window} s does not suit this Whisper. Give more "
                f"than {2 * self.overlap / SAMPLE_RATE} s and at most {longest} s"
            )
        self.window = int(max_window * SAMPLE_RATE) // self.frame * self.frame
        self.options = {
            "max_window": float(max_window),
            "context": context,
            "bucket": bucket,
        }
        self._choice = choice
        self._num_mels = config.num_mel_bins
        self._model = model
        if choice.highest < len(model.layers):
            model.layer_norm = nn.Identity()  # it normalises the last block's output
        model.layers = model.layers[: choice.highest]

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move the model to a device and dtype."""
        self._model.to(device=device, dtype=dtype)
        self._device, self._dtype = device, dtype

    def prepare(self, waves: Tensor, wave_lens: Tensor) -> Tensor:
        """Return the waves unchanged; :func:`compute_log_mel` normalises each piece."""
        return waves

    def count_padded_samples(self, piece: Piece) -> int:
        """Return the input length of a piece in samples, with its silence."""
        return count_padded_samples(
            piece.samples,
            self.options["context"],
            self.options["bucket"],
            self.frame,
            self.window,
        )

    def count_frames(self, num_samples: Tensor) -> Tensor:
        """Return the number of frames, rounded up: (N,) int64 to (N,) int64."""
        return torch.div(
            num_samples + self.frame - 1, self.frame, rounding_mode="floor"
        )

    def encode(self, waves: Tensor, wave_lens: Tensor) -> dict[int, Tensor]:
        """Return layer -> (N, S // 320, D).

        Args:
          waves:     (N, S) float32, S a multiple of 320, followed by silence.
          wave_lens: (N,) int64, valid samples; not used, because Whisper has no mask.
        """
        model = self._model
        mel = compute_log_mel(waves.to(self._device), self._num_mels).to(self._dtype)
        x = nn.functional.gelu(model.conv1(mel))
        x = nn.functional.gelu(model.conv2(x)).transpose(1, 2)
        x = x + model.embed_positions.weight[: x.shape[1]]
        hidden = {}
        for k, layer in enumerate(model.layers):
            if k in self._choice.layers:
                hidden[k] = x
            x = layer(x, attention_mask=None, layer_head_mask=None)
            x = x if isinstance(x, Tensor) else x[0]  # a tuple before transformers 5
        hidden[self._choice.highest] = model.layer_norm(x)
        return hidden


_CT2_VERSIONS = (4, 5, 6)  # of the file format; variables have types since version 4
_CT2_TYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
_CT2_POSITIONS = "encoder/position_encodings/encodings"
# CTranslate2's name of a module in a block -> its name in transformers.
_CT2_MODULES = {
    "self_attention/layer_norm": "self_attn_layer_norm",
    "self_attention/linear_1": "self_attn.out_proj",
    "ffn/layer_norm": "final_layer_norm",
    "ffn/linear_0": "fc1",
    "ffn/linear_1": "fc2",
}
_CT2_PARAMETERS = {"gamma": "weight", "beta": "bias"}


def load_ct2_encoder(transformers: Any, path: Path) -> tuple[nn.Module, Any]:
    """Load the encoder of a Whisper for CTranslate2 into ``transformers``.

    Args:
      transformers: the package; it is optional, so this module does not import it.
      path:         model.bin of a Whisper, with weights of 16 or 32 bits.
    Returns:
      ``transformers``' WhisperEncoder in float32, and its configuration.
    Raises:
      ValueError: if the file is of another format or model, is truncated, or its
        weights are quantised.
    """
    values = _read_ct2_encoder(path)
    try:
        positions, dim = values[_CT2_POSITIONS].shape
        blocks = {name.split("/")[1] for name in values if "/layer_" in name}
        config = transformers.WhisperConfig(
            d_model=dim,
            num_mel_bins=values["encoder/conv1/weight"].shape[1],
            max_source_positions=positions,
            encoder_layers=sum(bool(re.fullmatch(r"layer_\d+", b)) for b in blocks),
            encoder_attention_heads=int(values["encoder/num_heads"]),
            encoder_ffn_dim=len(values["encoder/layer_0/ffn/linear_0/bias"]),
            # The decoder is not used; this is the smallest one.
            decoder_layers=1,
            decoder_attention_heads=1,
            decoder_ffn_dim=8,
            vocab_size=64,
            pad_token_id=0,
        )
        encoder = transformers.WhisperModel(config).get_encoder()
        encoder.load_state_dict(_rename_ct2_values(values))
    except (KeyError, ValueError, RuntimeError) as e:
        raise ValueError(f"{path} is not the encoder of a Whisper ({e})") from e
    return encoder, config


def _read_ct2_encoder(path: Path) -> dict[str, np.ndarray]:
    """Return name -> value of the encoder's variables."""
    values = {}
    with open(path, "rb") as f:
        try:
            (version,) = _unpack(f, "I")
            if version not in _CT2_VERSIONS:
                raise ValueError(
                    f"{path} is not a CTranslate2 model, or its version {version} is "
                    f"not supported. Supported: {', '.join(map(str, _CT2_VERSIONS))}"
                )
            spec = _read_string(f)
            if spec != "WhisperSpec":
                raise ValueError(f"{path} is a '{spec}', not a Whisper")
            _unpack(f, "I")  # revision of the specification
            for _ in range(_unpack(f, "I")[0]):
                name = _read_string(f)
                shape = _unpack(f, "I" * _unpack(f, "B")[0])
                kind, size = _unpack(f, "BI")
                if not name.startswith("encoder/"):
                    f.seek(size, 1)
                    continue
                data = f.read(size)
                if len(data) < size:
                    raise ValueError(f"{path} is truncated within {name}")
                dtype = _CT2_TYPES.get(kind)
                is_float = dtype in (np.float32, np.float16)
                if not is_float and not name.endswith("num_heads"):
                    raise ValueError(
                        f"{path}: {name} is quantised or of an unknown type. Convert "
                        "the model with '--quantization float16', or without the option"
                    )
                values[name] = np.frombuffer(data, dtype).reshape(shape)
        except (struct.error, UnicodeDecodeError) as e:
            raise ValueError(f"{path} is damaged or truncated ({e})") from e
    return values


def _unpack(f: BinaryIO, form: str) -> tuple[int, ...]:
    return struct.unpack(f"<{form}", f.read(struct.calcsize(f"<{form}")))


def _read_string(f: BinaryIO) -> str:
    return f.read(_unpack(f, "H")[0])[:-1].decode()  # ends with a zero byte


def _rename_ct2_values(values: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """Return the state dict of ``transformers``' WhisperEncoder."""
    state = {}
    for name, value in values.items():
        if name.endswith("num_heads"):
            continue
        tensor = torch.from_numpy(value.astype(np.float32))
        renamed = _rename_ct2(name)
        if "self_attention/linear_0" not in name:
            state[renamed] = tensor
            continue
        for part, chunk in zip("qkv", tensor.chunk(3)):  # of queries, keys, values
            key = renamed.replace("self_attention/linear_0", f"self_attn.{part}_proj")
            if not key.endswith("k_proj.bias"):
                state[key] = chunk
            elif chunk.any():
                raise ValueError(f"{name}: the keys have a bias, which Whisper lacks")
    return state


def _rename_ct2(name: str) -> str:
    if name == _CT2_POSITIONS:
        return "embed_positions.weight"
    _, *modules, parameter = name.split("/")
    parameter = _CT2_PARAMETERS.get(parameter, parameter)
    if not modules or not re.fullmatch(r"layer_\d+", modules[0]):
        return f"{'/'.join(modules)}.{parameter}"
    block, module = modules[0][len("layer_") :], "/".join(modules[1:])
    return f"layers.{block}.{_CT2_MODULES.get(module, module)}.{parameter}"
