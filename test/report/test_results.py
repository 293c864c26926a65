"""Find results of decoding, check that they are comparable, and average runs."""

import dataclasses
import json

import pytest
import torch
from report_files import CHUNKS, REFS, write_result

from icefall_kd.decoding import DecodeOptions
from icefall_kd.decoding.hotwords import Hotwords
from icefall_kd.report.results import (
    average_over_seeds,
    check_comparable,
    find_results,
    find_systems,
    load_result,
    strip_seed,
)
from icefall_kd.report.table import make_table


def test_systems_are_found_below_a_folder(exp):
    write_result(exp / "seed43/kd/decode", 3)
    assert find_systems(exp) == {
        "baseline": exp / "baseline",
        "kd": exp / "kd",
        "seed43/kd": exp / "seed43/kd",
    }
    assert find_systems(exp / "kd") == {"kd": exp / "kd"}
    assert list(find_systems(exp / "kd/decode")) == ["decode"]


def test_results_are_read_from_folders_or_a_file(exp):
    found = find_results("kd", exp / "kd")
    assert [r.path.parent.name for r in found] == ["decode", "decode", "sherpa"]
    assert len(find_results("kd", exp / "kd/decode")) == 2
    only = find_results("kd", exp / "kd/decode/result-test-greedy_search.json")
    assert [(r.system, r.group) for r in only] == [("kd", ("test", "greedy_search"))]
    assert len(only[0].recognitions) == len(REFS)


def test_a_folder_without_results_is_reported(tmp_path):
    for search in (lambda: find_results("x", tmp_path), lambda: find_systems(tmp_path)):
        with pytest.raises(FileNotFoundError, match=f"{tmp_path}.*result-"):
            search()


def test_decoding_and_engine_have_labels(tmp_path):
    beam = DecodeOptions("modified_beam_search", 4, 1.5)
    write_result(tmp_path, 1, options=beam, chunking=CHUNKS)
    write_result(tmp_path, 1, prefix="x-", method="ctc_greedy_search", int8=True)
    write_result(tmp_path, 1, prefix="y-", method="attention")
    names = Hotwords(*torch.zeros(3, 1, 4), tmp_path / "names.txt", "", 2.0, "12345678")
    with_hotwords = dataclasses.replace(beam, blank_penalty=0.0, hotwords=names)
    write_result(tmp_path, 1, options=with_hotwords)
    short = dataclasses.replace(CHUNKS, left_context=64)
    write_result(tmp_path, 1, options=beam, chunking=short)
    labels = {r.decoding: r.engine for r in find_results("a", tmp_path)}
    assert labels == {
        "streaming 320 ms, left context 1280 ms, beam 4, blank penalty 1.5": "pytorch",
        "streaming 320 ms, beam 4, blank penalty 1.5": "pytorch",
        "full context, CTC greedy": "pytorch int8",
        "full context, beam 4, hotwords of names.txt 2": "pytorch",
        "full context, attention": "pytorch",
    }


def test_a_missing_key_of_a_result_is_reported(exp):
    path = exp / "kd/decode/result-test-greedy_search.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in facts.items() if k != "rtf"}))
    with pytest.raises(ValueError, match="result-test-greedy_search.json: no rtf"):
        load_result("kd", path)
    path.write_text("[1]")
    with pytest.raises(ValueError, match="no set, suffix"):
        load_result("kd", path)


def test_recogs_that_differ_from_the_json_are_reported(exp):
    folder = exp / "kd/decode"
    recogs = folder / "recogs-test-greedy_search.txt"
    recogs.write_text((exp / "baseline/decode" / recogs.name).read_text())
    with pytest.raises(ValueError, match="32 errors in 40.* 16 in 40"):
        find_results("kd", folder)
    recogs.unlink()
    with pytest.raises(FileNotFoundError, match="recogs-test-greedy_search.txt"):
        find_results("kd", folder)


def test_different_utterances_or_references_are_reported(exp, tmp_path):
    results = find_results("kd", exp / "kd/decode/result-test-greedy_search.json")
    fewer = find_results("fewer", write_result(tmp_path / "a", 3, refs=REFS[:-1]))
    other = [*REFS[:-1], ["OTHER"]]
    changed = find_results("changed", write_result(tmp_path / "b", 3, refs=other))
    check_comparable(results)
    with pytest.raises(ValueError, match="kd and fewer.*set test.*1 only in .*: u39"):
        check_comparable(results + fewer)
    with pytest.raises(ValueError, match="1 with other references: u39"):
        check_comparable(results + changed)


def test_results_of_different_sets_may_differ(exp, tmp_path):
    results = find_results("kd", exp / "kd")
    other = write_result(tmp_path / "dev", 1, refs=REFS[:3], set_name="dev")
    check_comparable(results + find_results("kd", other))


def test_two_results_of_one_system_and_decoding_are_reported(exp):
    twice = find_results("a", exp / "kd") + find_results("a", exp / "baseline")
    with pytest.raises(ValueError, match="both test greedy_search.* of system a"):
        check_comparable(twice)


@pytest.fixture
def runs(tmp_path):
    """``runs("kd", 8, 16)`` returns the results of runs with 8 and 16 errors."""

    def make(system, *wrong, **options):
        results = []
        for number, errors in enumerate(wrong):
            name = f"{system}@{42 + number}" if number else system
            folder = tmp_path / name / "decode"
            write_result(folder, errors, **options)
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
        "kd@43", write_result(greedy[1].path.parent.parent / "s", 20, chunking=CHUNKS)
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


def test_runs_on_different_utterances_are_reported(runs):
    other = runs("kd", 8) + runs("kd", 8, 16, refs=REFS[:-1])[1:]
    with pytest.raises(ValueError, match="same utterances"):
        average_over_seeds(other)
