"""Transcripts by OpenAI Whisper, run by CTranslate2, without padding to 30 s.

The decoder was trained on encodings of 30 s.  Given a short one it repeats itself: on
the 30 dev prompts of the Asterisk recipe base reads 38.9 % wrong after 1 s of appended
silence (beam 5), 2.4 % after silence up to 30 s.  What the encoder makes of silence
hardly depends on the speech before it, so it is computed once, and its end completes
the encoding of every utterance: 2.8 %, at a quarter of the cost of the padding
(``test/bench/whisper_text.py``).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union

import numpy as np
import torch
from torch import Tensor

from icefall_kd import SAMPLE_RATE
from icefall_kd.teachers.whisper_ct2 import WhisperCt2
from icefall_kd.teachers.windows import WINDOW

TOKENS_PER_SECOND = 8.0  # no speech has more; ends a decoder that repeats itself


@dataclass(frozen=True)
class Transcript:
    """What was heard.

    Attributes:
      text: as Whisper writes it, with case and punctuation.
      confidence: mean log-probability of its tokens, nats; 0 is certain.
    """

    text: str
    confidence: float


class WhisperText:
    """Reads utterances of at most 30 s.

    Args:
      model_dir: CTranslate2 folder with tokenizer.json.
      language:  code of the audio's language, for a multilingual model.
      beam:      hypotheses of the search; 1 is greedy.
      options:   of :class:`icefall_kd.teachers.whisper_ct2.WhisperCt2`.
    Attributes:
      silence: (1500, D) float32, the encoding of 30 s of silence.
    Raises:
      FileNotFoundError: if the folder does not hold a model with its tokenizer.
      ValueError: if the model does not know the language.
    """

    def __init__(
        self,
        model_dir: Union[str, Path],
        language: str = "en",
        beam: int = 1,
        **options: Any,
    ) -> None:
        path = Path(model_dir) / "tokenizer.json"
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing: without it nothing can be read; copy it from the "
                "model's repository"
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
        names = ["<|startoftranscript|>"]
        if self.encoder.model.is_multilingual:
            names += [f"<|{language}|>", "<|transcribe|>"]
        elif language != "en":
            raise ValueError(f"this Whisper reads English, not '{language}'")
        ids = [self._tokenizer.token_to_id(n) for n in [*names, "<|notimestamps|>"]]
        if None in ids:
            raise ValueError(f"this Whisper does not know the language '{language}'")
        return ids

    @torch.no_grad()
    def transcribe(self, waves: Sequence[Tensor]) -> list[Transcript]:
        """Read utterances together.

        Args:
          waves: each (S,) float32, 16 kHz, at most 30 s.
        Raises:
          ValueError: if one is longer.
        """
        if any(len(w) > WINDOW for w in waves):
            raise ValueError("an utterance is longer than the 30 s that Whisper hears")
        if not waves:
            return []
        encoded = list(self.encoder.side_by_side(self._complete, waves))
        size = -(-len(waves) // self.encoder.calls)
        parts = [slice(k, k + size) for k in range(0, len(waves), size)]

        def read(part: slice) -> list[Transcript]:
            return self._read(np.stack(encoded[part]), waves[part])

        return [t for said in self.encoder.side_by_side(read, parts) for t in said]

    def _read(self, encoded: np.ndarray, waves: Sequence[Tensor]) -> list[Transcript]:
        """Decode encodings, (N, 1500, D), of these waves."""
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

    def _complete(self, wave: Tensor) -> np.ndarray:
        """Return the encoding of one utterance and the silence behind it, (1500, D)."""
        padded = torch.zeros(1, self.encoder.padded_samples(len(wave)))
        padded[0, : len(wave)] = wave
        encoded = self.encoder.encode(padded)[0].numpy()
        return np.concatenate([encoded, self.silence[len(encoded) :]])
