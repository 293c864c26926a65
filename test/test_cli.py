"""What the commands share: expected failures in a line, defaults in the help."""

import pytest

from icefall_kd.bin import decode
from icefall_kd.cli import command_parser, expected_failures
from icefall_kd.io import read_json


def test_an_error_of_the_package_becomes_one_line(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(SystemExit, match="^decode: .*a.json: not a JSON file"):
        with expected_failures("decode"):
            read_json(tmp_path / "a.json")


def test_an_error_of_a_library_keeps_its_traceback():
    import numpy as np

    with pytest.raises(ValueError, match="broadcast"):
        with expected_failures("decode"):
            np.broadcast_to(np.zeros(2), (3,))


def test_a_missing_package_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sherpa_onnx", None)
    with pytest.raises(SystemExit, match=r"'sherpa_onnx'.*pip install 'icefall_kd\["):
        with expected_failures("transcribe"):
            import sherpa_onnx  # noqa: F401


def test_a_missing_file_is_a_line(tmp_path):
    with pytest.raises(SystemExit, match="absent.json"):
        with expected_failures("report"):
            read_json(tmp_path / "absent.json")


def test_an_unknown_option_is_named_with_the_nearest(capsys):
    needed = ["--checkpoint", "a", "--shar-dir", "b", "--out-dir", "c"]
    with pytest.raises(SystemExit):
        decode.get_parser().parse_args([*needed, "--metod=greedy_search"])
    assert "did you mean --method?" in capsys.readouterr().err


def test_help_shows_the_docstring_and_the_defaults():
    assert "(default: greedy_search)" in decode.get_parser().format_help()
    parser = command_parser("First line.\n\n    an indented command")
    parser.add_argument("--beam", type=int, default=4, help="number of hypotheses")
    parser.add_argument("--force", action="store_true", help="decode again")
    text = parser.format_help()
    assert "\n    an indented command" in text
    assert "number of hypotheses (default: 4)" in text
    assert "decode again\n" in text
