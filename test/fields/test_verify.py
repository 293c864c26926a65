"""Verification reports every kind of damage, and nothing else."""

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
from icefall_kd.teachers import TeacherOutput

FIELD = "whisper_tiny_en"
SHARD = "000002"
TAR = f"{FIELD}.{SHARD}.tar"


def faults(folder, field=FIELD, decode=True):
    return [fault.message for fault in verify_field(folder, field, decode=decode)]


def state_of(tar):
    return state_path(tar.parent, FIELD, SHARD)


@pytest.fixture
def loud(shar):
    """The small Shar with the loudness fields, in int8 and topk."""
    extract(shar, [Loudness()], codec="int8")
    return shar


def test_intact_field_has_no_fault(extracted, loud):
    assert faults(extracted) == faults(extracted, decode=False) == []
    for field in ("loudness", "loud_ctc"):
        assert faults(loud, field) == []


class Unpadded(Loudness):
    """Loses two frames at the end, as a front end without padding."""

    def forward(self, waves, wave_lens):
        outputs = super().forward(waves, wave_lens)
        return {k: TeacherOutput(o.x, o.lens - 2) for k, o in outputs.items()}


def test_frames_that_a_front_end_loses_are_no_fault(shar):
    extract(shar, [Unpadded()])
    assert faults(shar, "loud_ctc") == []


def test_progress_ends_at_the_total_bytes(extracted):
    seen = []
    list(verify_field(extracted, FIELD, progress=lambda *x: seen.append(x)))
    size = sum(p.stat().st_size for p in extracted.glob(f"{FIELD}.*.tar"))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert len(seen) == 4 and seen[-1] == (size, size)


@pytest.mark.parametrize(
    "damage, fault",
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
def test_damaged_file_is_reported_once(extracted, damage, fault, decode):
    damage(extracted / TAR)
    (message,) = faults(extracted, decode=decode)
    assert re.search(fault, message), message


def nan(x):
    x[3, 5] = np.nan
    return x


@pytest.mark.parametrize(
    "change, fault",
    [
        (nan, r"1 arrays are not finite: {} \(in 1 of \d+ frames\)"),
        (lambda x: x[:-50], r"1 arrays are not of their cut's length: {} \(\d+ frames"),
        (lambda x: x[:, :-1], r"1 arrays are not of 384 values.*: {} \(\(\d+, 383\)"),
        (lambda x: x * 1.01, "has other statistics than its state, in 384"),
    ],
    ids=["NaN", "a second short", "narrow", "scaled"],
)
def test_wrong_array_with_valid_checksums_is_found(extracted, change, fault):
    cut = change_array(extracted, FIELD, SHARD, 1, change)
    assert faults(extracted, decode=False) == []
    (message,) = faults(extracted)
    assert message.startswith(f"{extracted / TAR}: ")
    assert re.search(fault.format(cut), message), message
    assert "--delete-damaged" in message


def test_swapped_arrays_are_found_by_their_lengths(extracted):
    keys = json.loads(state_path(extracted, FIELD, SHARD).read_text())["keys"]
    order = sorted(range(len(keys)), key=lambda n: keys[n][3])
    a, b = order[0], order[-1]

    def swap(members):
        # Swap data and descriptions; keep the names.
        for part in (0, 1):
            i, j = 2 * a + part, 2 * b + part
            (x, one), (y, other) = members[i], members[j]
            members[i], members[j] = (x, other), (y, one)
        return members

    change_members(extracted, FIELD, SHARD, swap)
    (message,) = faults(extracted)
    assert "2 arrays are not of their cut's length" in message
    assert keys[a][0] in message and keys[b][0] in message


@pytest.mark.parametrize(
    "change, fault",
    [
        (lambda m: m[2:4] + m[:2] + m[4:], "where cuts.000002.jsonl.gz has cut"),
        (lambda m: m[:-2], "has no more where"),
        (lambda m: m + [("x.npy", b""), ("x.json", b"{}")], "has 12 members instead"),
    ],
    ids=["order", "fewer", "more"],
)
@pytest.mark.parametrize("decode", [True, False])
def test_members_that_differ_from_the_cuts_are_found(extracted, change, fault, decode):
    change_members(extracted, FIELD, SHARD, change)
    (message,) = faults(extracted, decode=decode)
    assert fault in message and message.startswith(f"{extracted / TAR}: ")


def test_unreadable_tar_is_found(extracted):
    (extracted / TAR).write_bytes(b"no tar" * 1000)
    seal(extracted, FIELD, SHARD)
    (message,) = faults(extracted)
    assert TAR in message


def test_changed_cuts_are_found_and_no_target_counts_as_damaged(extracted):
    path = extracted / f"cuts.{SHARD}.jsonl.gz"
    lines = gzip.decompress(path.read_bytes()).decode().splitlines(keepends=True)
    lines = [line.replace('{"id": "', '{"id": "new-', 1) for line in lines]
    path.write_bytes(gzip.compress("".join(lines).encode()))
    (fault,) = verify_field(extracted, FIELD)
    assert "does not join its cuts, 5 renamed: new-asterisk" in fault.message
    assert fault.damaged == ()


def test_a_damaged_file_of_cuts_is_named(extracted):
    path = extracted / f"cuts.{SHARD}.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-40])
    (message,) = faults(extracted)
    assert message.startswith(f"{path}: damaged") and "make_shar" in message


def test_separately_trained_codec_is_found(loud):
    other = np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32)
    save_codec(train_codec("int8", other), loud, "loudness")
    for decode in (True, False):
        (fault,) = verify_field(loud, "loudness", decode=decode)
        assert "loudness.codec.npz is not the codec" in fault.message
    codec_path(loud, "loudness").unlink()
    (fault,) = verify_field(loud, "loudness")
    assert "loudness.codec.npz is missing" in fault.message
    assert fault.damaged == ()  # deleting arrays cannot restore it


def double_mean(info):
    info["mean"][7] *= 2


def lose_std(info):
    info["std"][7] = float("nan")


@pytest.mark.parametrize(
    "change, fault",
    [
        (double_mean, r"mean differs .* 1 dimensions.*\[7\]"),
        (lose_std, r"std differs .* 1 dimensions.*\[7\]"),
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
        (lambda i: i.update(name="x"), "describes field 'x'"),
    ],
    ids=["mean", "std", "content", "frames", "checksum", "fingerprint", "name"],
)
def test_edited_description_is_found(extracted, change, fault):
    edit(info_path(extracted, FIELD), change)
    for decode in (True, False):
        found = faults(extracted, decode=decode)
        assert found and all(re.search(fault, x) for x in found)
        assert all(str(info_path(extracted, FIELD)) in x for x in found)


def test_edited_statistics_of_a_shard_are_found(extracted):
    def change(state):
        state["sum"][7] += 1.0

    edit(state_path(extracted, FIELD, SHARD), change)
    (message,) = faults(extracted)
    assert "other statistics than its state, in 1 dim" in message
    assert "[7]" in message


def test_shards_of_an_unfinished_field_are_verified(extracted):
    info_path(extracted, FIELD).unlink()
    state_path(extracted, FIELD, "000003").unlink()
    (message,) = faults(extracted)
    assert "is unfinished, 3 of 4 shards" in message
    flip_a_bit(extracted / f"{FIELD}.000000.tar")
    assert len(faults(extracted)) == 2


def test_shards_without_cuts_are_a_fault(extracted):
    (extracted / "cuts.000003.jsonl.gz").unlink()
    (message,) = faults(extracted)
    assert f"1 shards without cuts: {FIELD}.000003.tar" in message


def test_extraction_writes_deleted_files_again(extracted, tiny):
    before = digest(extracted)
    cut = change_array(extracted, FIELD, SHARD, 1, nan)
    found = list(verify_field(extracted, FIELD))
    assert len(found) == 1 and cut in found[0].message
    deleted = {path.name for path in delete_damaged(found)}
    assert deleted == {TAR, f"{FIELD}.{SHARD}.json", f"{FIELD}.json"}
    _, summary = extract(extracted, [tiny])
    assert (summary.shards_done, summary.shards_kept) == (1, 3)
    assert digest(extracted) == before


def test_edited_description_is_written_again_without_the_teacher(extracted, tiny):
    before = digest(extracted)
    edit(info_path(extracted, FIELD), double_mean)
    delete_damaged(verify_field(extracted, FIELD))
    _, summary = extract(extracted, [tiny])
    assert (summary.shards_done, summary.shards_kept) == (0, 4)
    assert digest(extracted) == before
