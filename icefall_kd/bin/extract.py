"""Write what a teacher says about a Shar folder as a field beside the audio.

    python -m icefall_kd.bin.extract --shar-dir data/shar/train \\
        --teacher whisper_base --model-dir download/teachers/whisper_base

Run again after a crash, it goes on with the shard that was being written.
"""

import argparse
import logging
import time

import torch
from tqdm import tqdm

from icefall_kd.cache.codecs import CODECS
from icefall_kd.cache.extract import extract
from icefall_kd.logs import setup_logging
from icefall_kd.teachers import TEACHERS, Teacher, build_teacher


def get_parser() -> argparse.ArgumentParser:
    """Return the command's arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--shar-dir", required=True, nargs="+", help="Shar folders, one or more")
    add("--teacher", required=True, help=f"one of {sorted(TEACHERS)}")
    add("--model-dir", required=True, help="folder with the teacher's weights")
    add("--field", help="name of the field; the teacher's name by default")
    add("--codec", default="fp16", choices=sorted(CODECS))
    add("--compute-type", default="float32", help="float32, int8, ...")
    add("--context", type=float, help="seconds of silence appended to a cut")
    add("--device", default="cpu", help="cpu or cuda")
    add("--num-threads", type=int, default=2)
    add("--max-batch-duration", type=float, default=60.0, help="s of padded audio")
    add("--overwrite", action="store_true", help="replace a field made otherwise")
    return parser


def main() -> None:
    """Run the command."""
    args = get_parser().parse_args()
    setup_logging()
    torch.set_num_threads(args.num_threads)
    options = {"compute_type": args.compute_type, "num_threads": args.num_threads}
    options["device"] = args.device
    if args.context is not None:
        options["context"] = args.context
    try:
        teacher = build_teacher(args.teacher, args.model_dir, **options)
        for shar_dir in args.shar_dir:
            run(shar_dir, teacher, args)
    except (ValueError, OSError) as e:
        raise SystemExit(f"extract: {e}") from e


def run(shar_dir: str, teacher: Teacher, args: argparse.Namespace) -> None:
    """Extract one folder with a progress bar and log what was done."""
    field = args.field or args.teacher
    form = "{l_bar}{bar}| {n:.0f}/{total:.0f} s of audio [{elapsed}<{remaining}]"
    bars = []

    def progress(done: float, total: float) -> None:
        if not bars:  # none when there is nothing to do
            name = f"{shar_dir} {field}"
            bars.append(tqdm(desc=name, bar_format=form, total=total))
        bars[0].update(done - bars[0].n)

    start = time.perf_counter()
    try:
        info, report = extract(
            shar_dir,
            teacher,
            field,
            codec=args.codec,
            max_batch_duration=args.max_batch_duration,
            overwrite=args.overwrite,
            progress=progress,
        )
    finally:
        for bar in bars:
            bar.close()
    elapsed = time.perf_counter() - start
    size = sum(s["bytes"] for s in info.shards) / 1e6
    done = f"{report.shards_kept} shards are whole, nothing to do"
    if report.shards_done:
        done = f"{report.shards_done} shards written, {report.shards_kept} kept; "
        done += f"{report.seconds / elapsed:.0f} hours of audio an hour"
    logging.info(
        "%s/%s.json: %d cuts, %d frames of %d values, %.1f MB; %s",
        shar_dir,
        field,
        info.num_cuts,
        info.num_frames,
        info.dim,
        size,
        done,
    )


if __name__ == "__main__":
    main()
