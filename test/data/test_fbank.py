import numpy as np
import pytest
import torch

from icefall_kd.data.features import compute_fbank, num_frames
from icefall_kd.fields.reader import open_shar


@pytest.fixture(scope="module")
def waves(asterisk):
    cuts = [cut for cut, _ in zip(open_shar(asterisk / "data/shar/test"), range(20))]
    return [torch.from_numpy(cut.load_audio()[0]) for cut in cuts]


def kaldi_native(wave):
    """What sherpa-onnx computes."""
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


def kaldifeat(wave):
    kaldifeat = pytest.importorskip("kaldifeat")
    options = kaldifeat.FbankOptions()
    options.frame_opts.dither = 0.0
    options.frame_opts.snip_edges = False
    options.mel_opts.num_bins = 80
    options.mel_opts.high_freq = -400.0
    return kaldifeat.Fbank(options)(wave)


@pytest.mark.parametrize("other", [kaldi_native, kaldifeat])
def test_other_implementations_agree_on_real_speech(waves, other):
    for wave in waves:
        ours, theirs = compute_fbank([wave])[0], other(wave)
        assert ours.shape == theirs.shape
        difference = (ours - theirs).abs()
        # Below e^-12 there is only the rounding of float32 sums, which differs.
        assert difference[ours > -12].max() < 1e-3
        assert difference.max() < 1e-2
        assert difference.mean() < 1e-4


def test_shape_and_type_are_as_documented():
    for samples in (400, 401, 479, 480, 16000, 16079, 16080):
        (features,) = compute_fbank([torch.randn(samples)])
        assert (
            features.shape == (num_frames(samples), 80) == ((samples + 80) // 160, 80)
        )
        assert features.dtype == torch.float32
        assert features.isfinite().all()


def test_wave_does_not_depend_on_its_neighbours(waves):
    together = compute_fbank(waves[:3])
    for wave, features in zip(waves, together):
        assert torch.equal(compute_fbank([wave])[0], features)


@pytest.mark.parametrize("shape", [(0,), (399,), (1, 16000)])
def test_wave_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match="S >= 400"):
        compute_fbank([torch.zeros(shape)])


@pytest.mark.gpu
def test_cuda_gives_the_same_as_the_cpu(waves):
    for cpu, cuda in zip(compute_fbank(waves), compute_fbank(waves, "cuda")):
        assert cuda.is_cuda
        assert (cpu - cuda.cpu())[cpu > -12].abs().max() < 1e-3


def test_features_are_the_same_to_the_bit_with_any_number_of_threads(waves):
    results = []
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        results.append(compute_fbank(waves))
        assert torch.get_num_threads() == threads
    for others in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], others))
