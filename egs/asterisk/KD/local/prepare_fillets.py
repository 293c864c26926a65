"""Write a manifest of the Czech and Dutch dialogue of Fish Fillets NG, without text.

    python local/prepare_fillets.py --source download/pool --audio data/audio/fillets \\
        --name unlabelled_fillets --output data/manifests

ALTAR interactive and contributors, GPL-2+; Debian packages ``fillets-ng-data-cs`` and
``fillets-ng-data-nl``.
"""

from collections.abc import Collection
from pathlib import Path

from icefall_kd.corpora.audio import AudioClip
from icefall_kd.corpora.manifests import create_corpus_parser, write_corpus

LANGUAGES = ("cs", "nl")


def find_clips(
    source_dir: Path, languages: Collection[str] = LANGUAGES
) -> list[AudioClip]:
    """Return the files ``sound/<level>/<language>/<line>.ogg``.

    Raises:
      FileNotFoundError: if no file is found.
    """
    clips = []
    for path in sorted(source_dir.rglob("*.ogg")):
        level, language = path.parent.parent.name, path.parent.name
        if language in languages:
            id = f"fillets-{language}-{level}-{path.stem}"
            clips.append(AudioClip(id, path, language=language))
    if not clips:
        raise FileNotFoundError(
            f"{source_dir}: no sound/<level>/<language>/*.ogg; unpack the Debian "
            "package fillets-ng-data-cs or fillets-ng-data-nl there"
        )
    return clips


def main() -> None:
    parser = create_corpus_parser(__doc__)
    parser.add_argument(
        "--languages", nargs="+", default=LANGUAGES, help="language codes"
    )
    args = parser.parse_args()
    write_corpus("prepare_fillets", args, find_clips, args.languages)


if __name__ == "__main__":
    main()
