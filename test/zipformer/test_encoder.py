"""Zipformer2: shapes, masks, chunks and gradients."""

import pytest
import torch

from icefall_kd.core.frames import make_pad_mask
from icefall_kd.zipformer.encoder import convert_num_channels, make_chunk_mask
from icefall_kd.zipformer.scaling import find_schedules, set_batch_count


def encode(embed, encoder, x, lens):
    """Return the encoder's output for fbank, and its lengths."""
    y, lens = embed(x, lens)
    mask = make_pad_mask(lens, y.shape[1])
    y, lens, _ = encoder(y, lens, mask)
    return y, lens


def test_chunk_mask_allows_the_chunk_and_its_left_context():
    mask = make_chunk_mask(6, 2, 2, "cpu")
    visible = [[s for s in range(6) if not mask[t, s]] for t in range(6)]
    assert visible == [
        [0, 1],
        [0, 1],
        [0, 1, 2, 3],
        [0, 1, 2, 3],
        [2, 3, 4, 5],
        [2, 3, 4, 5],
    ]
    assert not make_chunk_mask(6, 2, -1, "cpu")[5, 0]
    assert not make_chunk_mask(6, 2, 1, "cpu")[2, 0]  # at least one chunk


def test_convert_num_channels_cuts_or_pads_with_zeros():
    x = torch.ones(1, 2, 3)
    assert convert_num_channels(x, 2).shape == (1, 2, 2)
    assert convert_num_channels(x, 5)[0, 0].tolist() == [1, 1, 1, 0, 0]


def test_output_has_the_largest_dimension_and_half_the_frames(make_encoder):
    embed, encoder = make_encoder()
    lens = torch.tensor([100, 80])
    with torch.no_grad():
        y, out = encode(embed, encoder, torch.randn(2, 100, 80), lens)
    assert y.shape == (2, 23, 32)
    assert out.tolist() == [23, 18]


def test_stacks_are_returned_at_the_input_frame_rate(make_encoder):
    _, encoder = make_encoder()
    with torch.no_grad():
        _, _, stacks = encoder(torch.randn(2, 30, 16), torch.tensor([30, 30]))
    assert [s.shape for s in stacks] == [(2, 30, 16), (2, 30, 32), (2, 30, 24)]


def test_causal_frames_do_not_depend_on_later_chunks(make_encoder):
    embed, encoder = make_encoder(
        causal=True, chunk_size=(8,), left_context_frames=(16,)
    )
    x = torch.randn(1, 64, 16)
    changed = x.clone()
    changed[:, 32:] = 9.0
    lens = torch.tensor([64])
    with torch.no_grad():
        a, b = encoder(x, lens)[0], encoder(changed, lens)[0]
    torch.testing.assert_close(a[:, :16], b[:, :16])
    assert (a[:, 16:] - b[:, 16:]).abs().max() > 0.01


def test_padding_changes_no_earlier_chunk_of_a_causal_encoder(make_encoder):
    embed, encoder = make_encoder(
        causal=True, chunk_size=(8,), left_context_frames=(16,)
    )
    x = torch.randn(2, 61 + 40, 80)
    lens = torch.tensor([101, 61])  # 47 and 27 frames at 50 Hz
    with torch.no_grad():
        both, _ = encode(embed, encoder, x, lens)
        alone, _ = encode(embed, encoder, x[1:, :61], lens[1:])
    # The front end has 3 frames of right context, so the third chunk differs.
    torch.testing.assert_close(both[1:, :8], alone[:, :8], atol=1e-5, rtol=1e-5)


def test_output_is_the_same_with_and_without_gradients(make_encoder):
    embed, encoder = make_encoder()
    x, lens = torch.randn(2, 90, 80), torch.tensor([90, 70])
    with torch.no_grad():
        expected, _ = encode(embed, encoder, x, lens)
    ours, _ = encode(embed, encoder, x, lens)
    torch.testing.assert_close(ours.detach(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("batch_count", [0, 50000])
@pytest.mark.parametrize("autocast", [False, True])
def test_training_gives_every_parameter_a_finite_gradient(
    make_encoder, causal, batch_count, autocast
):
    chunks = dict(causal=True, chunk_size=(8, 16, -1), left_context_frames=(16, -1))
    embed, encoder = make_encoder(**(chunks if causal else {}))
    model = torch.nn.ModuleList([embed, encoder]).train()
    set_batch_count(model, batch_count)
    got = set()
    for _ in range(6):
        model.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y, _ = encode(
                embed, encoder, torch.randn(3, 80, 80), torch.tensor([80, 60, 50])
            )
        y.float().square().sum().backward()
        for name, p in model.named_parameters():
            if p.grad is not None:
                assert p.grad.isfinite().all(), name
                assert p.grad.dtype == torch.float32
                got.add(name)
    assert got == {name for name, _ in model.named_parameters()}


def test_training_draws_chunks_and_evaluation_uses_the_first(make_encoder):
    _, encoder = make_encoder(
        causal=True, chunk_size=(8, 16, -1), left_context_frames=(16, 32)
    )
    assert encoder.get_chunk_info() == (8, 16)
    encoder.set_chunk(-1)
    assert encoder.get_chunk_info() == (-1, -1)
    drawn = {encoder.train().get_chunk_info() for _ in range(200)}
    assert drawn == {(c, left) for c in (8, 16, -1) for left in (16, 32)}


def test_warmup_hours_stretch_all_schedules(make_encoder):
    embed, encoder = make_encoder(warmup_hours=1000 / 15)  # a tenth of icefall's
    found = [*find_schedules(embed), *find_schedules(encoder)]
    assert len(found) > 50
    assert all(schedule.stretch == pytest.approx(0.1) for schedule in found)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(chunk_size=(8,)), "causal"),
        (dict(causal=True, chunk_size=(6,)), "chunk_size 6"),
        (dict(encoder_unmasked_dim=(16, 33, 16)), "encoder_unmasked_dim"),
        (dict(cnn_module_kernel=(15, 8, 15)), "cnn_module_kernel"),
    ],
)
def test_wrong_sizes_are_refused(make_encoder, changes, message):
    with pytest.raises(ValueError, match=message):
        make_encoder(**changes)
