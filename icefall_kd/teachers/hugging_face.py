"""Speech encoders of Hugging Face: wav2vec 2.0, HuBERT, WavLM, data2vec, Whisper.

    wavlm: {family: hugging_face, model_dir: microsoft/wavlm-large, layers: [12, 24]}

Layer k is ``hidden_states[k]`` of ``transformers``: 0 is the input of the first block,
"last" and -1 are the ``last_hidden_state``.  Whisper and the large models (those with
``do_stable_layer_norm``) normalise the output of the last block, and of no other, so
their last layer is of another scale than the ones before it.  Only the blocks up to
the highest layer asked for are kept.

A Whisper may lie there as CTranslate2 has it, which itself says the last layer alone:

    whisper_base: {family: hugging_face, model_dir: download/teachers/whisper_base,
                   layers: [4, 5]}
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional, Union

import torch
from torch import Tensor

from icefall_kd import SAMPLE_RATE
from icefall_kd.teachers.hugging_face_load import Loaded, load_encoder
from icefall_kd.teachers.protocol import (
    DTYPES,
    LayerChoice,
    Layers,
    Output,
    TeacherOutput,
    check_waves,
    choose_layers,
)
from icefall_kd.teachers.wave_encoder import WaveEncoder
from icefall_kd.teachers.whisper_encoder import WhisperEncoder
from icefall_kd.teachers.windows import Piece, batch_pieces, cut_pieces, gather, stitch


class HuggingFace:
    """Layers of a speech encoder, 50 Hz with the usual strides.

    An utterance alone and in any batch gives the same embeddings: within 1e-4 in
    float32, within the precision of the type in fp16 and bf16.

    Args:
      name:          the teacher's name.
      model_dir:     a folder written by ``save_pretrained``, or of a Whisper for
                     CTranslate2, or a name on the hub.
      layers:        "last", a number, or several; see
                     :mod:`icefall_kd.teachers.protocol`.  One is the field ``name``,
                     several are ``<name>_layer<k>``.
      layer_weights: one for each layer: their weighted sum is the field ``name``.
      dtype:         "float32", "fp16" (CUDA only) or "bf16".
      device:        "cpu", "cuda" or "cuda:1".
      num_threads:   accepted because all teachers are; PyTorch's threads are the
                     process's, and the command sets them.
      revision:      branch, tag or commit on the hub.
      max_window:    seconds that are heard at once, memory grows with their square;
                     longer utterances are heard in windows that overlap by 2 s.  40
                     when None; Whisper's positions (30 s) for Whisper.
      max_batch:     seconds of padded audio in one call of the model.
      context, bucket: of Whisper alone, as
                     :class:`~icefall_kd.teachers.whisper_ct2.WhisperCt2` has them.
    Raises:
      FileNotFoundError: if the folder or the name does not exist, or lacks a file.
      ValueError: if it is no speech encoder, is incomplete, or an option does not
        suit it.
    """

    def __init__(
        self,
        name: str,
        model_dir: Union[str, Path],
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
        _check_dtype(dtype, device)
        loaded = load_encoder(model_dir, revision)
        self.name = name
        self.max_batch = max_batch
        given = {"max_window": max_window, "context": context, "bucket": bucket}
        given = {key: value for key, value in given.items() if value is not None}
        config = loaded.config
        self._choice = choose_layers(layers, layer_weights, config.num_hidden_layers)
        self._encoder = _make_encoder(loaded, self._choice, given)
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
            for field, chosen in self._choice.fields(name).items()
        }

    @torch.no_grad()
    def forward(self, waves: Tensor, wave_lens: Tensor) -> dict[str, TeacherOutput]:
        """Return the fields of a batch.

        T is ceil(samples / 320) for Whisper.  For the others it is the number of
        whole frames, (samples - 400) // 320 + 1 with the usual convolutions, and 1
        for what is shorter than a frame.

        Args:
          waves:     (N, S) float32, 16 kHz, in [-1, 1].
          wave_lens: (N,) int64, valid samples.
        Raises:
          ValueError: if the shapes do not fit.
        """
        check_waves(waves, wave_lens)
        encoder = self._encoder
        waves = encoder.prepare(waves, wave_lens)
        lens = encoder.num_frames(wave_lens)
        shape = (len(waves), int(lens.max()))
        out = {
            field: torch.zeros(*shape, output.dim, device=waves.device)
            for field, output in self.outputs.items()
        }
        pieces = cut_pieces(wave_lens, encoder.window, encoder.overlap)
        limit = int(self.max_batch * SAMPLE_RATE)
        for batch in batch_pieces(pieces, encoder.heard, limit, encoder.equal):
            self._encode(waves, batch, out)
        return {field: TeacherOutput(x, lens) for field, x in out.items()}

    def _encode(
        self, waves: Tensor, batch: list[Piece], out: dict[str, Tensor]
    ) -> None:
        """Encode pieces and write their frames to ``out``."""
        encoder = self._encoder
        longest = max(encoder.heard(piece) for piece in batch)
        samples = torch.tensor([piece.samples for piece in batch])
        hidden = encoder.encode(gather(waves, batch, longest), samples)
        valid = encoder.num_frames(samples).tolist()
        for field, x in self._choice.pick(self.name, hidden).items():
            stitch(x, valid, batch, encoder.frame, out[field], encoder.overlap)


def _check_dtype(dtype: str, device: str) -> None:
    if dtype not in DTYPES:
        raise ValueError(f"dtype: '{dtype}' is none of {', '.join(DTYPES)}")
    if dtype == "fp16" and torch.device(device).type == "cpu":
        raise ValueError("dtype: fp16 needs device cuda; on a CPU use float32 or bf16")


def _make_encoder(
    loaded: Loaded, choice: LayerChoice, options: dict[str, Any]
) -> Union[WaveEncoder, WhisperEncoder]:
    if loaded.model_type == "whisper":
        return WhisperEncoder(loaded.model, loaded.config, choice, **options)
    unknown = [key for key in ("context", "bucket") if key in options]
    if unknown:
        raise ValueError(
            f"{', '.join(unknown)}: only Whisper has this option; a "
            f"{loaded.model_type} hears no more than the utterance"
        )
    return WaveEncoder(loaded.model, loaded.config, loaded.normalise, choice, **options)
