"""Means over the runs of a system."""

import pytest
from reported import CHUNKS, REFS, decoded

from icefall_kd.report.results import average_over_seeds, find_results, strip_seed
from icefall_kd.report.table import make_table


@pytest.fixture
def runs(tmp_path):
    """``runs("kd", 8, 16)`` returns the results of runs with 8 and 16 errors."""

    def make(system, *wrong, **options):
        results = []
        for number, errors in enumerate(wrong):
            name = f"{system}@{42 + number}" if number else system
            folder = tmp_path / name / "decode"
            decoded(folder, errors, **options)
            results += find_results(name, folder)
        return results

    return make


def test_the_seed_is_the_number_after_the_last_at():
    assert strip_seed("a+b@43") == "a+b"
    assert [strip_seed(n) for n in ("a", "a@b", "a@")] == ["a", "a@b", "a@"]


def test_runs_are_averaged(runs):
    baseline, kd = average_over_seeds(runs("baseline", 32) + runs("kd", 8, 16, 12))
    assert [r.system for r in (baseline, kd)] == ["baseline", "kd"]
    assert baseline.facts["wer"] == 20.0  # 32 of 160 words
    assert kd.facts["wer"] == pytest.approx(7.5)
    assert kd.facts["interval"][0] < 7.5 < kd.facts["interval"][1]
    header, first, second = make_table([baseline, kd], "baseline").cells()
    first, second = dict(zip(header, first)), dict(zip(header, second))
    assert (first["WER of each run"], second["WER of each run"]) == (
        "",
        "5.0, 10.0, 7.5",
    )
    assert second["WERR"] == "+62.5 %"
    assert second["difference [95 %]"].startswith("-12.5 [")


def test_decodings_are_averaged_separately(runs):
    greedy = runs("kd", 8, 16)
    streaming = find_results(
        "kd@43", decoded(greedy[1].path.parent.parent / "s", 20, chunking=CHUNKS)
    )
    means = average_over_seeds(greedy + streaming)
    assert [len(m.runs) for m in means] == [2, 1]
    assert [m.facts["wer"] for m in means] == [7.5, 12.5]


def test_runs_that_differ_widen_the_interval(runs):
    steady = make_table(
        average_over_seeds(runs("a", 20) + runs("b", 16, 16, 16)), "a"
    ).rows[1]
    uneven = make_table(
        average_over_seeds(runs("c", 20) + runs("d", 2, 16, 30)), "c"
    ).rows[1]
    assert steady.werr == uneven.werr == pytest.approx(20.0)
    assert steady.paired.probability > 0.95 > uneven.paired.probability
    assert uneven.paired.interval[0] < steady.paired.interval[0]


def test_single_runs_are_not_averaged(runs):
    assert average_over_seeds(runs("baseline", 32) + runs("kd", 8)) == []


def test_runs_on_other_utterances_are_reported(runs):
    other = runs("kd", 8) + runs("kd", 8, 16, refs=REFS[:-1])[1:]
    with pytest.raises(ValueError, match="same utterances"):
        average_over_seeds(other)
