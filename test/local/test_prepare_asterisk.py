"""The Asterisk recipe's scripts: transcripts, audio, splits and unlabelled corpora."""

import gzip
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import CutSet
from recipe import RECIPE, load_script

from icefall_kd.corpora.manifests import read_id_lists
from icefall_kd.data.normalise import NORMALISED

SPECIAL = Path(__file__).with_name("asterisk_special.tsv")
# Digits, symbols, brackets, abbreviations, hyphens.
NOT_PLAIN = re.compile(r"[^a-zA-Z' .,?!:;\"]|[A-Z]{2}|[A-Za-z]\.[A-Za-z]")
SPLITS = RECIPE / "splits"

script = load_script("prepare_asterisk")
normalise_prompt = script.normalise_prompt


@pytest.fixture(scope="module")
def texts(asterisk):
    return script.read_transcripts(asterisk / "download/asterisk")


@pytest.fixture(scope="module")
def normalised(texts):
    """Return the id of each cut -> its words."""
    return {script.get_cut_id(p, "en"): normalise_prompt(t) for p, t in texts.items()}


@pytest.fixture(scope="module")
def expected():
    lines = SPECIAL.read_text().splitlines()
    return dict(line.split("\t") for line in lines if not line.startswith("#"))


def test_the_release_has_a_transcript_for_every_prompt(asterisk, texts):
    source = asterisk / "download/asterisk"
    audio, _ = script.find_labelled(source)
    assert audio == script.find_audio(source) and len(audio) == 568


def test_every_transcript_becomes_words(texts):
    for prompt, text in texts.items():
        words = normalise_prompt(text)
        assert NORMALISED.match(words), (prompt, words)
        assert normalise_prompt(words) == words, prompt


def test_every_special_transcript_is_normalised_as_checked_by_hand(texts, expected):
    assert len(expected) > 100
    for prompt, words in expected.items():
        assert normalise_prompt(texts[prompt]) == words, prompt


def test_every_transcript_that_is_not_plain_was_checked_by_hand(texts, expected):
    special = {prompt for prompt, text in texts.items() if NOT_PLAIN.search(text)}
    assert special <= set(expected)


def test_every_plain_transcript_keeps_its_words(texts, expected):
    for prompt in set(texts) - set(expected):
        words = re.findall(r"[a-z']+", texts[prompt].lower())
        assert normalise_prompt(texts[prompt]).lower().split() == words, prompt


def test_prompts_that_are_not_speech_are_those_without_words(texts):
    for prompt, text in texts.items():
        is_speech = not script.NOT_SPEECH.match(prompt)
        assert is_speech == bool(normalise_prompt(text)), prompt


def test_folder_without_transcripts_or_audio_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"core-sounds-en\.txt.*copy it"):
        script.read_transcripts(tmp_path)
    with pytest.raises(FileNotFoundError, match="no audio"):
        script.find_audio(tmp_path)


@pytest.mark.parametrize("name", ["core-sounds-en.txt", "core-sounds-en.txt.gz"])
def test_transcripts_are_read_plain_or_compressed(tmp_path, name):
    opener = gzip.open if name.endswith("gz") else open
    with opener(tmp_path / name, "wt") as f:
        f.write("; a comment\n\nhello: Hello.\ndigits/1: one\n")
    found = script.read_transcripts(tmp_path)
    assert found == {"hello": "Hello.", "digits/1": "one"}


@pytest.mark.parametrize(
    "lines, message",
    [
        ("hello: Hello.\nno colon\n", "txt:2"),
        ("a: One.\na: Two.\n", "txt:2: a has two texts"),
    ],
)
def test_damaged_transcripts_are_refused_by_line(tmp_path, lines, message):
    (tmp_path / "core-sounds-en.txt").write_text(lines)
    with pytest.raises(ValueError, match=message):
        script.read_transcripts(tmp_path)


def test_no_test_or_dev_text_occurs_in_another_split(normalised):
    splits = read_id_lists(SPLITS)
    for held_out in ("test", "dev"):
        others = [id for split in set(splits) - {held_out} for id in splits[split]]
        for id in splits[held_out]:
            text = f" {normalised[id]} "
            assert not any(text in f" {normalised[other]} " for other in others), id


def test_splits_have_their_sizes_and_contain_every_prompt_once(normalised):
    splits = read_id_lists(SPLITS)
    assert (len(splits["test"]), len(splits["dev"])) == (100, 30)
    for id in splits["test"] + splits["dev"]:
        assert 3 <= len(normalised[id].split()) <= 20
    excluded = (SPLITS / "excluded.txt").read_text().splitlines()
    listed = [id for ids in splits.values() for id in ids]
    listed += [line.split("\t")[0] for line in excluded]
    assert len(listed) == len(set(listed)) == 568


def test_make_splits_draws_the_lists_of_the_recipe(asterisk, tmp_path):
    subprocess.run(
        [
            *(sys.executable, RECIPE / "local/make_splits.py"),
            *("--source", asterisk / "download/asterisk", "--output", tmp_path),
        ],
        check=True,
    )
    assert len(list(tmp_path.iterdir())) == 4
    for path in tmp_path.iterdir():
        assert path.read_text() == (SPLITS / path.name).read_text(), path.name


def test_manifests_contain_the_listed_ids(asterisk):
    for split, ids in read_id_lists(SPLITS).items():
        cuts = CutSet.from_file(asterisk / f"data/manifests/{split}.jsonl.gz")
        assert [cut.id for cut in cuts] == ids


def test_unlabelled_prompts_are_speech_without_text(asterisk):
    source = asterisk / "download/asterisk"
    clips = script.find_clips(source, "en", labelled=False)
    assert 500 < len(clips) < 568 and not any(clip.text for clip in clips)
    assert not any(script.NOT_SPEECH.search(str(clip.source)) for clip in clips)


def write_noise(folder, names):
    noise = np.random.default_rng(0).standard_normal(1600) * 0.05
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, noise, 16000)


STAMPS = (
    "stamps/animals/cat_desc.ogg",
    "stamps/animals/cat_desc_fr.ogg",
    "stamps/toys/cat_desc_fr.ogg",
    "stamps/toys/cat.ogg",
)
LINES = ("sound/cave/cs/a.ogg", "sound/cave/nl/a.ogg", "sound/cave/en/x.ogg")


@pytest.mark.parametrize(
    "name, files, language, expected",
    [
        (
            "prepare_tuxpaint",
            STAMPS,
            "en",
            {
                "tuxpaint-en-animals-cat": "en",
                "tuxpaint-fr-animals-cat": "fr",
                "tuxpaint-fr-toys-cat": "fr",
            },
        ),
        (
            "prepare_fillets",
            LINES,
            "nl",
            {"fillets-cs-cave-a": "cs", "fillets-nl-cave-a": "nl"},
        ),
    ],
)
def test_unlabelled_corpus_is_found_by_language(
    tmp_path, name, files, language, expected
):
    write_noise(tmp_path, files)
    find_clips = load_script(name).find_clips
    assert {clip.id: clip.language for clip in find_clips(tmp_path)} == expected
    chosen = [id for id, of in expected.items() if of == language]
    assert [clip.id for clip in find_clips(tmp_path, [language])] == chosen


@pytest.mark.parametrize(
    "name, package",
    [
        ("prepare_tuxpaint", "tuxpaint-stamps-default"),
        ("prepare_fillets", "fillets-ng-data-cs"),
    ],
)
def test_missing_corpus_is_reported_with_its_package(tmp_path, name, package):
    with pytest.raises(FileNotFoundError, match=package):
        load_script(name).find_clips(tmp_path)


def test_script_writes_an_unlabelled_manifest(tmp_path):
    write_noise(tmp_path, LINES)
    command = [sys.executable, RECIPE / "local/prepare_fillets.py", "--name", "cs"]
    options = [
        "--source",
        ".",
        "--audio",
        "audio",
        "--output",
        "m",
        "--languages",
        "cs",
    ]
    subprocess.run([*command, *options], cwd=tmp_path, check=True)
    (cut,) = CutSet.from_file(tmp_path / "m/cs.jsonl.gz")
    assert not cut.supervisions and cut.custom["language"] == "cs"
    assert (tmp_path / f"audio/{cut.id}.flac").is_file()
