"""Runs of one system count together, and in nothing else than their mean."""

import pytest
from reported import CHUNKS, REFS, decoded

from icefall_kd.report.results import find_results, over_seeds, system_of
from icefall_kd.report.table import summarise


@pytest.fixture
def runs(tmp_path):
    """``runs("kd", 8, 16)``: results of as many runs, by their number of errors."""

    def make(system, *wrong, **options):
        results = []
        for number, errors in enumerate(wrong):
            name = f"{system}@{42 + number}" if number else system
            folder = tmp_path / name / "decode"
            decoded(folder, errors, **options)
            results += find_results(name, folder)
        return results

    return make


def test_a_seed_is_the_number_behind_the_last_at():
    assert system_of("a+b@43") == "a+b"
    assert [system_of(n) for n in ("a", "a@b", "a@")] == ["a", "a@b", "a@"]


def test_the_mean_stands_for_the_runs(runs):
    baseline, kd = over_seeds(runs("baseline", 32) + runs("kd", 8, 16, 12))
    assert [r.system for r in (baseline, kd)] == ["baseline", "kd"]
    assert baseline.facts["wer"] == 20.0  # 32 of 160 words
    assert kd.facts["wer"] == pytest.approx(7.5)
    assert kd.facts["interval"][0] < 7.5 < kd.facts["interval"][1]
    header, first, second = summarise([baseline, kd], "baseline").cells()
    first, second = dict(zip(header, first)), dict(zip(header, second))
    assert (first["of each run"], second["of each run"]) == ("", "5.0, 10.0, 7.5")
    assert second["WERR"] == "+62.5 %"
    assert second["difference [95 %]"].startswith("-12.5 [")


def test_ways_of_decoding_stay_apart(runs):
    greedy = runs("kd", 8, 16)
    streaming = find_results(
        "kd@43", decoded(greedy[1].path.parent.parent / "s", 20, chunking=CHUNKS)
    )
    means = over_seeds(greedy + streaming)
    assert [len(m.runs) for m in means] == [2, 1]
    assert [m.facts["wer"] for m in means] == [7.5, 12.5]


def test_runs_that_differ_are_no_clear_gain(runs):
    steady = summarise(over_seeds(runs("a", 20) + runs("b", 16, 16, 16)), "a").rows[1]
    uneven = summarise(over_seeds(runs("c", 20) + runs("d", 2, 16, 30)), "c").rows[1]
    assert steady.werr == uneven.werr == pytest.approx(20.0)
    assert steady.paired.probability > 0.95 > uneven.paired.probability
    assert uneven.paired.interval[0] < steady.paired.interval[0]


def test_without_several_runs_there_is_no_mean(runs):
    assert over_seeds(runs("baseline", 32) + runs("kd", 8)) == []


def test_runs_on_other_utterances_are_refused(runs):
    other = runs("kd", 8) + runs("kd", 8, 16, refs=REFS[:-1])[1:]
    with pytest.raises(ValueError, match="same utterances"):
        over_seeds(other)
