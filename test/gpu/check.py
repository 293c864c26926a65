"""Check and measure the project on a GPU, and print one JSON object.

    python test/gpu/check.py --out FOLDER [--minutes 8]
    python test/gpu/check.py --out FOLDER --device cpu --tiny    # the checks themselves

It needs torch 2.4 or later with CUDA and the packages of setup.py, but no k2, and makes
its own data.  Each entry of the JSON is one check: its figures, ``seconds``, and
``status``: ok, failed (with ``error``) or skipped.  Checks of agreement come before
measurements; those that would start after ``--minutes`` are skipped.  FOLDER/check.json
is rewritten after each check, FOLDER/profile.txt has the operators of a training step.
The exit status is 1 if a check failed.
"""

import argparse
import json
import sys
import time
import traceback
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # the helpers of the tests

import agreement
import runs
import speed

from icefall_kd.core.cpu import tune_cpu
from icefall_kd.training.run import describe_environment

CHECKS = [
    agreement.compare_rnnt_with_k2,
    agreement.compare_terms,
    agreement.compare_student,
    agreement.compare_optimiser,
    runs.compare_ddp,
    runs.resume_and_average,
    runs.train_in_half_precision,
    speed.time_training,
    speed.profile_training,
    speed.time_losses,
    speed.time_decoding,
    speed.time_teachers,
    speed.time_compiled,
]


def get_parser() -> argparse.ArgumentParser:
    """Return the arguments."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--out", type=Path, required=True, help="folder for results")
    p.add_argument("--minutes", type=float, default=8.0, help="start no check later")
    p.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    p.add_argument("--tiny", action="store_true", help="small models and few steps")
    return p


def run_check(check, args: argparse.Namespace) -> dict:
    """Return the figures of a check, with its status."""
    try:
        figures = {"status": "ok", **check(args)}
    except ImportError as e:
        figures = {"status": "skipped", "error": str(e)}
    except Exception as e:  # a failed check must not end the others
        trace = traceback.format_exc(limit=-3).splitlines()
        figures = {"status": "failed", "error": f"{type(e).__name__}: {e}"}
        figures["trace"] = trace[-8:]
    if args.device == "cuda":
        torch.cuda.empty_cache()
    return figures


def main() -> int:
    """Run the checks."""
    args = get_parser().parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    tune_cpu()
    if args.tiny:
        torch.set_num_threads(1)
    start = time.monotonic()
    results: dict = {"environment": describe_environment()}
    for check in CHECKS:
        before = time.monotonic()
        if before - start > 60 * args.minutes:
            results[check.__name__] = {"status": "skipped", "error": "out of time"}
            continue
        figures = run_check(check, args)
        figures["seconds"] = round(time.monotonic() - before, 2)
        results[check.__name__] = figures
        print(check.__name__, figures["status"], figures["seconds"], file=sys.stderr)
        (args.out / "check.json").write_text(json.dumps(results, indent=1))
    print(json.dumps(results))
    return any(r.get("status") == "failed" for r in results.values())


if __name__ == "__main__":
    sys.exit(main())
