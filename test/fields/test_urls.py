"""Write and read Shar folders at URLs, without a local copy."""

import numpy as np
import pytest
from dummies import serve
from shar_files import digest

from icefall_kd.core.files import as_path
from icefall_kd.data.shar import fields_dir
from icefall_kd.dataset.stream import open_stream
from icefall_kd.fields.codecs.storage import load_codec
from icefall_kd.fields.extract import extract
from icefall_kd.fields.format import load_field_info
from icefall_kd.fields.planner import measure_volume
from icefall_kd.fields.reader import load_field, open_shar

FIELD = "whisper_tiny_en"


@pytest.fixture
def memory(pristine_shar):
    """The small Shar in fsspec's memory, without fields."""
    folder = as_path("memory://bucket/sets/train")
    for path in pristine_shar.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    yield str(folder)
    for path in (folder, fields_dir(folder)):
        if path.exists():
            path.fs.rm(path.path, recursive=True)


def test_field_is_written_to_a_url_and_read_back(memory, tiny, extracted_shar):
    infos, summary = extract(memory, [tiny], shards="0:2")
    assert (infos, summary.missing) == ({}, {FIELD: 2})
    infos, summary = extract(memory, [tiny])
    assert (summary.shards_done, summary.shards_kept) == (2, 2)
    assert digest(as_path(memory)) == digest(extracted_shar)
    codec = load_codec(memory, infos[FIELD])
    pairs = zip(open_shar(memory, [FIELD]), open_shar(extracted_shar, [FIELD]))
    for there, here in pairs:
        a, b = (load_field(cut, FIELD, codec) for cut in (there, here))
        np.testing.assert_array_equal(a, b)
    tar = as_path(memory) / f"{FIELD}.000001.tar"
    tar.write_bytes(tar.read_bytes()[:-3000])
    assert extract(memory, [tiny])[1].shards_done == 1
    assert digest(as_path(memory)) == digest(extracted_shar)


def test_trained_codec_is_stored_at_the_url(memory, tiny):
    extract(memory, [tiny], codec="int8")
    info = load_field_info(memory, FIELD)
    cut = next(iter(open_shar(memory, [FIELD])))
    assert load_field(cut, FIELD, load_codec(memory, info)).shape[1] == 384


def test_training_reads_a_stream_from_a_url(memory, tiny, extracted_shar):
    extract(memory, [tiny])
    stream = open_stream([memory], [FIELD], seed=1, shuffle=True)
    local = open_stream([extracted_shar], [FIELD], seed=1, shuffle=True)
    assert stream.sources[0].name == "train"
    assert [s.size for s in stream.sources] == [s.size for s in local.sources]
    pairs = list(zip(stream.read(2), local.read(2)))
    assert len(pairs) == 18
    for (key, there), (other, here) in pairs:
        assert (key, there.id) == (other, here.id)
        waves = [cut.load().load_audio() for cut in (there, here)]
        np.testing.assert_array_equal(*waves)


@pytest.fixture
def served(extracted_shar):
    """URL of the small Shar with its field, on a web server."""
    with serve(extracted_shar.parent) as url:
        yield f"{url}/{extracted_shar.name}"


def test_folder_is_read_over_http(served, extracted_shar):
    pytest.importorskip("aiohttp", reason="fsspec reads http through aiohttp")
    assert measure_volume([served]) == measure_volume([extracted_shar])
    codec = load_codec(served, load_field_info(served, FIELD))
    pairs = list(zip(open_shar(served, [FIELD]), open_shar(extracted_shar, [FIELD])))
    assert len(pairs) == 18
    for there, here in pairs:
        np.testing.assert_array_equal(there.load_audio(), here.load_audio())
        a, b = (load_field(cut, FIELD, codec) for cut in (there, here))
        np.testing.assert_array_equal(a, b)


def test_pipe_is_refused_as_a_folder():
    with pytest.raises(ValueError, match="pipe is not supported"):
        as_path("pipe:cat cuts.000000.jsonl.gz")
