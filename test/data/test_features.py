"""Log-mel features and SpecAugment."""

import random

import numpy as np
import pytest
import torch

from icefall_kd.data.features import SpecAugment, batch_seed, compute_fbank, num_frames
from icefall_kd.fields.reader import open_shar


@pytest.fixture(scope="module")
def waves(asterisk):
    cuts = [cut for cut, _ in zip(open_shar(asterisk / "data/shar/test"), range(20))]
    return [torch.from_numpy(cut.load_audio()[0]) for cut in cuts]


def compute_kaldi_native(wave):
    """Return the fbank as sherpa-onnx computes it."""
    import kaldi_native_fbank

    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.samp_freq = 16000
    options.frame_opts.dither = 0.0
    options.frame_opts.snip_edges = False
    options.mel_opts.num_bins = 80
    options.mel_opts.high_freq = -400.0
    fbank = kaldi_native_fbank.OnlineFbank(options)
    fbank.accept_waveform(16000, wave.tolist())
    fbank.input_finished()
    frames = [fbank.get_frame(i) for i in range(fbank.num_frames_ready)]
    return torch.from_numpy(np.stack(frames))


def compute_kaldifeat(wave):
    kaldifeat = pytest.importorskip("kaldifeat")
    options = kaldifeat.FbankOptions()
    options.frame_opts.dither = 0.0
    options.frame_opts.snip_edges = False
    options.mel_opts.num_bins = 80
    options.mel_opts.high_freq = -400.0
    return kaldifeat.Fbank(options)(wave)


@pytest.mark.parametrize("other", [compute_kaldi_native, compute_kaldifeat])
def test_other_implementations_agree_on_real_speech(waves, other):
    for wave in waves:
        ours, theirs = compute_fbank([wave])[0], other(wave)
        assert ours.shape == theirs.shape
        difference = (ours - theirs).abs()
        # Values below e^-12 are rounding errors of float32 sums.
        assert difference[ours > -12].max() < 1e-3
        assert difference.max() < 1e-2
        assert difference.mean() < 1e-4


def test_features_have_the_documented_shape_and_type():
    for samples in (400, 401, 479, 480, 16000, 16079, 16080):
        (features,) = compute_fbank([torch.randn(samples)])
        assert (
            features.shape == (num_frames(samples), 80) == ((samples + 80) // 160, 80)
        )
        assert features.dtype == torch.float32
        assert features.isfinite().all()


def test_features_do_not_depend_on_the_batch(waves):
    together = compute_fbank(waves[:3])
    for wave, features in zip(waves, together):
        assert torch.equal(compute_fbank([wave])[0], features)


@pytest.mark.parametrize("shape", [(0,), (399,), (1, 16000)])
def test_waves_of_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="S >= 400"):
        compute_fbank([torch.zeros(shape)])


@pytest.mark.gpu
def test_cuda_and_cpu_agree(waves):
    for cpu, cuda in zip(compute_fbank(waves), compute_fbank(waves, "cuda")):
        assert cuda.is_cuda
        assert (cpu - cuda.cpu())[cpu > -12].abs().max() < 1e-3


def test_features_do_not_depend_on_the_number_of_threads(waves):
    results = []
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        results.append(compute_fbank(waves))
        assert torch.get_num_threads() == threads
    for others in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], others))


LENS = torch.tensor([300, 120, 9])


@pytest.fixture
def features():
    torch.manual_seed(0)
    x = torch.randn(3, 300, 80)
    for i, length in enumerate(LENS):
        x[i, length:] = -23.0
    return x


def test_spec_augment_does_not_change_padding(features):
    masked = SpecAugment(p=1.0)(features, LENS, seed=1)
    for i, length in enumerate(LENS):
        assert torch.equal(masked[i, length:], features[i, length:])


def test_mel_bins_and_frames_are_masked(features):
    masked = SpecAugment(p=1.0)(features, LENS, seed=1)
    changed = masked[0] != features[0]
    assert 0.0 < changed.float().mean() < 0.9
    assert changed.all(dim=0).any() or changed.all(dim=1).any()


def test_masks_depend_only_on_the_seed(features):
    augment = SpecAugment(p=1.0)
    first = augment(features, LENS, seed=1)
    assert torch.equal(first, augment(features, LENS, seed=1))
    assert not torch.equal(first, augment(features, LENS, seed=2))


def test_spec_augment_keeps_the_random_state_of_its_caller(features):
    torch.manual_seed(5)
    random.seed(5)
    expected = torch.rand(1), random.random()
    torch.manual_seed(5)
    random.seed(5)
    SpecAugment()(features, LENS, seed=1)
    assert (torch.rand(1), random.random()) == expected


def test_spec_augment_does_not_change_its_input(features):
    before = features.clone()
    SpecAugment(p=1.0)(features, LENS, seed=1)
    assert torch.equal(features, before)


def test_spec_augment_with_probability_zero_changes_nothing(features):
    assert torch.equal(SpecAugment(p=0.0)(features, LENS, seed=1), features)


def test_time_warp_is_off_by_default(features):
    assert SpecAugment().time_warp == 0


def test_features_and_lens_of_other_shapes_are_refused(features):
    with pytest.raises(ValueError, match=r"\(3, 300, 80\)"):
        SpecAugment()(features, LENS[:2])


def test_seed_of_a_batch_depends_on_epoch_and_cuts():
    seeds = {
        batch_seed(s, e, ids) for s in (0, 1) for e in (0, 1) for ids in ("a", "b")
    }
    assert len(seeds) == 8
