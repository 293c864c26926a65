"""Write a manifest of the dialogue of Flight of the Amazon Queen with its texts.

    python local/prepare_queen.py --source download/packages \\
        --audio data/audio/queen --name queen --output data/manifests

John Passfield and Steven Stamatiadis, 1995, freeware; Debian package
``flight-of-the-amazon-queen``.
"""

import logging
import re
from pathlib import Path

from icefall_kd.corpora.audio import AudioClip
from icefall_kd.corpora.manifests import (
    check_release,
    create_corpus_parser,
    write_corpus,
)
from icefall_kd.corpora.queen import get_clip_id, read_data_file, read_texts
from icefall_kd.data.normalise import normalise_english

NUM_TEXTS = 6587
DIGEST = "15bbbe40a92f79b185220aa147faf60ed5d3ef7c8489855bbc0c9accb9f12ff5"
# Trademark sign, musical note, a curse in symbols.
_SIGNS = re.compile(r"\^_|@@|&#\(\$!!")


def normalise_line(text: str) -> str:
    """Return the words of a line; empty if it has sounds only, for example "(sigh)"."""
    return normalise_english(_SIGNS.sub(" ", text))


def find_clips(source_dir: Path) -> list[AudioClip]:
    """Return the clips with words.

    Raises:
      FileNotFoundError: if the data file is missing.
      ValueError: if it is damaged, or of another release.
    """
    members = read_data_file(source_dir)
    texts = read_texts(members)
    check_release(
        {name: found.text for name, found in texts.items()},
        NUM_TEXTS,
        DIGEST,
        "queen.1c of the Debian package flight-of-the-amazon-queen 1.0.0-9",
    )
    clips = [
        AudioClip(
            get_clip_id(name),
            members[name],
            "mp3",
            text=normalise_line(found.text),
            speaker=f"queen-{found.speaker}",
            language="en",
        )
        for name, found in texts.items()
    ]
    spoken = [clip for clip in clips if clip.text]
    logging.info("left out %d clips without words", len(clips) - len(spoken))
    return spoken


def main() -> None:
    args = create_corpus_parser(__doc__).parse_args()
    write_corpus("prepare_queen", args, find_clips)


if __name__ == "__main__":
    main()
