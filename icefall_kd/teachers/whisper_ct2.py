"""OpenAI Whisper in CTranslate2, on CPU or CUDA: embeddings and transcripts.

Embeddings.  Whisper was trained on windows of 30 s.  Padding a clip of 3 s to 30 s
costs ten times the work, so here only a short silence, the context, follows a clip.
The table shows the mean cosine to the embeddings of the 30 s window, for all frames and
for the last 0.5 s of each clip.  The clips are the 130 dev and test prompts of the
Asterisk recipe (403 s).  The table also shows CPU seconds for a second of audio, on one
thread of an AMD EPYC (40 prompts).  Source: ``test/bench/whisper_context.py``.

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

The default context is 1 s, at a twelfth of the cost of padding to 30 s.  A longer one
improves the end of a clip less.  int8 halves the cost and changes the cosine by 0.0005.

Whisper has no mask, so padding changes its output.  The padded length of a clip is its
duration plus the context, rounded up to a multiple of the bucket.  A call contains only
clips of one padded length, so an embedding does not depend on the other clips.

Speed.  On a CPU, two calls with one thread each take a fifth less time than one call
with two threads, and a batch of long utterances takes as long as one call for each.  So
batches are small and run in parallel (``test/bench/extract.py``).

Transcripts.  The decoder was trained on encodings of 30 s and repeats itself on shorter
ones: base has a WER of 38.9 % with a context of 1 s, and of 2.4 % with silence up to
30 s (beam 5, the 30 dev prompts of the Asterisk recipe).  The encoding of silence
hardly depends on the speech before it.  So 30 s of silence are encoded once, and the
end of this encoding is appended to the encoding of every clip.  This gives 2.8 % at a
quarter of the cost of padding (``test/bench/whisper_text.py``).
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Optional, TypeVar

import numpy as np
import torch
from torch import Tensor

from icefall_kd import SAMPLE_RATE
from icefall_kd.core.cpu import default_num_threads
from icefall_kd.core.files import Pathlike
from icefall_kd.core.weights import cached_sha256
from icefall_kd.teachers.base import Output, Teacher, TeacherOutput, check_waves
from icefall_kd.teachers.whisper_encoder import FRAME, compute_log_mel
from icefall_kd.teachers.windows import (
    WINDOW,
    Piece,
    batch_pieces,
    count_padded_samples,
    gather_audio,
    split_pieces,
    stitch_frames,
)

TOKENS_PER_SECOND = 8.0  # limit, above that of speech; stops a decoder that repeats

Item = TypeVar("Item")
Result = TypeVar("Result")


class WhisperCt2(Teacher):
    """Whisper's last encoder layer at 50 Hz, without the padding to 30 s.

    The family ``hugging_face`` reads other layers from the same folder.

    Args:
      name:         of the teacher.
      model_dir:    CTranslate2 folder: model.bin, config.json.
      context:      seconds of silence after each utterance.
      bucket:       the padded length is rounded up to a multiple of it, in seconds, so
                    that utterances of similar length share a batch.
      compute_type: "float32", "int8" or another type of CTranslate2.
      num_threads:  parallel calls on a CPU, with one thread each; None is this
                    process's share of the CPUs.
      device:       "cpu", "cuda", or "cuda:1" for the second GPU.
      max_batch:    maximum seconds of audio, with padding, in a call; None is 30 on a
                    CPU and 60 on a GPU.
    Attributes:
      model:       ``ctranslate2.models.Whisper``.
      storage:     ``ctranslate2.StorageView``.
      num_workers: number of parallel calls.
    Raises:
      FileNotFoundError: if the folder does not contain a model.
    """

    def __init__(
        self,
        name: str,
        model_dir: Pathlike,
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
                    f"{model_dir / file} is missing. Give --model-dir a folder written "
                    "by ct2-transformers-converter, or run "
                    "'python -m icefall_kd.bin.fetch_teacher'"
                )
        import ctranslate2

        self.name = name
        self.context, self.bucket = context, bucket
        self.storage = ctranslate2.StorageView
        kind, _, index = device.partition(":")
        is_cpu = kind == "cpu"
        self.num_workers = (num_threads or default_num_threads()) if is_cpu else 1
        self.max_batch = max_batch or (30.0 if is_cpu else 60.0)
        self.model = ctranslate2.models.Whisper(
            str(model_dir),
            device=kind,
            device_index=int(index or 0),
            compute_type=compute_type,
            inter_threads=self.num_workers,
            intra_threads=1,
        )
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
        """Return the embeddings of a batch, T = ceil(samples / 320)."""
        check_waves(waves, wave_lens)
        lens = torch.div(wave_lens + FRAME - 1, FRAME, rounding_mode="floor")
        out = torch.zeros(len(waves), int(lens.max()), self._dim)

        def padded_length(piece: Piece) -> int:
            return self.count_padded_samples(piece.samples)

        def encode(batch: list[Piece]) -> Tensor:
            return self.encode(gather_audio(waves, batch, padded_length(batch[0])))

        limit = int(self.max_batch * SAMPLE_RATE)
        pieces = split_pieces(wave_lens)
        batches = batch_pieces(pieces, padded_length, limit, equal_lengths=True)
        for batch, encoded in zip(batches, self.map_parallel(encode, batches)):
            valid = [-(-piece.samples // FRAME) for piece in batch]
            stitch_frames(encoded, valid, batch, FRAME, out)
        return {self.name: TeacherOutput(out, lens.to(torch.int64))}

    def map_parallel(
        self, function: Callable[[Item], Result], items: Iterable[Item]
    ) -> Iterable[Result]:
        """Return the results of ``function``, which ``num_workers`` threads call.

        CTranslate2 releases Python's global lock while it computes.
        """
        items = list(items)
        if min(self.num_workers, len(items)) < 2:
            return map(function, items)
        with ThreadPoolExecutor(self.num_workers) as pool:
            return pool.map(function, items)

    def count_padded_samples(self, num_samples: int) -> int:
        """Return the input length for an utterance of ``num_samples`` samples."""
        return count_padded_samples(num_samples, self.context, self.bucket, FRAME)

    def encode(self, waves: Tensor) -> Tensor:
        """Return the embeddings of padded audio.

        Args:
          waves: (N, S) float32, S a multiple of 320.
        Returns:
          (N, S // 320, D) float32 on the CPU.
        """
        mel = compute_log_mel(waves, self.model.n_mels).cpu().numpy()
        features = self.storage.from_array(np.ascontiguousarray(mel))
        encoded = self.model.encode(features, to_cpu=True)
        return torch.from_numpy(np.array(encoded, dtype=np.float32))


@dataclass(frozen=True)
class Transcript:
    """A hypothesis of Whisper.

    Attributes:
      text:       with Whisper's case and punctuation.
      confidence: mean log-probability of the tokens in nats; 0 is certain.
    """

    text: str
    confidence: float


class WhisperText:
    """Transcribes utterances of at most 30 s.

    Args:
      model_dir: CTranslate2 folder with tokenizer.json.
      language:  code of the audio's language, for a multilingual model.
      beam:      number of hypotheses in the search; 1 is greedy.
      options:   arguments of :class:`WhisperCt2`.
    Attributes:
      silence: (1500, D) float32, the encoding of 30 s of silence.
    Raises:
      FileNotFoundError: if the folder does not contain a model with its tokenizer.
      ValueError: if the model does not support the language.
    """

    def __init__(
        self,
        model_dir: Pathlike,
        language: str = "en",
        beam: int = 1,
        **options: Any,
    ) -> None:
        path = Path(model_dir) / "tokenizer.json"
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing. Copy it from the model's repository"
            )
        from tokenizers import Tokenizer

        self.encoder = WhisperCt2("whisper", model_dir, **options)
        self.beam = beam
        self._tokenizer = Tokenizer.from_file(str(path))
        self._prompt = self._make_prompt(language)
        self.silence = self.encoder.encode(torch.zeros(1, WINDOW))[0].numpy()

    def fingerprint(self) -> dict[str, Any]:
        """Return model, precision, context and beam; the caller adds the language."""
        (output,) = self.encoder.outputs.values()
        return {**output.fingerprint, "teacher": "whisper_text", "beam": self.beam}

    def _make_prompt(self, language: str) -> list[int]:
        tokens = ["<|startoftranscript|>"]
        if self.encoder.model.is_multilingual:
            tokens += [f"<|{language}|>", "<|transcribe|>"]
        elif language != "en":
            raise ValueError(f"language: '{language}' needs a multilingual Whisper")
        ids = [self._tokenizer.token_to_id(t) for t in [*tokens, "<|notimestamps|>"]]
        if None in ids:
            raise ValueError(f"language: this Whisper does not support '{language}'")
        return ids

    @torch.no_grad()
    def transcribe(self, waves: Sequence[Tensor]) -> list[Transcript]:
        """Return the transcript of each utterance.

        Args:
          waves: each (S,) float32, 16 kHz, at most 30 s.
        Raises:
          ValueError: if one is longer.
        """
        for n, wave in enumerate(waves):
            if len(wave) > WINDOW:
                raise ValueError(
                    f"utterance {n} has {len(wave) / SAMPLE_RATE:.1f} s, more than "
                    f"Whisper's {WINDOW // SAMPLE_RATE} s. Split it"
                )
        if not waves:
            return []
        encoded = list(self.encoder.map_parallel(self._encode, waves))
        size = -(-len(waves) // self.encoder.num_workers)
        parts = [slice(k, k + size) for k in range(0, len(waves), size)]

        def decode(part: slice) -> list[Transcript]:
            return self._decode(np.stack(encoded[part]), waves[part])

        return [t for found in self.encoder.map_parallel(decode, parts) for t in found]

    def _decode(self, encoded: np.ndarray, waves: Sequence[Tensor]) -> list[Transcript]:
        """Return the best hypothesis of each wave.

        Args:
          encoded: (N, 1500, D) float32, encodings of the waves.
        """
        seconds = max(len(w) for w in waves) / SAMPLE_RATE
        results = self.encoder.model.generate(
            self.encoder.storage.from_array(encoded),
            [self._prompt] * len(waves),
            beam_size=self.beam,
            return_scores=True,
            max_length=int(len(self._prompt) + 8 + TOKENS_PER_SECOND * seconds),
        )
        return [
            Transcript(
                self._tokenizer.decode(r.sequences_ids[0]).strip(), float(r.scores[0])
            )
            for r in results
        ]

    def _encode(self, wave: Tensor) -> np.ndarray:
        """Return the encoding of an utterance and of silence after it, (1500, D)."""
        padded = torch.zeros(1, self.encoder.count_padded_samples(len(wave)))
        padded[0, : len(wave)] = wave
        encoded = self.encoder.encode(padded)[0].numpy()
        return np.concatenate([encoded, self.silence[len(encoded) :]])
