"""Splits of a corpus and their lists of ids."""

from hashlib import sha256

import pytest
from dummies import noise_cuts

from icefall_kd.corpora.manifests import (
    check_release,
    draw_splits,
    read_id_lists,
    write_id_lists,
    write_splits,
)


def test_equal_texts_stay_together_and_empty_ones_are_excluded():
    texts = {f"{i}-{k}": f"TEXT NUMBER {'X' * i} HERE" for i in range(9) for k in "ab"}
    texts["tone"] = ""
    splits = draw_splits(texts, num_test=4, num_dev=2)
    assert splits["excluded"] == ["tone"]
    split_of = {id: name for name, ids in splits.items() for id in ids}
    assert all(split_of[f"{i}-a"] == split_of[f"{i}-b"] for i in range(9))


def test_too_few_texts_are_refused():
    with pytest.raises(ValueError, match="test: only 1 of 5 utterances"):
        draw_splits({"a": "ONE TWO THREE"}, num_test=5)


def test_lists_are_written_and_read(tmp_path):
    splits = {"train": ["a", "b"], "dev": ["c"], "test": ["d"], "excluded": ["e"]}
    write_id_lists(splits, tmp_path, "a tone")
    assert (tmp_path / "excluded.txt").read_text() == "e\ta tone\n"
    assert read_id_lists(tmp_path)["train"] == ["a", "b"]


def test_id_in_two_lists_is_refused(tmp_path):
    write_id_lists({"train": ["a"], "dev": ["b"], "test": ["a"]}, tmp_path, "")
    with pytest.raises(ValueError, match="test.txt: a is also in train"):
        read_id_lists(tmp_path)


def test_missing_list_is_reported(tmp_path):
    with pytest.raises(FileNotFoundError, match="train.txt"):
        read_id_lists(tmp_path)


def test_listed_id_without_audio_is_reported_before_anything_is_written(tmp_path):
    cuts = noise_cuts(tmp_path, [0.3])
    lists = {"train": [cuts[0].id], "dev": ["x", "y"], "test": []}
    write_id_lists(lists, tmp_path, "")
    with pytest.raises(ValueError, match=r"dev.txt: 2 of 2 ids .*\(x, y\)"):
        write_splits(cuts, tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "texts", [{"a": "One.", "b": "two"}, {"a": "One."}, {"a": "Two", "b": "One."}]
)
def test_texts_of_another_release_are_refused(texts):
    digest = sha256(b"a\tOne.\nb\tTwo").hexdigest()
    check_release({"b": "Two", "a": "One."}, 2, digest, "the release")
    with pytest.raises(ValueError, match=f"{len(texts)} clips.* 2 .*use the release"):
        check_release(texts, 2, digest, "the release")
