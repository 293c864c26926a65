"""Which results of an earlier call are still valid.

A result is kept only while everything that it depends on is the same: the contents of
the set, the checkpoint or exported files, every option, and the code that computes it.
Each of these is an entry of the result JSON.

The code counts by its contents.  A number raised by hand is forgotten, and the version
of the package stays the same between two commits; both would keep a wrong WER.
"""

import ast
import functools
import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

from icefall_kd.core.files import Pathlike, open_text, read_json, sha256_file
from icefall_kd.fields.format import cuts_path, info_path, shard_ids, tar_path

PACKAGE = Path(__file__).parents[1]
# No result of decoding depends on these; checkpoints are read by one module of them.
OTHER_ROOMS = ("bin", "corpora", "distill", "doctor", "report", "teachers", "training")
READS_CHECKPOINTS = "training/checkpoint.py"
# Entries of a result JSON that describe it: another value gives the same result.
DESCRIBING = (
    *("checkpoint", "training", "parameters", "hotwords", "alignment", "aligner"),
    *("rtf", "tail_padding"),
)


def input_hashes(shar_dir: Pathlike, fields: Sequence[str] = ()) -> dict[str, Any]:
    """Return what the result of any decoding of a set depends on, besides its options.

    Args:
      shar_dir: folder or URL of the set.
      fields: teachers' fields that the model reads.
    """
    import torch

    return {
        "set_sha256": set_sha256(shar_dir),
        "fields_sha256": {name: field_sha256(shar_dir, name) for name in fields},
        "code_sha256": code_sha256(),
        "torch": str(torch.__version__),
    }


def set_sha256(shar_dir: Pathlike) -> str:
    """Return the SHA-256 of the cuts and the audio of a Shar folder.

    Every byte is read, 0.3 to 1 GB/s, because a tar is padded: two of one size may
    hold other audio.  Cuts count uncompressed, since gzip stores the time.
    """
    digest = hashlib.sha256()
    for shard in shard_ids(shar_dir):
        with open_text(cuts_path(shar_dir, shard)) as lines:
            for line in lines:
                digest.update(line.encode())
        digest.update(sha256_file(tar_path(shar_dir, "recording", shard)).encode())
    return digest.hexdigest()


def field_sha256(shar_dir: Pathlike, field: str) -> str:
    """Return the SHA-256 of a field: its description and the arrays of every shard."""
    digest = hashlib.sha256(sha256_file(info_path(shar_dir, field)).encode())
    for shard in shard_ids(shar_dir):
        digest.update(sha256_file(tar_path(shar_dir, field, shard)).encode())
    return digest.hexdigest()


@functools.lru_cache(maxsize=None)
def code_sha256(package: Path = PACKAGE) -> str:
    """Return the SHA-256 of the code that decodes, without comments and docstrings."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package).as_posix()
        if name.partition("/")[0] in OTHER_ROOMS and name != READS_CHECKPOINTS:
            continue
        digest.update(f"{name}\n{_code(path)}\n".encode())
    return digest.hexdigest()


def _code(path: Path) -> str:
    """Return the syntax tree of a module as text, its docstrings left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [part for part in body if not _is_text(part)]
    return ast.dump(tree)


def _is_text(statement: ast.stmt) -> bool:
    """Return whether a statement is a string alone, such as a docstring."""
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def cached_result(
    path: Pathlike, facts: Mapping[str, Any], force: bool = False
) -> Optional[dict[str, Any]]:
    """Return the result at ``path`` if a new one would be the same.

    A result may hold more than ``facts``, such as delays that are not asked for.

    Args:
      path: of a result JSON.
      facts: of the result asked for, as the JSON stores them; entries of
        :data:`DESCRIBING` are not compared.
      force: never keep it.
    """
    path = Path(path)
    if force or not path.exists():
        return None
    result = read_json(path)
    differs = sorted(
        name
        for name, value in facts.items()
        if name not in DESCRIBING and (name not in result or result[name] != value)
    )
    if differs:
        logging.info("%s is computed again; changed: %s", path, ", ".join(differs))
        return None
    recogs = result.get("recogs")
    if recogs and not (path.parent / recogs).is_file():
        logging.info("%s is computed again: there is no %s", path, recogs)
        return None
    logging.info("%s is kept: nothing has changed; --force computes it again", path)
    return result
