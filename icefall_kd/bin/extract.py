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
"""

import argparse
import logging
import time
from typing import Any, Dict, List, Sequence

import torch
import yaml
from tqdm import tqdm

from icefall_kd.cache.codecs import CODECS, training_options
from icefall_kd.cache.extract import CODEC_FRAMES, extract
from icefall_kd.io import read_yaml
from icefall_kd.logs import setup_logging
from icefall_kd.teachers import TEACHERS, Teacher, build_teacher, build_teachers

CODEC_NAMES = ", ".join(
    name + ("<bytes>" if cls.sized else "")
    for name, cls in sorted(CODECS.items())
    if "embedding" in cls.kinds
)


def get_parser() -> argparse.ArgumentParser:
    """Return the command's arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--shar-dir", required=True, nargs="+", help="Shar folders, one or more")
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
    add("--codec", default="fp16", help=f"of embeddings: {CODEC_NAMES}")
    add("--codec-frames", type=int, default=CODEC_FRAMES, help="to train a codec on")
    add(
        "--codec-option",
        nargs="*",
        default=[],
        metavar="KEY=VALUE",
        help="options of that training, for example iterations=20000 of mvq8",
    )
    add("--num-threads", type=int, default=2, help="CPU threads of a teacher")
    add("--device", default="cpu", help="cpu or cuda")
    add("--max-batch-duration", type=float, default=60.0, help="s of padded audio")
    add("--overwrite", action="store_true", help="replace fields made otherwise")
    return parser


def main() -> None:
    """Run the command."""
    args = get_parser().parse_args()
    setup_logging()
    torch.set_num_threads(args.num_threads)
    try:
        options = read_options("--codec-option", args.codec_option)
        training_options(args.codec, options)  # refuses what there is not, at once
        teachers = build(args)
        for shar_dir in args.shar_dir:
            run(shar_dir, teachers, args)
    except (ValueError, OSError) as e:
        raise SystemExit(f"extract: {e}") from e


def build(args: argparse.Namespace) -> List[Teacher]:
    """Return the teachers that the command names.

    Raises:
      ValueError: if it names none, or in both ways.
    """
    common = {"num_threads": args.num_threads, "device": args.device}
    if (args.teachers is None) == (args.teacher is None):
        raise ValueError(
            "give either --teachers FILE or --teacher NAME --model-dir DIR"
        )
    if args.teachers is not None:
        described = read_yaml(args.teachers)
        return build_teachers({n: {**common, **d} for n, d in described.items()})
    if args.model_dir is None:
        raise ValueError("--teacher needs --model-dir")
    options = {**common, **read_options("--option", args.option)}
    return [build_teacher(args.teacher, args.model_dir, args.field, **options)]


def read_options(argument: str, given: Sequence[str]) -> Dict[str, Any]:
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


def run(shar_dir: str, teachers: List[Teacher], args: argparse.Namespace) -> None:
    """Extract one folder with a progress bar and log what was done."""
    form = "{l_bar}{bar}| {n:.0f}/{total:.0f} s of audio [{elapsed}<{remaining}]"
    bars = []

    def progress(done: float, total: float) -> None:
        if not bars:  # none when there is nothing to do
            names = " ".join(t.name for t in teachers)
            bars.append(tqdm(desc=f"{shar_dir} {names}", bar_format=form, total=total))
        bars[0].update(done - bars[0].n)

    start = time.perf_counter()
    try:
        infos, report = extract(
            shar_dir,
            teachers,
            codec=args.codec,
            codec_dir=args.shar_dir[0],
            codec_frames=args.codec_frames,
            codec_options=read_options("--codec-option", args.codec_option),
            max_batch_duration=args.max_batch_duration,
            overwrite=args.overwrite,
            progress=progress,
        )
    finally:
        for bar in bars:
            bar.close()
    elapsed = time.perf_counter() - start
    for field, info in infos.items():
        size = sum(s["bytes"] for s in info.shards) / 1e6
        logging.info(
            "%s/%s.json: %d cuts, %d frames of %d values, %s, %.1f MB",
            shar_dir,
            field,
            info.num_cuts,
            info.num_frames,
            info.dim,
            info.codec,
            size,
        )
    if report.shards_done:
        logging.info(
            "%d shards written, %d kept; %.0f hours of audio an hour",
            report.shards_done,
            report.shards_kept,
            report.seconds / elapsed,
        )
    else:
        logging.info("%d shards are whole, nothing to do", report.shards_kept)


if __name__ == "__main__":
    main()
