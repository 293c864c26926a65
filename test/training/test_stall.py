"""A teacher that teaches nothing is told, once."""

import dataclasses
import logging

from icefall_kd.training.report import StallWatch
from icefall_kd.training.run import train

FIELDS = {"embedding": ("hubert", "whisper")}


def write_metrics(path, values):
    line = '{{"kind": "train", "step": {}, "epoch": 1, "embedding": {}}}\n'
    path.write_text("".join(line.format(10 * n, v) for n, v in enumerate(values, 1)))
    return path


def test_a_run_tells_it_once(caplog, config):
    # Noise has nothing to learn from within a dozen updates.
    config = dataclasses.replace(config, num_epochs=2, stall_steps=8)
    with caplog.at_level(logging.WARNING):
        train(config)
    told = [r.getMessage() for r in caplog.records if "learns little" in r.getMessage()]
    assert len(told) == 1
    assert told[0].startswith("term 'embedding' is at")
    assert "after 8 updates" in told[0] and "little from wise, old" in told[0]


def test_the_last_lines_count_together(tmp_path):
    falls = write_metrics(tmp_path / "a", [2.0, 1.5, 1.8, 1.7, 2.1])
    still = write_metrics(tmp_path / "b", [2.0, 1.5, 1.9, 1.9, 2.0])
    assert not StallWatch(falls, FIELDS, 50, done=0).look(50)
    (warning,) = StallWatch(still, FIELDS, 50, done=0).look(50)
    assert "is at 1.933 after 50 updates, from 2:" in warning
    assert "learns little from hubert, whisper" in warning


def test_a_run_that_goes_on_behind_that_step_says_nothing_again(tmp_path):
    path = write_metrics(tmp_path / "metrics.jsonl", [1.0] * 12)
    assert StallWatch(path, FIELDS, 100, done=90).look(105)
    assert not StallWatch(path, FIELDS, 100, done=100).look(110)
    assert not StallWatch(path, FIELDS, 0, done=0).look(110)
    watch = StallWatch(path, FIELDS, 100, done=0)
    assert [len(watch.look(step)) for step in (40, 80, 120, 160)] == [0, 0, 1, 0]
