"""Print the commands of a recipe's stages.

    cd egs/asterisk/KD
    python -m icefall_kd.bin.recipe_commands train --systems "baseline both@43"

train.sh, decode.sh and export.sh in local/ run what this command prints; their option
--dry-run true prints it.  Each line has three columns, separated by tabs: the folder of
the system, the output of the command, the command.  "profile" prints the values of the
profile as assignments for a shell.  An empty value of an option stands for the default.
"""

import argparse
import logging
import shlex
from collections.abc import Iterator
from pathlib import Path

from icefall_kd.core.cli import create_parser, exit_on_error
from icefall_kd.core.logs import setup_logging
from icefall_kd.recipes.commands import (
    METHODS,
    Command,
    Selection,
    Streaming,
    TrainOptions,
    align_commands,
    decode_commands,
    export_commands,
    train_commands,
    transcribe_commands,
)
from icefall_kd.recipes.systems import (
    DECODINGS,
    former_name,
    load_profile,
    parse_system,
)


def get_parser() -> argparse.ArgumentParser:
    p = create_parser(__doc__)
    kinds = p.add_subparsers(dest="kind", required=True, metavar="KIND")
    parsers = {
        name: kinds.add_parser(name, help=text)
        for name, text in (
            ("profile", "values of the profile"),
            ("train", "pre-training and fine-tuning"),
            ("align", "forced alignment of the test sets"),
            ("decode", "decoding with PyTorch"),
            ("export", "export to ONNX"),
            ("transcribe", "decoding with sherpa-onnx"),
        )
    }
    for parser in parsers.values():
        parser.add_argument("--profile", default="", help="name of the profile")
        parser.add_argument("--variants", default="", help="variants of the student")
        parser.add_argument("--systems", default="", help="names of systems")
        parser.add_argument(
            "--exp", default="", help="folder of the runs (default: exp/<profile>)"
        )
    train = parsers["train"]
    train.add_argument("--student", default="conf/student.yaml", help="student's conf")
    train.add_argument("--seed", default="42", help="seed of systems without @SEED")
    train.add_argument("--epochs", default="", help="epochs of each stage")
    train.add_argument("--avg", default="", help="number of epochs to average")
    train.add_argument(
        "--num-processes", type=int, default=1, help="processes of each training"
    )
    train.add_argument("--stage", type=int, default=1, help="first stage")
    train.add_argument("--stop-stage", type=int, default=2, help="last stage")
    train.add_argument("--dry-run", action="store_true", help="warn of missing fields")
    train.add_argument("further", nargs="*", help="options of bin.train, after --")
    for name in ("align", "decode", "transcribe"):
        parsers[name].add_argument("--sets", default="", help="folders of data/shar")
    parsers["align"].add_argument(
        "--aligner", default="", help="checkpoint that aligns"
    )
    for name in ("decode", "export", "transcribe"):
        parser = parsers[name]
        parser.add_argument(
            "--head",
            default="transducer",
            choices=METHODS,
            help="CTC head or transducer",
        )
        parser.add_argument("--chunk-size", default="", help="frames of 20 ms")
        parser.add_argument("--left-context", default="", help="frames of 20 ms")
    for name in ("decode", "transcribe"):
        parsers[name].add_argument("--blank-penalty", default="0", help="in nats")
    decode = parsers["decode"]
    decode.add_argument("--beam", action="store_true", help="beam search, not greedy")
    decode.add_argument("further", nargs="*", help="options of bin.decode, after --")
    return p


def select_systems(args: argparse.Namespace) -> Selection:
    """Return the systems that a call names, or those of its profile."""
    profile = load_profile(args.profile)
    variants = args.variants.split() or profile.variants
    for variant in variants:
        if variant not in DECODINGS:
            known = ", ".join(DECODINGS)
            raise ValueError(f"--variants: no '{variant}'. Available: {known}")
    systems = args.systems.split() or profile.systems
    chosen = Selection(profile, variants, systems, args.exp or f"exp/{profile.name}")
    for variant, folder in chosen.folders():
        system = parse_system(Path(folder).name)
        for name in (system.name, system.pretraining):
            _check_folder(Path(chosen.exp, variant), name)
    return chosen


def _check_folder(runs: Path, name: str) -> None:
    """Check that the folder of a system has no name of an earlier version."""
    old, new = runs / former_name(name), runs / name
    if old.exists() and not new.exists():
        raise ValueError(f"{old}: this folder is now {new}. Run: mv {old} {new}")


def check_systems(chosen: Selection, is_dry_run: bool) -> None:
    """Check that the recipe has what the systems need; in a dry run, log what lacks."""
    for name in chosen.systems:
        try:
            chosen.profile.check_system(parse_system(name))
        except (ValueError, FileNotFoundError) as e:
            if not is_dry_run:
                raise
            logging.warning("%s", e)


def print_profile(chosen: Selection) -> None:
    """Print the values of a profile as assignments for a shell."""
    profile = chosen.profile
    values = {
        "profile": profile.name,
        "variants": chosen.variants,
        "systems": chosen.systems,
        "exp": chosen.exp,
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
        text = value if isinstance(value, str) else " ".join(map(str, value))
        print(f"{name}={shlex.quote(text)}")


def commands_of(chosen: Selection, args: argparse.Namespace) -> Iterator[Command]:
    """Return the commands that ``args`` ask for."""
    if args.kind == "train":
        check_systems(chosen, args.dry_run)
        options = TrainOptions(
            args.student,
            args.seed,
            args.epochs,
            args.avg,
            args.num_processes,
            args.stage,
            args.stop_stage,
            args.further,
        )
        return train_commands(chosen, options)
    if args.kind == "export":
        streaming = Streaming(args.chunk_size, args.left_context)
        return export_commands(chosen, args.head, streaming)
    sets = args.sets.split() or chosen.profile.test_sets
    if args.kind == "align":
        return align_commands(chosen, sets, args.aligner)
    if args.kind == "transcribe":
        streaming = Streaming(args.chunk_size, args.left_context)
        penalty = args.blank_penalty
        return transcribe_commands(chosen, sets, args.head, streaming, penalty)
    method = METHODS[args.head][int(args.beam)]
    further = ["--blank-penalty", args.blank_penalty, *args.further]
    sizes = args.chunk_size.split()
    return decode_commands(chosen, sets, method, sizes, args.left_context, further)


def main() -> None:
    setup_logging()
    with exit_on_error("recipe_commands"):
        args = get_parser().parse_args()
        chosen = select_systems(args)
        if args.kind == "profile":
            print_profile(chosen)
            return
        for command in commands_of(chosen, args):
            print(command.system_dir, command.output, command, sep="\t")


if __name__ == "__main__":
    main()
