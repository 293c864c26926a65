"""A teacher in our vocabulary: foundation models under a trained adapter.

Its members speak, ``transducer.adapter`` listens, and what comes out are the student's
own tokens at the student's own frame times.
"""

from pathlib import Path
from typing import Any, Dict, Mapping, Union

import torch
from torch import Tensor

from icefall_kd import ENCODER_SHIFT
from icefall_kd.cache.topk import take_topk
from icefall_kd.data.fbank import num_frames
from icefall_kd.io import sha256_file
from icefall_kd.teachers.protocol import Output, TeacherOutput, check_waves
from icefall_kd.training.checkpoint import load_model


class AdaptedTeacher:
    """CTC distributions of an adapter over other teachers.

    Args:
      name:      of the teacher; its field is ``<name>_ctc``.
      model_dir: checkpoint of the adapter, as ``bin.average`` writes it.
      members:   name -> description of each teacher that it hears, see
                 :func:`icefall_kd.teachers.build_teachers`.
      topk:      tokens kept of each frame.
      device:    "cpu" or "cuda".
      num_threads: CPU threads of the members.
    Raises:
      FileNotFoundError: if there is no such checkpoint.
      ValueError: if it is no adapter, or its fields are not those of the members.
    """

    def __init__(
        self,
        name: str,
        model_dir: Union[str, Path],
        members: Mapping[str, Mapping[str, Any]],
        topk: int = 16,
        device: str = "cpu",
        num_threads: int = 1,
    ) -> None:
        from icefall_kd.teachers import build_teachers

        path = Path(model_dir)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such checkpoint of an adapter")
        self.name = name
        self.topk = topk
        common = {"device": device, "num_threads": num_threads}
        self.members = build_teachers({n: {**common, **m} for n, m in members.items()})
        self.model, self.tokenizer, _ = load_model(path, device)
        said = {f: o for t in self.members for f, o in t.outputs.items()}
        if not self.model.fields or not set(self.model.fields) <= set(said):
            raise ValueError(
                f"{path} hears the fields {list(self.model.fields)}, its members say "
                f"{sorted(said)}; give it the members that it was trained on"
            )
        self._shifts = {f: o.frame_shift for f, o in said.items()}
        fingerprint = {
            "teacher": name,
            "family": "adapter",
            "model_sha256": sha256_file(path),
            "topk": topk,
            "members": {f: said[f].fingerprint for f in self.model.fields},
        }
        width = 2 * topk + 1
        output = Output("ctc", width, ENCODER_SHIFT, fingerprint)
        self.outputs = {f"{name}_ctc": output}

    @torch.no_grad()
    def forward(self, waves: Tensor, wave_lens: Tensor) -> Dict[str, TeacherOutput]:
        """Return the k best tokens of each frame of 40 ms.

        Args:
          waves:     (N, S) float32, 16 kHz, in [-1, 1].
          wave_lens: (N,) int64, valid samples.
        Raises:
          ValueError: if the shapes do not fit.
        """
        check_waves(waves, wave_lens)
        x, lens = self.model.inputs(self._hear(waves, wave_lens))
        encoder_out, lens = self.model.forward_encoder(x, lens)
        frames = take_topk(self.model.ctc_output(encoder_out), self.topk)
        valid = torch.arange(frames.size(1), device=lens.device) < lens.unsqueeze(1)
        return {f"{self.name}_ctc": TeacherOutput(frames * valid.unsqueeze(-1), lens)}

    def _hear(self, waves: Tensor, wave_lens: Tensor) -> Dict[str, Any]:
        """Return the members' outputs in the form of a batch of cached fields."""
        device = next(self.model.parameters()).device
        fields: Dict[str, Dict[str, Any]] = {}
        for member in self.members:
            for field, output in member.forward(waves, wave_lens).items():
                fields[field] = {
                    "x": output.x.to(device),
                    "lens": output.lens.to(device),
                    "frame_shift": self._shifts[field],
                }
        frames = torch.tensor([num_frames(n) for n in wave_lens.tolist()])
        return {"fields": fields, "feature_lens": frames.to(device)}
