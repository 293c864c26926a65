"""Transcripts of OpenAI Whisper in CTranslate2, without the padding to 30 s.

The decoder was trained on encodings of 30 s and repeats itself on short ones: on the 30
dev prompts of the Asterisk recipe, base has a WER of 38.9 % with 1 s of silence after
the prompt, 2.4 % with silence up to 30 s (beam 5).  The encoding of silence hardly
depends on the speech before it.  So it is computed once, and its end completes the
encoding of every utterance: 2.8 %, at a quarter of the cost of the padding
(``test/bench/whisper_text.py``).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from icefall_kd import SAMPLE_RATE
from icefall_kd.core.files import Pathlike
from icefall_kd.teachers.whisper_ct2 import WhisperCt2
from icefall_kd.teachers.windows import WINDOW

TOKENS_PER_SECOND = 8.0  # more than speech has; stops a decoder that repeats itself


@dataclass(frozen=True)
class Transcript:
    """A hypothesis of Whisper.

    Attributes:
      text: as Whisper writes it, with case and punctuation.
      confidence: mean log-probability of its tokens, nats; 0 is certain.
    """

    text: str
    confidence: float


class WhisperText:
    """Recognises utterances of at most 30 s.

    Args:
      model_dir: CTranslate2 folder with tokenizer.json.
      language:  code of the audio's language, for a multilingual model.
      beam:      hypotheses of the search; 1 is greedy.
      options:   of :class:`icefall_kd.teachers.whisper_ct2.WhisperCt2`.
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
        """Return what identifies the transcripts."""
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
        if any(len(w) > WINDOW for w in waves):
            raise ValueError("an utterance is longer than Whisper's 30 s. Split it")
        if not waves:
            return []
        encoded = list(self.encoder.map_parallel(self._encode, waves))
        size = -(-len(waves) // self.encoder.num_workers)
        parts = [slice(k, k + size) for k in range(0, len(waves), size)]

        def decode(part: slice) -> list[Transcript]:
            return self._decode(np.stack(encoded[part]), waves[part])

        return [t for found in self.encoder.map_parallel(decode, parts) for t in found]

    def _decode(self, encoded: np.ndarray, waves: Sequence[Tensor]) -> list[Transcript]:
        """Decode the encodings (N, 1500, D) of the waves."""
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
        """Return the encoding of one utterance, completed by silence, (1500, D)."""
        padded = torch.zeros(1, self.encoder.count_padded_samples(len(wave)))
        padded[0, : len(wave)] = wave
        encoded = self.encoder.encode(padded)[0].numpy()
        return np.concatenate([encoded, self.silence[len(encoded) :]])
