"""Write what teachers say about Shar folders as fields beside the audio.

    python -m icefall_kd.bin.extract --shar-dir data/shar/train data/shar/dev \\
        --teacher whisper_base --model-dir download/teachers/whisper_base

Several teachers hear the audio in one pass when a YAML file names them:

    python -m icefall_kd.bin.extract --shar-dir data/shar/train --teachers conf.yaml

    # conf.yaml: field name -> family, folder and options
    whisper_base: {model_dir: download/teachers/whisper_base, compute_type: int8}
    tiny: {family: whisper_tiny_en, model_dir: download/teachers/whisper_tiny_en}

Run again after a crash, it goes on with the shard that was being written.  A codec
that is trained is trained on the first folder and serves the others too.

Many processes share the shards: those that torchrun starts (with --device cuda each
takes a GPU of its own), or jobs with --shards that know nothing of each other.  The
last one writes the field's description.  Such jobs need a codec trained before:

    torchrun --nproc_per_node 8 -m icefall_kd.bin.extract --device cuda ...
    python -m icefall_kd.bin.extract --codec pq16 --train-codec-only ...
    python -m icefall_kd.bin.extract --codec pq16 --shards 0:100 ...

What it will take, before it is begun, here or for a corpus that is elsewhere:

    python -m icefall_kd.bin.extract --dry-run --codec fp16 int8 pq16 ...
    python -m icefall_kd.bin.extract --dry-run --hours 60000 --cut-duration 12 \\
        --dims whisper_large_v3=1280@50 wavlm_large=1024@50 --codec fp16 pq16
"""

import argparse
import json
import logging
import time
from collections.abc import Sequence
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
from icefall_kd.fields.codecs.storage import CODEC_FRAMES
from icefall_kd.fields.extract import (
    ExtractionSummary,
    extract,
    measure_speed,
    train_codecs,
)
from icefall_kd.fields.format import FieldInfo, info_path
from icefall_kd.fields.planner import (
    Volume,
    forecast,
    format_forecast,
    free_bytes,
    measure_volume,
    parse_outputs,
)
from icefall_kd.teachers import TEACHERS, Teacher, build_teacher, build_teachers

CODEC_TIMEOUT = 6 * 3600  # s that the other processes wait for a codec's training

CODEC_NAMES = ", ".join(
    name + ("<bytes>" if cls.sized else "")
    for name, cls in sorted(CODECS.items())
    if "embedding" in cls.kinds
)


def get_parser() -> argparse.ArgumentParser:
    """Return the command's arguments."""
    parser = create_parser(__doc__)
    add = parser.add_argument
    add("--shar-dir", nargs="+", default=[], help="Shar folders or URLs of them")
    add("--teachers", help="YAML file with the teachers; or:")
    add("--teacher", help=f"family of one teacher: {', '.join(sorted(TEACHERS))}")
    add("--model-dir", help="folder with its weights")
    add("--field", help="name of its field; the family's name by default")
    add(
        "--option",
        nargs="*",
        default=[],
        metavar="KEY=VALUE",
        help="options of its family, for example compute_type=int8 context=1.0",
    )
    add(
        "--codec",
        nargs="+",
        default=["fp16"],
        help=f"of embeddings: {CODEC_NAMES}; several in a --dry-run",
    )
    add(
        "--codec-from",
        help="Shar folder whose trained codecs serve all; the first --shar-dir by "
        "default.  Sets that are trained on together must share them",
    )
    add("--codec-frames", type=int, default=CODEC_FRAMES, help="to train a codec on")
    add(
        "--codec-option",
        nargs="*",
        default=[],
        metavar="KEY=VALUE",
        help="options of that training, for example iterations=20000 of mvq8",
    )
    add(
        "--num-threads",
        type=int,
        default=default_num_threads(),
        help="CPU threads of this process; by default its share of the machine's CPUs",
    )
    add("--device", default="cpu", help="cpu or cuda")
    add("--max-batch-duration", type=float, default=60.0, help="s of padded audio")
    add("--overwrite", action="store_true", help="replace fields made otherwise")
    add("--shards", help="those of this job, as 0:100, ::4 or 3,7,10:20")
    add(
        "--verify",
        choices=("full", "size"),
        default="full",
        help="what is looked at of shards that are there: size leaves out the SHA-256",
    )
    add("--train-codec-only", action="store_true", help="stop when codecs are there")
    add("--dry-run", action="store_true", help="only say what it will take")
    add("--json", action="store_true", help="of a --dry-run: JSON, no table")
    add("--probe", type=float, default=240.0, help="s of audio to time teachers with")
    add("--hours", type=float, help="of a corpus that is not here")
    add("--cut-duration", type=float, default=12.0, help="s, mean of its cuts")
    add(
        "--dims",
        nargs="+",
        metavar="NAME=VALUES@HZ",
        help="outputs of teachers that are not here, in place of --teachers",
    )
    return parser


def main() -> None:
    """Run the command."""
    args = get_parser().parse_args()
    setup_logging()
    torch.set_num_threads(args.num_threads)
    with exit_on_error("extract"):
        check(args)
        if args.dry_run:
            dry_run(args)
        else:
            make(args)


def check(args: argparse.Namespace) -> None:
    """Refuse options that do not go together, before a teacher is loaded.

    Raises:
      ValueError: naming them.
      ImportError: if a package of the codec is missing.
    """
    check_device(args.device)
    options = read_options("--codec-option", args.codec_option)
    for codec in args.codec:
        if not args.dry_run:
            require_packages(*find_codec(codec)[0].packages)
        training_options(codec, options)  # refuses what there is not
    if not args.shar_dir and not (args.dry_run and args.dims and args.hours):
        raise ValueError(
            "give --shar-dir; only --dry-run with --dims and --hours does without"
        )
    if not args.dry_run and (args.dims or args.hours or len(args.codec) > 1):
        raise ValueError("--dims, --hours and several --codec are of a --dry-run")
    if args.shards is not None and len(args.shar_dir) != 1:
        raise ValueError(
            "--shards goes with one --shar-dir: it counts that one's shards"
        )
    if args.train_codec_only and args.shards is not None:
        raise ValueError(
            "--train-codec-only makes one codec for all: leave --shards out"
        )


def make(args: argparse.Namespace) -> None:
    """Extract, or only train the codecs."""
    world = join(args)
    teachers = build(args)
    # The one that the others have their codecs from comes first.
    first = as_path(codec_folder(args))
    for shar_dir in sorted(args.shar_dir, key=lambda d: as_path(d) != first):
        if args.train_codec_only:
            train_codecs(shar_dir, teachers, world=world, **codec_arguments(args))
        else:
            run(shar_dir, teachers, args, world)
    close_world()


def codec_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Return what extracting and only training the codecs have in common."""
    return {
        "codec": args.codec[0],
        "codec_dir": codec_folder(args),
        "codec_frames": args.codec_frames,
        "codec_options": read_options("--codec-option", args.codec_option),
        "overwrite": args.overwrite,
    }


def codec_folder(args: argparse.Namespace) -> str:
    """Return the Shar folder whose trained codecs serve all."""
    return args.codec_from or args.shar_dir[0]


def join(args: argparse.Namespace) -> World:
    """Return this process's place among those of torchrun; each gets its own GPU."""
    args.device = assign_device(args.device)
    return init_world("cpu", timeout=CODEC_TIMEOUT)


def build(args: argparse.Namespace) -> list[Teacher]:
    """Return the teachers that the command names.

    Raises:
      ValueError: if it names none, or in both ways, or the file is at fault.
    """
    common = {"num_threads": args.num_threads, "device": args.device}
    if (args.teachers is None) == (args.teacher is None):
        raise ValueError(
            "give either --teachers FILE or --teacher NAME --model-dir DIR"
        )
    if args.teachers is not None:
        described = read_yaml(args.teachers)
        if not isinstance(described, dict) or not all(
            isinstance(options, dict) for options in described.values()
        ):
            raise ValueError(
                f"{args.teachers}: not a mapping of teachers to their options, as in "
                "'whisper_base: {model_dir: download/teachers/whisper_base}'"
            )
        try:
            return build_teachers({n: {**common, **d} for n, d in described.items()})
        except ValueError as e:
            raise ValueError(f"{args.teachers}: {e}") from e
    if args.model_dir is None:
        raise ValueError("--teacher needs --model-dir")
    options = {**common, **read_options("--option", args.option)}
    return [build_teacher(args.teacher, args.model_dir, args.field, **options)]


def read_options(argument: str, given: Sequence[str]) -> dict[str, Any]:
    """Return the values of several KEY=VALUE, each read as YAML.

    Raises:
      ValueError: if one is of another form; the message names the ``argument``.
    """
    options = {}
    for option in given:
        name, equals, value = option.partition("=")
        if not equals:
            raise ValueError(f"{argument} {option}: expected KEY=VALUE")
        options[name] = yaml.safe_load(value)
    return options


def run(
    shar_dir: str, teachers: list[Teacher], args: argparse.Namespace, world: World
) -> None:
    """Extract one folder, telling the progress, and log what was done."""
    names = " ".join(t.name for t in teachers)
    place = f" (process 1 of {world.size})" if world.size > 1 else ""
    progress = AudioProgress(f"{shar_dir} {names}{place}")
    start = time.perf_counter()
    try:
        infos, report = extract(
            shar_dir,
            teachers,
            max_batch_duration=args.max_batch_duration,
            shards=args.shards,
            world=world,
            verify=args.verify,
            num_threads=args.num_threads,
            progress=progress if world.is_main else None,
            **codec_arguments(args),
        )
    finally:
        progress.close()
    tell(shar_dir, infos, report, time.perf_counter() - start)


def tell(
    shar_dir: str,
    infos: dict[str, FieldInfo],
    report: ExtractionSummary,
    elapsed: float,
) -> None:
    """Log what an extraction did, and what is left for others to do."""
    if report.shards_done:
        logging.info(
            "%d shards written, %d kept; %.0f hours of audio an hour",
            report.shards_done,
            report.shards_kept,
            report.seconds / elapsed,
        )
    else:
        logging.info("%d shards are whole, nothing to do", report.shards_kept)
    for field, info in infos.items():
        logging.info(
            "%s: %d cuts, %d frames of %d values, %s, %.1f MB",
            info_path(shar_dir, field),
            info.num_cuts,
            info.num_frames,
            info.dim,
            info.codec,
            sum(s["bytes"] for s in info.shards) / 1e6,
        )
    for field, missing in report.missing.items():
        logging.info(
            "%s: not written, %d shards are missing: they are other processes' to "
            "make; the last one writes it",
            info_path(shar_dir, field),
            missing,
        )


def dry_run(args: argparse.Namespace) -> None:
    """Print what the extraction would take."""
    teachers = [] if args.dims else build(args)
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
    # Of this process as a whole, so not in main(), which others may call.
    keep_freed_memory(one_arena=True)
    main()
