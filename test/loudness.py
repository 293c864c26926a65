"""A fast teacher that returns the loudness of each 20 ms, as embedding and ctc."""

from collections.abc import Mapping

import torch
from torch import Tensor

from icefall_kd.core.frames import pack_topk
from icefall_kd.teachers import Output, Teacher, TeacherOutput

FRAME = 320  # samples
VOCABULARY = 6
LOUD = 4  # token of frames above THRESHOLD; other frames are blank
THRESHOLD = 0.05  # root mean square


class Loudness(Teacher):
    """Writes the fields ``loudness`` (embedding) and ``loud_ctc`` (ctc)."""

    name = "loudness"

    def __init__(self, version: int = 1) -> None:
        info = {"teacher": "loudness", "version": version}
        self.outputs: Mapping[str, Output] = {
            "loudness": Output("embedding", 4, 0.02, {**info, "layer": "rms"}),
            "loud_ctc": Output("ctc", 7, 0.02, {**info, "layer": "head"}),
        }

    def forward(self, waves: Tensor, wave_lens: Tensor) -> dict[str, TeacherOutput]:
        """See :class:`icefall_kd.teachers.Teacher`."""
        waves = torch.nn.functional.pad(waves, (0, -waves.shape[1] % FRAME))
        blocks = waves.unflatten(1, (-1, FRAME))  # (N, T, S)
        rms = blocks.square().mean(dim=2).sqrt()
        peak = blocks.abs().amax(dim=2)
        spread, mean = blocks.std(dim=2), blocks.mean(dim=2)
        logits = torch.zeros(*rms.shape, VOCABULARY)
        logits[..., 0] = 6.0 * (rms < THRESHOLD)
        logits[..., LOUD] = 6.0 * (rms >= THRESHOLD)
        lens = -(-wave_lens // FRAME)
        return {
            "loudness": TeacherOutput(torch.stack([rms, peak, spread, mean], 2), lens),
            "loud_ctc": TeacherOutput(pack_topk(logits.log_softmax(-1), 3), lens),
        }
