"""Write a manifest of the dialogue of Beneath a Steel Sky with its texts.

    python local/prepare_sky.py --source download/packages --audio data/audio/sky \\
        --name sky --output data/manifests

Revolution Software, 1994, freeware; Debian package ``beneath-a-steel-sky``.  The
speakers are not known.
"""

from pathlib import Path

from icefall_kd.core.files import read_json
from icefall_kd.core.logs import progress
from icefall_kd.corpora.audio import AudioClip
from icefall_kd.corpora.manifests import (
    check_release,
    create_corpus_parser,
    write_corpus,
)
from icefall_kd.corpora.sky import encode_wav, read_files, read_texts, unpack_speech
from icefall_kd.data.normalise import normalise_english

NUM_TEXTS = 3491
DIGEST = "c2e086caeed5c612ce948bea436427695dc2627bbecd33743d77bb6eb3d6af24"
CODES = Path(__file__).with_name("sky_codes.json")  # bits -> code point


def find_clips(source_dir: Path) -> list[AudioClip]:
    """Return the clips with their words.

    Raises:
      FileNotFoundError: if the data files are missing.
      ValueError: if one of them is damaged, or of another release.
    """
    files = read_files(source_dir)
    texts = read_texts(files, read_json(CODES))
    check_release(
        {str(number): text for number, text in texts.items()},
        NUM_TEXTS,
        DIGEST,
        "sky.dnr and sky.dsk of the Debian package beneath-a-steel-sky 0.0372-8",
    )
    clips = []
    for number in progress(sorted(texts), "unpack speech", "file"):
        try:
            samples = unpack_speech(files[number])
        except ValueError as e:
            raise ValueError(f"sky.dsk: file {number}: {e}; copy it again") from e
        clips.append(
            AudioClip(
                f"sky-{number}",
                encode_wav(samples),
                "wav",
                text=normalise_english(texts[number]),
                speaker="sky",
                language="en",
            )
        )
    return clips


def main() -> None:
    args = create_corpus_parser(__doc__).parse_args()
    write_corpus("prepare_sky", args, find_clips)


if __name__ == "__main__":
    main()
