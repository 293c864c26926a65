"""A trainer's whole state as plain types and tensors, and back."""

from typing import TYPE_CHECKING, Any

from icefall_kd.core.config import to_dict
from icefall_kd.training.metrics import MetricsTracker
from icefall_kd.training.state import (
    TrainState,
    regulariser_state,
    restore_regularisers,
    rng_state,
)
from icefall_kd.transducer.checkpoint import load_weights, pack_bytes

if TYPE_CHECKING:
    from icefall_kd.training.loop import Trainer


def snapshot(trainer: "Trainer") -> dict[str, Any]:
    """Return a training checkpoint; every process must call it."""
    config, tokenizer = trainer.config, trainer.setup.tokenizer
    return {
        "model": trainer.model.state_dict(),
        "model_avg": trainer.mean.mean,
        "avg_samples": trainer.mean.samples,
        "model_config": to_dict(config.model),
        "bpe_model": pack_bytes(tokenizer.model_bytes if tokenizer else None),
        "heads": trainer.student.heads.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "scheduler": trainer.scheduler.state_dict(),
        "scaler": trainer.scaler.state_dict(),
        "sampler": trainer.loader.state_dict(),
        "state": vars(trainer.state).copy(),
        "rng": trainer.world.gather(trainer.pending_rng or rng_state()),
        "regularisers": regulariser_state(trainer.model),
        "metrics": trainer.report.metrics.state(),
        "skipped": trainer.skipped.state(),
        "config": to_dict(config),
        "trained_parts": sorted(
            {p for _, t in trainer.student.terms for p in t.trains}
        ),
    }


def restore(trainer: "Trainer", saved: dict[str, Any]) -> None:
    """Bring ``trainer`` to where :func:`snapshot` was taken.

    The random states wait in ``trainer.pending_rng`` until the data is open.

    Raises:
      ValueError: if the checkpoint is not of this student, or the data of the epoch
        that it was written in is not the same any more.
    """
    where = f"the last checkpoint in {trainer.exp_dir}"
    trainer.state = TrainState(**saved["state"])
    load_weights(trainer.model, saved["model"], where)
    load_weights(trainer.student.heads, saved["heads"], where)
    trainer.mean.load(saved["model_avg"], saved["avg_samples"])
    trainer.optimizer.load_state_dict(saved["optimizer"])
    for group in trainer.optimizer.param_groups:  # it may go on with another one
        group["clipping_scale"] = trainer.config.optim.clipping_scale
    trainer.scheduler.load_state_dict(saved["scheduler"])
    if trainer.scaler.is_enabled() and saved["scaler"]:
        trainer.scaler.load_state_dict(saved["scaler"])
    restore_regularisers(trainer.model, saved["regularisers"])
    trainer.report.metrics = MetricsTracker(saved["metrics"])
    trainer.skipped.load(saved.get("skipped", {}))
    if trainer.state.batch and not trainer.state.validating:
        trainer.loader.load_state_dict(saved["sampler"])
    if trainer.world.rank < len(saved["rng"]):
        trainer.pending_rng = saved["rng"][trainer.world.rank]
