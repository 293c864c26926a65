"""Print the commands of a recipe's stages.

    cd egs/asterisk/KD
    python -m icefall_kd.bin.recipe_commands train --systems "baseline both@43"

train.sh, decode.sh and export.sh in local/ run what this command prints; with --dry-run
they only print it.  Each line has three columns, separated by tabs: the folder of the
system, the output of the command, the command.  Options after -- are appended to every
command of train and decode.  KIND is one of

    train       pre-training and fine-tuning
    align       forced alignment of the test sets
    decode      decoding with PyTorch
    export      export to ONNX
    transcribe  decoding with sherpa-onnx
    profile     no commands: the values of the profile as assignments for a shell
"""

import argparse
import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from icefall_kd.core.cli import create_parser, exit_on_error
from icefall_kd.core.logs import setup_logging
from icefall_kd.recipes.commands import DECODINGS, METHODS, RecipeCommands
from icefall_kd.recipes.systems import former_name, load_profile, parse_system

KINDS = ("train", "align", "decode", "export", "transcribe", "profile")
# Option -> (default, help).  An empty text stands for the value of the profile.
OPTIONS = {
    "profile": ("", "name of the profile (default: the first one)"),
    "variants": ("", "variants of the student (default: those of the profile)"),
    "systems": ("", "names of systems (default: those of the profile)"),
    "exp": ("", "folder of the runs (default: exp/<profile>)"),
    "student": ("conf/student.yaml", "model configuration of the student"),
    "seed": ("42", "seed of the systems without @SEED"),
    "epochs": ("", "epochs of each stage (default: those of the profile)"),
    "avg": ("", "number of epochs to average (default: that of the profile)"),
    "num_processes": ("1", "processes of each training"),
    "stage": ("1", "first stage of training"),
    "stop_stage": ("2", "last stage of training"),
    "sets": ("", "folders of data/shar (default: the test sets)"),
    "aligner": ("", "checkpoint that aligns (default: a system of the profile)"),
    "search": ("greedy", "greedy or beam"),
    "chunk_size": ("", "frames of 20 ms (default: those of the checkpoint)"),
    "left_context": ("", "frames of 20 ms (default: those of the checkpoint)"),
    "blank_penalty": ("0", "subtracted from the blank's logit"),
}


def get_parser() -> argparse.ArgumentParser:
    p = create_parser(__doc__)
    p.add_argument("kind", choices=KINDS, metavar="KIND", help="see above")
    for name, (default, text) in OPTIONS.items():
        p.add_argument(f"--{name.replace('_', '-')}", default=default, help=text)
    p.add_argument("--head", choices=METHODS, default="transducer", help="head to use")
    p.add_argument("--dry-run", action="store_true", help="warn of missing fields")
    return p


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; the words after ``--`` become ``further``."""
    end = words.index("--") if "--" in words else len(words)
    args = get_parser().parse_args(words[:end])
    args.further = words[end + 1 :]
    return args


def select_systems(args: argparse.Namespace) -> RecipeCommands:
    """Return the systems that a call names, or those of its profile."""
    profile = load_profile(args.profile)
    variants = args.variants.split() or profile.variants
    for variant in variants:
        if variant not in DECODINGS:
            known = ", ".join(DECODINGS)
            raise ValueError(f"--variants: no '{variant}'. Available: {known}")
    systems = args.systems.split() or profile.systems
    exp = args.exp or f"exp/{profile.name}"
    for name in systems:
        system = parse_system(name)
        for part in (system.name, system.pretraining):
            for variant in variants:
                _check_folder(Path(exp, variant), part)
    options = {k: v for k, v in vars(args).items() if isinstance(v, str)}
    return RecipeCommands(profile, variants, systems, exp, options, args.further)


def _check_folder(runs: Path, name: str) -> None:
    """Check that the folder of a system has no name of an earlier version."""
    old, new = runs / former_name(name), runs / name
    if old.exists() and not new.exists():
        raise ValueError(f"{old}: this folder is now {new}. Run: mv {old} {new}")


def check_systems(chosen: RecipeCommands, is_dry_run: bool) -> None:
    """Check that the recipe has what training needs; a dry run only logs what lacks."""
    for name in chosen.systems:
        try:
            chosen.profile.check_system(parse_system(name))
        except (ValueError, FileNotFoundError) as e:
            if not is_dry_run:
                raise
            logging.warning("%s", e)


def print_profile(chosen: RecipeCommands) -> None:
    """Print the values of a profile as assignments for a shell."""
    profile = chosen.profile
    names = ("labelled", "unlabelled", "pseudo_labelled", "pseudo_suffix", "dev_set")
    values = {name: getattr(profile, name) for name in (*names, "test_sets")}
    values.update(profile=profile.name, variants=chosen.variants, exp=chosen.exp)
    values.update(systems=chosen.systems, check_sets=profile.check_sets)
    values.update(profile_jobs=str(profile.jobs or ""))
    for name, value in values.items():
        text = value if isinstance(value, str) else " ".join(value)
        print(f"{name}={shlex.quote(text)}")


def main() -> None:
    setup_logging()
    with exit_on_error("recipe_commands"):
        args = parse_arguments(sys.argv[1:])
        chosen = select_systems(args)
        if args.kind == "profile":
            print_profile(chosen)
            return
        if args.kind == "train":
            check_systems(chosen, args.dry_run)
        for command in getattr(chosen, args.kind)():
            print(command.system_dir, command.output, command, sep="\t")


if __name__ == "__main__":
    main()
