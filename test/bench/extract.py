"""Compare the speed of extraction with a plain Whisper loop.

    python test/bench/extract.py --model-dir DIR --shar-dir DIR [DIR ...] [--threads 2]

The plain loop pads each utterance to 30 s and encodes one at a time.  Prints JSON:

- "short": utterances of the Shar folders against the loop, and the mean cosine of all
  frames to those of the loop;
- "long": concatenations of 20 to 30 s, in batches, against the loop and against
  batches of 1.

The loop is measured twice: with the default memory allocation, and after
:func:`keep_freed_memory`, which ``bin.extract`` calls.  Without that function the
system returns and clears the same memory at every call.

All use the same CTranslate2 model and number of threads.  The loop gives all threads to
one call; the teacher runs one call on each thread.  The time of the extraction includes
reading the flac files, the time of the loop does not.  "times_faster" is the ratio of
CPU seconds ("cpu_s", less affected by other load) on one thread, and of wall-clock
seconds ("wall_s") on several threads, because waiting threads use the CPU too.

Not collected by pytest.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import ctranslate2
import numpy as np
import torch

from icefall_kd import SAMPLE_RATE
from icefall_kd.core.cpu import keep_freed_memory
from icefall_kd.fields.reader import open_shar
from icefall_kd.fields.run_teachers import run_teachers, run_teachers_on_batch
from icefall_kd.teachers import Teacher, build_teacher
from icefall_kd.teachers.whisper_encoder import FRAME, compute_log_mel
from icefall_kd.teachers.windows import WINDOW

LONG = (20.0, 30.0)  # s
Cost = dict[str, float]  # "cpu_s", "wall_s"


def load_cuts(shar_dirs: Sequence[str], limit: int) -> list:
    """Return the first cuts of Shar folders."""
    cuts = [cut for d in shar_dirs for cut in open_shar(d) if cut.duration <= 20]
    return cuts[:limit]


def load_wave(cut: Any) -> torch.Tensor:
    """Return the samples of a cut, (S,) float32."""
    return torch.from_numpy(cut.load_audio()[0])


def concatenate(waves: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return concatenations of 20 to 30 s."""
    result, parts = [], []
    for wave in waves:
        seconds = sum(map(len, [*parts, wave])) / SAMPLE_RATE
        if seconds > LONG[1] - 1.0:
            if sum(map(len, parts)) >= LONG[0] * SAMPLE_RATE:
                result.append(torch.cat(parts))
            parts = []
        parts.append(wave)
    return result


def measure(function: Callable[[], Any]) -> tuple[Any, Cost]:
    """Return the result of ``function``, and its CPU and wall-clock seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = function()
    cost = {
        "cpu_s": round(time.process_time() - cpu, 2),
        "wall_s": round(time.perf_counter() - wall, 2),
    }
    return result, cost


def encode(teacher: Teacher, waves: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return the embeddings of a batch, (T, D) each."""
    results = run_teachers_on_batch(waves, [teacher])
    return [torch.from_numpy(arrays[teacher.name]) for arrays in results]


def mean_cosine(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> float:
    """Return the mean cosine over all frames."""
    cosines = [torch.cosine_similarity(x, y, dim=1) for x, y in zip(a, b)]
    return round(torch.cat(cosines).mean().item(), 4)


class PlainLoop:
    """Encode utterances padded to 30 s, one per call."""

    def __init__(self, model_dir: str, compute_type: str, threads: int) -> None:
        self.model = ctranslate2.models.Whisper(
            model_dir, compute_type=compute_type, intra_threads=threads
        )

    def __call__(self, waves: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return the embeddings of each utterance, (T, D)."""
        embeddings = []
        for wave in waves:
            padded = torch.zeros(1, WINDOW)
            padded[0, : len(wave)] = wave
            mel = np.ascontiguousarray(
                compute_log_mel(padded, self.model.n_mels).numpy()
            )
            x = self.model.encode(ctranslate2.StorageView.from_array(mel), to_cpu=True)
            num_frames = -(-len(wave) // FRAME)
            embeddings.append(torch.from_numpy(np.array(x)[0, :num_frames]))
        return embeddings


class Comparison:
    """Measurements of one compute type.

    Args:
      short, long: samples of the utterances, (S,) float32 each.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        compute_type: str,
        short: list[torch.Tensor],
        long: list[torch.Tensor],
    ) -> None:
        self.args, self.compute_type = args, compute_type
        self.short, self.long = short, long
        self.loop = PlainLoop(args.model_dir, compute_type, args.threads)
        self.embeddings: list[torch.Tensor] = []  # of the loop, short utterances
        self.loop_costs: list[dict[str, Cost]] = []  # one per call of measure_loop

    def measure_loop(self) -> None:
        """Measure the loop, with the current memory allocation of the process."""
        self.loop([*self.short, *self.long][:2])
        self.embeddings, short = measure(lambda: self.loop(self.short))
        _, long = measure(lambda: self.loop(self.long))
        self.loop_costs.append({"short": short, "long": long})

    def build(self, **options: Any) -> Teacher:
        """Return the teacher with the options of the command line."""
        return build_teacher(
            "whisper_ct2",
            self.args.model_dir,
            num_threads=self.args.threads,
            compute_type=self.compute_type,
            **options,
        )

    def times_faster(self, slow: Cost, fast: Cost) -> float:
        """Return slow / fast: CPU seconds of one thread, else wall-clock seconds."""
        clock = "cpu_s" if self.args.threads == 1 else "wall_s"
        return round(slow[clock] / fast[clock], 2)

    def ratios(self, kind: str, cost: Cost) -> dict[str, Any]:
        """Return how much faster ``cost`` is than each measurement of the loop."""
        plain, keeping_memory = (costs[kind] for costs in self.loop_costs)
        return {
            "times_faster": self.times_faster(plain, cost),
            "times_faster_than_loop_keeping_memory": self.times_faster(
                keeping_memory, cost
            ),
            "ours": cost,
            "naive": plain,
        }

    def compare_short(self, cuts: list, context: float) -> dict[str, Any]:
        """Compare an extraction of short utterances with the loop."""
        teacher, limit = self.build(context=context), self.args.max_batch_duration
        list(run_teachers(cuts[:4], [teacher], limit))
        results, cost = measure(lambda: list(run_teachers(cuts, [teacher], limit)))
        found = [torch.from_numpy(arrays[teacher.name]) for _, arrays in results]
        return {
            "compute_type": self.compute_type,
            "context": context,
            **self.ratios("short", cost),
            "cosine": mean_cosine(self.embeddings, found),
        }

    def compare_long(self) -> dict[str, Any]:
        """Compare a batch of long utterances with the loop and with batches of 1."""
        teacher = self.build()
        encode(teacher, self.long[:1])
        alone, single = measure(
            lambda: [x for wave in self.long for x in encode(teacher, [wave])]
        )
        found, cost = measure(lambda: encode(teacher, self.long))
        differences = ((a - b).abs().max().item() for a, b in zip(alone, found))
        return {
            "compute_type": self.compute_type,
            **self.ratios("long", cost),
            "times_faster_than_own_batches_of_1": self.times_faster(single, cost),
            "largest_difference": max(differences),
        }


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--shar-dir", nargs="+", required=True)
    add("--model-dir", required=True)
    add("--short", type=int, default=24, help="number of short utterances")
    add("--long", type=int, default=4, help="number of long utterances")
    add("--threads", type=int, default=1)
    add("--compute-type", nargs="+", default=["float32", "int8"])
    add("--context", type=float, nargs="+", default=[1.0, 2.0])
    add("--max-batch-duration", type=float, default=60.0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    cuts = load_cuts(args.shar_dir, max(args.short, 12 * args.long))
    long = concatenate([load_wave(cut) for cut in cuts])[: args.long]
    cuts = cuts[: args.short]
    short = [load_wave(cut) for cut in cuts]
    comparisons = [Comparison(args, c, short, long) for c in args.compute_type]
    for comparison in comparisons:
        comparison.measure_loop()
    keep_freed_memory(one_arena=True)  # as the command; cannot be undone
    for comparison in comparisons:
        comparison.measure_loop()
    result = {
        "model_dir": args.model_dir,
        "threads": args.threads,
        "short_utterances": len(short),
        "short_seconds": round(sum(map(len, short)) / SAMPLE_RATE, 1),
        "long_utterances": len(long),
        "long_seconds": round(sum(map(len, long)) / SAMPLE_RATE, 1),
        "short": [
            c.compare_short(cuts, context)
            for c in comparisons
            for context in args.context
        ],
        "long": [c.compare_long() for c in comparisons],
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
