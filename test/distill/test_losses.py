"""Losses of single frames, compared with slow versions on dense distributions."""

import pytest
import torch

from icefall_kd.core.frames import pack_topk, unpack_topk
from icefall_kd.distill.losses import (
    FRAME_LOSSES,
    cross_entropy,
    divergence,
    select_essence,
    squared_distance,
    sum_frame_loss,
)

VOCAB, K = 12, 4


@pytest.fixture
def frames():
    torch.manual_seed(0)
    student = torch.randn(3, 5, VOCAB, requires_grad=True)
    teacher = (3 * torch.randn(3, 5, VOCAB)).log_softmax(-1)
    return student, teacher


def test_squared_distance_equals_that_of_dense_vectors(frames):
    student, teacher = frames
    ids, values, tail = unpack_topk(pack_topk(teacher, K))
    found = squared_distance(student.log_softmax(-1), ids, values, tail)
    for n in range(3):
        for t in range(5):
            p, q = student[n, t].softmax(-1), torch.zeros(VOCAB)
            for i, v in zip(ids[n, t].tolist(), values[n, t].tolist()):
                q[i] = torch.tensor(v).exp()
            expected = ((p - q) ** 2).sum()
            torch.testing.assert_close(found[n, t], expected)
    assert 0 <= found.min() and found.max() <= 2


def test_divergence_treats_the_tail_as_one_token(frames):
    student, teacher = frames
    ids, values, tail = unpack_topk(pack_topk(teacher, K))
    found = divergence(student.log_softmax(-1), ids, values, tail)
    for n in range(3):
        for t in range(5):
            p, q = student[n, t].softmax(-1), teacher[n, t].exp()
            kept = ids[n, t].tolist()
            others = [i for i in range(VOCAB) if i not in kept]
            p = torch.cat([p[kept], p[others].sum()[None]])
            q = torch.cat([q[kept], q[others].sum()[None]])
            expected = (q * (q / p).log()).sum()
            torch.testing.assert_close(found[n, t], expected, atol=1e-5, rtol=1e-4)
    ids, values, tail = unpack_topk(pack_topk(teacher, VOCAB))
    found = divergence(student.log_softmax(-1), ids, values, tail)
    expected = (teacher.exp() * (teacher - student.log_softmax(-1))).sum(-1)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("distance", [squared_distance, divergence])
def test_a_distance_is_minimal_for_a_copy_of_the_teacher(frames, distance):
    _, teacher = frames
    ids, values, tail = unpack_topk(pack_topk(teacher, VOCAB))
    same = teacher.clone().requires_grad_()
    found = distance(same, ids, values, tail)
    torch.testing.assert_close(found, torch.zeros(3, 5), atol=1e-5, rtol=0)
    logits = teacher.clone().requires_grad_()
    distance(logits.log_softmax(-1), ids, values, tail).sum().backward()
    assert logits.grad.abs().max() < 1e-4


def test_the_essence_is_the_renormalised_best_tokens(frames):
    _, teacher = frames
    values = unpack_topk(pack_topk(teacher, 8))[1]
    weights = select_essence(values, size=3)
    assert (weights[..., 3:] == 0).all()
    expected = values[..., :3].exp() / values[..., :3].exp().sum(-1, keepdim=True)
    torch.testing.assert_close(weights[..., :3], expected)
    hard = select_essence(values, size=1)
    assert (hard[..., 0] == 1).all() and (hard[..., 1:] == 0).all()
    flat = select_essence(values, size=3, temperature=1e4)[..., :3]
    torch.testing.assert_close(flat, torch.full_like(flat, 1 / 3), atol=1e-3, rtol=0)


@pytest.mark.parametrize("mass", [0.5, 0.9, 1.0])
def test_the_essence_by_mass_is_the_fewest_tokens_that_reach_it(frames, mass):
    _, teacher = frames
    probs = unpack_topk(pack_topk(teacher, VOCAB))[1].exp()
    kept = select_essence(probs.log(), mass=mass) > 0
    for n in range(3):
        for t in range(5):
            count = int(kept[n, t].sum())
            assert count == VOCAB or probs[n, t, :count].sum() >= mass - 1e-5
            assert probs[n, t, : count - 1].sum() < mass


def test_cross_entropy_is_the_weighted_sum(frames):
    student, teacher = frames
    ids, values, _ = unpack_topk(pack_topk(teacher, K))
    weights = select_essence(values)
    found = cross_entropy(student.log_softmax(-1), ids, weights)
    n, t = 1, 2
    expected = -sum(
        w * student[n, t].log_softmax(-1)[i]
        for i, w in zip(ids[n, t].tolist(), weights[n, t])
    )
    torch.testing.assert_close(found[n, t], expected)


def test_arguments_out_of_range_are_refused():
    values = torch.zeros(1, 4)
    with pytest.raises(ValueError, match="size: 5 .*1..4"):
        select_essence(values, size=5)
    with pytest.raises(ValueError, match="mass: 0"):
        select_essence(values, mass=0.0)
    with pytest.raises(ValueError, match="temperature: -1"):
        select_essence(values, temperature=-1)


@pytest.mark.parametrize("kind", FRAME_LOSSES)
def test_frame_losses_refuse_different_shapes(kind):
    x, mask = torch.zeros(1, 2, 3), torch.zeros(1, 2).bool()
    assert sum_frame_loss(kind, x, x, mask)[1] == 2
    with pytest.raises(ValueError, match=r"\(1, 2, 3\).*\(1, 2, 4\)"):
        sum_frame_loss(kind, x, torch.zeros(1, 2, 4), mask)
