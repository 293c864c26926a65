"""The files of a Shar folder and of its fields."""

import hashlib
import shutil
from fnmatch import fnmatch
from pathlib import Path

from icefall_kd.data.shar import fields_dir


def shar_files(folder):
    """Return the sorted files of a Shar folder and of its fields."""
    beside = (p for p in fields_dir(folder).glob("**/*") if p.is_file())
    return sorted([*folder.iterdir(), *beside])


def digest(folder, pattern="*"):
    """Return file name -> SHA-256 of all that is not the cuts or their audio."""
    return {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest()
        for p in shar_files(folder)
        if not p.name.startswith(("cuts.", "recording.")) and fnmatch(p.name, pattern)
    }


def copy_shar(source, target):
    """Copy a Shar folder and its fields; links stay links.  Return ``target``."""
    shutil.copytree(source, target, symlinks=True)
    if fields_dir(source).is_dir():
        shutil.copytree(fields_dir(source), fields_dir(target), symlinks=True)
    return Path(target)
