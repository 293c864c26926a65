"""The table of results."""

import pytest

from icefall_kd.decoding.scoring import Recognition, write_results
from icefall_kd.decoding.summary import (
    decoding_label,
    find_results,
    markdown,
    plain,
    summarise,
)

FACTS = {
    "engine": "pytorch",
    "method": "greedy_search",
    "beam": None,
    "blank_penalty": 0.0,
    "streaming": False,
    "chunk_size": None,
    "parameters": 2_890_000,
    "rtf": 0.0123,
}
STREAMING = {**FACTS, "streaming": True, "chunk_size": 16}
REFS = [f"w{i} x{i} y{i} z{i}".split() for i in range(40)]


def decoded(folder, wrong, facts=FACTS, suffix="greedy_search", refs=REFS):
    """Write a result in which the first ``wrong`` utterances lack a word."""
    found = [
        Recognition(f"u{i}", ref, ref[:-1] if i < wrong else ref)
        for i, ref in enumerate(refs)
    ]
    write_results(folder, "test", suffix, found, facts)
    return folder


@pytest.fixture
def systems(tmp_path):
    base, student = tmp_path / "base", tmp_path / "student"
    for folder, wrong in ((base, 32), (student, 16)):
        decoded(folder, wrong)
        decoded(folder, wrong + 4, STREAMING, "greedy_search-chunk-16-left-64")
    return base, student


def test_the_table_sets_systems_of_one_setting_side_by_side(systems):
    base, student = systems
    results = find_results("baseline", base) + find_results("distilled", student)
    header, *rows = summarise(results, "baseline")
    assert header[-2:] == ("relative gain", "P(better)")
    assert [(r[0], r[2]) for r in rows] == [
        ("baseline", "streaming 320 ms, greedy"),
        ("distilled", "streaming 320 ms, greedy"),
        ("baseline", "full context, greedy"),
        ("distilled", "full context, greedy"),
    ]
    assert rows[2][4].startswith("20.00 [")
    assert rows[3][4:] == (rows[3][4], "2.89 M", "0.0123", "+50.0 %", "1.000")
    assert rows[2][-2:] == ("", "")


@pytest.mark.parametrize(
    "method, beam, label",
    [
        ("greedy_search", None, "full context, greedy"),
        ("modified_beam_search", 4, "full context, beam 4"),
        ("ctc_greedy_search", None, "full context, CTC greedy"),
        ("ctc_prefix_beam_search", 8, "full context, CTC prefix beam 8"),
    ],
)
def test_every_method_has_its_label(method, beam, label):
    assert decoding_label({**FACTS, "method": method, "beam": beam}) == label


def test_without_a_baseline_no_gain_is_shown(systems):
    table = summarise(find_results("distilled", systems[1]))
    assert all("%" not in cell for row in table[1:] for cell in row)
    assert "relative gain" not in table[0]


def test_a_gain_without_its_baseline_is_refused(systems):
    base, student = systems
    only = base / "result-test-greedy_search.json"
    results = find_results("baseline", only) + find_results("distilled", student)
    with pytest.raises(ValueError, match="no baseline for distilled.*chunk-16-left-64"):
        summarise(results, "baseline")


def test_a_baseline_that_is_no_system_is_refused(systems):
    with pytest.raises(ValueError, match=r"'nobody'.*\['distilled'\]"):
        summarise(find_results("distilled", systems[1]), "nobody")


def test_a_baseline_on_other_utterances_is_refused(systems, tmp_path):
    other = decoded(tmp_path / "other", 3, refs=REFS[:-1])
    results = find_results("baseline", other)
    results += find_results("distilled", systems[1] / "result-test-greedy_search.json")
    with pytest.raises(ValueError, match="same utterances"):
        summarise(results, "baseline")


def test_a_folder_without_results_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}.*result-"):
        find_results("x", tmp_path)


def test_the_table_is_written_plain_and_as_markdown(systems):
    table = summarise(find_results("distilled", systems[1]))
    lines = plain(table).splitlines()
    assert len({line.index("test") for line in lines if "test" in line}) == 1
    rows = markdown(table).splitlines()
    assert rows[1] == "|---|---|---|---|---|---|---|"
    assert all(row.count("|") == 8 for row in rows)
