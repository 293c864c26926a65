import pickle

import numpy as np
import pytest
import torch

from icefall_kd.cache.codec_file import (
    codec_path,
    codec_sha256,
    load_codec,
    read_codec,
    save_codec,
)
from icefall_kd.cache.codecs import CODECS, make_codec, train_codec
from icefall_kd.cache.topk import split_topk, take_topk

# spec -> relative error that it may have on Gaussian frames with a few large dimensions
ERRORS = {"fp16": 1e-3, "int8": 1e-2}


def embeddings(frames: int, dim: int, seed: int = 0) -> np.ndarray:
    """Frames with dimensions of very different size, as Whisper has them."""
    rng = np.random.default_rng(seed)
    scale = np.where(np.arange(dim) % 50 == 7, 40.0, 1.0)
    return (scale * (1 + rng.normal(size=(frames, dim)))).astype(np.float32)


@pytest.fixture(params=sorted(ERRORS))
def codec(request):
    return train_codec(request.param, embeddings(2000, 384))


def test_what_is_decoded_is_close_to_what_was_encoded(codec):
    x = embeddings(70, 384, seed=1)
    stored = codec.encode(x)
    assert stored.nbytes == len(x) * codec.bytes_per_frame(384)
    back = codec.decode(stored)
    assert back.dtype == np.float32 and back.shape == x.shape
    assert np.linalg.norm(back - x) < ERRORS[codec.spec] * np.linalg.norm(x)


def test_a_slice_in_time_of_the_stored_array_is_the_slice_of_the_decoded(codec):
    stored = codec.encode(embeddings(70, 384, seed=2))
    np.testing.assert_array_equal(
        codec.decode(stored[10:20]), codec.decode(stored)[10:20]
    )


def test_a_codec_pickled_or_saved_decodes_the_same(codec, tmp_path):
    stored = codec.encode(embeddings(20, 384, seed=3))
    again = pickle.loads(pickle.dumps(codec))
    np.testing.assert_array_equal(again.decode(stored), codec.decode(stored))
    if codec.trained:
        save_codec(codec, tmp_path, "x")
        read = read_codec(tmp_path, "x")
        assert codec_sha256(read) == codec_sha256(codec)
        np.testing.assert_array_equal(read.decode(stored), codec.decode(stored))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_refused(codec, value):
    x = embeddings(3, 384)
    x[1, 5] = value
    with pytest.raises(ValueError, match="not finite"):
        codec.encode(x)


def test_a_value_that_fp16_cannot_hold_is_refused():
    with pytest.raises(ValueError, match="fp16 cannot store"):
        make_codec("fp16").encode(np.array([[1.0, 1e5]], dtype=np.float32))


def test_int8_keeps_small_dimensions_beside_large_ones():
    x = embeddings(2000, 100)
    back = train_codec("int8", x)
    back = back.decode(back.encode(x))
    error = np.linalg.norm(back - x, axis=0) / np.linalg.norm(x, axis=0)
    assert error.max() < 0.02


def test_topk_holds_ids_probabilities_and_the_tail():
    log_probs = torch.randn(2, 9, 500).log_softmax(dim=-1)
    frames = take_topk(log_probs, 8)
    codec = make_codec("topk")
    stored = codec.encode(frames[0].numpy())
    assert stored.nbytes == 9 * codec.bytes_per_frame(17) == 9 * 34
    ids, values, tail = split_topk(torch.from_numpy(codec.decode(stored)))
    expected, places = log_probs[0].topk(8)
    assert (ids == places).all()
    torch.testing.assert_close(values, expected, atol=0, rtol=1e-3)
    torch.testing.assert_close(tail, 1 - expected.exp().sum(-1), atol=1e-3, rtol=0)
    back = codec.decode(stored[3:5])
    np.testing.assert_array_equal(back, codec.decode(stored)[3:5])


def test_topk_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="k is 6, must be in 1 .. 5"):
        take_topk(torch.zeros(3, 5), 6)
    with pytest.raises(ValueError, match="do not fit 16 bits"):
        make_codec("topk").encode(np.array([[70000.0, -1.0, 0.0]], dtype=np.float32))


@pytest.mark.parametrize("spec", ["lzma", "fp17", "int88", "fp", ""])
def test_an_unknown_codec_is_refused_with_the_known_ones(spec):
    with pytest.raises(ValueError, match=f"unknown codec '{spec}'.*fp16"):
        make_codec(spec)


def test_the_state_of_a_trained_codec_cannot_be_left_out():
    for name, cls in CODECS.items():
        if cls.trained and not cls.sized:
            with pytest.raises(ValueError, match=f"codec '{name}' must be trained"):
                make_codec(name)


def test_a_damaged_or_missing_codec_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="x.codec.npz is missing"):
        read_codec(tmp_path, "x")
    save_codec(train_codec("int8", embeddings(10, 4)), tmp_path, "x")
    path = codec_path(tmp_path, "x")
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match="x.codec.npz: not the state.*or damaged"):
        read_codec(tmp_path, "x")


def test_frames_that_are_not_finite_train_no_codec():
    with pytest.raises(ValueError, match="not finite"):
        train_codec("int8", np.full((3, 2), np.nan, np.float32))


def test_a_codec_of_another_training_is_refused(taught, tiny):
    from icefall_kd.cache.extract import extract

    infos, _ = extract(taught, [tiny], codec="int8", overwrite=True)
    info = infos["whisper_tiny_en"]
    load_codec(taught, info)
    save_codec(train_codec("int8", embeddings(50, 384)), taught, info.name)
    with pytest.raises(ValueError, match="is not the codec that the field"):
        load_codec(taught, info)
