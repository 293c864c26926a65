"""Word errors, bootstrap intervals and comparison of systems."""

import numpy as np
import pytest

from icefall_kd.recognition.scoring import (
    Recognition,
    compare_systems,
    count_errors,
    paired_difference,
    wer_interval,
)

RECOGNITIONS = [
    Recognition("b", "PRESS ONE NOW".split(), "PRESS NINE NOW PLEASE".split()),
    Recognition("a", "THE NUMBER IS BUSY".split(), "THE IS BUSY".split()),
    Recognition("c", "IT'S DONE".split(), []),
    Recognition("d", ["GOODBYE"], ["GOODBYE"]),
]


def test_errors_are_counted_by_kind():
    total = count_errors(RECOGNITIONS)
    assert (total.ins, total.dels, total.sub, total.correct) == (1, 3, 1, 6)
    assert (total.errors, total.words) == (5, 10)
    assert total.wer == 50.0


def test_systems_are_compared_by_utterance():
    perfect = [Recognition(r.cut_id, r.ref, r.ref) for r in RECOGNITIONS]
    gain = compare_systems([RECOGNITIONS], [perfect[::-1]])
    assert gain.difference == -50.0
    assert gain.probability > 0.98
    assert compare_systems([perfect], [RECOGNITIONS]).difference == 50.0


def test_systems_on_different_utterances_are_refused():
    changed = [Recognition(r.cut_id, [*r.ref, "MORE"], r.hyp) for r in RECOGNITIONS]
    for other in (RECOGNITIONS[:3], changed):
        with pytest.raises(ValueError, match="same utterances"):
            compare_systems([RECOGNITIONS], [other])


def test_interval_equals_normal_approximation():
    rng = np.random.RandomState(0)
    errors = rng.binomial(10, 0.2, size=400)
    words = np.full(400, 10)
    low, high = wer_interval(errors, words)
    mean = 10 * errors.mean()
    half = 1.96 * 10 * errors.std() / np.sqrt(400)
    assert low == pytest.approx(mean - half, abs=0.15)
    assert high == pytest.approx(mean + half, abs=0.15)


def test_interval_has_its_coverage():
    rng = np.random.RandomState(1)
    covered = 0
    for seed in range(200):
        errors = rng.binomial(8, 0.25, size=100)
        low, high = wer_interval(errors, [8] * 100, replications=500, seed=seed)
        covered += low <= 25.0 <= high
    assert 180 <= covered <= 199


def test_interval_is_reproducible():
    errors, words = list(range(20)), list(range(20, 40))
    assert wer_interval(errors, words) == wer_interval(errors, words)
    assert wer_interval(errors, words, seed=1) != wer_interval(errors, words, seed=2)


def test_resampling_does_not_depend_on_block_size(monkeypatch):
    errors, words = list(range(50)), [60] * 50
    expected = wer_interval(errors, words)
    monkeypatch.setattr("icefall_kd.recognition.scoring.BLOCK", 3000)
    assert wer_interval(errors, words) == expected


def test_equal_errors_have_interval_of_zero_width():
    assert wer_interval([1, 1, 1], [4, 4, 4]) == (25.0, 25.0)


def test_system_compared_with_itself_is_no_improvement():
    result = paired_difference([1, 2, 0], [1, 2, 0], [5, 5, 5])
    assert result.difference == 0
    assert result.interval == (0, 0)
    assert result.probability == 0.5


def test_pairing_detects_gain_within_overlapping_intervals():
    rng = np.random.RandomState(2)
    old = rng.binomial(20, rng.choice([0.05, 0.9], size=60))  # easy and hard utterances
    new = np.maximum(old - rng.binomial(1, 0.6, size=60), 0)
    words = [20] * 60
    assert wer_interval(old, words)[0] < wer_interval(new, words)[1]  # overlap
    result = paired_difference(old, new, words)
    assert result.probability > 0.999
    assert result.interval[1] < 0


def test_no_reference_words_are_refused():
    with pytest.raises(ValueError, match="no reference words"):
        wer_interval([], [])
    with pytest.raises(ValueError, match="no reference words"):
        wer_interval([1], [0])


def test_unpaired_systems_are_refused():
    with pytest.raises(ValueError, match="same utterances"):
        paired_difference([1, 2], [1], [3, 3])


def test_equal_runs_have_the_interval_of_one():
    errors, words = list(range(30)), [40] * 30
    assert wer_interval([errors] * 3, words) == pytest.approx(
        wer_interval(errors, words)
    )
    single = paired_difference(errors, errors[::-1], words)
    assert paired_difference([errors] * 2, [errors[::-1]] * 3, words) == single


def test_interval_includes_spread_of_runs():
    rng = np.random.RandomState(3)
    rates = rng.uniform(0.1, 0.3, size=30)
    runs = rng.binomial(10, rates[:, None], size=(30, 400))
    low, high = wer_interval(runs, [10] * 400)
    means = 10 * runs.mean(axis=1)
    half = 1.96 * means.std() / np.sqrt(30)
    assert low == pytest.approx(means.mean() - half, abs=0.3)
    assert high == pytest.approx(means.mean() + half, abs=0.3)
