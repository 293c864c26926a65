"""List, show, verify, remove, copy and plot the fields of Shar folders.

    python -m icefall_kd.bin.fields ls data/shar/* [--json]
    python -m icefall_kd.bin.fields show data/shar/train whisper_base
    python -m icefall_kd.bin.fields verify data/shar/train [FIELD ...] [--quick] \\
        [--delete-damaged]
    python -m icefall_kd.bin.fields rm data/shar/train whisper_base [--dry-run] [--yes]
    python -m icefall_kd.bin.fields copy SOURCE TARGET FIELD ... [--overwrite]
    python -m icefall_kd.bin.fields plot data/shar/dev CUT_ID FIELD ... --out cut.png

A folder may be a URL.  Exit status: 1 where something is wrong with a field, 2 where
the folder, the field or the cut does not exist or the command is not understood.
"""

import argparse
import json
import logging
import sys
from typing import Callable, Optional

from tqdm import tqdm

from icefall_kd.core.cli import create_parser, exit_on_error
from icefall_kd.core.files import as_path
from icefall_kd.core.logs import setup_logging
from icefall_kd.data.shar import FIELDS_SUFFIX
from icefall_kd.fields.audit import Fault, audit
from icefall_kd.fields.format import check_field_name, shard_ids
from icefall_kd.fields.manage import copy_field, delete_damaged, removable, remove
from icefall_kd.fields.survey import field_files, find_fields, survey
from icefall_kd.fields.text import describe_field, table

ARGUMENTS = {
    "DIR": "Shar folder or URL",
    "FIELD": "name of a field",
    "SOURCE": "Shar folder that has the fields",
    "TARGET": "Shar folder that receives them",
    "CUT_ID": "id of a cut",
}


def get_parser() -> argparse.ArgumentParser:
    """Return the command's arguments."""
    parser = create_parser(__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, told: str, *arguments: str) -> Callable:
        p = verbs.add_parser(name, help=told, description=told)
        for argument in arguments:
            plural = argument.endswith("+") or argument.endswith("*")
            word = argument.rstrip("+*")
            form = {"nargs": argument[-1]} if plural else {}
            if word == "FIELD":
                form["type"] = _field_name
            p.add_argument(word.lower(), metavar=word, help=ARGUMENTS[word], **form)
        return p.add_argument

    add = verb("ls", "every field of Shar folders, finished or not", "DIR+")
    add("--json", action="store_true", help="print JSON, not a table")
    verb("show", "all that is known of one field", "DIR", "FIELD")
    add = verb("verify", "prove every shard and every array", "DIR", "FIELD*")
    add("--quick", action="store_true", help="checksums and keys; decode nothing")
    add("--delete-damaged", action="store_true", help="so that extract redoes them")
    add = verb("rm", "remove a field's files and nothing else", "DIR", "FIELD")
    add("--yes", action="store_true", help="do not ask")
    add("--dry-run", action="store_true", help="list the files and keep them")
    add = verb(
        "copy", "copy fields to a folder of the same cuts", "SOURCE", "TARGET", "FIELD+"
    )
    add("--overwrite", action="store_true", help="replace a field made otherwise")
    add = verb("plot", "draw one cut with its fields", "DIR", "CUT_ID", "FIELD+")
    add("--out", required=True, metavar="FILE.png", help="the picture")
    add("--bpe-model", help="its pieces label the tokens of fields of kind ctc")
    return parser


def main(argv: Optional[list[str]] = None) -> int:
    """Run the command; returns the exit status."""
    args = get_parser().parse_args(argv)
    setup_logging()
    with exit_on_error(f"fields {args.verb}"):
        try:
            return VERBS[args.verb](args)
        except FileNotFoundError as e:
            print(f"fields {args.verb}: {e}", file=sys.stderr)
            return 2


def run_ls(args: argparse.Namespace) -> int:
    """Print a table a folder, or all as JSON."""
    # "data/shar/*" names the reports and the fields' files beside the folders too.
    sets = [d for d in args.dir if not d.rstrip("/").endswith(FIELDS_SUFFIX)]
    folders = [d for d in sets if not as_path(d).is_file()] or args.dir
    found = {folder: survey(folder) for folder in folders}
    if args.json:
        told = {f: [s.as_dict() for s in fields] for f, fields in found.items()}
        print(json.dumps(told, indent=2))
        return 0
    for number, (folder, fields) in enumerate(found.items()):
        shards = len(shard_ids(folder))
        print("\n" * bool(number) + f"{folder}: {len(fields)} fields, {shards} shards")
        for line in table(fields):
            print(line)
    return 0


def run_show(args: argparse.Namespace) -> int:
    """Print the description; status 1 if the field is not whole or does not join."""
    text, sound = describe_field(args.dir, args.field)
    print(text)
    return 0 if sound else 1


def run_verify(args: argparse.Namespace) -> int:
    """Print a line a fault, and a line a field."""
    if args.field:
        for name in args.field:
            field_files(args.dir, name)  # all that are named exist, before any is read
    names = args.field or [n for n, f in find_fields(args.dir).items() if f.described]
    if not names:
        shard_ids(args.dir)  # raises if this is no Shar folder
        print(f"{args.dir}: no fields")
    wrong = 0
    for name in names:
        faults = verify(args.dir, name, not args.quick)
        wrong += len(faults)
        how = "checksums and keys" if args.quick else "every array"
        print(f"{args.dir} {name}: {len(faults) or 'no'} faults ({how})")
        if args.delete_damaged:
            for path in delete_damaged(faults):
                print(f"deleted {path}")
    return 1 if wrong else 0


def verify(shar_dir: str, field: str, decode: bool) -> list[Fault]:
    """Audit one field with a bar; print its faults as they are found."""
    faults = []
    with _Bar(f"verify {field}") as bar:
        for fault in audit(shar_dir, field, decode=decode, progress=bar.advance):
            faults.append(fault)
            tqdm.write(fault.message, file=sys.stdout)
    return faults


def run_rm(args: argparse.Namespace) -> int:
    """List the files, ask, and delete them."""
    paths = removable(args.dir, args.field)
    for path in paths:
        print(path)
    if args.dry_run:
        print(f"{len(paths)} files would be removed")
        return 0
    if not args.yes and not _agreed(f"remove these {len(paths)} files? [y/N] "):
        print("nothing was removed")
        return 0
    print(f"{len(remove(args.dir, args.field))} files removed")
    return 0


def run_copy(args: argparse.Namespace) -> int:
    """Copy the fields one after the other."""
    for field in args.field:
        with _Bar(f"copy {field}") as bar:
            copied = copy_field(
                args.source,
                args.target,
                field,
                overwrite=args.overwrite,
                progress=bar.advance,
            )
        logging.info(
            "%s: field '%s' is whole, %d shards copied, %d were there",
            args.target,
            field,
            copied.shards_done,
            copied.shards_kept,
        )
    return 0


def run_plot(args: argparse.Namespace) -> int:
    """Draw the picture."""
    from icefall_kd.fields.plot import draw, read_cut, save_figure

    symbol = str
    if args.bpe_model is not None:
        from icefall_kd.data.tokens import Tokenizer

        symbol = Tokenizer(args.bpe_model).piece
    save_figure(draw(read_cut(args.dir, args.cut_id, args.field), symbol), args.out)
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


class _Bar:
    """A bar of bytes with the time that is left; it appears with the first news."""

    def __init__(self, description: str) -> None:
        self._description, self._bar = description, None

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def advance(self, done: int, total: int) -> None:
        """Show ``done`` of ``total`` bytes."""
        if self._bar is None:
            self._bar = tqdm(
                desc=self._description,
                total=total,
                unit="B",
                unit_scale=True,
                mininterval=0.5 if sys.stderr.isatty() else 10.0,
            )
        self._bar.update(done - self._bar.n)


def _field_name(text: str) -> str:
    try:
        check_field_name(text)
    except ValueError as e:
        raise argparse.ArgumentTypeError(str(e)) from e
    return text


def _agreed(question: str) -> bool:
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:  # no one is there to answer
        print()
        return False


if __name__ == "__main__":
    sys.exit(main())
