"""The command bin.report with several seeds."""

import shutil
import subprocess
import sys

import pytest
from report_files import Page, write_result, write_training

from icefall_kd.bin.report import ALL_RESULTS, MEANS
from icefall_kd.decoding import DecodeOptions


@pytest.fixture
def exp(tmp_path):
    for name, wrong in (("baseline", 32), ("baseline@43", 28), ("kd", 16)):
        write_result(tmp_path / name / "decode", wrong)
        write_training(tmp_path / name / "finetune", [1.5, 1.25])
    return tmp_path


def report(*args):
    return subprocess.run(
        [sys.executable, "-m", "icefall_kd.bin.report", *map(str, args)],
        text=True,
        capture_output=True,
    )


def test_means_are_printed_and_follow_the_runs_in_both_files(exp):
    table, page = exp / "summary.md", exp / "report.html"
    done = report(
        "--exp", exp, "--baseline", "baseline", "--out", table, "--html", page
    )
    assert done.returncode == 0, done.stderr
    baseline, kd = (line.split() for line in done.stdout.splitlines()[2:4])
    assert baseline[:5] == ["baseline", "full", "context", "2", "18.75"]
    assert kd[:5] == ["kd", "full", "context", "1", "10.00"] and "+46.7" in kd
    assert "baseline@43" not in done.stdout
    summary, _, text = table.read_text().partition(f"\n{ALL_RESULTS}:\n\n")
    assert "| 18.75 [" in summary and "baseline@43" not in summary
    runs, _, means = text.partition(f"\n{MEANS}:\n\n")
    assert runs.startswith("**Each row is ONE TRAINING RUN") and "baseline@43" in runs
    assert means.startswith("**ONE TRAINING RUN of kd: P(better) and")
    assert "| 20.0, 17.5 |" in means and "+46.7 %" in means  # 10.0 against 18.75
    shown = Page(page.read_text())
    assert "Each row is ONE TRAINING RUN" in shown.text
    rows = [row for i in range(len(shown.tables)) for row in shown.rows(i)]
    (mean,) = [r for r in rows if r.get("WER of each run", ("",))[0] == "20.0, 17.5"]
    assert mean["system"][0] == "baseline"


def test_single_runs_have_no_means(exp):
    shutil.rmtree(exp / "baseline@43")
    table = exp / "summary.md"
    done = report("--exp", exp, "--baseline", "baseline", "--out", table)
    assert done.returncode == 0, done.stderr
    assert "+50.0 %" in done.stdout and "runs" not in done.stdout
    assert MEANS not in table.read_text()


def test_only_the_chosen_head_is_reported(exp):
    options = DecodeOptions("ctc_prefix_beam_search", 4, 0.0)
    write_result(exp / "kd/decode", 12, options=options)
    done = report("--exp", exp, "--head", "ctc")
    assert "CTC prefix beam" in done.stdout and "greedy" not in done.stdout
    assert "CTC" not in report("--exp", exp, "--head", "transducer").stdout
    done = report("--system", f"baseline={exp / 'baseline'}", "--head", "ctc")
    assert done.returncode != 0 and "--head: no result of 'ctc'" in done.stderr


def test_a_wrong_option_is_reported_in_one_line(exp):
    done = report("--exp", exp, "--baseline", "nobody")
    assert done.returncode != 0
    assert "'nobody'" in done.stderr and "Traceback" not in done.stderr
