"""Progress of audio in a log file and on a terminal."""

import logging
from types import SimpleNamespace

import pytest

import icefall_kd.core.logs as module
from icefall_kd.core.logs import AudioProgress


@pytest.fixture
def clock(monkeypatch):
    """A clock that tests advance."""
    clock = SimpleNamespace(now=0.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_a_log_file_gets_one_line_each_minute(clock, caplog):
    progress = AudioProgress("train")
    with caplog.at_level(logging.INFO):
        for done in range(1, 181):
            clock.now += 1.0
            progress(720.0 * done, 720.0 * 180)
    assert [record.getMessage() for record in caplog.records] == [
        "train: 12.0 of 36.0 h, 720 h/h, 0:02:00 left",
        "train: 24.0 of 36.0 h, 720 h/h, 0:01:00 left",
        "train: 36.0 of 36.0 h, 720 h/h, 0:00:00 left",
    ]


def test_a_terminal_gets_a_progress_bar(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    progress = AudioProgress("train")
    progress(1800.0, 3600.0)
    progress(3600.0, 3600.0)
    progress.close()
    text = capsys.readouterr().err
    assert "train: 100%" in text and "1.0 of 1.0 h" in text
