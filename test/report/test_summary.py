"""The summary: one row per system and decoding, and example utterances."""

import pytest
from report_files import CHUNKS, GREEDY, REFS, write_result

from icefall_kd.decoding import DECODERS, DecodeOptions
from icefall_kd.report.results import METHOD_LABELS, average_over_seeds, find_results
from icefall_kd.report.summary import summarise
from icefall_kd.report.table import format_markdown, format_text

BEAM = DecodeOptions("modified_beam_search", 4, 0.0)
CTC = DecodeOptions("ctc_greedy_search", 4, 0.0)
SHERPA = {"prefix": "sherpa-", "engine": "sherpa-onnx 2.0.1", "threads": 1}


@pytest.fixture
def write(tmp_path):
    """``write(system, wrong, ...)`` writes a result, ``write.read()`` reads all."""

    def write(system, wrong, folder="decode", **options):
        write_result(tmp_path / system / folder, wrong, **options)
        systems.setdefault(system, tmp_path / system)

    systems = {}
    write.read = lambda: [r for n, p in systems.items() for r in find_results(n, p)]
    return write


def rows_of(section):
    header, *rows = section.cells()
    return [dict(zip(header, row)) for row in rows]


def test_each_system_has_a_row_in_full_context_and_one_in_streaming(write):
    for system, wrong in (("baseline", 32), ("kd", 16)):
        for chunking, more in ((CHUNKS, 2), (None, 0)):
            write(system, wrong + more, chunking=chunking)
            write(system, wrong + more - 8, chunking=chunking, options=BEAM)
            write(system, wrong + more + 4, "sherpa", chunking=chunking, **SHERPA)
    table, _ = summarise(write.read(), "baseline")
    rows = rows_of(table)
    assert [(r["system"], r["decoding"], r["WERR"]) for r in rows] == [
        ("baseline", "full context", "baseline"),
        ("baseline", "streaming 320 ms", "baseline"),
        ("kd", "full context", "+66.7 %"),  # 8 against 24 errors
        ("kd", "streaming 320 ms", "+61.5 %"),  # 10 against 26 errors
    ]
    assert [r["sherpa-onnx WER %"] for r in rows] == [
        "22.50",
        "23.75",
        "12.50",
        "13.75",
    ]
    assert rows[2]["WER % [95 %]"].startswith("5.00 [")
    assert rows[2]["RTF"] == "0.0123" and "runs" not in rows[0]
    assert table.numbered_notes[:2] == (
        "Set test: 40 utterances, 160 words.",
        "WER: pytorch, beam 4.",
    )
    (line,) = (x for x in table.numbered_notes if "RTF" in x)
    assert line.startswith("sherpa-onnx 2.0.1, greedy. RTF: ") and "1 thread." in line


def test_a_search_that_most_systems_lack_is_not_compared(write):
    for system in ("a", "b", "c"):
        write(system, 8)
    write("c", 4, options=BEAM)
    write("d", 2, options=BEAM)
    rows = rows_of(summarise(write.read(), "a")[0])
    assert [(r["system"], r["decoding"]) for r in rows] == [
        ("a", "full context, greedy"),
        ("b", "full context, greedy"),
        ("c", "full context, greedy"),
        ("d", "full context, beam 4"),
    ]
    assert rows[3]["WERR"] == "" and rows[3]["notes"] == "1"


def test_each_search_has_a_label_and_a_rank():
    assert set(METHOD_LABELS) == set(DECODERS)


def test_an_unknown_search_counts_as_the_most_thorough(write, monkeypatch):
    write("a", 8, options=BEAM)
    write("a", 4)
    results = write.read()
    for r in results:
        if r.facts["method"] == "greedy_search":
            r.facts["method"] = "new_search"
    (row,) = rows_of(summarise(results)[0])
    assert row["WER % [95 %]"].startswith("2.50 [")


def test_both_heads_have_a_row_and_a_column_of_sherpa(write):
    write("a", 8)
    write("a", 16, options=CTC)
    write("a", 12, "sherpa", options=CTC, **SHERPA)
    rows = rows_of(summarise(write.read())[0])
    found = [(r["decoding"], r["sherpa-onnx WER %"]) for r in rows]
    assert sorted(found) == [
        ("full context, CTC greedy", "7.50"),
        ("full context, greedy", ""),
    ]


def test_a_system_without_results_of_pytorch_has_a_row(write):
    write("a", 8)
    write("b", 4, "sherpa", **SHERPA)
    a, b = rows_of(summarise(write.read())[0])
    assert (a["decoding"], a["sherpa-onnx WER %"]) == ("full context, greedy", "")
    assert b["decoding"] == "full context, greedy, sherpa-onnx 2.0.1"
    assert b["WER % [95 %]"].startswith("2.50 [") and b["sherpa-onnx WER %"] == "2.50"


def test_sets_are_columns_and_seeds_are_averaged(write):
    for system, wrong in (("baseline", 32), ("baseline@43", 28), ("kd", 15)):
        write(system, wrong, set_name="near")
        write(system, wrong + 5, set_name="far")
    results = average_over_seeds(write.read())
    baseline, kd = rows_of(summarise(results, "baseline")[0])
    assert (baseline["runs"], kd["runs"]) == ("2", "1")
    assert baseline["near: WER % [95 %]"].startswith("18.75 [")
    assert baseline["far: WER % [95 %]"].startswith("21.88 [")
    assert (kd["near: WERR"], kd["far: WERR"]) == ("+50.0 %", "+42.9 %")
    assert kd["far: P(better)"] == "1.000"


def test_examples_are_spread_over_the_order_by_wer(write):
    write("baseline", 40, chunking=CHUNKS)
    write("kd", 20, chunking=CHUNKS)
    write("kd", 10)
    write("worse", 30, chunking=CHUNKS)
    _, examples = summarise(write.read(), "baseline")
    (caption,) = examples.remarks
    assert caption == (
        "Utterances of test, streaming 320 ms, greedy: those after 25, 50, 75 % of "
        "all, sorted by the WER of kd"
    )
    rows = examples.cells()[1:]
    right = sorted(f"u{i}" for i in range(20, 40))
    wrong = sorted(f"u{i}" for i in range(20))
    assert [row[0] for row in rows[::3]] == [right[10], wrong[0], wrong[10]]
    assert [row[1] for row in rows] == 3 * ["reference", "baseline", "kd"]
    reference = REFS[int(wrong[0][1:])]
    assert rows[3][2] == " ".join(reference)
    assert rows[4][2] == rows[5][2] == " ".join(reference[:-1])
    assert len(summarise(write.read(), num_examples=0)) == 1


def test_few_utterances_are_all_examples(write):
    write("a", 1, refs=[["ONE", "TWO"], ["THREE"]], options=GREEDY)
    (_, examples) = summarise(write.read(), num_examples=5)
    assert [row[0] for row in examples.cells()] == ["utterance", "u1", "", "u0", ""]


def test_sections_are_formatted_as_text_and_markdown(write):
    write("a", 1)
    table, examples = summarise(write.read())
    assert format_text(table).splitlines()[-1] == "WER: pytorch, greedy."
    text = format_markdown(table)
    assert text.startswith("| system | decoding | WER % [95 %] |\n|---|---|---|\n| a |")
    assert format_markdown(examples).startswith("**Utterances of test")
