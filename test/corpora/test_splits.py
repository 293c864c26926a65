from pathlib import Path

import pytest
from lhotse import CutSet

from icefall_kd.corpora.asterisk import prompt_id, read_transcripts, spell_prompt
from icefall_kd.corpora.splits import (
    choose_splits,
    read_splits,
    split_by_ids,
    write_splits,
)

LISTS = Path(__file__).resolve().parents[2] / "egs/asterisk/KD/splits"


@pytest.fixture(scope="module")
def texts(asterisk):
    shipped = read_transcripts(asterisk / "download/asterisk")
    return {prompt_id(p, "en"): spell_prompt(t) for p, t in shipped.items()}


def test_no_test_or_dev_text_occurs_in_another_split(texts):
    splits = read_splits(LISTS)
    for held_out in ("test", "dev"):
        for id in splits[held_out]:
            for other in set(splits) - {held_out}:
                for id2 in splits[other]:
                    assert f" {texts[id]} " not in f" {texts[id2]} ", (id, id2)


def test_test_and_dev_have_the_size_and_length_asked_for(texts):
    splits = read_splits(LISTS)
    assert (len(splits["test"]), len(splits["dev"])) == (100, 30)
    for id in splits["test"] + splits["dev"]:
        assert 3 <= len(texts[id].split()) <= 20


def test_every_prompt_is_in_one_list(asterisk, texts):
    splits = read_splits(LISTS)
    excluded = [
        line.split("\t")[0]
        for line in (LISTS / "excluded.txt").read_text().splitlines()
    ]
    listed = [id for ids in splits.values() for id in ids] + excluded
    assert len(listed) == len(set(listed)) == 568
    assert all(not texts[id] for id in excluded)


def test_lists_are_what_the_seed_gives(texts):
    splits = read_splits(LISTS)
    audible = {k: v for k, v in texts.items() if k != "asterisk-en-pls-try-call-later"}
    chosen = choose_splits(audible)
    assert {k: tuple(v) for k, v in chosen.items() if k != "excluded"} == splits


def test_manifests_hold_the_listed_ids(asterisk):
    for split, ids in read_splits(LISTS).items():
        cuts = CutSet.from_file(asterisk / f"data/manifests/{split}.jsonl.gz")
        assert [cut.id for cut in cuts] == list(ids)


def test_same_texts_stay_together_and_empty_ones_are_apart():
    texts = {f"{i}-{k}": f"TEXT NUMBER {'X' * i} HERE" for i in range(9) for k in "ab"}
    texts["tone"] = ""
    splits = choose_splits(texts, num_test=4, num_dev=2)
    assert splits["excluded"] == ["tone"]
    where = {id: name for name, ids in splits.items() for id in ids}
    assert all(where[f"{i}-a"] == where[f"{i}-b"] for i in range(9))


def test_too_few_texts_are_refused():
    with pytest.raises(ValueError, match="only 1 of 5 utterances"):
        choose_splits({"a": "ONE TWO THREE"}, num_test=5)


def test_lists_survive_writing_and_reading(tmp_path):
    splits = {"train": ["a", "b"], "dev": ["c"], "test": ["d"], "excluded": ["e"]}
    write_splits(splits, tmp_path, "a tone")
    assert (tmp_path / "excluded.txt").read_text() == "e\ta tone\n"
    assert read_splits(tmp_path)["train"] == ("a", "b")


def test_id_in_two_lists_is_refused(tmp_path):
    write_splits({"train": ["a"], "dev": ["b"], "test": ["a"]}, tmp_path, "")
    with pytest.raises(ValueError, match="a is listed in train"):
        read_splits(tmp_path)


def test_missing_list_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="train.txt"):
        read_splits(tmp_path)


def test_listed_id_without_audio_is_named():
    with pytest.raises(ValueError, match="1 of 2 ids of dev .* b among them"):
        split_by_ids({"dev": ("a", "b")}, ["a"])
