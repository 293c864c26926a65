"""Hugging Face encoders through the extraction and back."""

import numpy as np
import torch
from small_encoders import write_small

from icefall_kd.fields.codecs import make_codec
from icefall_kd.fields.extract import extract
from icefall_kd.fields.reader import load_field, open_shar
from icefall_kd.teachers import build_teachers

FP16 = make_codec("fp16")


def test_two_teachers_in_one_pass_are_read_back_as_they_spoke(shar, tmp_path):
    described = {
        "wavlm": {
            "family": "hugging_face",
            "model_dir": write_small(tmp_path / "wavlm", "wavlm_large"),
            "layers": [1, -1],
        },
        "whisper": {
            "family": "hugging_face",
            "model_dir": write_small(tmp_path / "whisper", "whisper"),
            "layers": [1, 2],
            "layer_weights": [0.5, 0.5],
        },
    }
    teachers = build_teachers(described)
    infos, report = extract(shar, teachers)
    assert sorted(infos) == ["wavlm_layer1", "wavlm_layer3", "whisper"]
    assert (report.shards_done, report.shards_kept) == (12, 0)
    cuts = list(open_shar(shar, list(infos)))
    assert len(cuts) == 18
    for cut in cuts:
        wave = torch.from_numpy(cut.load_audio())
        for teacher in teachers:
            said = teacher.forward(wave, torch.tensor([wave.shape[1]]))
            for field, output in said.items():
                stored = load_field(cut, field, FP16)
                # lhotse rounds the duration to frames: half a frame may fall off.
                assert 0 <= output.x.shape[1] - len(stored) <= 1
                expected = output.x[0, : len(stored)].numpy()
                np.testing.assert_allclose(stored, expected, atol=2e-2, rtol=2e-3)


def test_a_second_run_with_other_layers_keeps_those_that_are_there(shar, tmp_path):
    folder = write_small(tmp_path / "hubert", "hubert_base")
    hubert = {"family": "hugging_face", "model_dir": folder}
    extract(shar, build_teachers({"h": {**hubert, "layers": [1, 2]}}))
    teachers = build_teachers({"h": {**hubert, "layers": [2, 3]}})
    _, report = extract(shar, teachers)
    assert (report.shards_done, report.shards_kept) == (4, 4)
