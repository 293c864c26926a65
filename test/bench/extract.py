"""How much faster is our extraction than the loops that people write?

    python test/bench/extract.py --model-dir DIR --shar-dir DIR [DIR ...] [--threads 2]

Prints JSON.  "short": utterances as they are, against the naive Whisper loop that pads
each to 30 s and encodes one at a time; how much faster, and the mean cosine of all
frames to those of that loop.  "long": prompts put together to 20 to 30 s, in batches
against that loop and against our own with batches of one.

The command keeps freed memory (``keep_freed_memory``), which a loop that
people write does not: the system then clears the same memory for every call.  The loop
is timed without, as it is, and once more with it.

The same CTranslate2 model on the same threads throughout: the loop gives them all to
each call, ours runs as many calls side by side.  "cpu_s" is what the process used,
which other load on the machine disturbs less than the time that went by, "wall_s".
"times_faster" is the ratio of the first on one thread and of the second on several,
since threads that wait for each other use the processor too.  Ours is everything up to
the arrays: decoding flac, log-mel, encoder; the naive loop begins with the decoded
audio.
"""

import argparse
import json
import time
from collections.abc import Sequence
from typing import Callable

import ctranslate2
import numpy as np
import torch

from icefall_kd import SAMPLE_RATE
from icefall_kd.core.cpu import keep_freed_memory
from icefall_kd.fields.reader import open_shar
from icefall_kd.fields.run_teachers import run_teachers, run_teachers_on_batch
from icefall_kd.teachers import Teacher, build_teacher
from icefall_kd.teachers.whisper_ct2 import FRAME
from icefall_kd.teachers.whisper_encoder import log_mel
from icefall_kd.teachers.windows import WINDOW

LONG = (20.0, 30.0)  # s


def load_cuts(shar_dirs: Sequence[str], limit: int) -> list:
    """Return the first cuts of Shar folders, with their audio as flac."""
    cuts = [cut for d in shar_dirs for cut in open_shar(d) if cut.duration <= 20]
    return cuts[:limit]


def load_wave(cut) -> torch.Tensor:
    """Return (S,) float32."""
    return torch.from_numpy(cut.load_audio()[0])


def put_together(waves: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return utterances of 20 to 30 s made of several."""
    out, held = [], []
    for wave in waves:
        seconds = sum(map(len, [*held, wave])) / SAMPLE_RATE
        if seconds > LONG[1] - 1.0:
            if sum(map(len, held)) >= LONG[0] * SAMPLE_RATE:
                out.append(torch.cat(held))
            held = []
        held.append(wave)
    return out


def timed(function: Callable) -> tuple[list[torch.Tensor], dict[str, float]]:
    """Return what ``function`` returns, and the s that it took."""
    cpu, wall = time.process_time(), time.perf_counter()
    found = function()
    cost = {
        "cpu_s": round(time.process_time() - cpu, 2),
        "wall_s": round(time.perf_counter() - wall, 2),
    }
    return found, cost


def one_by_one(teacher: Teacher, waves: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Encode each utterance in a call of its own."""
    return [x for wave in waves for x in arrays(teacher, [wave])]


def arrays(teacher: Teacher, waves: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Encode utterances in one call."""
    said = run_teachers_on_batch(waves, [teacher])
    return [torch.from_numpy(a[teacher.name]) for a in said]


def cosine(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> float:
    """Return the mean cosine over all frames."""
    each = [torch.cosine_similarity(x, y, dim=1) for x, y in zip(a, b)]
    return round(torch.cat(each).mean().item(), 4)


class NaiveLoop:
    """What people write: each utterance padded to 30 s, in a call of its own."""

    def __init__(self, model_dir: str, compute_type: str, threads: int) -> None:
        self.model = ctranslate2.models.Whisper(
            model_dir, compute_type=compute_type, intra_threads=threads
        )

    def __call__(self, waves: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return (T, D) of each utterance."""
        said = []
        for wave in waves:
            padded = torch.zeros(1, WINDOW)
            padded[0, : len(wave)] = wave
            mel = np.ascontiguousarray(log_mel(padded, self.model.n_mels).numpy())
            x = self.model.encode(ctranslate2.StorageView.from_array(mel), to_cpu=True)
            said.append(torch.from_numpy(np.array(x)[0, : -(-len(wave) // FRAME)]))
        return said


def naive_loops(
    loop: NaiveLoop, short: list[torch.Tensor], long: list[torch.Tensor]
) -> dict[str, object]:
    """Return what the loop that pads to 30 s says, and what it costs."""
    loop([*short, *long][:2])
    said, short_cost = timed(lambda: loop(short))
    _, long_cost = timed(lambda: loop(long))
    return {"said": said, "short": short_cost, "long": long_cost}


def short_rows(
    build: Callable,
    cuts: list,
    compute: str,
    naive: dict,
    kept: dict,
    args: argparse.Namespace,
) -> list[dict]:
    """Compare settings with the naive loop over the same utterances."""
    rows = []
    for context in args.context:
        ours = build(compute_type=compute, context=context)
        list(run_teachers(cuts[:4], [ours], args.max_batch_duration))
        said, cost = timed(
            lambda ours=ours: list(run_teachers(cuts, [ours], args.max_batch_duration))
        )
        arrays = [torch.from_numpy(said_of[ours.name]) for _, said_of in said]
        rows.append(
            {
                "compute_type": compute,
                "context": context,
                "times_faster": faster(naive["short"], cost, args.threads),
                "times_faster_than_loop_keeping_memory": faster(
                    kept["short"], cost, args.threads
                ),
                "cosine": cosine(naive["said"], arrays),
                "ours": cost,
                "naive": naive["short"],
            }
        )
    return rows


def long_row(
    build: Callable,
    waves: list[torch.Tensor],
    compute: str,
    naive: dict,
    kept: dict,
    threads: int,
) -> dict:
    """Compare batches of long utterances with one at a time."""
    ours = build(compute_type=compute)
    arrays(ours, waves[:1])
    alone, single = timed(lambda: one_by_one(ours, waves))
    said, batch = timed(lambda: arrays(ours, waves))
    return {
        "compute_type": compute,
        "times_faster": faster(naive["long"], batch, threads),
        "times_faster_than_loop_keeping_memory": faster(kept["long"], batch, threads),
        "times_faster_than_own_batches_of_1": faster(single, batch, threads),
        "largest_difference": max(
            (a - b).abs().max().item() for a, b in zip(alone, said)
        ),
        "ours": batch,
        "naive": naive["long"],
    }


def faster(slow: dict[str, float], fast: dict[str, float], threads: int) -> float:
    """Return the ratio of the CPU seconds, on several threads of those gone by."""
    clock = "cpu_s" if threads == 1 else "wall_s"
    return round(slow[clock] / fast[clock], 2)


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--shar-dir", nargs="+", required=True)
    add("--model-dir", required=True)
    add("--short", type=int, default=24, help="short utterances")
    add("--long", type=int, default=4, help="long ones")
    add("--threads", type=int, default=1)
    add("--compute-type", nargs="+", default=["float32", "int8"])
    add("--context", type=float, nargs="+", default=[1.0, 2.0])
    add("--max-batch-duration", type=float, default=60.0)
    args = parser.parse_args()
    torch.set_num_threads(1)

    def build(**options: object) -> Teacher:
        return build_teacher(
            "whisper_ct2", args.model_dir, num_threads=args.threads, **options
        )

    def measure() -> dict[str, dict]:
        """Run the loop with each type of numbers."""
        loops = {c: NaiveLoop(args.model_dir, c, args.threads) for c in types}
        return {c: naive_loops(loop, short, waves) for c, loop in loops.items()}

    cuts = load_cuts(args.shar_dir, max(args.short, 12 * args.long))
    waves = put_together([load_wave(cut) for cut in cuts])[: args.long]
    cuts = cuts[: args.short]
    short = [load_wave(cut) for cut in cuts]
    types = args.compute_type
    loops = measure()
    keep_freed_memory(one_arena=True)  # as the command does; it cannot be taken back
    kept = measure()
    result = {
        "model_dir": args.model_dir,
        "threads": args.threads,
        "short_utterances": len(cuts),
        "short_seconds": round(sum(cut.duration for cut in cuts), 1),
        "long_utterances": len(waves),
        "long_seconds": round(sum(map(len, waves)) / SAMPLE_RATE, 1),
        "short": [
            row
            for c in types
            for row in short_rows(build, cuts, c, loops[c], kept[c], args)
        ],
        "long": [
            long_row(build, waves, c, loops[c], kept[c], args.threads) for c in types
        ],
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
