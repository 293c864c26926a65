"""What is told while audio goes by."""

import logging
import time

from icefall_kd.data.progress import AudioProgress


def test_a_log_file_gets_a_line_now_and_then_and_not_more(caplog):
    progress = AudioProgress("train", interval=0.05)
    with caplog.at_level(logging.INFO):
        for done in range(1, 101):
            progress(36.0 * done, 3600.0)
            time.sleep(0.001)
    assert 1 <= len(caplog.records) <= 5
    assert "train: 0." in caplog.text and "of 1.0 h, " in caplog.text


def test_speed_and_remaining_time_follow_from_what_is_done():
    progress = AudioProgress("train")
    progress._start = time.monotonic() - 10
    text = progress._describe(7200.0, 5 * 7200.0)
    assert text == "2.0 of 10.0 h, 720 h/h, 0:00:40 left"


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    progress = AudioProgress("train")
    progress(1800.0, 3600.0)
    progress(3600.0, 3600.0)
    progress.close()
    text = capsys.readouterr().err
    assert "train: 100%" in text and "1.0 of 1.0 h" in text
