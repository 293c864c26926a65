import gzip
import re
from pathlib import Path

import pytest

from icefall_kd.corpora.asterisk import (
    NOT_SPEECH,
    find_prompts,
    match_texts,
    read_transcripts,
    spell_prompt,
)
from icefall_kd.data.normalise import NORMALISED

SPECIAL = Path(__file__).with_name("asterisk_special.tsv")
# Digits, symbols, brackets, abbreviations, hyphens: plain rules do not do.
NOT_PLAIN = re.compile(r"[^a-zA-Z' .,?!:;\"]|[A-Z]{2}|[A-Za-z]\.[A-Za-z]")


@pytest.fixture(scope="module")
def texts(asterisk):
    return read_transcripts(asterisk / "download/asterisk")


@pytest.fixture(scope="module")
def expected():
    lines = SPECIAL.read_text().splitlines()
    return dict(line.split("\t") for line in lines if not line.startswith("#"))


def test_the_release_has_a_transcript_for_every_prompt(asterisk, texts):
    prompts = find_prompts(asterisk / "download/asterisk")
    assert len(prompts) == 568
    assert match_texts(prompts, texts) == prompts


def test_every_transcript_line_becomes_words(texts):
    for prompt, text in texts.items():
        said = spell_prompt(text)
        assert NORMALISED.match(said), (prompt, said)
        assert spell_prompt(said) == said, prompt


def test_every_special_line_is_read_as_checked_by_hand(texts, expected):
    assert len(expected) > 100
    for prompt, said in expected.items():
        assert spell_prompt(texts[prompt]) == said, prompt


def test_every_line_that_is_not_plain_was_checked_by_hand(texts, expected):
    special = {prompt for prompt, text in texts.items() if NOT_PLAIN.search(text)}
    assert special <= set(expected)


def test_every_plain_line_keeps_its_words(texts, expected):
    for prompt in set(texts) - set(expected):
        words = re.findall(r"[a-z']+", texts[prompt].lower())
        assert spell_prompt(texts[prompt]).lower().split() == words, prompt


def test_prompts_that_are_no_speech_are_those_without_words(texts):
    for prompt, text in texts.items():
        assert bool(NOT_SPEECH.match(prompt)) == (not spell_prompt(text)), prompt


def test_folder_without_transcripts_names_file_and_remedy(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"core-sounds-en\.txt.*Remedy"):
        read_transcripts(tmp_path)


def test_folder_without_audio_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no audio"):
        find_prompts(tmp_path)


@pytest.mark.parametrize("name", ["core-sounds-en.txt", "core-sounds-en.txt.gz"])
def test_transcripts_are_read_plain_or_compressed(tmp_path, name):
    opener = gzip.open if name.endswith("gz") else open
    with opener(tmp_path / name, "wt") as f:
        f.write("; a comment\n\nhello: Hello.\ndigits/1: one\n")
    assert read_transcripts(tmp_path) == {"hello": "Hello.", "digits/1": "one"}


def test_line_without_name_is_refused_by_number(tmp_path):
    (tmp_path / "core-sounds-en.txt").write_text("hello: Hello.\nno colon\n")
    with pytest.raises(ValueError, match="txt:2"):
        read_transcripts(tmp_path)


def test_prompt_with_two_texts_is_refused(tmp_path):
    (tmp_path / "core-sounds-en.txt").write_text("a: One.\na: Two.\n")
    with pytest.raises(ValueError, match="a has two texts"):
        read_transcripts(tmp_path)
