"""Print the commands of a recipe's stages.

    cd egs/asterisk/KD
    python -m icefall_kd.bin.recipe_commands train --systems "baseline both@43"

local/train.sh, decode.sh and export.sh run the printed commands; with --dry-run they
only print them.  Each line has three columns, separated by tabs: the folder of the
system, the output of the command, and the command.  Options after -- are appended to
every command of train and decode.  KIND is one of

    train       pre-training and fine-tuning
    align       forced alignment of the test sets
    graph       graph of words for the CTC head, if the profile has one
    decode      decoding with PyTorch
    export      export to ONNX
    transcribe  decoding with sherpa-onnx
    profile     the values of the profile as assignments for a shell, no commands
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
from icefall_kd.recipes.systems import (
    PROFILES,
    check_run_folder,
    load_profile,
    parse_system,
)

KINDS = ("train", "align", "graph", "decode", "export", "transcribe", "profile")
# Option -> (default, help).
OPTIONS = {
    "profile": ("", "name of the profile (default: the first one)"),
    "variants": ("", "variants of the student (default: those of the profile)"),
    "systems": ("", "names of systems (default: those of the profile)"),
    "exp": ("", "folder of the runs (default: exp/<profile>)"),
    "student": ("conf/student.yaml", "model configuration of the student"),
    "seed": ("42", "seed of the systems without @SEED"),
    "epochs": ("", "epochs of each stage (default: those of the profile)"),
    "avg": ("", "number of epochs to average (default: that of the profile)"),
    "num_processes": ("1", "number of processes of each training"),
    "stage": ("1", "first stage of training"),
    "stop_stage": ("2", "last stage of training"),
    "sets": ("", "folders of data/shar (default: the test sets)"),
    "aligner": ("", "checkpoint that aligns (default: a system of the profile)"),
    "chunk_size": ("", "chunk in frames of 20 ms (default: the checkpoint's)"),
    "left_context": ("", "left context in frames of 20 ms (default: the checkpoint's)"),
    "blank_penalty": ("0", "number subtracted from the blank's logit"),
}


def get_parser() -> argparse.ArgumentParser:
    p = create_parser(__doc__)
    p.add_argument("kind", choices=KINDS, metavar="KIND", help="see above")
    for name, (default, text) in OPTIONS.items():
        p.add_argument(f"--{name.replace('_', '-')}", default=default, help=text)
    p.add_argument("--head", default="", help="head to use (default: the profile's)")
    p.add_argument(
        "--search", choices=("greedy", "beam"), default="greedy", help="kind of search"
    )
    p.add_argument(
        "--dry-run", action="store_true", help="log what is missing, then exit with 1"
    )
    return p


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; the words after ``--`` become ``further``."""
    end = words.index("--") if "--" in words else len(words)
    args = get_parser().parse_args(words[:end])
    args.further = words[end + 1 :]
    return args


def select_systems(args: argparse.Namespace) -> RecipeCommands:
    """Return the commands of the systems of a call.

    Raises:
      ValueError: if a variant, system or head is unknown, or a name is a former one.
    """
    profile = load_profile(args.profile)
    variants = args.variants.split() or profile.variants
    for variant in variants:
        if variant not in DECODINGS:
            known = ", ".join(DECODINGS)
            raise ValueError(f"--variants: no '{variant}'. Available: {known}")
    systems = args.systems.split() or profile.systems
    where = "--head" if args.head else f"{PROFILES}, profile {profile.name}, head"
    args.head = args.head or profile.head
    if args.head not in METHODS:
        known = ", ".join(METHODS)
        raise ValueError(f"{where}: no '{args.head}'. Available: {known}")
    exp = args.exp or f"exp/{profile.name}"
    for name in systems:
        for folder_name in (name, parse_system(name).pretraining):
            for variant in variants:
                check_run_folder(Path(exp, variant), folder_name)
    return RecipeCommands(profile, variants, systems, exp, args)


def check_systems(recipe: RecipeCommands) -> bool:
    """Return whether all systems can start; with --dry-run log what is missing.

    Raises:
      ValueError, FileNotFoundError: without --dry-run, see
        :meth:`.Profile.check_system`.
    """
    complete = True
    for name in recipe.systems:
        try:
            recipe.profile.check_system(parse_system(name))
        except (ValueError, FileNotFoundError) as e:
            if not recipe.args.dry_run:
                raise
            logging.warning("%s", e)
            complete = False
    return complete


def print_profile(recipe: RecipeCommands) -> None:
    """Print the values of a profile as assignments for a shell."""
    profile = recipe.profile
    values = {
        "profile": profile.name,
        "variants": recipe.variants,
        "systems": recipe.systems,
        "exp": recipe.exp,
        "head": recipe.args.head,
        "labelled": profile.labelled,
        "unlabelled": profile.unlabelled,
        "pseudo_labelled": profile.pseudo_labelled,
        "pseudo_suffix": profile.pseudo_suffix,
        "dev_set": profile.dev_set,
        "test_sets": profile.test_sets,
        "check_sets": profile.check_sets,
        "profile_jobs": str(profile.jobs or ""),
    }
    for name, value in values.items():
        text = value if isinstance(value, str) else " ".join(value)
        print(f"{name}={shlex.quote(text)}")


def main() -> None:
    setup_logging()
    with exit_on_error("recipe_commands"):
        args = parse_arguments(sys.argv[1:])
        recipe = select_systems(args)
        if args.kind == "profile":
            print_profile(recipe)
            return
        complete = args.kind != "train" or check_systems(recipe)
        for command in getattr(recipe, args.kind)():
            print(command.system_dir, command.output, command, sep="\t")
        if not complete:
            sys.exit(1)


if __name__ == "__main__":
    main()
