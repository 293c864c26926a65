"""Options, stages and markers of finished steps of recipe scripts."""

import gzip
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RECIPE = f"""#!/usr/bin/env bash
# Example of a recipe.
set -euo pipefail
stage=0         # first stage to run
stop_stage=9    # last stage to run
profile=quick   # quick or full
fast=false      # leave out the rest
jobs=1          # processes
RENAMED_OPTIONS="--mode=--profile"
source {ROOT}/local/log.sh
source {ROOT}/local/parse_options.sh
late=1          # assigned after parse_options.sh: not an option
if in_stage 2 "Work"; then
  run_once --reads 'input*' done/.work \\
    bash -c 'echo worked; exit "${{WORK_STATUS:-0}}"' \\
    --profile "$profile" --num-jobs "$jobs"
  run_once --reads input --makes made done/.made mkdir made
fi
echo "$stage $stop_stage $profile $fast [$*]"
"""


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "recipe.sh").write_text(RECIPE)

    def run(*args, **env):
        return subprocess.run(
            ["bash", "recipe.sh", *args],
            cwd=tmp_path,
            env={"PATH": "/usr/bin:/bin", **env},
            text=True,
            capture_output=True,
        )

    return run


def test_stages_log_the_expected_minutes_and_those_they_took(tmp_path):
    lines = [f"source {ROOT}/local/log.sh", "stage=1", "stage_minutes=(5 2)"]
    for number in (0, 1, 3):
        lines.append(f"if in_stage {number} Work; then SECONDS=$((SECONDS + 90)); fi")
    (tmp_path / "run.sh").write_text("\n".join(["set -eu", *lines, "log_stages"]))
    done = subprocess.run(["bash", tmp_path / "run.sh"], text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    texts = [line.partition("] ")[2] for line in done.stderr.splitlines()]
    assert texts[:3] == [
        "Stage 1: Work, about 2 min",
        "Stage 3: Work",
        "minutes  stage",
    ]
    took = [text.split() for text in texts[3:]]
    assert [words[1:] for words in took] == [["1", "Work"], ["3", "Work"]]
    assert all(words[0].startswith("1:3") for words in took)


@pytest.mark.parametrize(
    "args, expected",
    [
        ("", "0 9 quick false []"),
        ("--stage 3 --stop-stage=5 --profile full", "3 5 full false []"),
        ("--fast --stage 4 -- --stage 7", "4 9 quick true [--stage 7]"),
        ("--fast false --stop-stage -1", "0 -1 quick false []"),
    ],
)
def test_options_set_the_variables_of_the_script(recipe, args, expected):
    done = recipe(*args.split())
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == expected


@pytest.mark.parametrize(
    "args, named",
    [
        ("--sage 3", "unknown option --sage"),
        ("--late 2", "unknown option --late"),
        ("--mode full", "--mode is now --profile"),
        ("--PATH x", "unknown option --PATH"),
        ("--stage x", "whole number"),
        ("--fast maybe", "true or false"),
        ("--profile", "--profile: the value is missing"),
        ("quick", '"quick" is not an option'),
    ],
)
def test_a_wrong_option_is_reported_with_the_known_ones(recipe, args, named):
    done = recipe(*args.split())
    assert (done.returncode, done.stdout) == (2, "")
    assert named in done.stderr
    assert "--fast --jobs --profile --stage --stop-stage" in done.stderr


def test_help_prints_the_header_and_the_options(recipe):
    done = recipe("--help")
    assert done.returncode == 0
    assert done.stdout.startswith("Example of a recipe.\n")
    assert "--stop-stage" in done.stdout and "last stage to run" in done.stdout


def test_a_script_may_change_the_folder_first(tmp_path):
    folder = tmp_path / "egs"
    folder.mkdir()
    (folder / "recipe.sh").write_text('cd "$(dirname "$0")"\n' + RECIPE)
    command = ["bash", "egs/recipe.sh", "--profile", "full"]
    done = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True)
    assert "full" in done.stdout, done.stderr


def test_a_finished_step_is_repeated_only_on_request(recipe, tmp_path):
    assert "worked" in recipe().stdout
    assert (tmp_path / "done/.work").exists()
    done = recipe()
    assert "worked" not in done.stdout and "done before" in done.stderr
    assert "worked" in recipe("--stage", "2").stdout


def test_a_step_is_repeated_when_its_input_has_changed(recipe, tmp_path):
    recipe()
    for name in ("input", "input of a.gz"):
        path = tmp_path / name
        path.write_bytes(gzip.compress(b"made again") if "gz" in name else b"once\n")
        os.utime(path, (1e9, 1e9))  # copied with its time, older than the marker
        done = recipe()
        assert "worked" in done.stdout
        assert "its input has changed (done/.work)" in done.stderr
    os.utime(path, (2e9, 2e9))
    path.write_bytes(gzip.compress(b"made again", mtime=7))  # the same contents
    assert "worked" not in recipe().stdout


def test_a_step_with_other_options_is_repeated(recipe):
    assert "worked" in recipe().stdout
    assert "worked" not in recipe("--jobs", "8").stdout
    done = recipe("--profile", "full")
    assert "worked" in done.stdout
    assert "the last command was" in done.stderr and "--profile quick" in done.stderr


def test_a_folder_with_teachers_fields_is_not_overwritten(recipe, tmp_path):
    recipe()
    (tmp_path / "made/cuts.000000.jsonl.gz").write_text("")
    (tmp_path / "input").write_text("1")
    assert recipe().returncode == 0
    assert list((tmp_path / "made").iterdir()) == []
    for field in ("made/whisper.json", "made.fields/whisper/info"):
        (tmp_path / field).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / field).write_text("")
        (tmp_path / "input").write_text(field)
        done = recipe()
        assert done.returncode == 1 and "teachers' fields" in done.stderr
        (tmp_path / "input").write_text("1")
        assert recipe().returncode == 0  # the former input again
        (tmp_path / field).unlink()


def test_a_marker_of_an_earlier_version_is_valid(recipe, tmp_path):
    recipe()
    marker = tmp_path / "done/.work"
    text = marker.read_text()
    marker.write_text(text.splitlines()[0] + "\n")  # without digests
    assert "worked" not in recipe().stdout
    assert marker.read_text() == text


def test_a_failing_step_ends_the_script_and_leaves_no_marker(recipe, tmp_path):
    done = recipe(WORK_STATUS="7")
    assert done.returncode == 7
    assert "exit status 7" in done.stderr
    assert not (tmp_path / "done/.work").exists()


def test_log_lines_name_the_calling_file_and_line(recipe):
    assert "[recipe.sh:13] Stage 2: Work" in recipe().stderr


def test_a_missing_environment_is_reported(tmp_path):
    done = subprocess.run(
        ["bash", "-c", f"source {ROOT}/local/env.sh; echo reached"],
        env={"PATH": "/usr/bin:/bin", "ICEFALL_KD_VENV": str(tmp_path / "none")},
        text=True,
        capture_output=True,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "local/install.sh" in done.stderr
