"""Runs of the training loop that are ended, and what they left."""

from pathlib import Path

from icefall_kd.training import loop
from icefall_kd.transducer.checkpoint import load_checkpoint


def final(config):
    return load_checkpoint(Path(config.exp_dir) / f"epoch-{config.num_epochs}.pt")


class Stop(Exception):
    """Stands for the end of the machine."""


def stop_after(monkeypatch, batches):
    original = loop.Trainer._train_batch
    taken = []

    def train_batch(self, batch):
        if len(taken) == batches:
            raise Stop
        taken.append(batch)
        return original(self, batch)

    monkeypatch.setattr(loop.Trainer, "_train_batch", train_batch)
