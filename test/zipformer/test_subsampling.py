"""Conv2dSubsampling: lengths, layout and streaming."""

import pytest
import torch

from icefall_kd.zipformer.subsampling import (
    Conv2dSubsampling,
    conv2d_subsampling_lens,
    encoder_output_lens,
)


@pytest.mark.parametrize("num_frames", [9, 10, 11, 12, 57, 300])
def test_lengths_match_the_output(num_frames):
    front = Conv2dSubsampling(80, 16, (2, 4, 8), 1).eval()
    lens = torch.tensor([num_frames])
    with torch.no_grad():
        y, out = front(torch.randn(1, num_frames, 80), lens)
    assert y.shape == (1, conv2d_subsampling_lens(num_frames), 16)
    assert out.tolist() == [conv2d_subsampling_lens(num_frames)]


def test_lengths_of_ints_and_tensors_are_equal():
    lens = torch.arange(9, 400)
    expected = [((n - 7) // 2 + 1) // 2 for n in lens.tolist()]
    assert encoder_output_lens(lens).tolist() == expected
    assert [encoder_output_lens(n) for n in lens.tolist()] == expected


def test_gradients_do_not_depend_on_the_memory_layout():
    torch.manual_seed(0)
    front = Conv2dSubsampling(20, 6, (2, 4, 8), 2).double().eval()
    x = torch.randn(2, 15, 20, dtype=torch.float64)
    with torch.no_grad():
        plain, _ = front(x, torch.tensor([15, 15]))
    y, _ = front(x.transpose(1, 2).contiguous().transpose(1, 2), torch.tensor([15, 15]))
    torch.testing.assert_close(y.detach(), plain)
    assert torch.autograd.gradcheck(
        lambda x: front(x, torch.tensor([15, 15]))[0].sum((0, 1)),
        x[:1, :9].clone().requires_grad_(),
        atol=1e-6,
    )


def test_all_convolutions_return_channels_last():
    front = Conv2dSubsampling(80, 16, (8, 16, 32), 1)
    formats = []
    for conv in front.conv.values():
        conv.register_forward_hook(
            lambda module, inputs, y: formats.append(
                y.is_contiguous(memory_format=torch.channels_last)
            )
        )
    front(torch.randn(2, 60, 80), torch.tensor([60, 60]))
    assert formats == [True, True, True]


def test_streaming_windows_equal_the_full_pass():
    torch.manual_seed(0)
    front = Conv2dSubsampling(80, 16, (2, 4, 8), 1).eval()
    x = torch.randn(2, 8 * 10 + 13, 80)
    cache = front.init_cache(2, x.device)
    parts = []
    with torch.no_grad():
        full, _ = front(x, torch.tensor([93, 93]))
        for start in range(0, 80, 16):
            y, cache = front.streaming_forward(x[:, start : start + 29], cache)
            parts.append(y)
    y = torch.cat(parts, dim=1)
    torch.testing.assert_close(y, full[:, : y.shape[1]], atol=1e-5, rtol=1e-5)


def test_streaming_cache_has_sherpa_onnx_shape():
    front = Conv2dSubsampling(80, 16, (4, 8, 128), 1)
    assert front.init_cache(3, "cpu").shape == (3, 128, 3, 19)


def test_too_few_mel_bins_are_refused():
    with pytest.raises(ValueError, match="feature_dim"):
        Conv2dSubsampling(6, 16)
