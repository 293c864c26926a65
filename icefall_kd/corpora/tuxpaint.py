"""Tux Paint stamps: short spoken descriptions in a dozen languages, no text used.

The Tux Paint contributors; each stamp's licence is in the Debian package
``tuxpaint-stamps-default``.  Files ``*_desc_<language>.ogg``; those without a
language code are English.
"""

import re
from collections.abc import Collection
from pathlib import Path
from typing import Optional

from lhotse import CutSet

from icefall_kd.corpora.audio import clip_of_file, store_clips

_NAME = re.compile(r"(?P<stamp>.+?)_desc(?:_(?P<language>[A-Za-z_@]+))?\.ogg\Z")


def prepare_tuxpaint(
    source_dir: Path, audio_dir: Path, *, languages: Optional[Collection[str]] = None
) -> CutSet:
    """Return the spoken descriptions as cuts without text.

    Args:
      languages: codes as the files have them ("en", "pt_BR"); None takes all.
    Raises:
      FileNotFoundError: if there is no such file below ``source_dir``.
    """
    clips = []
    for path in sorted(Path(source_dir).rglob("*_desc*.ogg")):
        match = _NAME.match(path.name)
        if match is None:
            continue
        language = match["language"] or "en"
        if languages is None or language in languages:
            id = f"tuxpaint-{language}-{_folders(path)}-{match['stamp']}"
            clips.append(clip_of_file(path, id, language=language))
    if not clips:
        raise FileNotFoundError(
            f"{source_dir}: no *_desc*.ogg of Tux Paint's stamps"
            f"{f' in {sorted(languages)}' if languages else ''}. Remedy: unpack the "
            "Debian package tuxpaint-stamps-default there"
        )
    cuts, _ = store_clips(clips, Path(audio_dir), "tux paint: audio to flac")
    return CutSet.from_cuts(cuts)


def _folders(path: Path) -> str:
    """The folders below "stamps": a stamp's name alone occurs several times."""
    parts = path.parent.parts
    if "stamps" in parts:
        parts = parts[parts.index("stamps") + 1 :]
    return "-".join(parts).replace(" ", "_")
