"""Audio in the page."""

import base64
import io

import numpy as np
import pytest
import soundfile
from dummies import noise_cuts

from icefall_kd.data.shar import write_shar
from icefall_kd.fields.reader import open_shar
from icefall_kd.report.utterances import flac_uri, load_audio


def samples_of(uri):
    """Return (samples as int16, rate) of a data URI."""
    kind, _, encoded = uri.partition(",")
    assert kind == "data:audio/flac;base64"
    return soundfile.read(io.BytesIO(base64.b64decode(encoded)), dtype="int16")


def test_real_prompts_come_back_sample_by_sample(asterisk):
    shar_dir = asterisk / "data/shar/test"
    cuts = {cut.id: cut for cut in open_shar(shar_dir)}
    ids = sorted(cuts)[:3]
    found = load_audio(shar_dir, ids)
    assert sorted(found) == ids
    for i in ids:
        samples, rate = samples_of(found[i])
        assert rate == cuts[i].sampling_rate
        assert np.array_equal(samples / 32768, cuts[i].load_audio()[0])


def test_a_part_of_a_recording_is_that_part(tmp_path):
    (cut,) = noise_cuts(tmp_path, [1.0])
    part = cut.truncate(offset=0.25, duration=0.5)
    samples, _ = samples_of(flac_uri(part))
    assert np.array_equal(samples / 32768, part.load_audio()[0])
    assert len(samples) == 8000


def test_utterances_that_the_set_lacks_are_named(tmp_path):
    write_shar(noise_cuts(tmp_path, [0.3, 0.3]), tmp_path / "test")
    with pytest.raises(ValueError, match=r"lacks 1 utterances.*\['u7'\]"):
        load_audio(tmp_path / "test", ["noise-0", "u7"])
    with pytest.raises(FileNotFoundError, match="none"):
        load_audio(tmp_path / "none", ["noise-0"])
