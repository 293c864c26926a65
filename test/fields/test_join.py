"""The join of cuts and stored targets by their keys."""

import gzip
import json

import pytest

from icefall_kd.fields.join import (
    compare_keys,
    describe_problems,
    match_keys,
    read_keys,
    read_speed,
)

KEYS = [[f"cut{i}", f"rec{i}", 0.0, 1.0 + i, 1.0] for i in range(10)]


def changed(index, position, value):
    keys = [list(k) for k in KEYS]
    keys[index][position] = value
    return keys


def test_equal_keys_join():
    assert compare_keys(KEYS, KEYS) == {}
    assert compare_keys(changed(2, 3, 3.0009), KEYS) == {}, "within 1 ms"


@pytest.mark.parametrize(
    "position, value", [(1, "other"), (2, 0.5), (3, 3.002), (4, 0.9)]
)
def test_other_recording_start_duration_or_speed_does_not_join(position, value):
    problems = compare_keys(changed(2, position, value), KEYS)
    assert list(problems) == ["different audio"]
    assert "cut2" in problems["different audio"][0]


def test_renamed_cut_is_reported_with_both_ids():
    assert compare_keys(changed(3, 0, "new"), KEYS) == {
        "renamed": ["new (stored as cut3)"]
    }


def test_missing_cuts_are_counted_with_five_examples():
    problems = compare_keys(KEYS, KEYS[:2])
    assert len(problems["missing"]) == 8
    text = describe_problems(problems)
    assert "missing: 8" in text and "cut6" in text and "cut7" not in text


def test_another_order_is_reported():
    assert list(compare_keys(KEYS[::-1], KEYS)) == ["out of order"]


def test_extra_targets_are_reported():
    # Arrays are read in the order of the cuts, so a tar may not have others.
    assert "cut1" in compare_keys(KEYS[:1], KEYS)["out of order"][0]


def test_equal_keys_match_without_exceptions():
    assert match_keys(KEYS, KEYS) == {}
    assert match_keys(KEYS[2:5], KEYS) == {}, "unused targets are skipped"


def test_cut_of_other_audio_has_no_target():
    assert match_keys(changed(2, 3, 9.5), KEYS) == {"cut2": None}
    assert match_keys(KEYS, KEYS[:2] + KEYS[3:]) == {"cut2": None}


def test_renamed_cut_keeps_its_target():
    assert match_keys(changed(3, 0, "new"), KEYS) == {"new": "cut3"}
    swapped = changed(3, 0, "cut4")
    swapped[4][0] = "cut3"  # both ids belong to other audio
    assert match_keys(swapped, KEYS) == {"cut4": None, "cut3": None}


def test_renamed_cut_with_ambiguous_audio_has_no_target():
    twins = [*KEYS[:3], ["twin", *KEYS[2][1:]], *KEYS[3:]]
    assert match_keys(changed(2, 0, "new"), twins) == {"new": None}
    copy = [*KEYS, ["copy", *KEYS[9][1:]]]
    assert match_keys(copy, KEYS) == {"copy": None}, "cut9 already has the target"


def test_target_before_the_previous_one_is_missing():
    moved = [KEYS[1], KEYS[0], *KEYS[2:]]
    assert match_keys(moved, KEYS) == {"cut0": None}


def test_keys_are_read_from_a_manifest(shar):
    keys = read_keys(shar / "cuts.000000.jsonl.gz")
    assert len(keys) == 5
    for cut, recording, start, duration, speed in keys:
        assert cut == recording and start == 0 and 0.5 < duration < 5
        assert speed == (float(cut[-3:]) if "_sp" in cut else 1.0)


def test_speed_is_read_from_the_suffix_by_default():
    assert read_speed({"recording": {"id": "a_sp0.9"}}) == 0.9
    assert read_speed({"recording": {"id": "a_sp0.9"}, "custom": {"speed": 1.1}}) == 1.1
    assert read_speed({"recording": {"id": "a_spoon"}}) == 1.0


def test_error_names_the_line_of_an_invalid_cut(tmp_path):
    path = tmp_path / "cuts.000000.jsonl.gz"
    with gzip.open(path, "wt") as f:
        f.write(json.dumps({"id": "a", "start": 0, "duration": 1}) + "\n")
    with pytest.raises(ValueError, match="line 1: not a cut with one recording"):
        read_keys(path)
