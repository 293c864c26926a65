"""Helpers for tests of training runs: change options, stop early, read checkpoints."""

import dataclasses
from pathlib import Path

import pytest

from icefall_kd.training import loop
from icefall_kd.training.run import train
from icefall_kd.transducer.checkpoint import load_checkpoint


def change(config, **groups):
    """Return a configuration with other options: ``change(config, data={...})``.

    A dictionary replaces options of a group, any other value an option of the run.
    """
    for name, values in groups.items():
        if isinstance(values, dict):
            values = dataclasses.replace(getattr(config, name), **values)
        config = dataclasses.replace(config, **{name: values})
    return config


def final(config):
    """Return the last checkpoint of a finished run."""
    return load_checkpoint(Path(config.exp_dir) / f"epoch-{config.num_epochs}.pt")


class Stop(Exception):
    """Ends a run without a checkpoint, like a power cut."""


def stop_after(monkeypatch, batches):
    """Let the next run raise :class:`Stop` after a number of batches."""
    original = loop.Trainer._train_batch
    taken = []

    def train_batch(self, batch, is_last):
        if len(taken) == batches:
            raise Stop
        taken.append(batch)
        original(self, batch, is_last)

    monkeypatch.setattr(loop.Trainer, "_train_batch", train_batch)


def modification_times(folder):
    """Return the times of all files in a folder, by path."""
    return {p: p.stat().st_mtime_ns for p in Path(folder).rglob("*")}


def assert_rejected(config, match, error=ValueError):
    """Assert that training raises ``error`` and changes no file."""
    before = modification_times(config.exp_dir)
    with pytest.raises(error, match=match):
        train(config)
    assert modification_times(config.exp_dir) == before
