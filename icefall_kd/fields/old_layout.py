"""Move the files of fields that earlier versions wrote into a Shar folder itself.

lhotse takes every file of a Shar folder for a shard, so it cannot open such a folder.
"""

import errno
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from icefall_kd.core.files import (
    Pathlike,
    is_local,
    move_file,
    remove_stale_temporaries,
)
from icefall_kd.data.shar import fields_dir
from icefall_kd.fields.format import (
    FIELD_NAME,
    RESERVED,
    FieldInfo,
    field_dir,
    from_json,
    info_path,
    list_shar,
)

_OLD_FIELD = re.compile(
    rf"({FIELD_NAME.pattern})\.(\d+\.json|\d+\.tar|codec\.npz|json)"
)
_OLD_LABELS = re.compile(r"pseudo_labels(-\d+)?\.json")
_unmovable = set()  # folders that a warning named already


def move_old_files(shar_dir: Pathlike, paths: Sequence[Path]) -> int:
    """Move what is no shard out of a Shar folder that an earlier version wrote.

    Several processes may do so at the same time: what one lists and another moves is
    at its place when both return.  A folder that cannot be written stays as it is.

    Returns:
      the number of files that were found.
    """
    names = {path.name for path in paths}
    partial = [n.split(".partial.", 1)[1] for n in names if ".partial." in n]
    places = {p: q for p in paths if (q := _new_place(shar_dir, p, names)) is not None}
    try:
        for name in partial:
            remove_stale_temporaries(shar_dir, name)
        for old, new in places.items():
            _move_old_file(old, new)
    except (PermissionError, NotImplementedError) as e:  # the latter: a web server
        reason = str(e)
    except OSError as e:
        if e.errno != errno.EROFS:
            raise
        reason = str(e)
    else:
        if places:
            logging.info(
                "%s: moved %d files to %s: lhotse takes every file of a Shar folder "
                "for a shard",
                shar_dir,
                len(places),
                fields_dir(shar_dir),
            )
        return len(places) + len(partial)
    if str(shar_dir) not in _unmovable:
        _unmovable.add(str(shar_dir))
        logging.warning(
            "%s: %d files are to be moved to %s, which failed (%s). Until then its "
            "fields cannot be read. Run 'python -m icefall_kd.bin.fields ls %s' once "
            "as a user who may write there",
            shar_dir,
            len(places) + len(partial),
            fields_dir(shar_dir),
            reason,
            shar_dir,
        )
    return 0


def _new_place(shar_dir: Pathlike, path: Path, names: set[str]) -> Optional[Path]:
    """Return where a file belongs that may be of an earlier version; None if it stays.

    Args:
      names: of all files in the folder.
    """
    if _OLD_LABELS.fullmatch(path.name):
        return fields_dir(shar_dir) / path.name
    match = _OLD_FIELD.fullmatch(path.name)
    if match is None or match[1] in RESERVED:
        return None
    field, kind = match.groups()
    states = any(re.fullmatch(rf"{field}\.\d+\.json", name) for name in names)
    if kind.endswith("tar"):  # stays if finished, linked to or another program's
        finished = f"{field}.json" in names or info_path(shar_dir, field).is_file()
        if finished or not states or (is_local(path) and path.is_symlink()):
            return None
    if kind == "json" and not states and f"{field}.codec.npz" not in names:
        try:
            from_json(FieldInfo, path)
        except (ValueError, OSError):  # another program's
            return None
    return field_dir(shar_dir, field) / path.name


def _move_old_file(old: Path, new: Path) -> None:
    new.parent.mkdir(parents=True, exist_ok=True)
    if not (is_local(old) and old.is_symlink()):
        move_file(old, new)
        return
    # bin.pseudo_label links to the files of its input, which move, too.
    target = Path(os.path.abspath(old.parent / os.readlink(old)))
    if target.parent.is_dir():
        list_shar(target.parent)
    if not target.exists():
        match = _OLD_FIELD.fullmatch(target.name)
        target = field_dir(target.parent, match[1]) / target.name if match else target
    link = new.with_name(f".{os.getpid()}.partial.{new.name}")
    link.unlink(missing_ok=True)
    link.symlink_to(os.path.relpath(target, new.parent))
    os.replace(link, new)
    old.unlink(missing_ok=True)
