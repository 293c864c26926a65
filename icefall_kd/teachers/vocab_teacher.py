"""A teacher in our vocabulary: foundation models under a trained adapter.

Its members compute embeddings; a trained :class:`FieldModel` recognises tokens of the
student's vocabulary in them, at the student's frame times.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional, Union

import torch
from torch import Tensor

from icefall_kd import ENCODER_SHIFT
from icefall_kd.core.files import sha256_file
from icefall_kd.core.frames import make_pad_mask, pack_topk
from icefall_kd.data.features import num_frames
from icefall_kd.teachers.protocol import Output, TeacherOutput, check_waves
from icefall_kd.teachers.zipformer_frames import HEAD_OF, BestPaths
from icefall_kd.transducer.checkpoint import check_head, load_model
from icefall_kd.transducer.denominator import load_bigram
from icefall_kd.transducer.field_encoder import ModelEnsemble


class VocabularyTeacher:
    """What an adapter over other teachers says, in tokens, or several adapters as one.

    Its outputs are ``<name>_ctc``, the CTC head's distributions, and ``<name>_path``,
    the joiner's on the one-best path: of the transcript where there is one, else of
    what it recognises itself (of several, the first).  Of several adapters the
    distributions are averaged, on the nodes of the best path of their mean.

    Args:
      name:      of the teacher.
      model_dir: checkpoint of the adapter, as ``bin.average`` writes it; or a list.
      members:   name -> description of each teacher that it hears, see
                 :func:`icefall_kd.teachers.build_teachers`.
      topk:      tokens kept of each frame.
      outputs:   kinds wanted, of "ctc" and "path".
      beam:      hypotheses of the search for paths without transcript.
      lm:        bigram of tokens, a file of ``bin.make_denominator --bigram``, that has
                 a say in the distributions on paths, see
        :func:`icefall_kd.transducer.denominator.fuse_bigram`; the paths are without it.
      lm_scale:  of the bigram.
      device:    "cpu" or "cuda".
      num_threads: CPU threads of the members; None for this process's share.
    Raises:
      FileNotFoundError: if there is no such checkpoint, or bigram.
      ValueError: if it is no adapter, its fields are not those of the members, a kind
        is unknown, adapters are of different tokens, or the bigram is of other tokens
        or has nothing to say.
    """

    needs_text = True

    def __init__(
        self,
        name: str,
        model_dir: Union[str, Path, Sequence[Union[str, Path]]],
        members: Mapping[str, Mapping[str, Any]],
        topk: int = 16,
        outputs: Sequence[str] = ("ctc",),
        beam: int = 4,
        lm: Optional[Union[str, Path]] = None,
        lm_scale: float = 0.3,
        device: str = "cpu",
        num_threads: Optional[int] = None,
    ) -> None:
        from icefall_kd.teachers import build_teachers

        several = [model_dir] if isinstance(model_dir, (str, Path)) else model_dir
        paths = [Path(path) for path in several]
        if not paths:
            raise ValueError(f"teacher '{name}': model_dir is an empty list")
        for path in paths:
            if not path.is_file():
                raise FileNotFoundError(
                    f"{path}: no such checkpoint of a vocabulary teacher"
                )
        if not outputs or not set(outputs) <= {"ctc", "path"}:
            raise ValueError(
                f"teacher '{name}': outputs {outputs}; it has ctc and path"
            )
        if lm is not None and ("path" not in outputs or lm_scale < 0):
            raise ValueError(
                f"teacher '{name}': lm has a say in the output path alone, with an "
                f"lm_scale that is not negative; outputs are {list(outputs)}, lm_scale "
                f"is {lm_scale}"
            )
        self.name = name
        self.topk = topk
        common = {"device": device, "num_threads": num_threads}
        self.members = build_teachers({n: {**common, **m} for n, m in members.items()})
        said = {f: o for t in self.members for f, o in t.outputs.items()}
        models = [_load(path, device, said, outputs) for path in paths]
        self.model, self.tokenizer = models[0]
        for path, (_, tokenizer) in zip(paths, models):
            if tokenizer.sha256 != self.tokenizer.sha256:
                raise ValueError(f"{path} is of other tokens than {paths[0]}")
        self.ensemble = ModelEnsemble([model for model, _ in models])
        self._shifts = {f: o.frame_shift for f, o in said.items()}
        fingerprint = {
            "teacher": name,
            "family": "adapter",  # the former name: stored fields carry it
            "model_sha256": _one_or_all([sha256_file(path) for path in paths]),
            "topk": topk,
            "members": {f: said[f].fingerprint for f in self.ensemble.fields},
            "vocab_size": self.model.vocab_size,
            "vocab_sha256": self.tokenizer.sha256,
        }
        bigram: Optional[Tensor] = None
        of_path: dict[str, Any] = {"beam": beam}
        if lm is not None and lm_scale > 0:
            bigram = load_bigram(lm, self.tokenizer.sha256)
            of_path.update(lm_sha256=sha256_file(lm), lm_scale=lm_scale)
        self.paths = BestPaths(
            self.ensemble, self.tokenizer, topk, beam, bigram, lm_scale
        )
        widths = {"ctc": 2 * topk + 1, "path": 2 * topk + 2}
        more = {"ctc": {}, "path": of_path}
        self.outputs = {
            f"{name}_{kind}": Output(
                kind, widths[kind], ENCODER_SHIFT, {**fingerprint, **more[kind]}
            )
            for kind in outputs
        }

    @torch.no_grad()
    def forward(
        self, waves: Tensor, wave_lens: Tensor, texts: Sequence[str]
    ) -> dict[str, TeacherOutput]:
        """Return the k best tokens of each frame of 40 ms.

        Args:
          waves:     (N, S) float32, 16 kHz, in [-1, 1].
          wave_lens: (N,) int64, valid samples.
          texts:     N transcripts; one that is empty, or has more tokens than there
                     are frames, is not used.
        Raises:
          ValueError: if the shapes do not fit.
        """
        check_waves(waves, wave_lens)
        encoded, lens = self.ensemble.encode(self._hear(waves, wave_lens))
        said = {}
        if f"{self.name}_ctc" in self.outputs:
            x = pack_topk(self.ensemble.ctc(encoded), self.topk)
            mask = make_pad_mask(lens, x.size(1)).unsqueeze(-1)
            said[f"{self.name}_ctc"] = TeacherOutput(x.masked_fill(mask, 0.0), lens)
        if f"{self.name}_path" in self.outputs:
            said[f"{self.name}_path"] = self.paths(encoded, lens, texts)
        return said

    def _hear(self, waves: Tensor, wave_lens: Tensor) -> dict[str, Any]:
        """Return the members' outputs in the form of a batch of cached fields."""
        device = next(self.model.parameters()).device
        fields: dict[str, dict[str, Any]] = {}
        for member in self.members:
            for field, output in member.forward(waves, wave_lens).items():
                fields[field] = {
                    "x": output.x.to(device),
                    "lens": output.lens.to(device),
                    "frame_shift": self._shifts[field],
                }
        frames = torch.tensor([num_frames(n) for n in wave_lens.tolist()])
        return {"fields": fields, "feature_lens": frames.to(device)}


def _load(
    path: Path, device: str, said: Mapping[str, Output], outputs: Sequence[str]
) -> tuple:
    """Return an adapter and its tokenizer.

    Raises:
      ValueError: as :class:`VocabularyTeacher`.
    """
    model, tokenizer, info = load_model(path, device)
    if not model.fields or not set(model.fields) <= set(said):
        raise ValueError(
            f"{path} reads the fields {list(model.fields)}, its members compute "
            f"{sorted(said)}; give it the members that it was trained on"
        )
    if tokenizer is None:
        raise ValueError(f"{path} carries no BPE model; it saw no text in training")
    for kind in outputs:
        check_head(model, HEAD_OF[kind], info, str(path))
    return model, tokenizer


def _one_or_all(items: Sequence[str]) -> Any:
    return items[0] if len(items) == 1 else list(items)
