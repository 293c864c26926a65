"""How long does it take to go on within an epoch of very many cuts?

    python test/bench/restore.py [--cuts 1500000] [--lhotse 20000]

Writes a Shar set of so many cuts into a temporary folder, lets the sampler stand in the
middle of an epoch, and restores its state in a process of its own, as a run that was
killed does: open the set, fetch the cuts that waited for their batch, draw the next
batch.  ``--lhotse N`` lets lhotse's own sampler go on behind N cuts of the same set,
for comparison.  Prints one JSON object: seconds of the clock and of the processor, peak
MB of memory.  Not collected by pytest.

A few shards are really written, and linked under the other numbers: the audio is random
bytes that nobody decodes, and after the first reading it comes from the page cache.
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


def parse() -> argparse.Namespace:
    """Parse the command line."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--cuts", type=int, default=1_500_000)
    p.add_argument("--shard-size", type=int, default=1000, help="cuts of a shard")
    p.add_argument("--distinct", type=int, default=20, help="shards really written")
    p.add_argument("--audio-bytes", type=int, default=50_000, help="of each cut")
    p.add_argument("--max-duration", type=float, default=1000.0, help="s in a batch")
    p.add_argument("--lhotse", type=int, default=0, help="cuts that lhotse reads")
    p.add_argument("--folder", type=Path, help="of the set; absent: a temporary one")
    p.add_argument("--worker", choices=["restore", "lhotse"], help=argparse.SUPPRESS)
    return p.parse_args()


def cut_line(id: str, duration: float, text: str) -> dict[str, Any]:
    """Return a cut as a Shar set has it."""
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
    """Append one member."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def write_set(folder: Path, args: argparse.Namespace) -> None:
    """Write ``distinct`` shards of 1 to 20 s of cuts, and link them as the others."""
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
    """Return the sampler as training has it."""
    stream = open_stream([args.folder], shuffle=True)
    edges = bucket_edges(stream.durations[0], 10)
    return BucketSampler(stream, max_duration=args.max_duration, edges=edges)


def stand_in_the_middle(args: argparse.Namespace) -> dict[str, Any]:
    """Return the state of a sampler half-way, whose buckets have settled."""
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
    """Go on from the saved state, and say what it took."""
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
    """Let lhotse's bucketing sampler go on behind ``args.lhotse`` cuts."""
    from lhotse import CutSet
    from lhotse.dataset import DynamicBucketingSampler

    def sampler() -> DynamicBucketingSampler:
        cuts = CutSet.from_shar(in_dir=args.folder)
        options = dict(max_duration=args.max_duration, shuffle=True, buffer_size=8000)
        return DynamicBucketingSampler(
            cuts, duration_bins=list(range(2, 20)), **options
        )

    there, drawn = sampler(), 0
    for batch in there:
        drawn += len(batch)
        if drawn >= args.lhotse:
            break
    here = sampler()
    with timed() as restored:
        here.load_state_dict(there.state_dict())
        next(here)
    return {"cuts": drawn, "restore": restored, "peak_mb": peak_mb()}


class timed(dict):
    """Seconds that a block took: ``{"clock": ..., "processor": ...}``."""

    def __enter__(self) -> "timed":
        self._began = time.monotonic(), time.process_time()
        return self

    def __exit__(self, *_: Any) -> None:
        self["clock"] = round(time.monotonic() - self._began[0], 2)
        self["processor"] = round(time.process_time() - self._began[1], 2)


def peak_mb() -> int:
    """Return the largest resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def run_worker(args: argparse.Namespace, name: str) -> dict[str, Any]:
    """Run one measurement in a process of its own."""
    command = [sys.executable, __file__, "--worker", name, "--folder", str(args.folder)]
    for option in ("cuts", "shard_size", "max_duration", "lhotse"):
        command += [f"--{option.replace('_', '-')}", str(getattr(args, option))]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout)


def measure(args: argparse.Namespace) -> Iterator[Any]:
    """Yield (name, figures)."""
    with timed() as written:
        write_set(args.folder, args)
    yield "write_the_set", written
    torch.save(stand_in_the_middle(args), args.folder.parent / "state.pt")
    yield "ours", run_worker(args, "restore")
    if args.lhotse:
        yield "lhotse", run_worker(args, "lhotse")


def main() -> None:
    """Measure and print."""
    args = parse()
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
