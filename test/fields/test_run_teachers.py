"""Batches of teachers, and teachers of Hugging Face through an extraction."""

import numpy as np
import pytest
import torch
from lhotse import CutSet
from lhotse.dataset.collation import collate_audio
from loudness import Loudness
from small_encoders import write_small

from icefall_kd.dataset.fields import LiveTeachers
from icefall_kd.fields.codecs import make_codec
from icefall_kd.fields.extract import extract
from icefall_kd.fields.reader import load_field, open_shar
from icefall_kd.fields.run_teachers import run_teachers
from icefall_kd.teachers import Teacher, TeacherOutput, build_teachers

FIELD = "whisper_tiny_en"


@pytest.mark.parametrize("max_batch_duration", [0.1, 3.0, 1000.0])
def test_order_and_values_do_not_depend_on_the_batches(
    pristine_shar, tiny, max_batch_duration
):
    cuts = list(open_shar(pristine_shar))
    results = list(run_teachers(cuts, [tiny], max_batch_duration))
    assert [cut_id for cut_id, _ in results] == [cut.id for cut in cuts]
    for (_, arrays), cut in zip(results, cuts):
        wave = torch.from_numpy(cut.load_audio())
        expected = tiny.forward(wave, torch.tensor([wave.shape[1]]))[FIELD].x[0]
        np.testing.assert_allclose(
            arrays[FIELD], expected.numpy(), atol=1e-3, rtol=1e-3
        )


def test_batches_are_not_longer_than_the_maximum(pristine_shar, tiny):
    shapes = []

    class Recorder(Teacher):
        name, outputs = tiny.name, tiny.outputs

        def forward(self, waves, lens):
            shapes.append(waves.shape)
            return tiny.forward(waves, lens)

    list(run_teachers(open_shar(pristine_shar), [Recorder()], 8.0))
    assert max(n * s for n, s in shapes) <= 8.0 * 16000
    assert max(n for n, _ in shapes) > 1


def test_audio_of_another_form_is_refused(pristine_shar, tiny):
    cut = next(iter(open_shar(pristine_shar)))
    with pytest.raises(ValueError, match=f"'{cut.id}' .*8000 Hz"):
        list(run_teachers([cut.resample(8000)], [tiny], 10.0))
    later = cut.truncate(offset=0.5, preserve_id=True)
    with pytest.raises(ValueError, match=f"'{cut.id}' starts at 0.5 s"):
        list(run_teachers([later], [tiny], 10.0))


def test_several_teachers_in_one_pass_are_read_back(shar, tmp_path):
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
    infos, summary = extract(shar, teachers)
    assert sorted(infos) == ["wavlm_layer1", "wavlm_layer3", "whisper"]
    assert (summary.shards_done, summary.shards_kept) == (12, 0)
    cuts = list(open_shar(shar, list(infos)))
    assert len(cuts) == 18
    for cut in cuts:
        wave = torch.from_numpy(cut.load_audio())
        for teacher in teachers:
            outputs = teacher.forward(wave, torch.tensor([wave.shape[1]]))
            for field, output in outputs.items():
                stored = load_field(cut, field, make_codec("fp16"))
                # Lhotse rounds the duration to frames and may drop half a frame.
                assert 0 <= output.x.shape[1] - len(stored) <= 1
                expected = output.x[0, : len(stored)].numpy()
                np.testing.assert_allclose(stored, expected, atol=2e-2, rtol=2e-3)


def test_existing_layers_are_kept_when_others_are_added(shar, tmp_path):
    folder = write_small(tmp_path / "hubert", "hubert_base")
    hubert = {"family": "hugging_face", "model_dir": folder}
    extract(shar, build_teachers({"h": {**hubert, "layers": [1, 2]}}))
    teachers = build_teachers({"h": {**hubert, "layers": [2, 3]}})
    _, summary = extract(shar, teachers)
    assert (summary.shards_done, summary.shards_kept) == (4, 4)


class Changed(Loudness):
    """Changes the output ``loudness``."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def forward(self, waves, wave_lens):
        outputs = super().forward(waves, wave_lens)
        loudness = outputs["loudness"]
        return {
            **outputs,
            "loudness": TeacherOutput(self.change(loudness.x), loudness.lens),
        }


def test_a_wrong_output_is_refused_in_extraction_and_training(shar):
    teacher = Changed(lambda x: x[..., :3])
    expected = r"teacher 'loudness', field 'loudness': .*, 3\) for cut '{}'.* dim 4"
    cuts = list(open_shar(shar))
    with pytest.raises(ValueError, match=expected.format("[^']+")):
        extract(shar, [teacher])
    waves, lens = collate_audio(CutSet.from_cuts(cuts[:2]))
    batch = {"waves": waves, "wave_lens": lens, "cuts": cuts[:2], "text": ["", ""]}
    with pytest.raises(ValueError, match=expected.format(cuts[0].id)):
        LiveTeachers([teacher], ["loudness"])(batch)


def test_statistics_of_a_live_field_refuse_values_that_are_not_finite(shar):
    teacher = Changed(lambda x: x / 0.0)
    with pytest.raises(ValueError, match="field 'loudness': .*NaN.* for cut '[^']+'"):
        LiveTeachers([teacher], ["loudness"]).describe_fields([shar])
