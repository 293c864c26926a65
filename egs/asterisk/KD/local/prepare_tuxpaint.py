"""Write a manifest of Tux Paint's spoken descriptions in many languages, without text.

    python local/prepare_tuxpaint.py --source download/pool \\
        --audio data/audio/tuxpaint --name unlabelled_tuxpaint --output data/manifests

The Tux Paint contributors; the Debian package ``tuxpaint-stamps-default`` has the
licence of each stamp.  The files are ``*_desc_<language>.ogg``, in English
``*_desc.ogg``.
"""

import re
from collections.abc import Collection
from pathlib import Path

from icefall_kd.corpora.audio import AudioClip
from icefall_kd.corpora.manifests import create_corpus_parser, write_corpus

NAME = re.compile(r"(?P<stamp>.+?)_desc(?:_(?P<language>[A-Za-z_@]+))?\.ogg\Z")


def find_clips(source_dir: Path, languages: Collection[str] = ()) -> list[AudioClip]:
    """Return the files ``*_desc_<language>.ogg``.

    Args:
      source_dir: folder of the unpacked package.
      languages: language codes such as "en" or "pt_BR"; empty: all languages.

    Raises:
      FileNotFoundError: if no file is found.
    """
    clips = []
    for path in sorted(source_dir.rglob("*_desc*.ogg")):
        match = NAME.match(path.name)
        if match is None:
            continue
        language = match["language"] or "en"
        if not languages or language in languages:
            # The names of stamps repeat between folders.
            folders = path.parent.parts
            if "stamps" in folders:
                folders = folders[folders.index("stamps") + 1 :]
            folder = "-".join(folders).replace(" ", "_")
            id = f"tuxpaint-{language}-{folder}-{match['stamp']}"
            clips.append(AudioClip(id, path, language=language))
    if not clips:
        raise FileNotFoundError(
            f"{source_dir}: no *_desc*.ogg of {', '.join(languages) or 'any language'}"
            "; unpack the Debian package tuxpaint-stamps-default there"
        )
    return clips


def main() -> None:
    parser = create_corpus_parser(__doc__)
    parser.add_argument(
        "--languages", nargs="+", default=(), help="language codes (default: all)"
    )
    args = parser.parse_args()
    write_corpus("prepare_tuxpaint", args, find_clips, args.languages)


if __name__ == "__main__":
    main()
