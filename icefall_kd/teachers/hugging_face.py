"""Speech encoders of Hugging Face: wav2vec 2.0, HuBERT, WavLM, data2vec, Whisper.

    wavlm: {family: hugging_face, model_dir: microsoft/wavlm-large, layers: [12, 24]}

Layer k is ``hidden_states[k]`` of ``transformers``: 0 is the input of the first block,
"last" and -1 are ``last_hidden_state``.  Whisper and models with
``do_stable_layer_norm`` (the large ones) normalise only the output of the last block,
so the last layer differs in scale from the layers before it.  Blocks above the highest
chosen layer are removed.

A Whisper folder for CTranslate2 works too.  CTranslate2 itself returns only the last
layer, see :mod:`icefall_kd.teachers.whisper_ct2`:

    whisper_base: {family: hugging_face, model_dir: download/teachers/whisper_base,
                   layers: [4, 5]}
"""

from collections.abc import Sequence
from typing import Any, Optional, Union

import torch
from torch import Tensor

from icefall_kd import SAMPLE_RATE
from icefall_kd.core.files import Pathlike
from icefall_kd.teachers.base import (
    DTYPES,
    LayerChoice,
    Layers,
    Output,
    Teacher,
    TeacherOutput,
    check_waves,
    choose_layers,
)
from icefall_kd.teachers.hugging_face_load import LoadedEncoder, load_encoder
from icefall_kd.teachers.wave_encoder import WaveEncoder
from icefall_kd.teachers.whisper_encoder import WhisperEncoder
from icefall_kd.teachers.windows import (
    Piece,
    batch_pieces,
    gather_audio,
    split_pieces,
    stitch_frames,
)


class HuggingFace(Teacher):
    """Layers of a speech encoder, 50 Hz with the usual strides.

    The embeddings of an utterance do not depend on its batch: they agree within 1e-4 in
    float32, and within the precision of the type in fp16 and bf16.

    Args:
      name:          of the teacher.
      model_dir:     a folder written by ``save_pretrained``, a Whisper folder for
                     CTranslate2, or a name on the hub.
      layers:        "last", a number, or several; see
                     :func:`icefall_kd.teachers.base.choose_layers`.  One is the
                     field ``name``, several are ``<name>_layer<k>``.
      layer_weights: one for each layer; the field ``name`` is the weighted sum.
      dtype:         "float32", "fp16" (CUDA only) or "bf16".
      device:        "cpu", "cuda" or "cuda:1".
      num_threads:   not used: PyTorch has one number of threads for all models.
      revision:      branch, tag or commit on the hub.
      max_window:    maximum input of the model in seconds; memory grows with its
                     square.  Longer utterances are split into windows with an overlap
                     of 2 s.  None is 40 s, or the positions of a Whisper (30 s).
      max_batch:     maximum seconds of audio, with padding, in a call of the model.
      context, bucket: of Whisper only, as in
                     :class:`~icefall_kd.teachers.whisper_ct2.WhisperCt2`.
    Raises:
      FileNotFoundError: if the folder or the name does not exist, or lacks a file.
      ValueError: if the model is not a speech encoder or is incomplete, or an option
        does not suit it.
    """

    def __init__(
        self,
        name: str,
        model_dir: Pathlike,
        layers: Layers = "last",
        layer_weights: Optional[Sequence[float]] = None,
        dtype: str = "float32",
        device: str = "cpu",
        num_threads: Optional[int] = None,
        revision: Optional[str] = None,
        max_window: Optional[float] = None,
        max_batch: float = 60.0,
        context: Optional[float] = None,
        bucket: Optional[float] = None,
    ) -> None:
        if dtype not in DTYPES:
            raise ValueError(
                f"dtype: unknown '{dtype}'. Available: {', '.join(DTYPES)}"
            )
        if dtype == "fp16" and torch.device(device).type == "cpu":
            raise ValueError(
                "dtype: fp16 needs device cuda. Use float32 or bf16 on a CPU"
            )
        loaded = load_encoder(model_dir, revision)
        self.name = name
        self.max_batch = max_batch
        options = {"max_window": max_window, "context": context, "bucket": bucket}
        options = {key: value for key, value in options.items() if value is not None}
        config = loaded.config
        self._choice = choose_layers(layers, layer_weights, config.num_hidden_layers)
        self._encoder = _make_encoder(loaded, self._choice, options)
        self._encoder.to(torch.device(device), DTYPES[dtype])
        fingerprint = {
            "teacher": name,
            "family": "hugging_face",
            **loaded.identity,
            **self._encoder.options,
            "dtype": dtype,
        }
        shift = self._encoder.frame / SAMPLE_RATE
        self.outputs = {
            field: Output(
                "embedding", config.hidden_size, shift, {**fingerprint, **chosen}
            )
            for field, chosen in self._choice.describe_fields(name).items()
        }

    @torch.no_grad()
    def forward(self, waves: Tensor, wave_lens: Tensor) -> dict[str, TeacherOutput]:
        """Return the fields of a batch.

        T is ceil(samples / 320) for Whisper.  For other models it is the number of
        complete frames, (samples - 400) // 320 + 1 with the usual convolutions, and at
        least 1.
        """
        check_waves(waves, wave_lens)
        encoder = self._encoder
        waves = encoder.prepare(waves, wave_lens)
        lens = encoder.count_frames(wave_lens)
        shape = (len(waves), int(lens.max()))
        out = {
            field: torch.zeros(*shape, output.dim, device=waves.device)
            for field, output in self.outputs.items()
        }
        pieces = split_pieces(wave_lens, encoder.window, encoder.overlap)
        limit = int(self.max_batch * SAMPLE_RATE)
        length = encoder.count_padded_samples
        for batch in batch_pieces(pieces, length, limit, encoder.needs_equal_lengths):
            self._encode(waves, batch, out)
        return {field: TeacherOutput(x, lens) for field, x in out.items()}

    def _encode(
        self, waves: Tensor, batch: list[Piece], out: dict[str, Tensor]
    ) -> None:
        """Encode pieces, and write their frames to ``out``, field -> (N, T, D)."""
        encoder = self._encoder
        longest = max(encoder.count_padded_samples(piece) for piece in batch)
        samples = torch.tensor([piece.samples for piece in batch])
        hidden = encoder.encode(gather_audio(waves, batch, longest), samples)
        valid = encoder.count_frames(samples).tolist()
        for field, x in self._choice.select(self.name, hidden).items():
            stitch_frames(x, valid, batch, encoder.frame, out[field], encoder.overlap)


def _make_encoder(
    loaded: LoadedEncoder, choice: LayerChoice, options: dict[str, Any]
) -> Union[WaveEncoder, WhisperEncoder]:
    if loaded.model_type == "whisper":
        return WhisperEncoder(loaded.model, loaded.config, choice, **options)
    unknown = [key for key in ("context", "bucket") if key in options]
    if unknown:
        raise ValueError(
            f"{', '.join(unknown)}: only Whisper has this option, not "
            f"{loaded.model_type}. Leave it out"
        )
    return WaveEncoder(loaded.model, loaded.config, loaded.normalise, choice, **options)
