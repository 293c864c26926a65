"""Errors in one line, help texts and options of all commands."""

import argparse
import importlib
import os
import pkgutil
import re
import signal
import sys

import jsonargparse
import pytest

from icefall_kd import bin
from icefall_kd.bin import decode
from icefall_kd.core.cli import create_parser, exit_on_error
from icefall_kd.core.files import read_json

# Arguments of commands; {tmp} is a folder with the files of a Whisper model.
OUT = ("--shar-dir=no", "--out-dir=no")
CHECK_SHAR = "--check-shar=no"
LIVE_TEACHER = (
    "--terms.embedding.teachers={{whisper_base: 1.0}}",
    "--data.cache=none",
    "--data.teachers={{whisper_base: {{model_dir: {tmp}}}}}",
)
WHISPER = ("--model-dir={tmp}", "--shar-dir=no")
NO_DEFAULT = (None, False, argparse.SUPPRESS, [], (), "")  # values not shown in a help


def test_an_error_of_the_package_is_one_line(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(SystemExit, match="^decode: .*a.json: not a JSON file"):
        with exit_on_error("decode"):
            read_json(tmp_path / "a.json")


def test_an_error_of_a_library_keeps_its_traceback():
    import numpy as np

    with pytest.raises(ValueError, match="broadcast"):
        with exit_on_error("decode"):
            np.broadcast_to(np.zeros(2), (3,))


def test_a_missing_package_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "sherpa_onnx", None)
    with pytest.raises(SystemExit, match=r"'sherpa_onnx'.*pip install 'icefall_kd\["):
        with exit_on_error("transcribe"):
            import sherpa_onnx  # noqa: F401


@pytest.mark.parametrize(
    "package, command, arguments",
    [
        ("k2", "train", ("--exp-dir={tmp}/exp", "--terms.transducer.backend=k2")),
        ("k2", "decode", ("--checkpoint=no", "--method=fast_beam_search", *OUT)),
        ("onnx", "export", ("--checkpoint=no", "--out-dir=no")),
        (
            "sherpa_onnx",
            "export",
            ("--checkpoint=no", "--check", "--out-dir=no", CHECK_SHAR),
        ),
        ("onnxruntime", "export", ("--checkpoint=no", "--out-dir=no", CHECK_SHAR)),
        ("sherpa_onnx", "transcribe", ("--model-dir=no", "a.wav")),
        ("faiss", "extract", ("--shar-dir=no", "--teacher=no", "--codec=pq16")),
        ("multi_quantization", "extract", ("--shar-dir=no", "--codec=mvq8")),
        ("ctranslate2", "extract", ("--teacher=whisper_base", *WHISPER)),
        ("ctranslate2", "pseudo_label", ("--output=no", *WHISPER)),
        ("ctranslate2", "train", ("--exp-dir={tmp}/exp", *LIVE_TEACHER)),
    ],
)
def test_a_missing_package_is_named_before_any_work(
    package, command, arguments, tmp_path, monkeypatch
):
    """The files that the arguments name do not exist, except those of Whisper."""
    for name in ("model.bin", "config.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(sys, "argv", [command, *arguments])
    line = rf"{command}: the package '{package}' cannot be imported .*; remedy: .*"
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(f"icefall_kd.bin.{command}").main()
    assert re.fullmatch(line, str(stopped.value))
    assert not (tmp_path / "exp").exists()


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(SystemExit, match="absent.json"):
        with exit_on_error("report"):
            read_json(tmp_path / "absent.json")


def test_ctrl_c_is_one_line_and_status_130(capsys):
    with pytest.raises(SystemExit) as stopped:
        with exit_on_error("extract"):
            os.kill(os.getpid(), signal.SIGINT)
            signal.pause()
    assert stopped.value.code == 130
    error = capsys.readouterr().err.strip()
    assert error.startswith("extract: interrupted") and "\n" not in error


def test_an_unknown_option_gets_a_suggestion(capsys):
    needed = ["--checkpoint", "a", "--shar-dir", "b", "--out-dir", "c"]
    with pytest.raises(SystemExit):
        decode.get_parser().parse_args([*needed, "--metod=greedy_search"])
    assert "did you mean --method?" in capsys.readouterr().err
    with pytest.raises(SystemExit):  # a typo in an option that is required
        decode.get_parser().parse_args([*needed[:4], "--outdir", "c"])
    message = "required: --out-dir; unrecognized arguments: --outdir; did you mean"
    assert f"{message} --out-dir?" in capsys.readouterr().err


def test_help_contains_the_docstring_and_the_defaults():
    text = " ".join(decode.get_parser().format_help().split())  # without line breaks
    assert "(default: greedy_search)" in text
    parser = create_parser("First line.\n\n    an indented command")
    parser.add_argument("--beam", type=int, default=4, help="number of hypotheses")
    parser.add_argument("--force", action="store_true", help="decode again")
    text = parser.format_help()
    assert "\n    an indented command" in text
    assert "number of hypotheses (default: 4)" in text
    assert "decode again\n" in text


@pytest.mark.parametrize(
    "command, option, values",
    [
        ("decode", "--max-duration", ["-1", "nan", "inf", "x"]),
        ("decode", "--beam", ["0", "-4", "1.5"]),
        ("decode", "--blank-penalty", ["-1", "nan"]),
        ("decode", "--hotwords-score", ["0", "-1"]),
        ("decode", "--chunk-size", ["0", "-1", "15"]),
        ("decode", "--left-context", ["0", "-1"]),
        ("transcribe", "--beam", ["0"]),
        ("transcribe", "--blank-penalty", ["-1"]),
        ("transcribe", "--chunk-size", ["-2"]),
        ("transcribe", "--threads", ["0", "-1"]),
        ("export", "--chunk-size", ["15"]),
        ("export", "--left-context", ["-1"]),
        ("export", "--max-int8-loss", ["-0.1", "nan"]),
        ("decode_fields", "--beam", ["0"]),
        ("decode_fields", "--blank-penalty", ["-1"]),
        ("report", "--max-audio", ["-1"]),
    ],
)
def test_a_number_out_of_range_is_refused_with_its_option(
    command, option, values, capsys
):
    parser = importlib.import_module(f"icefall_kd.bin.{command}").get_parser()
    for value in values:
        with pytest.raises(SystemExit) as refused:
            parser.parse_args([f"{option}={value}"])
        assert refused.value.code == 2
        assert f"argument {option}: '{value}' is " in capsys.readouterr().err


class FoundParser(Exception):
    """Contains the parser of a command, raised when it parses its arguments."""


def find_parser(command, monkeypatch):
    """Return the parser of a command."""

    def stop(self, *_, **__):
        raise FoundParser(self)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", stop)
    monkeypatch.setattr(jsonargparse.ArgumentParser, "parse_args", stop)
    monkeypatch.setattr(sys, "argv", [command])
    with pytest.raises(FoundParser) as found:
        importlib.import_module(f"icefall_kd.bin.{command}").main()
    return found.value.args[0]


def list_parsers(parser):
    """Yield a parser and the parsers of its subcommands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for verb in action.choices.values():
                yield from list_parsers(verb)


@pytest.mark.parametrize(
    "command", [m.name for m in pkgutil.iter_modules(bin.__path__)]
)
def test_every_option_has_a_help_text_and_shows_its_default(command, monkeypatch):
    for parser in list_parsers(find_parser(command, monkeypatch)):
        formatter = parser._get_formatter()
        for action in parser._actions:
            names = action.option_strings or [action.dest]
            if isinstance(action, argparse._SubParsersAction):
                continue
            assert action.help, names
            if action.option_strings and action.default not in NO_DEFAULT:
                text = formatter._expand_help(action)
                assert "default" in text, names
