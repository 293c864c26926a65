"""Every kind of damage is found and named, and nothing else is."""

import gzip
import json
import re

import numpy as np
import pytest
from damage import change_array, change_members, edit, flip_a_bit, seal
from loudness import Loudness
from shar_files import digest

from icefall_kd.fields.codecs import train_codec
from icefall_kd.fields.codecs.storage import codec_path, save_codec
from icefall_kd.fields.extract import extract
from icefall_kd.fields.format import info_path, state_path
from icefall_kd.fields.manage import delete_damaged
from icefall_kd.fields.verify import verify_field

FIELD = "whisper_tiny_en"
SHARD = "000002"
TAR = f"{FIELD}.{SHARD}.tar"


def faults(folder, field=FIELD, decode=True):
    return [fault.message for fault in verify_field(folder, field, decode=decode)]


def state_of(tar):
    return state_path(tar.parent, FIELD, SHARD)


@pytest.fixture
def loud(shar):
    """The small Shar with the loudness fields, int8 and topk."""
    extract(shar, [Loudness()], codec="int8")
    return shar


def test_a_field_as_it_was_written_has_no_fault(taught, loud):
    assert faults(taught) == faults(taught, decode=False) == []
    for field in ("loudness", "loud_ctc"):
        assert faults(loud, field) == []


def test_progress_ends_at_all_bytes(taught):
    seen = []
    list(verify_field(taught, FIELD, progress=lambda *x: seen.append(x)))
    size = sum(p.stat().st_size for p in taught.glob(f"{FIELD}.*.tar"))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert len(seen) == 4 and seen[-1] == (size, size)


@pytest.mark.parametrize(
    "damage, told",
    [
        (flip_a_bit, "damaged, another SHA-256"),
        (
            lambda p: p.write_bytes(p.read_bytes()[:-3000]),
            r"damaged, \d+ bytes instead",
        ),
        (lambda p: state_of(p).unlink(), f"{SHARD}.json, its state, is missing"),
        (lambda p: state_of(p).write_text('{"t'), f"{SHARD}.json: not a JSON"),
        (lambda p: p.unlink(), f"has 1 missing shards: {TAR}"),
    ],
    ids=["bit flip", "truncated", "state gone", "state truncated", "gone"],
)
@pytest.mark.parametrize("decode", [True, False])
def test_a_damaged_file_is_named_once(taught, damage, told, decode):
    damage(taught / TAR)
    (message,) = faults(taught, decode=decode)
    assert re.search(told, message), message


def nan(x):
    x[3, 5] = np.nan
    return x


@pytest.mark.parametrize(
    "change, told",
    [
        (nan, r"1 arrays are not finite: {} \(in 1 of \d+ frames\)"),
        (lambda x: x[:-50], r"1 arrays are not of their cut's length: {} \(\d+ frames"),
        (lambda x: x[:, :-1], r"1 arrays are not of 384 values.*: {} \(\(\d+, 383\)"),
        (lambda x: x * 1.01, "has other statistics than its state, in 384"),
    ],
    ids=["NaN", "a second short", "narrow", "scaled"],
)
def test_a_wrong_array_behind_right_checksums_is_found(taught, change, told):
    cut = change_array(taught, FIELD, SHARD, 1, change)
    assert faults(taught, decode=False) == []
    (message,) = faults(taught)
    assert message.startswith(f"{taught / TAR}: ")
    assert re.search(told.format(cut), message), message
    assert "--delete-damaged" in message


def test_arrays_swapped_between_cuts_are_found_by_their_lengths(taught):
    keys = json.loads(state_path(taught, FIELD, SHARD).read_text())["keys"]
    order = sorted(range(len(keys)), key=lambda n: keys[n][3])
    a, b = order[0], order[-1]

    def swap(members):
        # The data and their description change places, the names stay.
        for part in (0, 1):
            i, j = 2 * a + part, 2 * b + part
            (x, one), (y, other) = members[i], members[j]
            members[i], members[j] = (x, other), (y, one)
        return members

    change_members(taught, FIELD, SHARD, swap)
    (message,) = faults(taught)
    assert "2 arrays are not of their cut's length" in message
    assert keys[a][0] in message and keys[b][0] in message


@pytest.mark.parametrize(
    "change, told",
    [
        (lambda m: m[2:4] + m[:2] + m[4:], "where cuts.000002.jsonl.gz has cut"),
        (lambda m: m[:-2], "has no more where"),
        (lambda m: m + [("x.npy", b""), ("x.json", b"{}")], "has 12 members instead"),
    ],
    ids=["order", "fewer", "more"],
)
@pytest.mark.parametrize("decode", [True, False])
def test_members_that_are_not_the_cuts_in_order_are_found(taught, change, told, decode):
    change_members(taught, FIELD, SHARD, change)
    (message,) = faults(taught, decode=decode)
    assert told in message and message.startswith(f"{taught / TAR}: ")


def test_a_tar_that_cannot_be_opened_is_found(taught):
    (taught / TAR).write_bytes(b"no tar" * 1000)
    seal(taught, FIELD, SHARD)
    (message,) = faults(taught)
    assert TAR in message


def test_cuts_that_changed_are_found_and_no_target_is_called_damaged(taught):
    path = taught / f"cuts.{SHARD}.jsonl.gz"
    lines = gzip.decompress(path.read_bytes()).decode().splitlines(keepends=True)
    lines = [line.replace('{"id": "', '{"id": "new-', 1) for line in lines]
    path.write_bytes(gzip.compress("".join(lines).encode()))
    (fault,) = verify_field(taught, FIELD)
    assert "does not join its cuts, 5 renamed: new-asterisk" in fault.message
    assert fault.damaged == ()


def test_a_damaged_file_of_cuts_is_named(taught):
    path = taught / f"cuts.{SHARD}.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-40])
    (message,) = faults(taught)
    assert message.startswith(f"{path}: damaged") and "make_shar" in message


def test_a_codec_of_another_training_is_found(loud):
    other = np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32)
    save_codec(train_codec("int8", other), loud, "loudness")
    for decode in (True, False):
        (fault,) = verify_field(loud, "loudness", decode=decode)
        assert "loudness.codec.npz is not the codec" in fault.message
    codec_path(loud, "loudness").unlink()
    (fault,) = verify_field(loud, "loudness")
    assert "loudness.codec.npz is missing" in fault.message
    assert fault.damaged == ()  # to delete the arrays would not bring it back


def double_mean(info):
    info["mean"][7] *= 2


def lose_std(info):
    info["std"][7] = float("nan")


@pytest.mark.parametrize(
    "change, told",
    [
        (double_mean, r"mean differs from its frames in 1 dimensions.*\[7\]"),
        (lose_std, r"std differs from its frames in 1 dimensions.*\[7\]"),
        (
            lambda i: i.update(content_sha256="0"),
            "content_sha256 is 0, its shards",
        ),
        (lambda i: i.update(num_frames=9), "num_frames is 9, its shards have"),
        (
            lambda i: i["shards"][2].update(sha256="0"),
            f"describe {TAR}: sha256",
        ),
        (lambda i: i["fingerprint"].update(layer=3), "does not describe .*layer is 3"),
        (lambda i: i.update(name="x"), "describes a field 'x'"),
    ],
    ids=["mean", "std", "content", "frames", "checksum", "fingerprint", "name"],
)
def test_an_edited_description_is_found(taught, change, told):
    edit(info_path(taught, FIELD), change)
    for decode in (True, False):
        found = faults(taught, decode=decode)
        assert found and all(re.search(told, x) for x in found)
        assert all(str(info_path(taught, FIELD)) in x for x in found)


def test_edited_statistics_of_a_shard_are_found(taught):
    def change(state):
        state["sum"][7] += 1.0

    edit(state_path(taught, FIELD, SHARD), change)
    (message,) = faults(taught)
    assert "other statistics than its state, in 1 dim" in message
    assert "[7]" in message


def test_an_unfinished_field_is_a_fault_and_its_shards_are_looked_at(taught):
    info_path(taught, FIELD).unlink()
    state_path(taught, FIELD, "000003").unlink()
    (message,) = faults(taught)
    assert "is unfinished, 3 of 4 shards" in message
    flip_a_bit(taught / f"{FIELD}.000000.tar")
    assert len(faults(taught)) == 2


def test_shards_without_cuts_are_a_fault(taught):
    (taught / "cuts.000003.jsonl.gz").unlink()
    (message,) = faults(taught)
    assert f"1 shards without cuts: {FIELD}.000003.tar" in message


def test_what_is_deleted_the_next_extraction_writes_again(taught, tiny):
    before = digest(taught)
    cut = change_array(taught, FIELD, SHARD, 1, nan)
    found = list(verify_field(taught, FIELD))
    assert len(found) == 1 and cut in found[0].message
    deleted = {path.name for path in delete_damaged(found)}
    assert deleted == {TAR, f"{FIELD}.{SHARD}.json", f"{FIELD}.json"}
    _, report = extract(taught, [tiny])
    assert (report.shards_done, report.shards_kept) == (1, 3)
    assert digest(taught) == before


def test_an_edited_description_is_written_again_without_the_teacher(taught, tiny):
    before = digest(taught)
    edit(info_path(taught, FIELD), double_mean)
    delete_damaged(verify_field(taught, FIELD))
    _, report = extract(taught, [tiny])
    assert (report.shards_done, report.shards_kept) == (0, 4)
    assert digest(taught) == before
