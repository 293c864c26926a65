import re

import pytest

from icefall_kd.bin import extract


def fail(monkeypatch, *arguments):
    """Run the command; return its last message."""
    monkeypatch.setattr("sys.argv", ["extract", *map(str, arguments)])
    with pytest.raises(SystemExit) as e:
        extract.main()
    return str(e.value)


def test_an_unknown_teacher_ends_with_one_message(monkeypatch, tmp_path):
    text = fail(
        monkeypatch, "--shar-dir", tmp_path, "--teacher", "x", "--model-dir", tmp_path
    )
    assert text.startswith("extract: unknown teacher 'x'; known are")


@pytest.mark.parametrize(
    "content, message",
    [
        (
            "whisper_base: {model_dir: {0}, compute_typ: int8}",
            "whisper_base.*compute_typ",
        ),
        ("whisper_base: {0}", "not a mapping of teachers to their options"),
        ("- whisper_base", "not a mapping of teachers to their options"),
    ],
)
def test_a_fault_in_the_file_of_teachers_names_it(
    monkeypatch, tmp_path, content, message
):
    path = tmp_path / "teachers.yaml"
    path.write_text(content.replace("{0}", str(tmp_path)))
    text = fail(monkeypatch, "--shar-dir", tmp_path, "--teachers", path)
    assert re.match(f"extract: {path}: .*{message}", text)


def test_a_folder_without_weights_ends_with_the_remedy(monkeypatch, tmp_path):
    text = fail(
        monkeypatch,
        "--shar-dir",
        tmp_path,
        "--teacher",
        "whisper_base",
        "--model-dir",
        tmp_path / "none",
    )
    assert "model.bin is missing" in text and "fetch_teacher" in text


def test_an_unknown_codec_is_refused(monkeypatch, tmp_path):
    text = fail(
        monkeypatch,
        "--shar-dir",
        tmp_path,
        "--teacher",
        "whisper_base",
        "--model-dir",
        tmp_path,
        "--codec",
        "lzma",
    )
    assert "unknown codec 'lzma'" in text and "fp16" in text and "pq<bytes>" in text


def test_an_unknown_option_of_a_codec_is_refused(monkeypatch, tmp_path):
    arguments = ("--shar-dir", tmp_path, "--teacher", "whisper_base")
    arguments += ("--model-dir", tmp_path, "--codec", "mvq8")
    text = fail(monkeypatch, *arguments, "--codec-option", "steps=3")
    assert "no options ['steps']; it has ['iterations']" in text
    text = fail(monkeypatch, *arguments, "--codec-option", "iterations")
    assert "--codec-option iterations: expected KEY=VALUE" in text
    options = ["--shar-dir", tmp_path, "--teacher", "whisper_base"]
    text = fail(monkeypatch, *options, "--model-dir", tmp_path, "--codec", "lzma")
    assert text.startswith("extract: unknown codec 'lzma'") and "fp16" in text


@pytest.mark.parametrize(
    "options, message",
    [
        ([], "give --shar-dir"),
        (["--shar-dir", "a", "--codec", "fp16", "int8"], "are of a --dry-run"),
        (["--shar-dir", "a", "--hours", "10"], "are of a --dry-run"),
        (["--shar-dir", "a", "b", "--shards", "0:1"], "goes with one --shar-dir"),
        (
            ["--shar-dir", "a", "--shards", "0:1", "--train-codec-only"],
            "leave --shards out",
        ),
    ],
)
def test_options_that_do_not_go_together_are_refused(monkeypatch, options, message):
    assert message in fail(monkeypatch, *options)
