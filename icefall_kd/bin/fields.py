"""List, show, verify, remove, copy and plot the fields of Shar folders.

    python -m icefall_kd.bin.fields ls data/shar/* [--json]
    python -m icefall_kd.bin.fields show data/shar/train whisper_base
    python -m icefall_kd.bin.fields verify data/shar/train [FIELD ...] [--quick] \\
        [--delete-damaged]
    python -m icefall_kd.bin.fields rm data/shar/train whisper_base [--dry-run] [--yes]
    python -m icefall_kd.bin.fields copy SOURCE TARGET FIELD ... [--overwrite]
    python -m icefall_kd.bin.fields plot data/shar/dev CUT_ID FIELD ... --out cut.png

A folder may be a URL.  The exit status is 1 if a field has a fault or a command was
refused, and 2 if a folder, field or cut does not exist or the command line is invalid.
"""

import argparse
import contextlib
import json
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Optional

from tqdm import tqdm

from icefall_kd.core.cli import create_parser, exit_on_error
from icefall_kd.core.files import as_path
from icefall_kd.core.logs import setup_logging
from icefall_kd.data.shar import FIELDS_SUFFIX
from icefall_kd.fields.format import check_field_name, shard_ids
from icefall_kd.fields.integrity import find_fields, get_field_files
from icefall_kd.fields.manage import (
    copy_field,
    delete_damaged,
    list_removable,
    remove_field,
)
from icefall_kd.fields.summary import describe_field, format_table, summarize_fields
from icefall_kd.fields.verify import verify_field

ARGUMENTS = {
    "DIR": "Shar folder or URL",
    "FIELD": "name of a field",
    "SOURCE": "Shar folder to copy from",
    "TARGET": "Shar folder to copy to",
    "CUT_ID": "id of a cut",
}


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = create_parser(__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, help_text: str, *arguments: str) -> Callable:
        p = verbs.add_parser(name, help=help_text, description=help_text)
        for argument in arguments:
            word = argument.rstrip("+*")
            options = {"nargs": argument[-1]} if word != argument else {}
            if word == "FIELD":
                options["type"] = _field_name
            p.add_argument(word.lower(), metavar=word, help=ARGUMENTS[word], **options)
        return p.add_argument

    add = verb("ls", "list the fields of Shar folders, finished or not", "DIR+")
    add("--json", action="store_true", help="print JSON instead of a table")
    verb("show", "describe one field", "DIR", "FIELD")
    add = verb("verify", "check every shard and every array", "DIR", "FIELD*")
    add("--quick", action="store_true", help="check checksums and keys, but no arrays")
    add(
        "--delete-damaged",
        action="store_true",
        help="delete damaged files, which bin.extract then writes again",
    )
    add = verb("rm", "remove the files of a field", "DIR", "FIELD")
    add("--yes", action="store_true", help="remove without asking")
    add("--dry-run", action="store_true", help="only list the files")
    add = verb(
        "copy", "copy fields to a folder of the same cuts", "SOURCE", "TARGET", "FIELD+"
    )
    add(
        "--overwrite",
        action="store_true",
        help="replace a field of another teacher, layer or codec",
    )
    add = verb("plot", "draw one cut with its fields", "DIR", "CUT_ID", "FIELD+")
    add("--out", required=True, metavar="FILE.png", help="file to write")
    add("--bpe-model", help="BPE model to label tokens of kind ctc (default: ids)")
    return parser


def main(argv: Optional[list[str]] = None) -> int:
    """Run the command and return the exit status."""
    args = get_parser().parse_args(argv)
    setup_logging()
    with exit_on_error(f"fields {args.verb}"):
        try:
            return VERBS[args.verb](args)
        except FileNotFoundError as e:
            print(f"fields {args.verb}: {e}", file=sys.stderr)
            return 2


def run_ls(args: argparse.Namespace) -> int:
    """Print one table for each folder, or JSON."""
    # The pattern "data/shar/*" also matches reports and the folders *.fields.
    folders = [
        d
        for d in args.dir
        if not d.rstrip("/").endswith(FIELDS_SUFFIX) and not as_path(d).is_file()
    ]
    found = {folder: summarize_fields(folder) for folder in folders or args.dir}
    if args.json:
        values = {f: [s.as_dict() for s in fields] for f, fields in found.items()}
        print(json.dumps(values, indent=2))
        return 0
    for number, (folder, fields) in enumerate(found.items()):
        shards = len(shard_ids(folder))
        print("\n" * bool(number) + f"{folder}: {len(fields)} fields, {shards} shards")
        print("\n".join(format_table(fields)))
    return 0


def run_show(args: argparse.Namespace) -> int:
    """Print the description; return 1 if the field is incomplete or does not join."""
    text, is_complete = describe_field(args.dir, args.field)
    print(text)
    return 0 if is_complete else 1


def run_verify(args: argparse.Namespace) -> int:
    """Print one line for each fault and each field; return 1 if there is a fault."""
    for name in args.field:
        get_field_files(args.dir, name)  # raises for a missing field, before any check
    names = args.field or [n for n, f in find_fields(args.dir).items() if f.is_ours]
    if not names:
        shard_ids(args.dir)  # raises if this is not a Shar folder
        print(f"{args.dir}: no fields")
    total = 0
    for name in names:
        faults = []
        with _show_bytes(f"verify {name}") as progress:
            for fault in verify_field(
                args.dir, name, decode=not args.quick, progress=progress
            ):
                faults.append(fault)
                tqdm.write(fault.message, file=sys.stdout)
        total += len(faults)
        scope = "checksums and keys" if args.quick else "every array"
        print(f"{args.dir} {name}: {len(faults) or 'no'} faults ({scope})")
        if args.delete_damaged:
            for path in delete_damaged(faults):
                print(f"deleted {path}")
    return 1 if total else 0


def run_rm(args: argparse.Namespace) -> int:
    """List the files, ask for confirmation, and delete them."""
    paths = list_removable(args.dir, args.field)
    for path in paths:
        print(path)
    if args.dry_run:
        print(f"{len(paths)} files would be removed")
        return 0
    if not args.yes and not _confirm(f"remove these {len(paths)} files? [y/N] "):
        print("nothing was removed")
        return 0
    print(f"{len(remove_field(args.dir, args.field))} files removed")
    return 0


def run_copy(args: argparse.Namespace) -> int:
    """Copy the fields."""
    for field in args.field:
        with _show_bytes(f"copy {field}") as progress:
            result = copy_field(
                args.source,
                args.target,
                field,
                overwrite=args.overwrite,
                progress=progress,
            )
        logging.info(
            "%s: field '%s' is complete: %d shards copied, %d existed already",
            args.target,
            field,
            result.shards_done,
            result.shards_kept,
        )
    return 0


def run_plot(args: argparse.Namespace) -> int:
    """Write the plot of a cut."""
    from icefall_kd.fields.plot import draw, read_cut, save_figure

    format_token = str
    if args.bpe_model is not None:
        from icefall_kd.data.tokens import Tokenizer

        format_token = Tokenizer(args.bpe_model).piece
    cut = read_cut(args.dir, args.cut_id, args.field)
    save_figure(draw(cut, format_token), args.out)
    logging.info("wrote %s", args.out)
    return 0


VERBS: dict[str, Callable[[argparse.Namespace], int]] = {
    "ls": run_ls,
    "show": run_show,
    "verify": run_verify,
    "rm": run_rm,
    "copy": run_copy,
    "plot": run_plot,
}


@contextlib.contextmanager
def _show_bytes(description: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a function that updates a progress bar with (bytes done, bytes in all)."""
    interval = 0.5 if sys.stderr.isatty() else 10.0
    with tqdm(
        desc=description, total=0, unit="B", unit_scale=True, mininterval=interval
    ) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show


def _field_name(text: str) -> str:
    try:
        check_field_name(text)
    except ValueError as e:
        raise argparse.ArgumentTypeError(str(e)) from e
    return text


def _confirm(question: str) -> bool:
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:  # no terminal
        print()
        return False


if __name__ == "__main__":
    sys.exit(main())
