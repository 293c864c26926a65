"""Measure the cost of teachers' fields in the loader of training.

    python test/bench/loader.py [--codecs fp16 int8] [--workers 0 2] [--profile]

Reads the same cuts with and without the fields of two teachers, and prints one JSON
object.  ``throughput`` is the ratio of the throughput with fields to that without,
padding and decompression on the CPU included: the median over rounds that read both, by
wall time and by CPU time, which other load affects less.  ``stored`` is the ratio
without decompression, which training on a GPU does there.  Not collected by pytest.

Needs the cuts and teachers of the recipe (prepare.sh, and stage 0 of teachers.sh).
Extracts the fields into a temporary folder, or into ``--folder`` for later calls.
``--profile`` prints the time of each function with the first codec instead.
"""

import argparse
import cProfile
import json
import os
import pstats
import resource
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lhotse import CutSet

from icefall_kd.core.cpu import tune_cpu
from icefall_kd.core.files import read_yaml
from icefall_kd.data.features import SpecAugment
from icefall_kd.data.shar import write_shar
from icefall_kd.dataset.dataset import Loader
from icefall_kd.dataset.stream import open_stream
from icefall_kd.fields.codecs.storage import load_codecs
from icefall_kd.fields.extract import extract
from icefall_kd.fields.reader import open_shar
from icefall_kd.teachers import Teacher, build_teachers


class Undecoded:
    """Codec that leaves the frames compressed."""

    @staticmethod
    def decode_tensor(x: torch.Tensor) -> torch.Tensor:
        """Return ``x``."""
        return x


WHOSE = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
RECIPE = Path(__file__).resolve().parents[2] / "egs/asterisk/KD"


def parse() -> argparse.Namespace:
    """Parse the command line."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--shar-dir", default=RECIPE / "data/shar/train")
    p.add_argument("--teachers", default=RECIPE / "conf/teachers.yaml")
    p.add_argument("--codecs", nargs="+", default=["fp16", "int8"])
    p.add_argument("--workers", nargs="+", type=int, default=[0, 2])
    p.add_argument("--cuts", type=int, default=300)
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument(
        "--max-duration",
        type=float,
        default=60.0,
        help="seconds in a batch (default: 60)",
    )
    p.add_argument(
        "--no-spec-augment", action="store_true", help="do not mask features"
    )
    p.add_argument(
        "--folder", type=Path, help="folder of the fields (default: temporary)"
    )
    p.add_argument("--profile", action="store_true")
    return p.parse_args()


def build(file: Path) -> list[Teacher]:
    """Return the teachers of a recipe; their paths are relative to its folder."""
    here = os.getcwd()
    os.chdir(Path(file).resolve().parents[1])
    try:
        described = read_yaml(file)
        return build_teachers(
            {n: {"num_threads": 1, **d} for n, d in described.items()}
        )
    finally:
        os.chdir(here)


def write_fields(folder: Path, args: argparse.Namespace) -> list[str]:
    """Write the cuts with all fields for each codec; return the fields' names."""
    cuts = list(open_shar(args.shar_dir).subset(first=args.cuts))
    teachers = build(args.teachers)
    for codec in args.codecs:
        if not (folder / codec).exists():
            write_shar(CutSet.from_cuts(cuts), folder / codec)
        extract(folder / codec, teachers, codec=codec)
    return [name for teacher in teachers for name in teacher.outputs]


def loader_of(
    folder: Path,
    fields: Sequence[str],
    workers: int,
    args: argparse.Namespace,
    decode: bool = True,
) -> Loader:
    """Return the loader of training, with or without decompression."""
    codecs = load_codecs(folder, fields)
    loader = Loader(
        open_stream([folder], fields, shuffle=True),
        codecs=codecs,
        max_duration=args.max_duration,
        spec_augment=None if args.no_spec_augment else SpecAugment(),
        num_workers=workers,
    )
    if not decode:
        loader.codecs = dict.fromkeys(fields, Undecoded)
    return loader


def processor_time() -> float:
    """Return the processor time of this process and its workers, in seconds."""
    used = [resource.getrusage(who) for who in WHOSE]
    return sum(u.ru_utime + u.ru_stime for u in used)


def read(loader: Loader) -> dict[str, float]:
    """Read an epoch; return wall time, processor time and audio in seconds."""
    before, clock = processor_time(), time.perf_counter()
    frames = sum(int(batch["feature_lens"].sum()) for batch in loader)
    return {
        "clock": time.perf_counter() - clock,
        "processor": processor_time() - before,
        "audio": frames / 100,
    }


def compare(
    folder: Path, fields: Sequence[str], workers: int, args: argparse.Namespace
) -> dict[str, Any]:
    """Return the ratios of the throughputs, and the throughputs."""
    loaders = {
        "without": loader_of(folder, (), workers, args),
        "stored": loader_of(folder, fields, workers, args, decode=False),
        "with": loader_of(folder, fields, workers, args),
    }
    read(loaders["with"])  # into the page cache
    rounds = [{n: read(x) for n, x in loaders.items()} for _ in range(args.rounds)]
    result: dict[str, Any] = {"codec": folder.name, "workers": workers}
    for kind in ("clock", "processor"):
        for name, other in (("throughput", "with"), ("stored", "stored")):
            ratios = [r["without"][kind] / r[other][kind] for r in rounds]
            result[f"{name}_{kind}"] = round(statistics.median(ratios), 3)
    for name in loaders:
        speeds = [r[name]["audio"] / r[name]["clock"] for r in rounds]
        result[f"x_real_time_{name}"] = round(statistics.median(speeds))
    return result


def profile(folder: Path, fields: Sequence[str], args: argparse.Namespace) -> None:
    """Print the time of each function of the loader."""
    loader = loader_of(folder, fields, 0, args)
    read(loader)
    profiler = cProfile.Profile()
    profiler.runcall(read, loader)
    pstats.Stats(profiler).sort_stats("cumulative").print_stats(60)


def main() -> None:
    """Extract the fields, then read them."""
    args = parse()
    tune_cpu()  # as bin.train does; without it, page faults of padded fields dominate
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        root = args.folder or Path(temporary)
        fields = write_fields(root, args)
        folders = [root / codec for codec in args.codecs]
        if args.profile:
            profile(folders[0], fields, args)
            return
        results = [
            compare(folder, fields, workers, args)
            for folder in folders
            for workers in args.workers
        ]
    print(json.dumps({"fields": fields, "cuts": args.cuts, "results": results}))


if __name__ == "__main__":
    main()
