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


def test_an_unknown_codec_is_refused(monkeypatch, capsys, tmp_path):
    fail(
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
    message = capsys.readouterr().err
    assert "lzma" in message and "fp16" in message
