"""Measure how long a restart within an epoch of very many cuts takes.

    python test/bench/restore.py [--cuts 1500000] [--lhotse 20000]

Writes a Shar set with this number of cuts to a temporary folder and iterates the
sampler to the middle of an epoch.  Then a new process, as after a kill, opens the set,
restores the sampler with the cuts in its buckets, and draws the next batch.  With
``--lhotse N`` it also restores Lhotse's sampler after N cuts of the same set.  Prints
JSON: seconds of wall clock and CPU, peak memory in MB.  Not collected by pytest.

Only a few shards are written, and linked under the other numbers.  Their audio is
random bytes, which are never decoded; after the first pass it comes from page cache.
"""

import argparse
import gzip
import io
import json
import os
import random
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from icefall_kd.dataset.sampler import BucketSampler, bucket_edges
from icefall_kd.dataset.stream import open_stream

WORDS = (
    "the of and to in a is that it was for on are as with his they at be this".split()
)


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--cuts", type=int, default=1_500_000)
    add("--shard-size", type=int, default=1000, help="cuts per shard")
    add("--distinct", type=int, default=20, help="shards that are not links")
    add("--audio-bytes", type=int, default=50_000, help="bytes of audio per cut")
    add("--max-duration", type=float, default=1000.0, help="seconds per batch")
    add("--lhotse", type=int, default=0, help="cuts that Lhotse's sampler iterates")
    add("--folder", type=Path, help="folder for the set (default: a temporary one)")
    add("--worker", choices=["restore", "lhotse"], help=argparse.SUPPRESS)
    return parser.parse_args()


def cut_line(id: str, duration: float, text: str) -> dict[str, Any]:
    """Return the manifest of a cut in a Shar set."""
    samples = round(duration * 16000)
    source = {"type": "shar", "channels": [0], "source": ""}
    recording = {"id": id, "sources": [source], "sampling_rate": 16000}
    recording.update(num_samples=samples, duration=duration, channel_ids=[0])
    supervision = {"id": id, "recording_id": id, "start": 0.0, "duration": duration}
    supervision.update(channel=0, text=text, language="English", speaker="nobody")
    cut = {"id": id, "start": 0, "duration": duration, "channel": 0}
    return {
        **cut,
        "supervisions": [supervision],
        "recording": recording,
        "type": "MonoCut",
    }


def add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Append a member to a tar."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def write_set(folder: Path, args: argparse.Namespace) -> None:
    """Write ``distinct`` shards of cuts of 1 to 20 s; the others are links to them."""
    rng = random.Random(0)
    folder.mkdir(parents=True)
    for n in range((args.cuts + args.shard_size - 1) // args.shard_size):
        cuts = folder / f"cuts.{n:06d}.jsonl.gz"
        tar_path = folder / f"recording.{n:06d}.tar"
        if n >= args.distinct:
            for path in (cuts, tar_path):
                number = f"{n % args.distinct:06d}"
                os.link(folder / path.name.replace(f"{n:06d}", number), path)
            continue
        with (
            gzip.open(cuts, "wt", compresslevel=6) as f,
            tarfile.open(tar_path, "w") as tar,
        ):
            for i in range(args.shard_size):
                line = cut_line(
                    f"speaker-{rng.randrange(10**6):06d}-{n:06d}-{i:04d}",
                    round(rng.uniform(1.0, 20.0), 3),
                    " ".join(rng.choices(WORDS, k=rng.randrange(3, 50))),
                )
                f.write(json.dumps(line) + "\n")
                add_member(tar, f"{line['id']}.flac", rng.randbytes(args.audio_bytes))
                meta = json.dumps(line["recording"]).encode()
                add_member(tar, f"{line['id']}.json", meta)


def make_sampler(args: argparse.Namespace) -> BucketSampler:
    """Return the sampler of training."""
    stream = open_stream([args.folder], shuffle=True)
    edges = bucket_edges(stream.durations[0], 10)
    return BucketSampler(stream, max_duration=args.max_duration, edges=edges)


def sample_to_the_middle(args: argparse.Namespace) -> dict[str, Any]:
    """Return the sampler's state in the middle of an epoch, with full buckets."""
    sampler = make_sampler(args)
    middle = args.cuts // args.shard_size // 2
    start = {
        **sampler.state_dict(),
        "draws": 0,
        "edges": list(sampler.edges),
        "sizes": [0] * (len(sampler.edges) + 1),
        "keys": torch.empty(0, 3, dtype=torch.int32),
        "place": {"taken": [args.cuts // 2], "sets": [[0, middle, 0]]},
    }
    sampler.load_state_dict(start)
    drawn = 0
    for batch in sampler:
        drawn += len(batch)
        if drawn > min(6 * sampler.buffer_size, args.cuts // 4):
            break
    return sampler.state_dict()


def restore(args: argparse.Namespace) -> dict[str, Any]:
    """Restore the saved state; return times and sizes."""
    with timed() as opened:
        sampler = make_sampler(args)
    with timed() as restored:
        state = torch.load(args.folder.parent / "state.pt")
        sampler.load_state_dict(state)
        next(iter(sampler))
    with timed() as longest:
        sampler.stream.longest(1000)
    return {
        "open": opened,
        "restore": restored,
        "longest_of_all": longest,
        "waiting_cuts": len(state["keys"]),
        "shards_opened": len({tuple(key[:2]) for key in state["keys"].tolist()}),
        "state_bytes": (args.folder.parent / "state.pt").stat().st_size,
        "peak_mb": peak_mb(),
    }


def lhotse(args: argparse.Namespace) -> dict[str, Any]:
    """Restore Lhotse's bucketing sampler after ``args.lhotse`` cuts; return times."""
    from lhotse import CutSet
    from lhotse.dataset import DynamicBucketingSampler

    def sampler() -> DynamicBucketingSampler:
        cuts = CutSet.from_shar(in_dir=args.folder)
        options = dict(max_duration=args.max_duration, shuffle=True, buffer_size=8000)
        return DynamicBucketingSampler(
            cuts, duration_bins=list(range(2, 20)), **options
        )

    before, drawn = sampler(), 0
    for batch in before:
        drawn += len(batch)
        if drawn >= args.lhotse:
            break
    after = sampler()
    with timed() as restored:
        after.load_state_dict(before.state_dict())
        next(after)
    return {"cuts": drawn, "restore": restored, "peak_mb": peak_mb()}


class timed(dict):
    """Seconds of a block: ``{"clock": ..., "processor": ...}``."""

    def __enter__(self) -> "timed":
        self._start = time.monotonic(), time.process_time()
        return self

    def __exit__(self, *_: Any) -> None:
        self["clock"] = round(time.monotonic() - self._start[0], 2)
        self["processor"] = round(time.process_time() - self._start[1], 2)


def peak_mb() -> int:
    """Return the peak resident memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def run_worker(args: argparse.Namespace, name: str) -> dict[str, Any]:
    """Run one measurement in a new process."""
    command = [sys.executable, __file__, "--worker", name, "--folder", str(args.folder)]
    for option in ("cuts", "shard_size", "max_duration", "lhotse"):
        command += [f"--{option.replace('_', '-')}", str(getattr(args, option))]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout)


def measure(args: argparse.Namespace) -> Iterator[Any]:
    """Yield (name, result) of each measurement."""
    with timed() as written:
        write_set(args.folder, args)
    yield "write_the_set", written
    torch.save(sample_to_the_middle(args), args.folder.parent / "state.pt")
    yield "ours", run_worker(args, "restore")
    if args.lhotse:
        yield "lhotse", run_worker(args, "lhotse")


def main() -> None:
    """Write the set, run each measurement in a new process, and print JSON."""
    args = parse_args()
    if args.worker:
        result = {"restore": restore, "lhotse": lhotse}[args.worker](args)
    else:
        with tempfile.TemporaryDirectory() as folder:
            args.folder = (args.folder or Path(folder)) / "set"
            result = {"cuts": args.cuts, "audio_bytes": args.audio_bytes}
            result.update(measure(args))
    sys.stdout.write(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
