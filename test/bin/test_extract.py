"""Options of bin.extract that are refused before any teacher runs."""

import re

import pytest
from loudness import Loudness

from icefall_kd.bin import extract
from icefall_kd.teachers import TEACHERS


@pytest.fixture
def fail(monkeypatch):
    """Return a function that runs the command and returns its error message."""

    def run(*options):
        monkeypatch.setattr("sys.argv", ["extract", *map(str, options)])
        with pytest.raises(SystemExit) as error:
            extract.main()
        return str(error.value)

    return run


@pytest.fixture
def teacher(tmp_path):
    """Options of a valid command, but for the weights."""
    return "--shar-dir", tmp_path, "--model-dir", tmp_path, "--teacher", "whisper_base"


def test_unknown_teacher_is_refused(fail, teacher):
    text = fail(*teacher[:-1], "x")
    assert text.startswith("extract: ") and "'x'" in text and "whisper_base" in text


@pytest.mark.parametrize(
    "content, message",
    [
        ("whisper_base: {model_dir: DIR, compute_typ: int8}", "compute_typ"),
        ("whisper_base: DIR", "mapping"),
        ("- whisper_base", "mapping"),
    ],
)
def test_error_in_yaml_of_teachers_names_the_file(fail, tmp_path, content, message):
    path = tmp_path / "teachers.yaml"
    path.write_text(content.replace("DIR", str(tmp_path)))
    text = fail("--shar-dir", tmp_path, "--teachers", path)
    assert re.match(f"extract: {path}: .*{message}", text)


def test_missing_weights_are_named_with_the_command_to_fetch_them(fail, teacher):
    text = fail(*teacher)
    assert "model.bin" in text and "fetch_teacher" in text


def test_unknown_codec_is_refused(fail, teacher):
    text = fail(*teacher, "--codec", "lzma")
    assert "'lzma'" in text and "fp16" in text and "pq<bytes>" in text


def test_unknown_codec_option_is_refused(fail, teacher):
    text = fail(*teacher, "--codec", "mvq8", "--codec-option", "steps=3")
    assert "'steps'" in text and "'iterations'" in text


def test_option_without_value_is_refused(fail, teacher, capsys):
    fail(*teacher, "--codec-option", "iterations")
    error = capsys.readouterr().err
    assert "--codec-option: 'iterations' is not KEY=VALUE" in error


@pytest.mark.parametrize(
    "options, named",
    [
        ([], ["--shar-dir"]),
        (["--shar-dir", "a", "--codec", "fp16", "int8"], ["--codec", "--dry-run"]),
        (["--shar-dir", "a", "--hours", "10"], ["--hours", "--dry-run"]),
        (["--shar-dir", "a", "b", "--shards", "0:1"], ["--shards", "--shar-dir"]),
        (
            ["--shar-dir", "a", "--shards", "0:1", "--train-codec-only"],
            ["--shards", "--train-codec-only"],
        ),
    ],
)
def test_options_that_exclude_each_other_are_refused(fail, options, named):
    text = fail(*options)
    assert all(name in text for name in named), text


def test_a_family_without_a_model_needs_no_folder(monkeypatch):
    monkeypatch.setitem(TEACHERS, "loudness", lambda name, **_: Loudness())
    parse = extract.get_parser().parse_args
    (teacher,) = extract.load_teachers(parse(["--teacher", "loudness"]))
    assert teacher.name == "loudness"
    with pytest.raises(ValueError, match="'whisper_base': .*missing.*'model_dir'"):
        extract.load_teachers(parse(["--teacher", "whisper_base"]))
