import numpy as np
import pytest

from icefall_kd.cache.codecs import CODECS, get_codec


@pytest.mark.parametrize("name", sorted(CODECS))
def test_what_is_decoded_is_close_to_what_was_encoded(name):
    codec = get_codec(name)
    x = np.random.default_rng(0).normal(0, 3, (70, 384)).astype(np.float32)
    stored = codec.encode(x)
    assert stored.nbytes == len(x) * codec.bytes_per_frame(384)
    back = codec.decode(stored)
    assert back.dtype == np.float32 and back.shape == x.shape
    assert np.linalg.norm(back - x) < 1e-3 * np.linalg.norm(x)


@pytest.mark.parametrize("name", sorted(CODECS))
def test_a_slice_in_time_of_the_stored_array_is_the_slice_of_the_decoded(name):
    codec = get_codec(name)
    stored = codec.encode(np.random.default_rng(0).normal(size=(70, 8)))
    np.testing.assert_array_equal(
        codec.decode(stored[10:20]), codec.decode(stored)[10:20]
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e5])
def test_a_value_that_fp16_cannot_hold_is_refused(value):
    with pytest.raises(ValueError, match="fp16 cannot store"):
        get_codec("fp16").encode(np.array([[1.0, value]], dtype=np.float32))


def test_an_unknown_codec_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="unknown codec 'lzma'.*fp16"):
        get_codec("lzma")
