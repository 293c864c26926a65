"""Vocabulary teachers: distributions over the student's tokens from embeddings.

Foundation models do not have the student's tokens.  A small recogniser over their
embeddings, a :class:`~icefall_kd.transducer.field_encoder.FieldModel`, computes
distributions over these tokens at the student's frame times.  The foundation models are
the members of the vocabulary teacher.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional, Union

import torch
from torch import Tensor

from icefall_kd import ENCODER_SHIFT
from icefall_kd.core.files import Pathlike, sha256_file
from icefall_kd.core.frames import make_pad_mask, pack_topk
from icefall_kd.data.features import num_frames
from icefall_kd.data.tokens import Tokenizer
from icefall_kd.teachers.base import (
    Output,
    Teacher,
    TeacherOutput,
    check_waves,
    run_teacher,
)
from icefall_kd.teachers.build import build_teachers
from icefall_kd.teachers.paths import HEAD_OF_KIND, BestPaths
from icefall_kd.transducer.bigram import load_bigram
from icefall_kd.transducer.checkpoint import check_head, load_model
from icefall_kd.transducer.field_encoder import FieldModel, ModelEnsemble


class VocabularyTeacher(Teacher):
    """Token distributions of a recogniser over other teachers' embeddings.

    The output ``<name>_ctc`` contains the distributions of the CTC head,
    ``<name>_path`` those of the joiner on the one-best path; see
    :class:`icefall_kd.teachers.paths.BestPaths`.  With several recognisers, the outputs
    are means of their distributions, and the path is the best one of the mean.

    Args:
      name:      of the teacher.
      model_dir: checkpoint of the recogniser, written by ``bin.average``; or a list.
      members:   teachers whose embeddings the recogniser reads, see
                 :func:`icefall_kd.teachers.build.build_teachers`.
      topk:      number of tokens to store in a frame.
      outputs:   "ctc", "path", or both.
      beam:      number of hypotheses in the search for the path of an utterance without
                 transcript.
      lm:        bigram of tokens, written by ``bin.make_bigram``.  It is
                 fused into the distributions on paths, not into the search.
      lm_scale:  weight of the bigram.
      device:    "cpu" or "cuda".
      num_threads: CPU threads of the members; None is this process's share.
    Raises:
      FileNotFoundError: if a checkpoint or the bigram does not exist.
      ValueError: if a checkpoint is not a vocabulary teacher, the members do not
        compute its fields, vocabularies differ, or an option is invalid.
    """

    needs_text = True

    def __init__(
        self,
        name: str,
        model_dir: Union[Pathlike, Sequence[Pathlike]],
        members: Mapping[str, Mapping[str, Any]],
        topk: int = 16,
        outputs: Sequence[str] = ("ctc",),
        beam: int = 4,
        lm: Optional[Pathlike] = None,
        lm_scale: float = 0.3,
        device: str = "cpu",
        num_threads: Optional[int] = None,
    ) -> None:
        files = [model_dir] if isinstance(model_dir, (str, Path)) else model_dir
        paths = [Path(path) for path in files]
        if not paths:
            raise ValueError("model_dir: the list is empty. Give a checkpoint")
        for path in paths:
            if not path.is_file():
                raise FileNotFoundError(
                    f"{path}: no such checkpoint of a vocabulary teacher. Set "
                    "model_dir to a file that bin.average wrote"
                )
        if not outputs or not set(outputs) <= set(HEAD_OF_KIND):
            raise ValueError(
                f"outputs: {list(outputs)} is invalid. Available: "
                f"{', '.join(HEAD_OF_KIND)}"
            )
        if lm is not None and ("path" not in outputs or lm_scale < 0):
            raise ValueError(
                f"lm: invalid with outputs {list(outputs)} and lm_scale {lm_scale}. "
                "Add 'path' to outputs, and set lm_scale to at least 0"
            )
        self.name = name
        self.topk = topk
        defaults = {"device": device, "num_threads": num_threads}
        self.members = build_teachers(
            {n: {**defaults, **m} for n, m in members.items()}
        )
        inputs = {f: o for t in self.members for f, o in t.outputs.items()}
        models = [_load_recogniser(path, device, inputs, outputs) for path in paths]
        self.model, self.tokenizer = models[0]
        for path, (_, tokenizer) in zip(paths, models):
            if tokenizer.sha256 != self.tokenizer.sha256:
                raise ValueError(
                    f"{path} has other tokens than {paths[0]}. Give checkpoints that "
                    "were trained with one bpe.model"
                )
        self.ensemble = ModelEnsemble([model for model, _ in models])
        self._frame_shifts = {f: o.frame_shift for f, o in inputs.items()}
        hashes = [sha256_file(path) for path in paths]
        fingerprint = {
            "teacher": name,
            "family": "adapter",  # the former name, so that stored fields stay valid
            "model_sha256": hashes[0] if len(hashes) == 1 else hashes,
            "topk": topk,
            "members": {f: inputs[f].fingerprint for f in self.ensemble.fields},
            "vocab_size": self.model.vocab_size,
            "vocab_sha256": self.tokenizer.sha256,
        }
        bigram: Optional[Tensor] = None
        path_options: dict[str, Any] = {"beam": beam}
        if lm is not None and lm_scale > 0:
            bigram = load_bigram(lm, self.tokenizer.sha256)
            path_options.update(lm_sha256=sha256_file(lm), lm_scale=lm_scale)
        self.paths = BestPaths(
            self.ensemble, self.tokenizer, topk, beam, bigram, lm_scale
        )
        dims = {"ctc": 2 * topk + 1, "path": 2 * topk + 2}
        options = {"ctc": {}, "path": path_options}
        self.outputs = {
            f"{name}_{kind}": Output(
                kind, dims[kind], ENCODER_SHIFT, {**fingerprint, **options[kind]}
            )
            for kind in outputs
        }

    @torch.no_grad()
    def forward(
        self, waves: Tensor, wave_lens: Tensor, texts: Sequence[str]
    ) -> dict[str, TeacherOutput]:
        """Return the outputs of a batch, frames of 40 ms."""
        check_waves(waves, wave_lens)
        encoded, lens = self.ensemble.encode(self.compute_inputs(waves, wave_lens))
        outputs = {}
        if f"{self.name}_ctc" in self.outputs:
            x = pack_topk(self.ensemble.score_ctc(encoded), self.topk)
            mask = make_pad_mask(lens, x.size(1)).unsqueeze(-1)
            outputs[f"{self.name}_ctc"] = TeacherOutput(x.masked_fill(mask, 0.0), lens)
        if f"{self.name}_path" in self.outputs:
            outputs[f"{self.name}_path"] = self.paths(encoded, lens, texts)
        return outputs

    def compute_inputs(self, waves: Tensor, wave_lens: Tensor) -> dict[str, Any]:
        """Return a batch for :meth:`FieldModel.get_inputs` from the members' outputs.

        Args:
          waves:     (N, S) float32, 16 kHz, in [-1, 1].
          wave_lens: (N,) int64, valid samples.
        """
        device = next(self.model.parameters()).device
        fields: dict[str, dict[str, Any]] = {}
        for member in self.members:
            for field, output in run_teacher(member, waves, wave_lens).items():
                fields[field] = {
                    "x": output.x.to(device),
                    "lens": output.lens.to(device),
                    "frame_shift": self._frame_shifts[field],
                }
        frames = torch.tensor([num_frames(n) for n in wave_lens.tolist()])
        return {"fields": fields, "feature_lens": frames.to(device)}


def _load_recogniser(
    path: Path, device: str, inputs: Mapping[str, Output], outputs: Sequence[str]
) -> tuple[FieldModel, Tokenizer]:
    """Load a recogniser and its tokenizer, and check them.

    Args:
      inputs:  outputs of the members, by field name.
      outputs: kinds of distributions to compute.
    Raises:
      ValueError: as :class:`VocabularyTeacher`.
    """
    model, tokenizer, info = load_model(path, device)
    if not model.fields or not set(model.fields) <= set(inputs):
        raise ValueError(
            f"{path} reads the fields {list(model.fields)}, but the members compute "
            f"{sorted(inputs)}. Give the members that computed the fields of its "
            "training"
        )
    if tokenizer is None:
        raise ValueError(
            f"{path} contains no BPE model. Train it with data.bpe_model and "
            "transcripts"
        )
    for kind in outputs:
        check_head(model, HEAD_OF_KIND[kind], info, str(path))
    return model, tokenizer
