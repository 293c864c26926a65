"""Shar folders with fields: the join at opening, and the frames of cuts."""

import os

import numpy as np
import pytest
from shar_faults import rename_cuts, rewrite_cuts, rewrite_tar

from icefall_kd.fields.codecs import make_codec
from icefall_kd.fields.format import info_path
from icefall_kd.fields.reader import check_field, load_field, open_shar

FIELD = "whisper_tiny_en"
FP16 = make_codec("fp16")


def test_cuts_have_audio_and_the_named_field_only(extracted_shar):
    cut = next(iter(open_shar(extracted_shar, [FIELD])))
    assert cut.has_recording and cut.has_custom(FIELD)
    assert getattr(cut, f"load_{FIELD}")().dtype == np.float16
    cut = next(iter(open_shar(extracted_shar)))
    assert cut.has_recording and not cut.has_custom(FIELD)


def test_error_names_a_field_that_a_cut_lacks(extracted_shar):
    cut = next(iter(open_shar(extracted_shar)))
    with pytest.raises(ValueError, match=f"has no field '{FIELD}'"):
        load_field(cut, FIELD, FP16)


@pytest.mark.parametrize("offset, duration", [(0, 0.5), (0.4, 0.4), (0.33, None)])
def test_truncated_cut_gets_the_frames_of_its_span(extracted_shar, offset, duration):
    for cut in open_shar(extracted_shar, [FIELD]):
        stored = getattr(cut, FIELD).load()  # with the partial last frame
        part = cut.truncate(offset=offset, duration=duration)
        found = load_field(part, FIELD, FP16)
        first = int(np.floor(offset / 0.02 + 0.5))
        assert abs(len(found) - part.duration / 0.02) <= 1
        np.testing.assert_array_equal(found, stored[first : first + len(found)])


def test_rewritten_manifest_with_equal_keys_joins(extracted):
    rewrite_cuts(
        extracted, "000001", lambda lines: [x.replace(": ", ":") for x in lines]
    )
    assert len(list(open_shar(extracted, [FIELD]))) == 18


def test_error_for_an_unknown_field_lists_the_fields(extracted):
    with pytest.raises(FileNotFoundError) as e:
        open_shar(extracted, ["whisper_base"])
    assert "'whisper_base' does not exist" in str(e.value)
    assert f"fields: {FIELD}" in str(e.value)
    assert "icefall_kd.bin.extract" in str(e.value)


def test_unfinished_field_is_refused(extracted):
    info_path(extracted, FIELD).unlink()
    with pytest.raises(FileNotFoundError, match="is unfinished"):
        open_shar(extracted, [FIELD])


def test_folder_without_cuts_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="not a Shar folder"):
        open_shar(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such Shar folder"):
        open_shar(tmp_path / "none")
    for name in ("dev.gate.json", "dev", "train.gate.json", "train"):
        (tmp_path / name).mkdir()
    with pytest.raises(FileNotFoundError, match="no such Shar.*sets in .*dev, train"):
        open_shar(tmp_path / "tset")
    with pytest.raises(FileNotFoundError, match="not a Shar.*sets in .*dev, train"):
        open_shar(tmp_path)


def test_other_fingerprint_is_refused(extracted):
    open_shar(extracted, [FIELD], {FIELD: {"layer": "last", "context": 1.0}})
    with pytest.raises(ValueError, match="layer is 'last', wanted 3"):
        open_shar(extracted, [FIELD], {FIELD: {"layer": 3}})


def test_missing_and_damaged_shards_are_named(extracted):
    (extracted / f"{FIELD}.000001.tar").unlink()
    with open(extracted / f"{FIELD}.000002.tar", "ab") as f:
        f.write(b"x")
    with pytest.raises(ValueError) as e:
        open_shar(extracted, [FIELD])
    assert f"missing shards: 1, for example {FIELD}.000001.tar" in str(e.value)
    assert f"damaged shards: 1, for example {FIELD}.000002.tar" in str(e.value)


def test_new_shard_of_cuts_is_missing_in_the_field(extracted):
    for name in ("cuts.{}.jsonl.gz", "recording.{}.tar"):
        data = (extracted / name.format("000003")).read_bytes()
        (extracted / name.format("000004")).write_bytes(data)
    with pytest.raises(ValueError, match=f"missing shards: 1.*{FIELD}.000004.tar"):
        open_shar(extracted, [FIELD])


def test_renamed_cuts_are_counted_with_both_ids(extracted):
    def rename(lines):  # the id of the cut is first
        return [x.replace('{"id": "', '{"id": "new-', 1) for x in lines]

    for shard in ("000000", "000001"):
        rewrite_cuts(extracted, shard, rename)
    with pytest.raises(ValueError) as e:
        open_shar(extracted, [FIELD])
    assert "renamed: 10, for example new-asterisk" in str(e.value)
    assert str(e.value).count("(stored as asterisk") == 5


def test_cuts_without_a_target_are_reported(extracted):
    def add(lines):
        return lines + [lines[0].replace("asterisk", "stranger")]

    rewrite_cuts(extracted, "000000", add)
    with pytest.raises(ValueError, match="missing: 1, for example stranger"):
        check_field(extracted, FIELD)


@pytest.mark.parametrize("change", ["dropped", "moved"])
def test_dropped_or_moved_cuts_are_reported(extracted, change):
    def do(lines):
        return lines[1:] if change == "dropped" else lines[::-1]

    rewrite_cuts(extracted, "000000", do)
    with pytest.raises(ValueError, match="out of order"):
        check_field(extracted, FIELD)


def test_another_duration_does_not_join(extracted):
    rewrite_cuts(
        extracted,
        "000000",
        lambda lines: [x.replace('"duration": ', '"duration": 1', 1) for x in lines],
    )
    with pytest.raises(ValueError, match="different audio: 5"):
        open_shar(extracted, [FIELD])


@pytest.mark.parametrize(
    "change, kind",
    [
        (lambda cut: cut.pad(duration=9.0), "MixedCut"),
        (lambda cut: cut.append(cut), "MixedCut"),
        (lambda cut: cut.perturb_speed(1.1), "Speed"),
        (lambda cut: cut.perturb_tempo(0.9), "Tempo"),
    ],
)
def test_error_names_a_cut_of_changed_time(extracted_shar, change, kind):
    cut = next(iter(open_shar(extracted_shar, [FIELD])))
    changed = change(cut)
    with pytest.raises(ValueError, match=f"cut '{changed.id}'.*{kind}"):
        load_field(changed, FIELD, FP16)


def test_shortest_cut_has_the_nearest_frame(extracted_shar):
    for cut in open_shar(extracted_shar, [FIELD]):
        stored = getattr(cut, FIELD).load().astype(np.float32)
        for offset in (0.0, 0.5, cut.duration - 0.006):
            part = cut.truncate(offset=offset, duration=0.005)
            (frame,) = load_field(part, FIELD, FP16)
            index = int(abs(stored - frame).sum(1).argmin())
            assert (stored[index] == frame).all()
            assert abs((index + 0.5) * 0.02 - offset) <= 0.02


def targets(folder):
    """Return cut id -> frames of its target, None without a target."""
    return {
        cut.id: load_field(cut, FIELD, FP16) if cut.has_custom(FIELD) else None
        for cut in open_shar(folder, [FIELD], missing="skip")
    }


def assert_without(found, before, missing):
    """Assert that exactly the cuts of ``missing`` have no target."""
    assert {i for i, x in found.items() if x is None} == set(missing)
    for cut_id, frames in found.items():
        if frames is not None:
            np.testing.assert_array_equal(frames, before[cut_id])


def ids_of(folder):
    return [cut.id for cut in open_shar(folder)]


def test_cuts_of_missing_shards_have_no_target(extracted, caplog):
    before, ids = targets(extracted), ids_of(extracted)
    assert caplog.text == ""
    (extracted / f"{FIELD}.000001.tar").unlink()
    assert_without(targets(extracted), before, ids[5:10])
    assert f"field '{FIELD}': 5 of 18 cuts have no target, for example" in caplog.text
    assert all(i in caplog.text for i in ids[5:10])
    assert f"missing shards: 1, for example {FIELD}.000001.tar" in caplog.text


def test_set_without_the_field_has_no_targets(extracted, caplog):
    ids = ids_of(extracted)
    info_path(extracted, FIELD).unlink()
    assert_without(targets(extracted), {}, ids)
    assert "18 of 18 cuts have no target" in caplog.text
    assert "is unfinished (4 shards)" in caplog.text and "bin.extract" in caplog.text


def test_only_lost_arrays_are_missing(extracted, caplog):
    before, ids = targets(extracted), ids_of(extracted)
    lost = {ids[1], ids[7]}
    for shard in ("000000", "000001"):
        rewrite_tar(
            extracted / f"{FIELD}.{shard}.tar", lambda i: None if i in lost else i
        )
    with pytest.raises(ValueError, match="damaged shards: 2"):
        check_field(extracted, FIELD)
    assert_without(targets(extracted), before, lost)
    assert "2 of 18 cuts have no target" in caplog.text


def test_intact_arrays_of_a_truncated_shard_are_read(extracted):
    before, ids = targets(extracted), ids_of(extracted)
    path = extracted / f"{FIELD}.000000.tar"
    content = path.read_bytes()
    path.write_bytes(content[: content.index(f"{ids[3]}.npy".encode()) + 2000])
    assert_without(targets(extracted), before, ids[3:5])


def test_renamed_cuts_keep_their_targets_by_their_audio(extracted, caplog):
    before, ids = targets(extracted), ids_of(extracted)
    rename_cuts(extracted, "000002", lambda i: f"new-{i}")
    with pytest.raises(ValueError, match="renamed: 5, for example new-"):
        check_field(extracted, FIELD)
    found = targets(extracted)
    assert set(found) == {*ids[:10], *(f"new-{i}" for i in ids[10:15]), *ids[15:]}
    for cut_id, frames in found.items():
        np.testing.assert_array_equal(frames, before[cut_id.replace("new-", "")])
    assert "0 of 18 cuts have no target" in caplog.text and "renamed: 5" in caplog.text


@pytest.mark.parametrize("change", ["duration", "speed", "recording"])
def test_stale_targets_are_not_used(extracted, change, caplog):
    """The audio is now longer, at another speed, or of another recording."""
    before, ids = targets(extracted), ids_of(extracted)

    def remake(lines):
        if change == "duration":
            return [lines[0].replace('"duration": ', '"duration": 1'), *lines[1:]]
        if change == "speed":
            speed = lines[0].split('"speed": ')[1].split("}")[0]
            return [lines[0].replace(f'"speed": {speed}', '"speed": 1.25'), *lines[1:]]
        recording = f'"recording": {{"id": "{ids[5]}"'
        assert recording in lines[0]
        return [lines[0].replace(recording, '"recording": {"id": "x"'), *lines[1:]]

    rewrite_cuts(extracted, "000001", remake)
    with pytest.raises(ValueError, match=f"different audio: 1, for example {ids[5]} "):
        check_field(extracted, FIELD)
    assert_without(targets(extracted), before, ids[5:6])
    assert "1 of 18 cuts have no target" in caplog.text


def test_moved_cuts_keep_their_targets(extracted):
    before, ids = targets(extracted), ids_of(extracted)
    rewrite_cuts(extracted, "000000", lambda lines: lines[:1] + lines[2:])
    tar = extracted / "recording.000000.tar"
    rewrite_tar(tar, lambda i: None if i == ids[1] else i)
    found = targets(extracted)
    assert len(found) == 17
    assert_without(found, before, [])


def test_skip_refuses_another_fingerprint(extracted):
    with pytest.raises(ValueError, match="layer is 'last', wanted 3"):
        open_shar(extracted, [FIELD], {FIELD: {"layer": 3}}, missing="skip")
    with pytest.raises(ValueError, match="missing is 'ignore'"):
        open_shar(extracted, [FIELD], missing="ignore")


def test_shards_are_read_in_order_of_their_numbers(extracted, monkeypatch):
    expected = [c.id for c in open_shar(extracted, [FIELD])]
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: sorted(listdir(path))[::-1])
    assert [c.id for c in open_shar(extracted, [FIELD])] == expected
