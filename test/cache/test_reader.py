import gzip
import os

import numpy as np
import pytest

from icefall_kd.cache.codecs import make_codec
from icefall_kd.cache.reader import check_field, load_field, open_shar

FIELD = "whisper_tiny_en"
FP16 = make_codec("fp16")


def rewrite_cuts(folder, shard, change):
    """Apply ``change`` to the list of lines of one shard's cuts."""
    path = folder / f"cuts.{shard}.jsonl.gz"
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    path.write_bytes(gzip.compress(("\n".join(change(lines)) + "\n").encode()))


def test_cuts_come_with_audio_and_the_named_field_only(taught_shar):
    cut = next(iter(open_shar(taught_shar, [FIELD])))
    assert cut.has_recording and cut.has_custom(FIELD)
    assert getattr(cut, f"load_{FIELD}")().dtype == np.float16
    cut = next(iter(open_shar(taught_shar)))
    assert cut.has_recording and not cut.has_custom(FIELD)


def test_a_field_that_the_cut_lacks_is_named(taught_shar):
    cut = next(iter(open_shar(taught_shar)))
    with pytest.raises(ValueError, match=f"carries no field '{FIELD}'"):
        load_field(cut, FIELD, FP16)


@pytest.mark.parametrize("offset, duration", [(0, 0.5), (0.4, 0.4), (0.33, None)])
def test_a_truncated_cut_gets_the_frames_of_its_own_time(taught_shar, offset, duration):
    for cut in open_shar(taught_shar, [FIELD]):
        whole = getattr(cut, FIELD).load()  # all frames, the last partial one too
        part = cut.truncate(offset=offset, duration=duration)
        found = load_field(part, FIELD, FP16)
        first = int(np.floor(offset / 0.02 + 0.5))
        assert abs(len(found) - part.duration / 0.02) <= 1
        np.testing.assert_array_equal(found, whole[first : first + len(found)])


def test_cuts_rewritten_with_the_same_keys_still_join(taught):
    rewrite_cuts(taught, "000001", lambda lines: [x.replace(": ", ":") for x in lines])
    assert len(list(open_shar(taught, [FIELD]))) == 18


def test_an_unknown_field_is_refused_with_those_that_exist(taught):
    with pytest.raises(FileNotFoundError) as e:
        open_shar(taught, ["whisper_base"])
    assert "'whisper_base' does not exist" in str(e.value)
    assert f"['{FIELD}']" in str(e.value)
    assert "icefall_kd.bin.extract" in str(e.value)


def test_an_unfinished_field_is_refused(taught):
    (taught / f"{FIELD}.json").unlink()
    with pytest.raises(FileNotFoundError, match="is unfinished"):
        open_shar(taught, [FIELD])


def test_a_folder_that_is_no_shar_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="not a Shar folder"):
        open_shar(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such Shar folder"):
        open_shar(tmp_path / "none")


def test_a_fingerprint_that_differs_is_refused(taught):
    open_shar(taught, [FIELD], {FIELD: {"layer": "last", "context": 1.0}})
    with pytest.raises(ValueError, match="layer is 'last', wanted 3"):
        open_shar(taught, [FIELD], {FIELD: {"layer": 3}})


def test_missing_and_damaged_shards_are_named(taught):
    (taught / f"{FIELD}.000001.tar").unlink()
    with open(taught / f"{FIELD}.000002.tar", "ab") as f:
        f.write(b"x")
    with pytest.raises(ValueError) as e:
        open_shar(taught, [FIELD])
    assert f"missing shards: 1, for example {FIELD}.000001.tar" in str(e.value)
    assert f"damaged shards: 1, for example {FIELD}.000002.tar" in str(e.value)


def test_a_new_shard_of_cuts_is_missed_in_the_field(taught):
    for name in ("cuts.{}.jsonl.gz", "recording.{}.tar"):
        data = (taught / name.format("000003")).read_bytes()
        (taught / name.format("000004")).write_bytes(data)
    with pytest.raises(ValueError, match=f"missing shards: 1.*{FIELD}.000004.tar"):
        open_shar(taught, [FIELD])


def test_renamed_cuts_are_counted_with_five_examples_and_both_names(taught):
    def rename(lines):  # the cut's own id comes first
        return [x.replace('{"id": "', '{"id": "new-', 1) for x in lines]

    for shard in ("000000", "000001"):
        rewrite_cuts(taught, shard, rename)
    with pytest.raises(ValueError) as e:
        open_shar(taught, [FIELD])
    assert "renamed: 10, for example new-asterisk" in str(e.value)
    assert str(e.value).count("(stored as asterisk") == 5


def test_cuts_that_the_field_misses_are_told(taught):
    def add(lines):
        return lines + [lines[0].replace("asterisk", "stranger")]

    rewrite_cuts(taught, "000000", add)
    with pytest.raises(ValueError, match="missing: 1, for example stranger"):
        check_field(taught, FIELD)


@pytest.mark.parametrize("change", ["dropped", "moved"])
def test_cuts_dropped_or_moved_are_told(taught, change):
    def do(lines):
        return lines[1:] if change == "dropped" else lines[::-1]

    rewrite_cuts(taught, "000000", do)
    with pytest.raises(ValueError, match="out of order"):
        check_field(taught, FIELD)


def test_another_duration_does_not_join(taught):
    rewrite_cuts(
        taught,
        "000000",
        lambda lines: [x.replace('"duration": ', '"duration": 1', 1) for x in lines],
    )
    with pytest.raises(ValueError, match="different audio: 5"):
        open_shar(taught, [FIELD])


def test_shards_are_read_in_order_whatever_the_directory_says(taught, monkeypatch):
    expected = [c.id for c in open_shar(taught, [FIELD])]
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: sorted(listdir(path))[::-1])
    assert [c.id for c in open_shar(taught, [FIELD])] == expected
