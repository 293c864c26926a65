"""Reuse a finished result if its inputs are unchanged.

The inputs are the contents of the set, the checkpoint or exported files, all options,
and the code.  The result JSON has an entry for each of these.

A hash of the syntax trees identifies the code.  A version number would not do, because
it stays the same between two commits.
"""

import ast
import functools
import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Callable, Optional

import torch

from icefall_kd.core.files import Pathlike, open_text, read_json, sha256_file
from icefall_kd.fields.format import cuts_path, info_path, shard_ids, tar_path
from icefall_kd.recognition.result_files import result_path, write_results
from icefall_kd.recognition.scoring import Recognition

PACKAGE = Path(__file__).parents[1]
# folders of the package that affect the result of a decoding
FOLDERS = (
    *("core", "data", "dataset", "decoding", "export", "fields", "recognition"),
    *("transducer", "zipformer"),
)
# entries of a result JSON that do not affect the hypotheses
DESCRIPTIONS = (
    *("checkpoint", "training", "parameters", "hotwords", "graph"),
    *("alignment", "aligner", "rtf", "tail_padding"),
)


def decode_or_reuse(
    out_dir: Pathlike,
    set_name: str,
    suffix: str,
    info: Mapping[str, Any],
    decode: Callable[[], tuple[list[Recognition], float]],
    measure: Callable[[list[Recognition]], Mapping[str, Any]] = lambda _: {},
    force: bool = False,
) -> dict[str, Any]:
    """Return an earlier result if it is valid, else decode a set and write its files.

    Args:
      out_dir, set_name, suffix: folder and names of the result files.
      info: entries of the result JSON on which the result depends.
      decode: returns the recognitions of the set and the real-time factor.
      measure: returns further metrics of the recognitions.
      force: decode even if an earlier result is valid.
    Returns:
      the contents of the result JSON.
    """
    path = result_path(out_dir, set_name, suffix)
    result = cached_result(path, info, force)
    if result is None:
        found, rtf = decode()
        info = {**info, "rtf": round(rtf, 5)}
        result = write_results(out_dir, set_name, suffix, found, info, measure(found))
    return result


def cached_result(
    path: Pathlike, info: Mapping[str, Any], force: bool = False
) -> Optional[dict[str, Any]]:
    """Return the result at ``path``, or None if it is missing or outdated.

    The result may have more entries than ``info``, for example delays.

    Args:
      path: result JSON.
      info: entries of the requested result; those in :data:`DESCRIPTIONS` are not
        compared.
      force: return None even if the result is valid.
    """
    path = Path(path)
    if force or not path.exists():
        return None
    result = read_json(path)
    changed = sorted(
        name
        for name, value in info.items()
        if name not in DESCRIPTIONS and (name not in result or result[name] != value)
    )
    if changed:
        logging.info("%s is computed again; changed: %s", path, ", ".join(changed))
        return None
    recogs = result.get("recogs")
    if recogs and not (path.parent / recogs).is_file():
        logging.info("%s is computed again: %s is missing", path, recogs)
        return None
    logging.info("%s is reused: nothing has changed; --force computes it again", path)
    return result


def input_hashes(shar_dir: Pathlike, fields: Sequence[str] = ()) -> dict[str, Any]:
    """Return the entries of a result JSON about set, fields, code and torch.

    Args:
      fields: names of the fields that the model reads.
    """
    return {
        "set_sha256": set_sha256(shar_dir),
        "fields_sha256": {name: field_sha256(shar_dir, name) for name in fields},
        "code_sha256": code_sha256(),
        "torch": str(torch.__version__),
    }


def set_sha256(shar_dir: Pathlike) -> str:
    """Return the SHA-256 of cuts and audio of a Shar folder.

    This reads every byte (0.3 to 1 GB/s), because tar files of equal size may have
    different audio.  Cuts are hashed uncompressed, because a gzip file contains the
    time of its compression.
    """
    digest = hashlib.sha256()
    for shard in shard_ids(shar_dir):
        with open_text(cuts_path(shar_dir, shard)) as lines:
            for line in lines:
                digest.update(line.encode())
        digest.update(sha256_file(tar_path(shar_dir, "recording", shard)).encode())
    return digest.hexdigest()


def field_sha256(shar_dir: Pathlike, field: str) -> str:
    """Return the SHA-256 of a field: its JSON and the arrays of all shards."""
    digest = hashlib.sha256(sha256_file(info_path(shar_dir, field)).encode())
    for shard in shard_ids(shar_dir):
        digest.update(sha256_file(tar_path(shar_dir, field, shard)).encode())
    return digest.hexdigest()


@functools.lru_cache(maxsize=None)
def code_sha256(package: Path = PACKAGE) -> str:
    """Return the SHA-256 of the code of :data:`FOLDERS`, without comments."""
    digest = hashlib.sha256()
    for folder in FOLDERS:
        for path in sorted((package / folder).rglob("*.py")):
            name = path.relative_to(package).as_posix()
            digest.update(f"{name}\n{_dump_code(path)}\n".encode())
    return digest.hexdigest()


def _dump_code(path: Path) -> str:
    """Return the syntax tree of a module as text, without its docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [statement for statement in body if not _is_string(statement)]
    return ast.dump(tree)


def _is_string(statement: ast.stmt) -> bool:
    """Return whether a statement is only a string, for example a docstring."""
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )
