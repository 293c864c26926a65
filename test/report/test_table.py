"""The table of results: gains, notes, remarks and formats."""

import pytest
import yaml
from report_files import CHUNKS, REFS, make_data_config, write_result, write_training

from icefall_kd.report.results import find_results
from icefall_kd.report.runs import find_run
from icefall_kd.report.table import format_markdown, format_text, make_table


@pytest.fixture
def results(exp):
    return [r for name in ("baseline", "kd") for r in find_results(name, exp / name)]


def row_of(table, system, suffix):
    (row,) = [
        r
        for r in table.rows
        if (r.result.system, r.result.facts["suffix"]) == (system, suffix)
    ]
    return row


def test_rows_of_one_decoding_are_adjacent(results):
    header, *rows = make_table(results, "baseline").cells()
    assert [(r[0], r[2], r[3]) for r in rows] == [
        ("baseline", "streaming 320 ms, greedy", "pytorch"),
        ("kd", "streaming 320 ms, greedy", "pytorch"),
        ("baseline", "full context, greedy", "pytorch"),
        ("kd", "full context, greedy", "pytorch"),
        ("kd", "full context, greedy", "sherpa-onnx 2.0.1 int8"),
    ]
    kd = dict(zip(header, rows[3]))
    assert kd["WER % [95 %]"].startswith("10.00 [")
    assert (kd["WERR"], kd["P(better)"]) == ("+50.0 %", "1.000")
    assert kd["difference [95 %]"].startswith("-10.0 [-1")
    assert (kd["params"], kd["RTF"]) == ("2.89 M", "0.0123")
    assert dict(zip(header, rows[2]))["WERR"] == "baseline"


def test_a_result_without_one_of_the_baseline_has_no_gain(results):
    table = make_table(results, "baseline")
    row = row_of(table, "kd", "sherpa-greedy_search")
    assert (row.paired, row.werr, row.notes) == (None, None, (1,))
    (note,) = table.notes
    assert note.startswith("No gain: baseline")
    assert "full context, greedy, sherpa-onnx 2.0.1 int8, set test" in note
    assert row_of(table, "kd", "greedy_search").notes == ()


def test_options_that_changed_within_a_run_are_noted(results, exp):
    folder = exp / "kd/finetune"
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["optim"]["base_lr"], config["num_threads"] = 0.5, 7
    (folder / "config.100.yaml").write_text(yaml.safe_dump(config))
    (folder / "environment.100.json").write_text('{"commit": "fedcba654321"}')
    runs = {
        name: find_run(r.path, r.facts["checkpoint"])
        for name in ("baseline", "kd")
        for r in find_results(name, exp / name)
    }
    table = make_table(results, "baseline", runs)
    start = "kd, finetune: changed after update 100: "
    assert f"{start}optim.base_lr: 0.5 -> 0.045." in table.notes
    assert f"{start}commit: fedcba654321 -> abcdef123456." in table.notes
    notes = [table.notes[n - 1] for n in row_of(table, "kd", "greedy_search").notes]
    assert sum(start in note for note in notes) == 2
    assert not [n for n in table.notes if n.startswith("baseline")]


def test_without_a_baseline_there_are_no_gains(results):
    table = make_table(results)
    assert {"WERR", "P(better)", "difference [95 %]"}.isdisjoint(table.cells()[0])
    assert all("+" not in cell for row in table.cells() for cell in row)


def test_an_unknown_baseline_is_reported(results):
    with pytest.raises(ValueError, match="'nobody'.*baseline, kd"):
        make_table(results, "nobody")


def test_a_baseline_without_a_common_decoding_is_reported(exp):
    path = exp / "baseline/decode/result-test-greedy_search.json"
    pair = find_results("baseline", path) + find_results("kd", exp / "kd/sherpa")
    with pytest.raises(ValueError, match=r"--baseline baseline.*\['kd'\]"):
        make_table(pair, "baseline")


def test_a_baseline_on_different_utterances_is_reported(results, tmp_path):
    other = find_results("other", write_result(tmp_path / "o", 3, refs=REFS[:-1]))
    with pytest.raises(ValueError, match="set test.*u39"):
        make_table(results + other, "other")


def test_a_worse_system_has_a_negative_gain(results):
    table = make_table(results, "kd")
    row = row_of(table, "baseline", "greedy_search")
    assert row.werr == pytest.approx(-100.0)
    assert row.paired.probability < 0.01


def test_an_equal_system_has_a_gain_of_zero(tmp_path):
    found = [find_results(n, write_result(tmp_path / n, 4)) for n in ("a", "b")]
    assert "+0.0 %" in make_table(sum(found, []), "a").cells()[2]


def test_a_baseline_without_errors_has_no_relative_gain(tmp_path):
    perfect = find_results("perfect", write_result(tmp_path / "a", 0))
    worse = find_results("worse", write_result(tmp_path / "b", 4))
    row = make_table(perfect + worse, "perfect").rows[1]
    assert row.werr is None and row.paired.difference == pytest.approx(2.5)


def test_different_sizes_and_budgets_are_noted(exp, results):
    folder = exp / "large"
    write_result(folder / "decode", 8, parameters=5_000_000)
    write_training(folder / "finetune", [1.0] * 6, data=make_data_config("train"))
    results = results + find_results("large", folder)
    runs = {r.system: find_run(r.path, r.facts["checkpoint"]) for r in results}
    table = make_table(results, "baseline", runs)
    notes = [table.notes[i - 1] for i in row_of(table, "large", "greedy_search").notes]
    size, budget = notes
    assert "5,000,000 against 2,890,000" in size
    assert budget.endswith("6 epochs against 3; 600 updates against 300.")
    assert row_of(table, "kd", "greedy_search").notes == ()
    # Without a baseline, systems are compared with the first one.
    assert set(notes) <= set(make_table(results, None, runs).notes)


def test_delays_of_results_are_shown(results, tmp_path):
    names = ["emission delay ms, mean / 90 %", "latency ms, mean / 90 %"]
    assert set(names).isdisjoint(make_table(results).cells()[0])
    delays = {"emission_delay_mean_ms": -12.4, "emission_delay_p90_ms": 33.3}
    full = write_result(tmp_path / "full/decode", 20, **delays)
    delays.update(latency_mean_ms=212.4, latency_p90_ms=333.3)
    slow = write_result(tmp_path / "slow/decode", 20, chunking=CHUNKS, **delays)
    found = find_results("full", full) + find_results("slow", slow)
    header, *rows = make_table(results + found).cells()
    columns = [header.index(name) for name in names]
    cells = {row[0]: [row[i] for i in columns] for row in rows}
    assert cells["slow"] == ["-12 / 33", "212 / 333"]
    assert cells["full"] == ["-12 / 33", ""]
    assert cells["kd"] == cells["baseline"] == ["", ""]


def test_delays_of_different_alignments_are_noted(tmp_path):
    systems = []
    for name, digest in (("a", "1"), ("b", "1"), ("c", "2"), ("d", None)):
        facts = {"alignment_sha256": digest, "alignment": "x.ctm"} if digest else {}
        if digest == "1":
            facts.update(aligner="exp/best.pt", aligner_sha256="abcdef0123456789")
        systems += find_results(name, write_result(tmp_path / name, 1, **facts))
    table = make_table(systems, "a")
    (note,) = table.notes
    assert "c against a" in note
    assert "(x.ctm) against exp/best.pt (abcdef01)" in note
    assert "exp/best.pt (abcdef01); an unknown aligner (x.ctm)" in table.remarks[1]
    assert [row.notes for row in table.rows] == [(), (), (1,), ()]


def test_a_result_without_correct_words_has_no_delay(tmp_path):
    nothing = dict.fromkeys(("emission_delay_mean_ms", "emission_delay_p90_ms"))
    found = find_results("mute", write_result(tmp_path, 1, **nothing, delay_words=0))
    assert not any("delay" in name for name in make_table(found).cells()[0])


def test_the_table_is_formatted_as_text_and_markdown(results):
    table = make_table(results, "baseline")
    lines = format_text(table).splitlines()
    assert len({line.index(" test ") for line in lines if " test " in line}) == 1
    assert lines[-1] == f"1. {table.notes[0]}"
    remark, text, notes = format_markdown(table).split("\n\n")
    assert remark == f"**{table.remarks[0]}**"
    assert lines[0] == table.remarks[0]
    rows = text.splitlines()
    assert set(rows[1]) == {"|", "-"}
    assert len({row.count("|") for row in rows}) == 1
    assert notes == f"1. {table.notes[0]}\n"


def test_a_remark_reports_single_training_runs(results):
    (remark,) = make_table(results, "baseline").remarks
    assert remark.startswith("Each row is ONE TRAINING RUN: P(better) and the 95 % int")
    assert "training noise" in remark
    assert "P(better)" not in make_table(results).remarks[0]
    alone = [r for r in results if r.system == "kd"]
    assert make_table(alone).remarks == ()


def test_different_checkpoints_or_set_files_are_noted(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    write_result(a, 1, checkpoint_sha256="1", set_sha256="1")
    write_result(a, 1, checkpoint_sha256="2", set_sha256="1", chunking=CHUNKS)
    write_result(b, 1, checkpoint_sha256="3", set_sha256="2")
    results = find_results("a", a) + find_results("b", b)
    table = make_table(results, "a")
    full, streaming, other = (
        [table.notes[i - 1] for i in row_of(table, *name).notes]
        for name in (
            ("a", "greedy_search"),
            ("a", "greedy_search-chunk-16-left-128"),
            ("b", "greedy_search"),
        )
    )
    (mark,) = full + streaming
    assert mark.startswith("Different checkpoints of a: ")
    (note,) = other
    assert note.startswith("Different files of set test: b against a")


def test_names_are_escaped_in_markdown(tmp_path):
    found = find_results("a|b\n<b>&", write_result(tmp_path, 1))
    header, _, row, *_ = format_markdown(make_table(found)).splitlines()
    assert row.startswith("| a\\|b &lt;b>&amp; | test |")
    assert row.replace("\\|", "").count("|") == header.count("|")
