"""The training loop: the same for the baseline and for every distillation."""

import contextlib
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, Optional

import torch
from torch import nn
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from icefall_kd import FBANK_SHIFT
from icefall_kd.core.distributed import World, wrap_ddp
from icefall_kd.core.files import write_text
from icefall_kd.core.frames import Batch, move_to_device
from icefall_kd.distill.term import teacher_metric
from icefall_kd.training import checkpoint as ckpt
from icefall_kd.training.averaging import RunningMean
from icefall_kd.training.faults import (
    NOT_FINITE,
    OVERFLOW,
    BadBatches,
    SkippedCuts,
    TrainingStoppedError,
    check_finite,
    check_scale,
)
from icefall_kd.training.interruptions import StopRequest, TrainingInterruptedError
from icefall_kd.training.memory import (
    costliest_batches,
    explaining_memory,
    probe_memory,
)
from icefall_kd.training.metrics import add_outputs
from icefall_kd.training.optim import Eden, ScaledAdam, clip_gradients, make_scaler
from icefall_kd.training.report import Reporter
from icefall_kd.training.setup import Setup, make_dev_loader, make_train_loader
from icefall_kd.training.snapshot import restore, snapshot
from icefall_kd.training.state import TrainState, restore_rng, seed_everything
from icefall_kd.training.student import parameter_groups
from icefall_kd.training.validation import validate
from icefall_kd.zipformer.scaling import set_batch_count

SCHEDULES_END = 100_000  # batches; by then every schedule of the encoder has ended
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Trainer:
    """Trains one student in one folder; :meth:`run` goes on where it stopped."""

    def __init__(
        self,
        setup: Setup,
        world: World,
        resume: Optional[dict[str, Any]] = None,
        stop: Optional[StopRequest] = None,
    ) -> None:
        """Put the student on its device and bring back the state of ``resume``.

        Args:
          stop: tells, at any time, that the run is to stop.
        """
        config = setup.config
        self.stop = stop or StopRequest()
        self.stopping = False  # any process was asked to
        self.saving = False  # the main process finds that it is time to
        self._saved = time.monotonic()
        self.setup, self.config, self.world = setup, config, world
        self.exp_dir = Path(config.exp_dir)
        self.student = setup.student.to(world.device)
        self.model = self.student.model
        self.module: nn.Module = self.student
        self.mean = RunningMean(self.model)
        self.params = [p for _, p in self.student.trainable()]
        self.optimizer = ScaledAdam(
            parameter_groups(self.student, config),
            lr=config.optim.base_lr,
            clipping_scale=config.optim.clipping_scale,
        )
        self.scheduler = Eden(
            self.optimizer,
            config.optim.lr_batches,
            config.optim.lr_epochs,
            warmup_batches=config.optim.warmup_batches,
        )
        # Only half precision on CUDA needs its gradients scaled.
        half = config.amp == "fp16" and world.device.type == "cuda"
        self.scaler = make_scaler(half)
        # A trained encoder needs no second warm-up of dropout and skipped layers.
        trained = config.init_encoder or config.init_model
        self.schedule_offset = SCHEDULES_END if trained else 0
        self.state = TrainState(untrained=list(setup.untrained))
        self.faults = BadBatches(self.exp_dir, world)
        names = [term.name for _, term in self.student.terms]
        self.skipped = SkippedCuts(names, world, config.data.missing)
        self.report = Reporter(config, world, setup.train_seconds)
        self.pending_rng: Optional[dict[str, Any]] = None
        self.loader = make_train_loader(setup, world)
        seed_everything(config.seed + world.rank)
        if resume is not None:
            restore(self, resume)
            self.report.log(
                f"going on from epoch {self.state.epoch} step {self.state.step}"
            )
        elif config.memory_probe:
            self._probe_memory()
        if world.size > 1:
            self.module = wrap_ddp(self.student)

    def _probe_memory(self) -> None:
        duration = self.config.data.max_duration
        needs_text = any(term.needs_text for _, term in self.student.terms)
        set_batch_count(self.student, self.schedule_offset)
        probe_memory(
            self.student,
            costliest_batches(
                self.setup.train_stream, self.loader, duration, needs_text
            ),
            device=self.world.device,
            autocast=self._autocast,
            max_duration=duration,
        )

    def run(self) -> None:
        """Train until ``num_epochs`` are done.

        Raises:
          TrainingStoppedError: if too many batches in a row were not finite, or one
            does not fit into memory.
          TrainingInterruptedError: if the run was asked to stop.
        """
        config, state = self.config, self.state
        self.report.open(
            state, {teacher_metric(t): t.fields for _, t in self.student.terms}
        )
        trained = sum(p.numel() for p in self.params)
        total = sum(p.numel() for p in self.model.parameters())
        self.report.log(
            f"{total} parameters in the student, {trained} trained with heads"
        )
        while state.epoch < config.num_epochs:
            if not state.validating:
                self._train_epoch()
                self._end_epoch()
                state.validating = True
            if self.mean.samples == state.samples_before:
                self.mean.sample(self.model)  # each epoch has at least one sample
            dev = self._validate()
            state.epoch, state.batch, state.validating = state.epoch + 1, 0, False
            state.samples_before = self.mean.samples
            self.scheduler.step_epoch(state.epoch)
            if dev:
                self.report.validation(state, dev)
            self._save(ckpt.epoch_path(self.exp_dir, state.epoch))
            if self.world.is_main:
                ckpt.tidy(self.exp_dir, config.keep_optimizer)
            if state.epoch < config.num_epochs and self.world.any(self.stop.asked):
                self._interrupt(f"epoch-{state.epoch}.pt")
        self.report.close()
        if self.world.is_main:
            write_text(self.exp_dir / "done", f"{state.epoch} epochs\n")
        self.world.barrier()

    def _batches(self) -> Iterator[dict[str, Any]]:
        """Yield the rest of the present epoch, equally many batches to all ranks."""
        self.loader.sampler.set_epoch(self.state.epoch)
        batches = iter(self.loader)
        if self.state.batch == 0:
            self._restore_rng()
        while True:
            batch = next(batches, None)
            # Within an epoch only now: opening the loader draws a number, which the
            # saved state had drawn already.
            self._restore_rng()
            if self.world.any(batch is None):
                return
            yield move_to_device(batch, self.world.device)

    def _restore_rng(self) -> None:
        if self.pending_rng is not None:
            restore_rng(self.pending_rng)
            self.pending_rng = None

    def _train_epoch(self) -> None:
        config, state = self.config, self.state
        self.module.train()
        bar = tqdm(
            desc=f"epoch {state.epoch + 1}/{config.num_epochs}",
            total=round(self.setup.train_seconds) or None,
            initial=round(state.audio - state.epoch * self.setup.train_seconds)
            if self.setup.train_seconds
            else 0,
            unit="s",
            disable=not (self.world.is_main and sys.stderr.isatty()),
        )
        clock = time.monotonic()
        with bar, logging_redirect_tqdm():
            for batch in self._batches():
                before = state.step
                audio = self._train_batch(batch)
                updated = state.step > before
                now = time.monotonic()
                self.report.metrics.add("speed", audio, now - clock)
                state.audio += audio
                state.seconds += now - clock
                clock = now
                bar.update(audio)
                if state.bad_in_row >= config.max_bad_batches:
                    self.faults.give_up(state, config.optim.base_lr)
                if updated and state.step % config.log_interval == 0:
                    self.report.progress(state, self.scheduler.get_last_lr()[0])
                every = config.save_every_n
                due = self.saving or (every and state.step % every == 0)
                if (updated and due) or self.stopping:
                    self._save(ckpt.step_path(self.exp_dir, state.step))
                if self.stopping:
                    self._interrupt(f"checkpoint-{state.step}.pt")

    def _end_epoch(self) -> None:
        """Report what the epoch skipped; leave no checkpoint of one that is refused."""
        try:
            shares = self.skipped.end_epoch(self.state.epoch + 1, self.state.batch)
        except TrainingStoppedError:
            if self.world.is_main:
                for _, path in ckpt.numbered(self.exp_dir, "checkpoint"):
                    path.unlink()
            raise
        self.report.skipped(self.state, shares)

    def _interrupt(self, written: str) -> NoReturn:
        self.report.close()
        # Nobody leaves before the checkpoint is written; one process may have been
        # asked for all.
        number = max(self.world.gather(self.stop.number))
        raise TrainingInterruptedError(
            f"stopped on request after update {self.state.step}, {written} is written; "
            "the same command goes on from there",
            number,
        )

    def _train_batch(self, batch: Batch) -> float:
        """Make one update, or skip it; return the s of audio of all processes."""
        config, state = self.config, self.state
        set_batch_count(self.student, state.step + self.schedule_offset)
        self.optimizer.zero_grad(set_to_none=True)
        with explaining_memory(batch, config.data.max_duration):
            with self._autocast():
                loss, frames, outputs = self.module(batch, state.step, self._frozen())
            # The sum over frames: the encoder's regularisers add gradients of a size
            # that was chosen for it.  The optimiser does not depend on the scale.
            self.scaler.scale(loss * frames).backward()
        self.scaler.unscale_(self.optimizer)
        limit = config.optim.max_grad_norm
        if limit:  # the same for all processes, which share the gradients
            limit *= self.world.sum([float(frames)])[0] / self.world.size
        norm = clip_gradients(self.params, limit)
        state.batch += 1
        # Sums over all processes, so that all of them take the same way from here.
        bad_loss, bad_grad, audio, stopping, saving = self.world.sum(
            [
                float(not math.isfinite(loss.item())),
                float(not math.isfinite(norm)),
                float(batch["feature_lens"].sum()) * FBANK_SHIFT,
                float(self.stop.asked),
                float(self.world.is_main and self._is_time_to_save()),
            ]
        )
        self.stopping, self.saving = stopping > 0, saving > 0
        if (bad_loss or bad_grad) and self.scaler.is_enabled():
            self.scaler.update()  # to a smaller scale; the next batch needs it
            if not bad_loss:  # no fault of the batch: half precision overflowed
                check_scale(self.scaler.get_scale(), config.optim.base_lr)
                self.skipped.add(batch, outputs, OVERFLOW)
                return audio
        if bad_loss or bad_grad:
            self.faults.note(state, batch, loss.item(), norm, outputs)
            self.skipped.add(batch, outputs, NOT_FINITE)
            return audio
        self.skipped.add(batch, outputs)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        state.step += 1
        state.bad_in_row = 0
        self.scheduler.step_batch(state.step)
        if state.step % config.average_period == 0:
            self.mean.sample(self.model)
        self.report.metrics.add("loss", loss.detach() * frames, frames)
        add_outputs(self.report.metrics, outputs, len(batch["feature_lens"]))
        self.report.metrics.add("grad_norm", norm, frames)
        return audio

    def _is_time_to_save(self) -> bool:
        seconds = 60 * self.config.save_every_minutes
        return seconds > 0 and time.monotonic() - self._saved >= seconds

    def _frozen(self) -> bool:
        """Return whether the encoder waits for the layers behind it."""
        waiting = self.state.step < self.config.optim.frozen_batches
        return self.config.init_encoder is not None and waiting

    def _autocast(self) -> contextlib.AbstractContextManager:
        dtype = DTYPES.get(self.config.amp)
        if dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.world.device.type, dtype)

    def _validate(self) -> dict[str, float]:
        """Return the means over the dev set, {} if there is none."""
        if self.setup.dev_stream is None:
            return {}
        return validate(
            self.student,
            self._dev_batches(),
            self.world,
            tokenizer=self.setup.tokenizer,
            autocast=self._autocast,
            max_duration=self.config.data.max_duration,
        )

    def _dev_batches(self) -> Iterator[Batch]:
        """Yield this rank's batches of the dev set.

        All ranks take part until the last one has no batch left.

        Raises:
          TrainingInterruptedError: if the run was asked to stop.
        """
        batches = iter(make_dev_loader(self.setup, self.world))
        while True:
            batch = next(batches, None)
            ended, asked = self.world.sum([batch is None, self.stop.asked])
            if asked:
                self._save(ckpt.step_path(self.exp_dir, self.state.step))
                self._interrupt(f"checkpoint-{self.state.step}.pt")
            if ended == self.world.size:
                return
            if batch is not None:
                yield batch

    def _save(self, path: Path) -> None:
        weights = (*self.model.parameters(), *self.mean.mean.values())
        check_finite(weights, self.state.step, self.config.optim.base_lr)
        self.skipped.check(self.state.epoch + 1, complete=False)
        saved = snapshot(self)  # by all processes: each has its random state
        self._saved = time.monotonic()
        if not self.world.is_main:
            return
        ckpt.save_checkpoint(path, saved)
        self.report.log(f"wrote {path}")
        if path.name.startswith("checkpoint-"):
            for _, old in ckpt.numbered(self.exp_dir, "checkpoint")[2:]:
                old.unlink()
