"""Summaries of finished and unfinished fields."""

import dataclasses
import gzip

import numpy as np
import pytest
from damage import edit
from loudness import Loudness

from icefall_kd.fields.extract import extract
from icefall_kd.fields.format import field_dir, info_path, load_field_info, state_path
from icefall_kd.fields.summary import (
    describe_field,
    find_outlier_dims,
    format_size,
    format_table,
    summarize_fields,
)

FIELD = "whisper_tiny_en"


def only(folder):
    (summary,) = summarize_fields(folder)
    return summary


def test_summary_of_a_finished_field_has_sizes_and_teacher(extracted):
    summary = only(extracted)
    info = load_field_info(extracted, FIELD)
    assert (summary.state, summary.note) == ("complete", "")
    assert (summary.kind, summary.dim, summary.frame_shift) == ("embedding", 384, 0.02)
    tars = sum(p.stat().st_size for p in extracted.glob(f"{FIELD}.*.tar"))
    assert summary.bytes == tars == sum(s["bytes"] for s in info.shards)
    assert 768 < summary.bytes_per_frame < 850  # fp16 and tar headers
    assert summary.hours == pytest.approx(info.num_frames * 0.02 / 3600)
    assert (summary.shards_done, summary.shards, summary.num_cuts) == (4, 4, 18)
    assert summary.fingerprint["layer"] == "last"
    line = format_table([summary])[1].split()
    assert line[:3] == [FIELD, "complete", "embedding"]
    assert line[-2:] == [f"{FIELD},", "last"] and "4/4" in line


def test_summary_of_an_unfinished_field_comes_from_its_shards(extracted):
    finished = only(extracted)
    info_path(extracted, FIELD).unlink()
    state_path(extracted, FIELD, "000003").unlink()
    (field_dir(extracted, FIELD) / f".1.partial.{FIELD}.000003.tar").touch()
    summary = only(extracted)
    assert summary.state == "unfinished"
    assert summary.note == "1 temporary files"
    assert (summary.shards_done, summary.shards, summary.num_cuts) == (3, 4, 15)
    for same in ("kind", "dim", "frame_shift", "codec", "fingerprint"):
        assert getattr(summary, same) == getattr(finished, same)


def test_field_without_a_finished_shard_is_listed(shar):
    field_dir(shar, "whisper").mkdir(parents=True)
    (field_dir(shar, "whisper") / ".1.partial.whisper.000000.tar").touch()
    summary = only(shar)
    assert (summary.name, summary.state, summary.shards_done) == (
        "whisper",
        "unfinished",
        0,
    )
    assert "whisper" in "\n".join(format_table([summary]))


def test_missing_shards_and_other_sizes_mean_damaged(extracted):
    (extracted / f"{FIELD}.000001.tar").unlink()
    with open(extracted / f"{FIELD}.000002.tar", "ab") as f:
        f.write(b"x")
    summary = only(extracted)
    assert (summary.state, summary.shards_done) == ("damaged", 2)
    assert f"1 missing shards, for example {FIELD}.000001.tar" in summary.note
    assert f"1 shards of another size, for example {FIELD}.000002" in summary.note


def test_shards_without_cuts_mean_orphan(extracted):
    (extracted / "cuts.000003.jsonl.gz").unlink()
    summary = only(extracted)
    assert (summary.state, summary.shards_done, summary.shards) == ("orphan", 3, 3)
    assert f"{FIELD}.000003.tar" in summary.note


def test_unreadable_description_means_damaged(extracted):
    info_path(extracted, FIELD).write_text('{"name"')
    summary = only(extracted)
    assert summary.state == "damaged" and f"{FIELD}.json" in summary.note
    assert summary.shards_done == 4


def test_description_without_arrays_means_damaged(extracted):
    for path in extracted.glob(f"{FIELD}.0*"):
        path.unlink()
    (extracted / "report.json").write_text("{}")
    summary = only(extracted)
    assert (summary.name, summary.state, summary.shards_done) == (FIELD, "damaged", 0)


def test_tars_of_another_program_mean_foreign(extracted):
    tar = extracted / f"{FIELD}.000000.tar"
    (extracted / "target.000000.tar").write_bytes(tar.read_bytes())
    summary = summarize_fields(extracted)[0]
    assert (summary.name, summary.state) == ("target", "foreign")
    assert summary.frame_shift == 0.02  # of the first array


def test_columns_are_aligned(extracted):
    extract(extracted, [Loudness()])
    lines = format_table(summarize_fields(extracted))
    assert len(lines) == 4
    for title in ("state", "kind", "codec", "teacher, layer"):  # aligned left
        column = lines[0].index(title)
        assert all(line[column - 2 : column] == "  " for line in lines)
        assert all(line[column] != " " for line in lines)


@pytest.mark.parametrize(
    "num_bytes, expected", [(999, "999 B"), (1000, "1.0 kB"), (52.4e15, "52400.0 TB")]
)
def test_sizes_are_powers_of_1000(num_bytes, expected):
    assert format_size(num_bytes) == expected


def test_description_of_a_field_has_fingerprint_targets_and_statistics(extracted):
    text, is_complete = describe_field(extracted, FIELD)
    info = load_field_info(extracted, FIELD)
    assert is_complete
    assert info.fingerprint["model_sha256"] in text
    assert "targets: 18 of 18 cuts" in text
    assert "files: 4 of 4 shards have" in text
    found = find_outlier_dims(info)
    assert f"largest means      {found.largest_mean[0]}: " in text


def test_outlier_dimensions_come_from_the_frames(extracted):
    info = load_field_info(extracted, FIELD)
    found = find_outlier_dims(info, count=384)
    assert np.all(np.diff(np.abs(info.mean)[found.largest_mean]) <= 0)
    assert np.all(np.diff(np.array(info.std)[found.largest_std]) <= 0)
    assert found.smallest_std == found.largest_std[::-1]
    rms = np.sqrt(np.square(info.mean) + np.square(info.std))
    assert set(found.outliers) == set(np.flatnonzero(rms > 10 * np.median(rms)))
    share = np.square(rms[found.outliers]).sum() / np.square(rms).sum()
    assert found.energy == pytest.approx(share)


def test_cuts_without_target_are_counted_with_five_examples(extracted):
    path = extracted / "cuts.000001.jsonl.gz"
    text = gzip.decompress(path.read_bytes()).decode()
    new = text.replace("asterisk", "stranger")
    path.write_bytes(gzip.compress((text + new).encode()))
    text, is_complete = describe_field(extracted, FIELD)
    assert not is_complete
    assert "targets: 18 of 23 cuts" in text
    assert "missing: 5, for example stranger" in text
    assert text.count("stranger") == 5


def test_description_of_a_ctc_field_has_probabilities(shar):
    extract(shar, [Loudness()])
    text, is_complete = describe_field(shar, "loud_ctc")
    assert is_complete and "log-probability of the best token  -0.0" in text
    assert "mass beyond the 3 best tokens" in text
    edit(info_path(shar, "loud_ctc"), lambda info: info.update(codec="lzma"))
    text, is_complete = describe_field(shar, "loud_ctc")
    assert not is_complete and "unknown codec 'lzma'" in text


def test_missing_folders_and_fields_are_named(extracted, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such Shar folder"):
        summarize_fields(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="'whisper' does not exist.*tiny_en"):
        describe_field(extracted, "whisper")


@pytest.mark.parametrize(
    "fingerprint, expected",
    [
        ({"layer": "last"}, "whisper, last"),
        ({"layers": [9]}, "whisper, 9"),
        ({"layers": [6, 9], "layer_weights": [0.5, 2.0]}, "whisper, 0.5 x 6 + 2 x 9"),
        ({"layers": [9], "layer_weights": None}, "whisper, 9"),
        ({}, "whisper"),
    ],
)
def test_the_layers_of_every_family_are_shown(extracted, fingerprint, expected):
    summary = dataclasses.replace(
        only(extracted), fingerprint={"teacher": "whisper", **fingerprint}
    )
    lines = format_table([summary])
    assert lines[1].endswith(expected)
