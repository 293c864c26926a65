"""Frames that a cut points to in a file."""

import io
import pickle

import numpy as np
import pytest
from lhotse.array import Array
from shar_files import digest

from icefall_kd.fields.codecs import make_codec
from icefall_kd.fields.frames import (
    FramesInFile,
    locate_frames,
    point_to_file,
    prefetch_frames,
)
from icefall_kd.fields.reader import load_field, open_shar

FIELD = "whisper_tiny_en"
FP16 = make_codec("fp16")


def npy(frames):
    stream = io.BytesIO()
    np.save(stream, frames)
    return stream.getvalue()


def empty():
    return Array(storage_type="shar", storage_path="", storage_key="", shape=[])


def test_cut_holds_no_frames_in_memory(extracted_shar):
    for cut in open_shar(extracted_shar, [FIELD]):
        array = cut.custom[FIELD]
        assert array.array.storage_type == FramesInFile.name
        assert len(pickle.dumps(array)) < 1000 < load_field(cut, FIELD, FP16).nbytes


def test_lhotse_reads_the_frames_in_a_file(extracted_shar):
    for cut in open_shar(extracted_shar, [FIELD]):
        loaded = cut.load_custom(
            FIELD
        )  # of the span of the cut, which may end within a frame
        stored = cut.custom[FIELD].load()
        assert len(loaded) in (len(stored), len(stored) - 1)
        np.testing.assert_array_equal(loaded, stored[: len(loaded)])
        np.testing.assert_array_equal(loaded, load_field(cut, FIELD, FP16))
        part = cut.truncate(offset=0.2, duration=0.4)
        np.testing.assert_array_equal(part.load_custom(FIELD), loaded[10:30])
        again = pickle.loads(pickle.dumps(cut)).move_to_memory()
        np.testing.assert_array_equal(again.load_custom(FIELD), loaded)


@pytest.mark.parametrize(
    "frames",
    [
        np.arange(24, dtype=np.float16).reshape(6, 4),
        np.arange(24, dtype=np.int8).reshape(6, 4),
        np.arange(6, dtype=np.uint8),
        np.arange(48.0).reshape(6, 4, 2),
        np.zeros((0, 4), np.float16),
    ],
)
def test_part_of_an_array_is_read(tmp_path, frames):
    path, data = tmp_path / "x", npy(frames)
    path.write_bytes(b"before" + data + b"behind")
    array = empty()
    assert point_to_file(array, str(path), 6, len(data), data[:128])
    assert list(array.shape) == list(frames.shape)
    found = locate_frames(array)
    assert found.dtype == frames.dtype
    for first, count in ((0, 6), (0, 2), (2, 3), (5, 9), (6, 1)):
        expected = frames[first : first + count]
        np.testing.assert_array_equal(found.part(first, count).read(), expected)
        np.testing.assert_array_equal(array.load()[first : first + count], expected)


def test_array_without_plain_header_is_left_to_lhotse():
    turned = npy(np.asfortranarray(np.ones((3, 4), np.float16)))
    short = npy(np.ones((3, 4), np.float16))[:-1]
    for data in (turned, short, b"{}", b""):
        array = empty()
        assert not point_to_file(array, "x", 0, len(data), data[:128])
        assert array == empty()


def test_error_for_missing_frames_names_the_cut(extracted):
    cut = next(iter(open_shar(extracted, [FIELD])))
    tar = extracted / f"{FIELD}.000000.tar"
    content = tar.read_bytes()
    tar.write_bytes(content[:2000])
    with pytest.raises(ValueError, match=f"cut '{cut.id}': its field .* ends within"):
        load_field(cut, FIELD, make_codec("fp16"))
    tar.unlink()
    with pytest.raises(ValueError, match=f"cut '{cut.id}': its field .*No such file"):
        load_field(cut, FIELD, make_codec("fp16"))
    prefetch_frames(cut.custom[FIELD].array)


def test_prefetch_changes_no_file(extracted):
    before = digest(extracted)
    for cut in open_shar(extracted, [FIELD]):
        prefetch_frames(cut.custom[FIELD].array)
    assert digest(extracted) == before


def test_prefetch_ignores_frames_in_memory():
    damaged = empty()
    damaged.storage_type, damaged.storage_key = "memory_npy", b"no array"
    prefetch_frames(damaged)
    with pytest.raises(ValueError):
        locate_frames(damaged)
