"""The encoder of OpenAI Whisper in CTranslate2, on CPU or CUDA.

Whisper was trained on windows of 30 s.  Padding a short clip to 30 s wastes ten times
the work for prompts of 3 s, so here a clip is followed by little silence.  The table
shows the mean cosine to the embeddings of the padded window, over the 130 dev and test
prompts of the Asterisk recipe (403 s), for all frames and for each prompt's last 0.5 s;
and CPU seconds for a second of audio, on one thread of an AMD EPYC (40 prompts).
Source: ``test/bench/whisper_context.py``.

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

The default is 1 s: the end of the clip gains most up to there, at a twelfth of the cost
of padding.  int8 halves the cost and changes the cosine by 0.0005.

On a CPU, two calls with one thread each take a fifth less time than one call with two
threads, and a batch of long utterances is as slow as a call for each.  So batches are
small and run in parallel (``test/bench/extract.py``).

Whisper has no mask, so padding changes its output.  The padded length of an utterance
is its duration plus the context, rounded up to the bucket; a call contains only pieces
of equal padded length.  So an embedding depends on its utterance only.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Callable, Optional, TypeVar

import numpy as np
import torch
from torch import Tensor

from icefall_kd import SAMPLE_RATE
from icefall_kd.core.cpu import default_num_threads
from icefall_kd.core.files import Pathlike
from icefall_kd.core.weights import cached_sha256
from icefall_kd.teachers.protocol import Output, Teacher, TeacherOutput, check_waves
from icefall_kd.teachers.whisper_encoder import FRAME, compute_log_mel
from icefall_kd.teachers.windows import (
    Piece,
    batch_pieces,
    count_padded_samples,
    gather_audio,
    split_pieces,
    stitch_frames,
)

Item = TypeVar("Item")
Result = TypeVar("Result")


class WhisperCt2(Teacher):
    """Whisper's last encoder layer at 50 Hz, without the padding to 30 s.

    The family ``hugging_face`` reads other layers from the same folder.

    Args:
      name:         of the teacher.
      model_dir:    CTranslate2 folder: model.bin, config.json.
      context:      seconds of silence after each utterance.
      bucket:       seconds; the padded length is rounded up to a multiple of it, so
                    that utterances of similar length share a batch.
      compute_type: "float32", "int8" or another type of CTranslate2.
      num_threads:  parallel calls on a CPU, with one thread each; None is this
                    process's share of the CPUs.
      device:       "cpu", "cuda", or "cuda:1" for the second GPU.
      max_batch:    maximum seconds of padded audio in a call; None is 30 on a CPU and
                    60 on a GPU.
    Attributes:
      model:       CTranslate2's Whisper.
      storage:     CTranslate2's class of arrays.
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
        batches = batch_pieces(pieces, padded_length, limit, equal=True)
        for batch, encoded in zip(batches, self.map_parallel(encode, batches)):
            valid = [-(-piece.samples // FRAME) for piece in batch]
            stitch_frames(encoded, valid, batch, FRAME, out)
        return {self.name: TeacherOutput(out, lens.to(torch.int64))}

    def map_parallel(
        self, function: Callable[[Item], Result], items: Iterable[Item]
    ) -> Iterable[Result]:
        """Call ``function`` on every item, in ``num_workers`` threads.

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
        """(N, S) float32, S a multiple of 320 -> (N, S // 320, D) float32."""
        mel = compute_log_mel(waves, self.model.n_mels).cpu().numpy()
        features = self.storage.from_array(np.ascontiguousarray(mel))
        encoded = self.model.encode(features, to_cpu=True)
        return torch.from_numpy(np.array(encoded, dtype=np.float32))
