"""Fish Fillets NG: the dialogues of a game in Czech and Dutch, no text used.

ALTAR interactive and contributors, GPL-2+; Debian packages ``fillets-ng-data-cs``
and ``fillets-ng-data-nl``.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Optional

from lhotse import CutSet

from icefall_kd.corpora.audio import clip_of_file, store_clips

LANGUAGES = ("cs", "nl")


def prepare_fillets(
    source_dir: Path, audio_dir: Path, *, languages: Optional[Collection[str]] = None
) -> CutSet:
    """Return the spoken lines as cuts without text.

    Args:
      languages: of :data:`LANGUAGES`; None takes all.
    Raises:
      FileNotFoundError: if there is no such file below ``source_dir``.
    """
    clips = []
    for path in sorted(Path(source_dir).rglob("*.ogg")):
        # sound/<level>/<language>/<line>.ogg
        level, language = path.parent.parent.name, path.parent.name
        if language in (LANGUAGES if languages is None else languages):
            id = f"fillets-{language}-{level}-{path.stem}"
            clips.append(clip_of_file(path, id, language=language))
    if not clips:
        raise FileNotFoundError(
            f"{source_dir}: no sound/<level>/<language>/*.ogg of Fish Fillets. Remedy: "
            "unpack the Debian package fillets-ng-data-cs or fillets-ng-data-nl there"
        )
    cuts, _ = store_clips(clips, Path(audio_dir), "fish fillets: audio to flac")
    return CutSet.from_cuts(cuts)
