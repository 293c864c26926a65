"""Result files of a decoding."""

import json

import pytest

from icefall_kd.recognition.result_files import (
    SCORES,
    format_recogs,
    read_recogs,
    warn_about_empty,
    write_results,
)
from icefall_kd.recognition.scoring import Recognition, count_errors

RECOGNITIONS = [
    Recognition("b", "PRESS ONE NOW".split(), "PRESS NINE NOW PLEASE".split()),
    Recognition("a", "THE NUMBER IS BUSY".split(), "THE IS BUSY".split()),
    Recognition("c", "IT'S DONE".split(), []),
    Recognition("d", ["GOODBYE"], ["GOODBYE"]),
]


@pytest.fixture
def written(tmp_path):
    info = {"method": "greedy_search", "rtf": 0.1}
    return tmp_path, write_results(
        tmp_path, "test", "greedy_search", RECOGNITIONS, info
    )


def test_result_json_has_errors_and_wer(written):
    out_dir, result = written
    stored = json.loads((out_dir / "result-test-greedy_search.json").read_text())
    assert stored == json.loads(json.dumps(result))
    expected = {"wer": 50.0, "errors": 5, "words": 10, "ins": 1, "del": 3, "sub": 1}
    assert {k: stored[k] for k in expected} == expected
    assert stored["utterances"] == 4
    assert stored["empty_rate"] == 0.25
    assert stored["method"] == "greedy_search"
    assert stored["interval"][0] < 50 < stored["interval"][1]


def test_errs_file_has_icefalls_format(written):
    text = (written[0] / "errs-test-greedy_search.txt").read_text()
    assert text.splitlines()[:2] == [
        "%WER = 50.00",
        "Errors: 1 insertions, 3 deletions, 1 substitutions, over 10 reference words "
        "(6 correct)",
    ]
    for line in (
        "a:\tTHE (NUMBER->*) IS BUSY",
        "b:\tPRESS (ONE->NINE) NOW (*->PLEASE)",
        "c:\t(IT'S DONE->*)",
        "d:\tGOODBYE",
        "1   ONE -> NINE",
        "1   PLEASE",
        "ONE   0 1 1 0",
        "NINE   0 1 0 1",
        "BUSY   1 0 1 1",
    ):
        assert line in text.splitlines()
    heads = ["SUBSTITUTIONS:", "DELETIONS:", "INSERTIONS:", "PER-WORD STATS:"]
    starts = [text.index("\n" + head) for head in heads]
    assert starts == sorted(starts)


def test_summary_has_suffix_and_wer(written):
    text = (written[0] / "wer-summary-test-greedy_search.txt").read_text()
    assert text == "settings\tWER\ngreedy_search\t50.00\n"


def test_recogs_are_read_as_written(written):
    path = written[0] / "recogs-test-greedy_search.txt"
    assert path.read_text().splitlines()[0] == (
        "a:\tref=['THE', 'NUMBER', 'IS', 'BUSY']"
    )
    assert read_recogs(path) == sorted(RECOGNITIONS, key=lambda r: r.cut_id)


def test_malformed_recogs_are_reported_by_line(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text(format_recogs(RECOGNITIONS[:1]) + "d:\thyp=['NO', 'REFERENCE']\n")
    with pytest.raises(ValueError, match=r"x\.txt:3"):
        read_recogs(path)
    lines = format_recogs(RECOGNITIONS[:1]).splitlines()
    path.write_text(lines[0] + "\n")
    with pytest.raises(ValueError, match=r"x\.txt:1: .*no hyp="):
        read_recogs(path)
    path.write_text(f"{lines[0]}\nother:\thyp=['A']\n")
    with pytest.raises(ValueError, match=r"x\.txt:2: .*cut differs"):
        read_recogs(path)


def test_set_without_transcripts_has_hypotheses_and_no_wer(tmp_path):
    write_results(tmp_path, "test", "x", RECOGNITIONS, {})
    unlabelled = [Recognition("b", [], []), Recognition("a", [], ["ONE", "TWO"])]
    result = write_results(tmp_path, "test", "x", unlabelled, {})
    assert json.loads((tmp_path / "result-test-x.json").read_text()) == result
    assert {result[name] for name in SCORES} == {None}
    assert (result["words"], result["utterances"]) == (0, 2)
    assert (tmp_path / "hyps-test-x.txt").read_text() == "a ONE TWO\nb\n"
    names = {path.name for path in tmp_path.iterdir()}  # errs and wer-summary removed
    assert names == {"recogs-test-x.txt", "hyps-test-x.txt", "result-test-x.json"}
    write_results(tmp_path, "test", "x", RECOGNITIONS, {})
    assert not (tmp_path / "hyps-test-x.txt").exists()
    with pytest.raises(ValueError, match="no transcripts"):
        _ = count_errors(unlabelled).wer
    with pytest.raises(ValueError, match="no utterances"):
        write_results(tmp_path, "test", "x", [], {})


@pytest.mark.parametrize(
    "method, engine, wanted, unwanted",
    [
        ("greedy_search", "pytorch", "ctc_greedy_search", None),
        ("ctc_greedy_search", "pytorch", "--blank-penalty", "ctc_greedy_search"),
        ("ctc_greedy_search", "sherpa-onnx 2.0.1", "train it", "--blank-penalty"),
    ],
)
def test_many_empty_hypotheses_log_remedies(caplog, method, engine, wanted, unwanted):
    warn_about_empty(9, 100, method, engine)
    warn_about_empty(0, 0, method, engine)
    assert caplog.text == ""
    warn_about_empty(10, 100, method, engine)
    assert "10 of 100 hypotheses are empty" in caplog.text
    assert wanted in caplog.text and "train it longer" in caplog.text
    assert unwanted is None or unwanted not in caplog.text
