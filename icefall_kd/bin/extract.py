"""Run teachers over Shar folders and store their outputs as fields.

    python -m icefall_kd.bin.extract --shar-dir data/shar/train data/shar/dev \\
        --teacher whisper_base --model-dir download/teachers/whisper_base

Describe several teachers in a YAML file; one pass over the audio runs all of them:

    python -m icefall_kd.bin.extract --shar-dir data/shar/train --teachers conf.yaml

    # conf.yaml: field -> options; the default family is the field's name
    whisper_base: {model_dir: download/teachers/whisper_base, compute_type: int8}
    tiny: {family: whisper_tiny_en, model_dir: download/teachers/whisper_tiny_en}

After a crash, the same command continues with the shard that was being written.  A
codec that needs training is trained on the first folder and copied to the others.

Several processes can share the shards.  The processes of torchrun use one GPU each
with --device cuda.  Independent jobs select shards with --shards; a codec that needs
training must be trained before them.  The last process writes the description:

    torchrun --nproc_per_node 8 -m icefall_kd.bin.extract --device cuda ...
    python -m icefall_kd.bin.extract --codec pq16 --train-codec-only ...
    python -m icefall_kd.bin.extract --codec pq16 --shards 0:100 ...

Predict disk space and time, for these folders or for a corpus on another machine:

    python -m icefall_kd.bin.extract --dry-run --codec fp16 int8 pq16 ...
    python -m icefall_kd.bin.extract --dry-run --hours 60000 --cut-duration 12 \\
        --dims whisper_large_v3=1280@50 wavlm_large=1024@50 --codec fp16 pq16
"""

import argparse
import contextlib
import json
import logging
import time
from typing import Any

import torch
import yaml

from icefall_kd.core.cli import create_parser, exit_on_error, require_packages
from icefall_kd.core.cpu import default_num_threads, keep_freed_memory
from icefall_kd.core.distributed import (
    World,
    assign_device,
    check_device,
    close_world,
    init_world,
)
from icefall_kd.core.files import as_path, read_yaml
from icefall_kd.core.logs import AudioProgress, setup_logging
from icefall_kd.fields.builder import collect_outputs
from icefall_kd.fields.codecs import CODECS, find_codec, training_options
from icefall_kd.fields.codecs.storage import CODEC_FRAMES, get_codecs
from icefall_kd.fields.extract import extract, measure_speed
from icefall_kd.fields.planner import (
    Volume,
    forecast,
    format_forecast,
    free_bytes,
    measure_volume,
    parse_outputs,
)
from icefall_kd.teachers import TEACHERS, Teacher, build_teacher, build_teachers

CODEC_TIMEOUT = 6 * 3600  # s, the longest training of a codec by rank 0


def get_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    codecs = sorted(
        name + ("<bytes>" if cls.sized else "")
        for name, cls in CODECS.items()
        if "embedding" in cls.kinds
    )
    pairs: Any = dict(nargs="*", default=[], type=parse_pair, metavar="KEY=VALUE")
    parser = create_parser(__doc__)
    add = parser.add_argument
    add("--shar-dir", nargs="+", default=[], help="Shar folders, local or URLs")

    add = parser.add_argument_group("teachers").add_argument
    add("--teachers", help="YAML file that describes several teachers")
    add("--teacher", help=f"family of one teacher: {', '.join(sorted(TEACHERS))}")
    add("--model-dir", help="folder with the weights of --teacher")
    add("--field", help="field name of --teacher (default: the family)")
    add("--option", **pairs, help="options of --teacher, for example compute_type=int8")

    add = parser.add_argument_group("codec of embeddings").add_argument
    known = f"{', '.join(codecs)}; several with --dry-run"
    add("--codec", nargs="+", default=["fp16"], help=known)
    source = "Shar folder to copy trained codecs from (default: the first --shar-dir)"
    add("--codec-from", help=source)
    frames = "number of frames to train a codec on"
    add("--codec-frames", type=int, default=CODEC_FRAMES, help=frames)
    training = "options of the codec's training, for example iterations=20000"
    add("--codec-option", **pairs, help=training)
    only = "train the codec, and extract nothing"
    add("--train-codec-only", action="store_true", help=only)

    add = parser.add_argument_group("extraction").add_argument
    shards = "indices of this job's shards, for example 0:100, ::4 or 3,7,10:20"
    add("--shards", help=shards)
    overwrite = "replace fields of other teachers, options or codecs"
    add("--overwrite", action="store_true", help=overwrite)
    batch = "padded audio per batch in seconds"
    add("--max-batch-duration", type=float, default=60.0, help=batch)
    check = (
        "check of existing shards: full compares size and SHA-256, size only the size"
    )
    add("--verify", choices=("full", "size"), default="full", help=check)
    add("--device", default="cpu", help="cpu, cuda or cuda:<number>")
    threads = "CPU threads (default: this process's share of the CPUs)"
    add("--num-threads", type=int, default=default_num_threads(), help=threads)

    add = parser.add_argument_group("prediction").add_argument
    dry_run = "predict disk space and time, and write nothing"
    add("--dry-run", action="store_true", help=dry_run)
    add("--json", action="store_true", help="print JSON instead of a table")
    probe = "duration in seconds of the audio to measure the speed on"
    add("--probe", type=float, default=240.0, help=probe)
    add("--hours", type=float, help="hours of audio of a corpus on another machine")
    duration = "mean duration of its cuts in seconds"
    add("--cut-duration", type=float, default=12.0, help=duration)
    dims = "values per frame and frame rate of teachers on another machine"
    add("--dims", nargs="+", metavar="NAME=VALUES@HZ", help=dims)
    return parser


def parse_pair(text: str) -> tuple[str, Any]:
    """Parse KEY=VALUE, the value as YAML."""
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError as e:
        raise argparse.ArgumentTypeError(f"{text!r}: the value is not YAML") from e


def main() -> None:
    """Run the command."""
    args = get_parser().parse_args()
    setup_logging()
    torch.set_num_threads(args.num_threads)
    with exit_on_error("extract"):
        check_options(args)
        if args.dry_run:
            print_forecast(args)
            return
        args.device = assign_device(args.device)
        world = init_world("cpu", timeout=CODEC_TIMEOUT)
        teachers = load_teachers(args)
        first = as_path(args.codec_from or args.shar_dir[0])  # has or trains the codecs
        for shar_dir in sorted(args.shar_dir, key=lambda d: as_path(d) != first):
            extract_folder(shar_dir, teachers, args, world)
        close_world()


def check_options(args: argparse.Namespace) -> None:
    """Check the options before a teacher is loaded.

    Raises:
      ValueError: if two options exclude each other, an option lacks another one that it
        requires, or a value is invalid.
      ImportError: if a package of the codec is missing.
    """
    check_device(args.device)
    for codec in args.codec:
        if not args.dry_run:
            require_packages(*find_codec(codec)[0].packages)
        training_options(codec, dict(args.codec_option))  # raises for unknown options
    if not args.shar_dir and not (args.dry_run and args.dims and args.hours):
        raise ValueError(
            "--shar-dir is missing. It is optional only with --dry-run, --dims and "
            "--hours"
        )
    if not args.dry_run and (args.dims or args.hours or len(args.codec) > 1):
        raise ValueError("--dims, --hours and several --codec require --dry-run")
    if args.shards is not None and len(args.shar_dir) != 1:
        raise ValueError("--shards requires exactly one --shar-dir")
    if args.train_codec_only and args.shards is not None:
        raise ValueError(
            "--train-codec-only and --shards exclude each other: all jobs share one "
            "codec. Omit --shards"
        )


def load_teachers(args: argparse.Namespace) -> list[Teacher]:
    """Return the teachers of --teachers or --teacher.

    Raises:
      ValueError: if the options are missing or exclude each other, or the YAML file is
        invalid.
    """
    common = {"num_threads": args.num_threads, "device": args.device}
    if (args.teachers is None) == (args.teacher is None):
        raise ValueError(
            "give either --teachers FILE, or --teacher NAME [--model-dir DIR]"
        )
    if args.teacher is not None:
        options = {**common, **dict(args.option)}
        return [build_teacher(args.teacher, args.model_dir, args.field, **options)]
    described = read_yaml(args.teachers)
    if not isinstance(described, dict) or not all(
        isinstance(options, dict) for options in described.values()
    ):
        raise ValueError(
            f"{args.teachers}: not a mapping of field names to options, for example "
            "'whisper_base: {model_dir: download/teachers/whisper_base}'"
        )
    try:
        return build_teachers({n: {**common, **d} for n, d in described.items()})
    except ValueError as e:
        raise ValueError(f"{args.teachers}: {e}") from e


def extract_folder(
    shar_dir: str, teachers: list[Teacher], args: argparse.Namespace, world: World
) -> None:
    """Extract the fields of one folder and log the result, or only train its codecs."""
    codec_arguments = {
        "codec": args.codec[0],
        "codec_dir": args.codec_from or args.shar_dir[0],
        "codec_frames": args.codec_frames,
        "codec_options": dict(args.codec_option),
        "overwrite": args.overwrite,
    }
    if args.train_codec_only:
        get_codecs(shar_dir, teachers, world=world, **codec_arguments)
        return
    rank = f" (process 1 of {world.size})" if world.size > 1 else ""
    title = f"{shar_dir} {' '.join(t.name for t in teachers)}{rank}"
    start = time.perf_counter()
    with contextlib.closing(AudioProgress(title)) as progress:
        _, summary = extract(
            shar_dir,
            teachers,
            max_batch_duration=args.max_batch_duration,
            shards=args.shards,
            world=world,
            verify=args.verify,
            num_threads=args.num_threads,
            progress=progress if world.is_main else None,
            **codec_arguments,
        )
    logging.info(
        "%d shards written, %d kept; %.0f hours of audio per hour",
        summary.shards_done,
        summary.shards_kept,
        summary.seconds / (time.perf_counter() - start),
    )


def print_forecast(args: argparse.Namespace) -> None:
    """Print the predicted disk space and time."""
    teachers = [] if args.dims else load_teachers(args)
    outputs = parse_outputs(args.dims) if args.dims else collect_outputs(teachers)
    speed = None
    if teachers:
        speed = measure_speed(
            args.shar_dir[0],
            teachers,
            args.codec,
            max_batch_duration=args.max_batch_duration,
            seconds=args.probe,
        )
    if args.hours:
        volume = Volume.of_corpus(args.hours, args.cut_duration)
    else:
        volume = measure_volume(args.shar_dir, args.shards)
    free = free_bytes(args.shar_dir[0]) if args.shar_dir else None
    result = forecast(volume, outputs, args.codec, free=free, speed=speed)
    print(json.dumps(result, indent=2) if args.json else format_forecast(result))


if __name__ == "__main__":
    # Affects the whole process, hence not in main(), which other code may call.
    keep_freed_memory(one_arena=True)
    main()
