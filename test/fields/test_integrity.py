"""Checks of tars, and the files of fields."""

from loudness import Loudness

from icefall_kd.core.files import sha256_file
from icefall_kd.fields.extract import extract
from icefall_kd.fields.format import staged_path, tar_path
from icefall_kd.fields.integrity import check_tar, find_fields, load_complete_state


def test_fault_of_a_tar_is_its_absence_size_or_checksum(tmp_path):
    tar = tmp_path / "a.000000.tar"
    assert check_tar(tar, 3) == "missing"
    tar.write_bytes(b"abc")
    checksum = sha256_file(tar)
    assert check_tar(tar, 3, checksum) == ""
    assert "3 bytes instead of 4" in check_tar(tar, 4, checksum)
    tar.write_bytes(b"abd")
    assert "SHA-256" in check_tar(tar, 3, checksum)
    assert check_tar(tar, 3) == ""  # without its checksum


def test_staged_tars_replace_published_ones(shar):
    extract(shar, [Loudness()], codec="fp16")
    extract(shar, [Loudness(version=2)], shards="1", codec="fp16", overwrite=True)
    files = find_fields(shar)["loudness"]
    published = tar_path(shar, "loudness", "000001")
    assert files.tars["000001"] == staged_path(shar, "loudness", "000001")
    assert files.partial == [published]
    state = load_complete_state(shar, "loudness", "000001")
    assert state.fingerprint["version"] == 2
