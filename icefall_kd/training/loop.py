"""The training loop, for the baseline and for every combination of terms."""

import contextlib
import math
import time
from pathlib import Path
from typing import Any, NoReturn, Optional

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm.contrib.logging import logging_redirect_tqdm

from icefall_kd.core.config import to_dict
from icefall_kd.core.distributed import World, wrap_ddp
from icefall_kd.core.files import write_text
from icefall_kd.core.frames import Batch
from icefall_kd.training import checkpoint as ckpt
from icefall_kd.training.checkpoint import RunningMean, TrainState
from icefall_kd.training.interruptions import StopRequest, TrainingInterruptedError
from icefall_kd.training.memory import explain_out_of_memory, probe_memory
from icefall_kd.training.metrics import MetricsTracker, Reporter
from icefall_kd.training.optim import clip_gradients, make_scaler
from icefall_kd.training.setup import Setup, make_dev_loader, make_train_loader
from icefall_kd.training.skipped import (
    NOT_FINITE,
    OVERFLOW,
    BadBatches,
    SkippedCuts,
    TrainingStoppedError,
    check_finite,
    check_loss_scale,
)
from icefall_kd.training.student import build_optimizer, make_autocast, select_amp
from icefall_kd.training.updates import TrainedBatch, UpdateBatches
from icefall_kd.training.validation import validate
from icefall_kd.transducer.checkpoint import load_weights, pack_bytes, save_checkpoint
from icefall_kd.zipformer.scaling import REFERENCE_DURATION, set_batch_count


class Trainer:
    """Trains one student in one folder; :meth:`run` runs all remaining epochs."""

    def __init__(
        self,
        setup: Setup,
        world: World,
        resume: Optional[dict[str, Any]] = None,
        stop: Optional[StopRequest] = None,
    ) -> None:
        """Move the student to its device and load the checkpoint ``resume``.

        Args:
          stop: request to stop, set by a signal.
        """
        config = setup.config
        self.setup, self.config, self.world = setup, config, world
        self.stop = stop or StopRequest()
        self.exp_dir = Path(config.exp_dir)
        self.student = setup.student.to(world.device)
        self.model = self.student.model
        self.module: nn.Module = self.student
        self.mean = RunningMean(self.model)
        self.params = [p for _, p in self.student.trainable()]
        self.optimizer, self.scheduler = build_optimizer(self.student, config)
        amp = select_amp(config.amp, world.device)
        self._autocast = make_autocast(amp, world.device)
        self.scaler = make_scaler(amp == "fp16" and world.device.type == "cuda")
        # The schedules of dropout and layer skipping are over for a trained encoder.
        is_trained = config.init_encoder or config.init_model
        self.schedule_offset = math.inf if is_trained else 0.0
        self.state = TrainState(untrained=list(setup.untrained))
        self.bad_batches = BadBatches(self.exp_dir, world)
        names = [term.name for _, term in self.student.terms]
        self.skipped = SkippedCuts(names, world, config.data.missing)
        self.reporter = Reporter(config, world, setup.train_seconds)
        self.loader = make_train_loader(setup, world)
        self.batches = UpdateBatches(self.loader, world, config.optim.accumulate)
        self._trained: list[TrainedBatch] = []  # batches of the next update so far
        self._last_save = time.monotonic()
        self._is_stopping = False  # a process received a signal
        self._is_save_due = False  # save_every_minutes have passed on rank 0
        ckpt.seed_everything(config.seed + world.rank)
        if resume is not None:
            self.load_state_dict(resume)
            self.reporter.log(
                f"resuming from epoch {self.state.epoch} step {self.state.step}"
            )
        elif config.memory_probe:
            set_batch_count(self.student, self.schedule_offset)
            probe_memory(
                self.student,
                setup.train_stream,
                self.loader,
                device=world.device,
                autocast=self._autocast,
                max_duration=config.data.max_duration,
            )
        if world.size > 1:
            # DistilledStudent.loss reaches all parameters unless the encoder is frozen.
            may_freeze = config.init_encoder and config.optim.frozen_batches
            self.module = wrap_ddp(self.student, bool(may_freeze))

    def state_dict(self) -> dict[str, Any]:
        """Return a training checkpoint; every process must call it."""
        config, tokenizer = self.config, self.setup.tokenizer
        return {
            "model": self.model.state_dict(),
            "model_avg": self.mean.mean,
            "avg_samples": self.mean.samples,
            "model_config": to_dict(config.model),
            "bpe_model": pack_bytes(tokenizer.model_bytes if tokenizer else None),
            "heads": self.student.heads.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "sampler": self.loader.state_dict(),
            "state": vars(self.state).copy(),
            "rng": self.world.gather(self.batches.get_rng_state()),
            "regularisers": ckpt.get_whiten_probs(self.model),
            "metrics": self.reporter.metrics.state_dict(),
            "skipped": self.skipped.state_dict(),
            "config": to_dict(config),
            "trained_parts": sorted(
                {part for _, term in self.student.terms for part in term.trains}
            ),
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Load a checkpoint of :meth:`state_dict`.

        Raises:
          ValueError: if the checkpoint is of another student, or the data of its epoch
            has changed.
        """
        where = f"the last checkpoint in {self.exp_dir}"
        self.state = TrainState(**saved["state"])
        load_weights(self.model, saved["model"], where)
        load_weights(self.student.heads, saved["heads"], where)
        self.mean.load(saved["model_avg"], saved["avg_samples"])
        self.optimizer.load_state_dict(saved["optimizer"])
        for group in self.optimizer.param_groups:  # the configuration may have changed
            group["clipping_scale"] = self.config.optim.clipping_scale
        self.scheduler.load_state_dict(saved["scheduler"])
        if self.scaler.is_enabled() and saved["scaler"]:
            self.scaler.load_state_dict(saved["scaler"])
        ckpt.set_whiten_probs(self.model, saved["regularisers"])
        self.reporter.metrics = MetricsTracker(saved["metrics"])
        self.skipped.load_state_dict(saved.get("skipped", {}))
        if self.state.batch and not self.state.validating:
            self.loader.load_state_dict(saved["sampler"])
        if self.world.rank < len(saved["rng"]):
            self.batches.set_rng_state(saved["rng"][self.world.rank])

    def run(self) -> None:
        """Train until ``num_epochs`` are finished.

        Raises:
          TrainingStoppedError: if training cannot continue, see ``training.skipped``
            and ``training.memory``.
          TrainingInterruptedError: after a signal.
        """
        config, state = self.config, self.state
        terms = [term for _, term in self.student.terms]
        self.reporter.open(state, {t.teacher_metric: t.fields for t in terms})
        total = sum(p.numel() for p in self.model.parameters())
        trained = sum(p.numel() for p in self.params)
        self.reporter.log(
            f"{total} parameters in the student; {trained} trained, heads included"
        )
        while state.epoch < config.num_epochs:
            if not state.validating:
                self._train_epoch()
                self._check_skipped_cuts()
                state.validating = True
            if self.mean.samples == state.samples_before:
                self.mean.sample(self.model)  # each epoch has at least one sample
            dev = self._validate()
            state.epoch, state.batch, state.validating = state.epoch + 1, 0, False
            state.samples_before = self.mean.samples
            self.scheduler.step_epoch(state.epoch)
            if dev:
                self.reporter.report_validation(state, dev)
            path = ckpt.epoch_path(self.exp_dir, state.epoch)
            self._save(path)
            if self.world.is_main:
                ckpt.remove_step_checkpoints(self.exp_dir)
                ckpt.shrink_epoch_checkpoints(self.exp_dir, config.keep_optimizer)
            is_last = state.epoch == config.num_epochs
            if not is_last and self.world.any(self.stop.is_requested):
                self._interrupt(path)
        self.reporter.close()
        if self.world.is_main:
            write_text(self.exp_dir / "done", f"{state.epoch} epochs\n")
        self.world.barrier()

    def _train_epoch(self) -> None:
        config, state = self.config, self.state
        self.module.train()
        clock = time.monotonic()
        with self.reporter.open_bar(state) as bar, logging_redirect_tqdm():
            for batch, is_last in self.batches.read(state.epoch, state.batch > 0):
                self._train_batch(batch, is_last)
                if not is_last:
                    continue
                before = state.step
                audio = self._update()
                is_updated = state.step > before
                now = time.monotonic()
                self.reporter.metrics.add("speed", audio, now - clock)
                state.audio += audio
                state.seconds += now - clock
                clock = now
                bar.update(audio)
                if state.bad_in_row >= config.max_bad_batches:
                    self.bad_batches.stop_run(state, config.optim.base_lr)
                if is_updated and state.step % config.log_interval == 0:
                    lr = self.scheduler.get_last_lr()[0]
                    self.reporter.report_progress(state, lr)
                every = config.save_every_n
                is_due = self._is_save_due or (every and state.step % every == 0)
                path = ckpt.step_path(self.exp_dir, state.step)
                if (is_updated and is_due) or self._is_stopping:
                    self._save(path)
                if self._is_stopping:
                    self._interrupt(path)

    def _train_batch(self, batch: Batch, is_last: bool) -> None:
        """Add the gradients of a batch to those of the next update.

        Args:
          is_last: whether the update follows.
        """
        config, step = self.config, self.state.step
        if not self._trained:
            self.optimizer.zero_grad(set_to_none=True)
        batch_count = self.state.audio / REFERENCE_DURATION + self.schedule_offset
        set_batch_count(self.student, batch_count)
        is_frozen = config.init_encoder is not None and (
            step < config.optim.frozen_batches
        )
        with contextlib.ExitStack() as stack:
            if isinstance(self.module, DistributedDataParallel) and not is_last:
                stack.enter_context(self.module.no_sync())
            stack.enter_context(explain_out_of_memory(batch, config.data.max_duration))
            with self._autocast():
                loss, frames, outputs = self.module(batch, step, is_frozen)
            # The regularisers add gradients whose size suits a loss summed over
            # frames.  ScaledAdam does not depend on the scale of the gradients.
            self.scaler.scale(loss * frames).backward()
        self.state.batch += 1
        self._trained.append(
            TrainedBatch(
                number=self.state.batch,
                batch={name: batch[name] for name in ("cuts", "feature_lens")},
                loss=loss.detach(),
                frames=frames,
                outputs=outputs,
            )
        )

    def _update(self) -> float:
        """Update the weights, or skip the batches since the last update.

        The gradients are those of the terms, summed over all batches and divided by the
        number of processes, as for one batch with the cuts of all of them.

        Returns:
          Audio in the batches of all processes, in seconds.
        """
        config, state = self.config, self.state
        trained, self._trained = self._trained, []
        self.scaler.unscale_(self.optimizer)
        frames = sum(b.frames for b in trained)
        limit = config.optim.max_grad_norm
        if limit:  # per frame; all processes share the gradients
            limit *= self.world.sum([float(frames)])[0] / self.world.size
        norm = clip_gradients(self.params, limit)
        loss = torch.stack([b.loss for b in trained]).sum().item()
        # Sums over all processes, so that all of them take the same branch below.
        bad_loss, bad_grad, audio, stopping, saving = self.world.sum(
            [
                float(not math.isfinite(loss)),
                float(not math.isfinite(norm)),
                sum(b.seconds for b in trained),
                float(self.stop.is_requested),
                float(self.world.is_main and self._is_time_to_save()),
            ]
        )
        self._is_stopping, self._is_save_due = stopping > 0, saving > 0
        reason = ""
        if bad_loss or bad_grad:
            reason = NOT_FINITE
            if self.scaler.is_enabled():
                self.scaler.update()  # lowers the loss scale for the next update
                if not bad_loss:  # fp16 overflowed; the batches themselves are good
                    check_loss_scale(self.scaler.get_scale(), config.optim.base_lr)
                    reason = OVERFLOW
        for b in trained:
            self.skipped.add(b.batch, b.outputs, reason)
        if reason == NOT_FINITE:
            self.bad_batches.add(state, trained, norm)
        if reason:
            return audio
        self.scaler.step(self.optimizer)
        self.scaler.update()
        state.step += 1
        state.bad_in_row = 0
        self.scheduler.step_batch(state.step)
        if state.step % config.average_period == 0:
            self.mean.sample(self.model)
        metrics = self.reporter.metrics
        for b in trained:
            metrics.add("loss", b.loss * b.frames, b.frames)
            metrics.add_terms(b.outputs, len(b.batch["cuts"]))
        metrics.add("grad_norm", norm, frames)
        return audio

    def _is_time_to_save(self) -> bool:
        seconds = 60 * self.config.save_every_minutes
        return seconds > 0 and time.monotonic() - self._last_save >= seconds

    def _check_skipped_cuts(self) -> None:
        """Report the skipped cuts of the epoch.

        If they stop the run, remove the checkpoints within the epoch, so that the run
        resumes from the epoch before.
        """
        try:
            shares = self.skipped.end_epoch(self.state.epoch + 1, self.state.batch)
        except TrainingStoppedError:
            if self.world.is_main:
                ckpt.remove_step_checkpoints(self.exp_dir)
            raise
        self.reporter.report_skipped(self.state, shares)

    def _validate(self) -> dict[str, float]:
        """Return the means over the dev set, {} without one.

        Raises:
          TrainingInterruptedError: after a signal, once a checkpoint is written.
        """
        if self.setup.dev_stream is None:
            return {}
        means = validate(
            self.student,
            make_dev_loader(self.setup, self.world),
            self.world,
            self.stop,
            tokenizer=self.setup.tokenizer,
            autocast=self._autocast,
            max_duration=self.config.data.max_duration,
        )
        if means is None:
            path = ckpt.step_path(self.exp_dir, self.state.step)
            self._save(path)
            self._interrupt(path)
        return means

    def _save(self, path: Path) -> None:
        weights = (*self.model.parameters(), *self.mean.mean.values())
        check_finite(weights, self.state.step, self.config.optim.base_lr)
        self.skipped.check(self.state.epoch + 1, complete=False)
        saved = self.state_dict()  # on all processes: each adds its random state
        self._last_save = time.monotonic()
        if not self.world.is_main:
            return
        save_checkpoint(path, saved)
        self.reporter.log(f"wrote {path}")
        if path.name.startswith("checkpoint-"):
            ckpt.remove_step_checkpoints(self.exp_dir, keep=2)

    def _interrupt(self, written: Path) -> NoReturn:
        """Raise TrainingInterruptedError in all processes.

        Args:
          written: checkpoint to resume from, for the message.
        """
        self.reporter.close()
        # Waits until rank 0 has written the checkpoint, and shares the signal, because
        # perhaps only one process received it.
        number = max(self.world.gather(self.stop.number))
        raise TrainingInterruptedError(
            f"stopped on request after update {self.state.step}, wrote {written.name}. "
            "Run the same command to resume.",
            number,
        )
