"""Asterisk core sounds: telephone prompts, one professional speaker per language.

Allison Smith (English), CC BY-SA 3.0, Digium/Sangoma and contributors:
https://downloads.asterisk.org/pub/telephony/sounds/ .  16 kHz G.722; the transcripts
are lines ``name: text`` of ``core-sounds-<language>.txt``.
"""

import logging
import re
from pathlib import Path
from typing import Optional

from lhotse import CutSet

from icefall_kd.core.files import read_text
from icefall_kd.corpora.audio import clip_of_file, store_clips
from icefall_kd.data.normalise import normalise_english, normalise_text

AUDIO_SUFFIXES = (".g722", ".sln16", ".wav", ".flac")
FOLDERS = ("dictate", "digits", "followme", "letters", "phonetic", "silence")
# Initials are spelled out; what the transcripts misspell is set right.
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
# The same prompts in every language; those with a transcript show it by their text.
NOT_SPEECH = re.compile(
    r"silence/|beep|ascending-|descending-|(tt-monkeys|confbridge-(join|leave))$"
)


def read_transcripts(source_dir: Path, language: str = "en") -> dict[str, str]:
    """Return prompt name -> text as shipped, of ``core-sounds-<language>.txt[.gz]``.

    Raises:
      FileNotFoundError: if there is no such file below ``source_dir``.
      ValueError: if a line of it is no ``name: text``, or a name has two texts.
    """
    name = f"core-sounds-{language}.txt"
    found = sorted(source_dir.rglob(name)) + sorted(source_dir.rglob(name + ".gz"))
    if not found:
        raise FileNotFoundError(
            f"{source_dir}: no transcripts, {name} or {name}.gz is missing. Remedy: "
            "copy it there from the release asterisk-core-sounds-"
            f"{language} of the Asterisk project, or the Debian package of this name"
        )
    lines = read_text(found[0]).split("\n")
    texts: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith(";"):
            continue
        prompt, colon, text = line.partition(":")
        if not colon or not prompt.strip():
            raise ValueError(f"{found[0]}:{number}: not of the form name: text: {line}")
        if texts.setdefault(prompt.strip(), text.strip()) != text.strip():
            raise ValueError(f"{found[0]}:{number}: {prompt} has two texts")
    return texts


def find_prompts(source_dir: Path) -> dict[str, Path]:
    """Return prompt name ("digits/1") -> audio file, sorted by name.

    Raises:
      FileNotFoundError: if there is no audio below ``source_dir``.
    """
    prompts: dict[str, Path] = {}
    for suffix in AUDIO_SUFFIXES:  # the first that a prompt has is taken
        for path in sorted(source_dir.rglob(f"*{suffix}")):
            folder = f"{path.parent.name}/" if path.parent.name in FOLDERS else ""
            prompts.setdefault(folder + path.stem, path)
    if not prompts:
        raise FileNotFoundError(
            f"{source_dir}: no audio ({', '.join(AUDIO_SUFFIXES)}) of Asterisk prompts"
        )
    return dict(sorted(prompts.items()))


def match_texts(prompts: dict[str, Path], texts: dict[str, str]) -> dict[str, Path]:
    """Return the prompts that have a text; what has only one of both is logged.

    A release may list a prompt that it does not hold: Debian's 1.6.1 has one.
    """
    for what, names in (
        ("no audio for", set(texts) - set(prompts)),
        ("no transcript of", set(prompts) - set(texts)),
    ):
        if names:
            logging.warning("%s %d prompts: %s", what, len(names), sorted(names)[:5])
    return {prompt: path for prompt, path in prompts.items() if prompt in texts}


def check_asterisk(source_dir: Path, *, language: str = "en") -> str:
    """Say how many prompts have a transcript, without reading their audio.

    Raises:
      FileNotFoundError: if there is no audio, or no file of transcripts.
    """
    texts = read_transcripts(Path(source_dir), language)
    prompts = match_texts(find_prompts(Path(source_dir)), texts)
    return f"{source_dir}: {len(prompts)} prompts with transcripts"


def spell_prompt(text: str, language: str = "en") -> str:
    """Return a prompt's text as words.

    A telephone reads extensions and passwords out digit by digit.
    """
    if language == "en":
        return normalise_english(text, WORDS, numbers="digits")
    return normalise_text(text, language, numbers="digits")


def prompt_id(prompt: str, language: str) -> str:
    """Return the cut's id: "digits/1" in English is ``asterisk-en-digits_1``."""
    return f"asterisk-{language}-{prompt.replace('/', '_')}"


def prepare_asterisk(
    source_dir: Path, audio_dir: Path, *, language: str = "en", labelled: bool = True
) -> CutSet:
    """Return the prompts of one language as cuts.

    Labelled: one cut a prompt that has a transcript, its text normalised, empty for
    tones and silence.  Unlabelled: every prompt but tones and silence, without text.

    Raises:
      FileNotFoundError: if there is no audio, or no file of transcripts.
    """
    source_dir, audio_dir = Path(source_dir), Path(audio_dir)
    texts: Optional[dict[str, str]] = None
    if labelled:
        texts = read_transcripts(source_dir, language)
    prompts = find_prompts(source_dir)
    if texts is None:
        prompts = {p: f for p, f in prompts.items() if not NOT_SPEECH.match(p)}
    else:
        prompts = match_texts(prompts, texts)
    clips = [
        clip_of_file(
            path,
            prompt_id(prompt, language),
            text=None if texts is None else spell_prompt(texts[prompt], language),
            speaker=f"asterisk-{language}",
            language=language,
        )
        for prompt, path in prompts.items()
    ]
    cuts, _ = store_clips(clips, audio_dir, f"asterisk {language}: audio to flac")
    return CutSet.from_cuts(cuts)
