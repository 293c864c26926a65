"""Write manifests of the Asterisk prompts of one language, audio as 16 kHz flac.

    python local/prepare_asterisk.py --source download/asterisk \\
        --audio data/audio/asterisk --splits splits --output data/manifests
    python local/prepare_asterisk.py --language es --name unlabelled_asterisk_es \\
        --source download/asterisk_es --audio data/audio/asterisk \\
        --output data/manifests

--splits writes the labelled sets train, dev and test.  --name writes one unlabelled set
without tones and silence.  --check only checks that audio and transcripts exist.

Asterisk core sounds: one professional speaker per language, Allison Smith in English;
CC BY-SA 3.0, Digium/Sangoma and contributors,
https://downloads.asterisk.org/pub/telephony/sounds/.  The audio is 16 kHz G.722.  The
transcripts are lines ``name: text`` of ``core-sounds-<language>.txt``.
"""

import argparse
import logging
import re
from pathlib import Path

from icefall_kd.core.cli import create_parser, exit_on_error
from icefall_kd.core.files import read_text
from icefall_kd.core.logs import setup_logging
from icefall_kd.corpora.audio import AudioClip, store_clips
from icefall_kd.corpora.manifests import write_manifest, write_splits
from icefall_kd.data.normalise import normalise_english, normalise_text

AUDIO_SUFFIXES = (".g722", ".sln16", ".wav", ".flac")  # in order of preference
FOLDERS = ("dictate", "digits", "followme", "letters", "phonetic", "silence")
# Replacements in the English transcripts: initialisms and spelling mistakes.
WORDS = {
    "PBX": "P B X",
    "IVR": "I V R",
    "IAX": "I A X",
    "USB": "U S B",
    "MGCP": "M G C P",
    "WWW": "W W W",
    "UMUTE": "UNMUTE",
    "EXCLAIMATION": "EXCLAMATION",
    "REPRESENATIVES": "REPRESENTATIVES",
    "UNINDENTIFIED": "UNIDENTIFIED",
    "WITHELD": "WITHHELD",
    "FOURTIETH": "FORTIETH",
    "XRAY": "X RAY",
    "THRU": "THROUGH",
}
# Prompts without words; their names are the same in all languages.
NOT_SPEECH = re.compile(
    r"silence/|beep|ascending-|descending-|(tt-monkeys|confbridge-(join|leave))$"
)


def read_transcripts(source_dir: Path, language: str = "en") -> dict[str, str]:
    """Return prompt -> text of ``core-sounds-<language>.txt[.gz]``, not normalised.

    Raises:
      FileNotFoundError: if the file is missing.
      ValueError: if a line has no colon, or a prompt has two texts.
    """
    name = f"core-sounds-{language}.txt"
    found = sorted(source_dir.rglob(name)) + sorted(source_dir.rglob(name + ".gz"))
    if not found:
        raise FileNotFoundError(
            f"{source_dir}: {name}[.gz] is missing; copy it from asterisk-core-sounds-"
            f"{language}, a release of the Asterisk project and a Debian package"
        )
    texts: dict[str, str] = {}
    for number, line in enumerate(read_text(found[0]).split("\n"), 1):
        if not line.strip() or line.startswith(";"):
            continue
        prompt, colon, text = line.partition(":")
        if not colon or not prompt.strip():
            raise ValueError(f"{found[0]}:{number}: not a line 'name: text': {line}")
        if texts.setdefault(prompt.strip(), text.strip()) != text.strip():
            raise ValueError(
                f"{found[0]}:{number}: {prompt} has two texts; delete one of them"
            )
    return texts


def find_audio(source_dir: Path) -> dict[str, Path]:
    """Return prompt ("digits/1") -> audio file, sorted by prompt.

    Raises:
      FileNotFoundError: if the folder has no audio.
    """
    prompts: dict[str, Path] = {}
    for suffix in AUDIO_SUFFIXES:
        for path in sorted(source_dir.rglob(f"*{suffix}")):
            folder = f"{path.parent.name}/" if path.parent.name in FOLDERS else ""
            prompts.setdefault(folder + path.stem, path)
    if not prompts:
        raise FileNotFoundError(
            f"{source_dir}: no audio ({', '.join(AUDIO_SUFFIXES)}); unpack the prompts "
            "there"
        )
    return dict(sorted(prompts.items()))


def find_labelled(
    source_dir: Path, language: str = "en"
) -> tuple[dict[str, Path], dict[str, str]]:
    """Return the audio and the transcripts of a release.

    Logs the prompts that lack one of the two: no release is complete.

    Returns:
      prompt -> audio file, of prompts with a transcript; prompt -> transcript, of all.
    """
    texts, audio = read_transcripts(source_dir, language), find_audio(source_dir)
    for problem, names in (
        ("no audio for", set(texts) - set(audio)),
        ("no transcript of", set(audio) - set(texts)),
    ):
        if names:
            logging.warning("%s %d prompts: %s", problem, len(names), sorted(names)[:5])
    return {prompt: audio[prompt] for prompt in audio if prompt in texts}, texts


def normalise_prompt(text: str, language: str = "en") -> str:
    """Return the words of a transcript; the speakers read numbers digit by digit."""
    if language == "en":
        return normalise_english(text, WORDS, numbers="digits")
    return normalise_text(text, language, numbers="digits")


def get_cut_id(prompt: str, language: str) -> str:
    """Return ``asterisk-en-digits_1`` for the English prompt "digits/1"."""
    return f"asterisk-{language}-{prompt.replace('/', '_')}"


def find_clips(source_dir: Path, language: str, *, labelled: bool) -> list[AudioClip]:
    """Return the prompts of a release.

    Args:
      source_dir: folder of the unpacked release.
      language: language code.
      labelled: True: prompts with a transcript, and their normalised texts; False: all
        prompts but tones and silence, without text.
    """
    if labelled:
        audio, texts = find_labelled(source_dir, language)
        texts = {prompt: normalise_prompt(texts[prompt], language) for prompt in audio}
    else:
        found, texts = find_audio(source_dir), {}
        audio = {p: path for p, path in found.items() if not NOT_SPEECH.match(p)}
    return [
        AudioClip(
            get_cut_id(prompt, language),
            path,
            text=texts.get(prompt),
            speaker=f"asterisk-{language}",
            language=language,
        )
        for prompt, path in audio.items()
    ]


def get_parser() -> argparse.ArgumentParser:
    parser = create_parser(__doc__)
    parser.add_argument(
        "--source", type=Path, required=True, help="folder of the unpacked release"
    )
    parser.add_argument("--language", default="en", help="language code")
    parser.add_argument("--audio", type=Path, help="folder for 16 kHz flac files")
    parser.add_argument("--output", type=Path, help="folder for manifests")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument(
        "--splits", type=Path, help="folder of <split>.txt, lists of ids"
    )
    action.add_argument("--name", help="name of an unlabelled set to write")
    action.add_argument("--check", action="store_true", help="check, write nothing")
    return parser


def main() -> None:
    parser = get_parser()
    args = parser.parse_args()
    if not args.check and (args.audio is None or args.output is None):
        parser.error("--audio and --output are required with --splits and --name")
    setup_logging()
    with exit_on_error("prepare_asterisk", ValueError):
        if args.check:
            audio, _ = find_labelled(args.source, args.language)
            logging.info("%s: %d prompts with transcripts", args.source, len(audio))
            return
        clips = find_clips(args.source, args.language, labelled=args.name is None)
        cuts = store_clips(clips, args.audio)
        if args.name is None:
            write_splits(cuts, args.splits, args.output)
        else:
            write_manifest(cuts, args.output / f"{args.name}.jsonl.gz")


if __name__ == "__main__":
    main()
