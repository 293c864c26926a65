"""Losses and word error rate on the dev set."""

import logging
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Optional

import torch

from icefall_kd.core.distributed import World
from icefall_kd.core.frames import Batch, move_to_device
from icefall_kd.data.tokens import Tokenizer
from icefall_kd.decoding import GREEDY_METHODS, DecodeOptions, decode
from icefall_kd.distill.term import StudentOutput, Term
from icefall_kd.recognition.recognise import reference_words
from icefall_kd.recognition.scoring import Recognition, count_errors
from icefall_kd.training.interruptions import StopRequest
from icefall_kd.training.memory import explain_out_of_memory
from icefall_kd.training.metrics import MetricsTracker
from icefall_kd.training.skipped import SkippedCuts
from icefall_kd.training.student import DistilledStudent
from icefall_kd.transducer.checkpoint import HEADS

# Dev losses use the final weights of the terms' schedules, so that the losses of two
# epochs, or of a run and its fine-tuning, can be compared.
FINAL_STEP = sys.maxsize


@torch.no_grad()
def validate(
    student: DistilledStudent,
    loader: Iterable[Batch],
    world: World,
    stop: StopRequest,
    *,
    tokenizer: Optional[Tokenizer],
    autocast: Callable[[], AbstractContextManager],
    max_duration: float,
) -> Optional[dict[str, float]]:
    """Return the mean losses and the WER over the dev set.

    Every process must call it; it returns when all batches of all processes are done.

    Args:
      loader: this process's batches of the set.
      stop: ends the validation after a signal in any process.
      tokenizer: tokenizer of the student; None if no term needs text.
      autocast: context of the forward pass.
      max_duration: ``data.max_duration`` in seconds, for an out-of-memory message.
    Returns:
      "loss" and the terms in nats per frame; with a tokenizer and a trained head also
      "wer_ctc" or "wer_transducer" in percent.  None after a signal.
    """
    terms = [term for _, term in student.terms]
    head = decoding_head(terms) if tokenizer is not None else None
    tracker = MetricsTracker()
    skipped = SkippedCuts([term.name for term in terms], world, "error")
    student.eval()
    batches = iter(loader)
    while True:
        batch = next(batches, None)
        ended, stopping = world.sum([float(batch is None), float(stop.is_requested)])
        if stopping:
            return None
        if ended == world.size:
            break
        if batch is None:
            continue
        with explain_out_of_memory(batch, max_duration):
            batch = move_to_device(batch, world.device)
            with autocast():
                encoded = student.encode(batch)
                loss, frames, outputs = student.loss(encoded, batch, FINAL_STEP)
            tracker.add("loss", loss * frames, frames)
            if head is not None:
                errors, words = count_word_errors(encoded, batch, head, tokenizer)
                tracker.add(f"wer_{head}", 100.0 * errors, words)
        tracker.add_terms(outputs, len(batch["feature_lens"]))
        skipped.add(batch, outputs)
    student.train()
    means = tracker.means(world)
    unused = skipped.unused()
    for term, reasons in unused.items():
        if world.is_main:
            logging.warning("dev: term '%s' used no cut, by reason: %s", term, reasons)
    if len(unused) == len(terms):
        means.pop("loss", None)  # no term contributed
    return means


def decoding_head(terms: Sequence[Term]) -> Optional[str]:
    """Return the head that decodes dev: CTC if trained, else the transducer."""
    trained = {part for term in terms for part in term.trains}
    heads = [head for head in ("ctc", "transducer") if trained.issuperset(HEADS[head])]
    return heads[0] if heads else None


def count_word_errors(
    student: StudentOutput, batch: Batch, head: str, tokenizer: Tokenizer
) -> tuple[int, int]:
    """Return (word errors, reference words) of the labelled cuts by greedy search."""
    options = DecodeOptions(GREEDY_METHODS[head], unk_id=tokenizer.unk_id)
    found = decode(student.model, student.encoder_out.float(), student.lens, options)
    counts = count_errors(
        [
            Recognition(cut.id, words, tokenizer.decode(hyp.tokens).split())
            for cut, hyp in zip(batch["cuts"], found)
            if (words := reference_words(cut))
        ]
    )
    return counts.errors, counts.words
