import random

import pytest
import torch

from icefall_kd.data.features import SpecAugment, batch_seed

LENS = torch.tensor([300, 120, 9])


@pytest.fixture
def features():
    torch.manual_seed(0)
    x = torch.randn(3, 300, 80)
    for i, length in enumerate(LENS):
        x[i, length:] = -23.0
    return x


def test_padding_is_never_touched(features):
    masked = SpecAugment(p=1.0)(features, LENS, seed=1)
    for i, length in enumerate(LENS):
        assert torch.equal(masked[i, length:], features[i, length:])


def test_valid_frames_are_masked_by_bands_and_spans(features):
    masked = SpecAugment(p=1.0)(features, LENS, seed=1)
    changed = masked[0] != features[0]
    assert 0.0 < changed.float().mean() < 0.9
    assert changed.all(dim=0).any() or changed.all(dim=1).any()


def test_same_seed_gives_the_same_masks_and_another_others(features):
    augment = SpecAugment(p=1.0)
    first = augment(features, LENS, seed=1)
    assert torch.equal(first, augment(features, LENS, seed=1))
    assert not torch.equal(first, augment(features, LENS, seed=2))


def test_callers_random_state_is_left_alone(features):
    torch.manual_seed(5)
    random.seed(5)
    expected = torch.rand(1), random.random()
    torch.manual_seed(5)
    random.seed(5)
    SpecAugment()(features, LENS, seed=1)
    assert (torch.rand(1), random.random()) == expected


def test_input_is_not_changed_in_place(features):
    before = features.clone()
    SpecAugment(p=1.0)(features, LENS, seed=1)
    assert torch.equal(features, before)


def test_probability_zero_changes_nothing(features):
    assert torch.equal(SpecAugment(p=0.0)(features, LENS, seed=1), features)


def test_time_warp_is_off_by_default(features):
    assert SpecAugment().time_warp == 0


def test_wrong_shapes_are_refused(features):
    with pytest.raises(ValueError, match=r"\(3, 300, 80\)"):
        SpecAugment()(features, LENS[:2])


def test_seed_of_a_batch_depends_on_epoch_and_cuts():
    seeds = {
        batch_seed(s, e, ids) for s in (0, 1) for e in (0, 1) for ids in ("a", "b")
    }
    assert len(seeds) == 8
