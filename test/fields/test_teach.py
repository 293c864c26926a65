import numpy as np
import pytest
import torch

from icefall_kd.fields.reader import open_shar
from icefall_kd.fields.run_teachers import run_teachers

FIELD = "whisper_tiny_en"


@pytest.mark.parametrize("max_batch_duration", [0.1, 3.0, 1000.0])
def test_order_and_values_do_not_depend_on_the_batches(
    pristine_shar, tiny, max_batch_duration
):
    cuts = list(open_shar(pristine_shar))
    found = list(run_teachers(cuts, [tiny], max_batch_duration))
    assert [cut_id for cut_id, _ in found] == [cut.id for cut in cuts]
    for (_, said), cut in zip(found, cuts):
        wave = torch.from_numpy(cut.load_audio())
        alone = tiny.forward(wave, torch.tensor([wave.shape[1]]))[FIELD].x[0]
        np.testing.assert_allclose(said[FIELD], alone.numpy(), atol=1e-3, rtol=1e-3)


def test_no_batch_is_longer_than_allowed(pristine_shar, tiny):
    sizes = []

    class Spy:
        def forward(self, waves, lens):
            sizes.append(waves.shape)
            return tiny.forward(waves, lens)

    list(run_teachers(open_shar(pristine_shar), [Spy()], 8.0))
    assert max(n * s for n, s in sizes) <= 8.0 * 16000
    assert max(n for n, _ in sizes) > 1


def test_audio_of_another_form_is_refused_by_name(pristine_shar, tiny):
    cut = next(iter(open_shar(pristine_shar)))
    with pytest.raises(ValueError, match=f"'{cut.id}' is 8000 Hz"):
        list(run_teachers([cut.resample(8000)], [tiny], 10.0))
    later = cut.truncate(offset=0.5, preserve_id=True)
    with pytest.raises(ValueError, match=f"'{cut.id}' starts at 0.5 s"):
        list(run_teachers([later], [tiny], 10.0))
