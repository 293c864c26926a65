"""Descriptions and states of fields, and the names of their files."""

import json

import pytest

from icefall_kd.fields.format import (
    FieldInfo,
    cuts_path,
    info_path,
    list_fields,
    load_field_info,
    save,
    shard_ids,
)

INFO = FieldInfo(
    name="a",
    kind="embedding",
    dim=2,
    frame_shift=0.02,
    codec="fp16",
    fingerprint={"layer": "last"},
    mean=[0.0, 1.0],
    std=[1.0, 2.0],
    num_cuts=1,
    num_frames=10,
    content_sha256="0",
    shards=[],
)


def test_description_is_read_as_saved(tmp_path):
    save(INFO, info_path(tmp_path, "a"))
    assert load_field_info(tmp_path, "a") == INFO


@pytest.mark.parametrize("change", [{"extra": 1}, {"dim": None}])
def test_file_of_another_form_is_refused(tmp_path, change):
    save(INFO, info_path(tmp_path, "a"))
    values = json.loads(info_path(tmp_path, "a").read_text())
    values.update(change)
    values = {k: v for k, v in values.items() if v is not None}
    info_path(tmp_path, "a").write_text(json.dumps(values))
    with pytest.raises(ValueError, match="a.json is not a FieldInfo"):
        load_field_info(tmp_path, "a")


def test_fields_have_a_description_and_arrays(tmp_path):
    for name in ("b.000000.tar", "report.json", "c.0.tar"):
        (tmp_path / name).touch()
    for name in ("b", "d"):
        save(INFO, info_path(tmp_path, name))
    assert list_fields(tmp_path) == ["b"]


def test_shards_are_sorted_and_may_be_uncompressed(tmp_path):
    for name in ("cuts.000001.jsonl", "cuts.000000.jsonl.gz", "cuts.json", "x.jsonl"):
        (tmp_path / name).touch()
    assert shard_ids(tmp_path) == ["000000", "000001"]
    assert cuts_path(tmp_path, "000000").name == "cuts.000000.jsonl.gz"
    assert cuts_path(tmp_path, "000001").name == "cuts.000001.jsonl"
