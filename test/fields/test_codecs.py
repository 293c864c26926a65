import pickle
import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from icefall_kd.core.frames import pack_topk, unpack_topk
from icefall_kd.fields.codecs import CODECS, Codec, make_codec, train_codec
from icefall_kd.fields.codecs.mvq import Mvq
from icefall_kd.fields.codecs.storage import (
    codec_path,
    codec_sha256,
    load_codec,
    read_codec,
    save_codec,
)

DIM = 96
# spec -> relative error that it may have on correlated frames with large dimensions
ERRORS = {"fp16": 1e-3, "int8": 1e-2, "pq16": 0.2, "pq7": 0.4, "mvq2": 0.5}
FEW = {"mvq2": {"iterations": 60}}  # options that make the training short


def embeddings(frames: int, dim: int, seed: int = 0) -> np.ndarray:
    """Correlated frames with dimensions of very different size, as Whisper has them."""
    mix = np.random.default_rng(99).normal(size=(8, dim)) / 8**0.5
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(frames, 8)) @ mix + 0.05 * rng.normal(size=(frames, dim))
    scale = np.where(np.arange(dim) % 50 == 7, 40.0, 1.0)
    return (scale * (1 + x)).astype(np.float32)


def normalised_error(codec: Codec, x: np.ndarray) -> float:
    """Return |x' - x| / |x| after each dimension's mean and standard deviation."""
    a, b = ((y - x.mean(axis=0)) / x.std(axis=0) for y in (x, _again(codec, x)))
    return float(np.linalg.norm(b - a) / np.linalg.norm(a))


def _again(codec: Codec, x: np.ndarray) -> np.ndarray:
    return codec.decode(codec.encode(x))


@pytest.fixture(params=sorted(ERRORS), scope="module")
def codec(request):
    spec = request.param
    frames = 256 if spec in FEW else 2000
    return train_codec(spec, embeddings(frames, DIM), **FEW.get(spec, {}))


def test_what_is_decoded_is_close_to_what_was_encoded(codec):
    x = embeddings(70, DIM, seed=1)
    stored = codec.encode(x)
    assert stored.nbytes == len(x) * codec.bytes_per_frame(DIM)
    assert stored.shape[0] == len(x)
    back = codec.decode(stored)
    assert back.dtype == np.float32 and back.shape == x.shape
    assert np.linalg.norm(back - x) < ERRORS[codec.spec] * np.linalg.norm(x)


def test_a_slice_in_time_of_the_stored_array_is_the_slice_of_the_decoded(codec):
    stored = codec.encode(embeddings(70, DIM, seed=2))
    whole = codec.decode(stored)
    for part in (slice(10, 20), slice(69, 70), slice(5, 5)):
        np.testing.assert_allclose(
            codec.decode(stored[part]), whole[part], rtol=1e-5, atol=1e-4
        )


def test_a_batch_is_decoded_as_its_arrays_are(codec):
    x = embeddings(60, DIM, seed=4)
    stored = torch.from_numpy(codec.encode(x)).unflatten(0, (3, 20))
    before = stored.clone()
    found = codec.decode_tensor(stored)
    assert found.dtype == torch.float32 and found.shape == (3, 20, DIM)
    assert torch.equal(stored, before)
    for some, array in zip(found, stored):
        expected = torch.from_numpy(codec.decode(array.numpy()))
        torch.testing.assert_close(some, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.gpu
def test_a_batch_is_decoded_where_it_is(codec):
    stored = torch.from_numpy(codec.encode(embeddings(60, DIM, seed=4)))
    found = codec.decode_tensor(stored.cuda())
    assert found.is_cuda
    expected = codec.decode_tensor(stored)
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-3)


def test_frames_of_another_size_are_refused():
    codec = train_codec("int8", embeddings(300, DIM))
    with pytest.raises(ValueError, match=r"int8 \(4, 97\) is not of codec int8"):
        codec.decode(np.zeros((4, DIM + 1), np.int8))


def test_a_codec_pickled_or_saved_decodes_the_same(codec, tmp_path):
    stored = codec.encode(embeddings(20, DIM, seed=3))
    again = pickle.loads(pickle.dumps(codec))
    np.testing.assert_array_equal(again.decode(stored), codec.decode(stored))
    if codec.trained:
        save_codec(codec, tmp_path, "x")
        read = read_codec(tmp_path, "x")
        assert codec_sha256(read) == codec_sha256(codec)
        np.testing.assert_array_equal(read.decode(stored), codec.decode(stored))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_refused(codec, value):
    x = embeddings(3, DIM)
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


def test_frames_of_another_dimension_are_refused(codec):
    if codec.trained:
        with pytest.raises(ValueError, match=f"{codec.spec} was trained on frames of"):
            codec.encode(embeddings(3, DIM + 1))


def test_more_bytes_keep_more():
    frames, x = embeddings(1000, 32), embeddings(300, 32, seed=1)
    errors = [normalised_error(train_codec(f"pq{n}", frames), x) for n in (2, 4, 16)]
    assert 1 > errors[0] > errors[1] > errors[2]


def test_pq_counts_every_dimension_the_same():
    """Large dimensions must not take the bytes of all others."""
    frames, x = embeddings(1000, DIM), embeddings(300, DIM, seed=1)
    back = _again(train_codec("pq8", frames), x)
    error = np.linalg.norm(back - x, axis=0) / np.linalg.norm(x - x.mean(0), axis=0)
    assert error.max() < 2 * np.median(error)


def test_pq_decodes_what_faiss_decodes():
    codec = train_codec("pq16", embeddings(600, DIM))
    stored = codec.encode(embeddings(50, DIM, seed=1))
    state = codec.state()
    expected = codec._quantizer.decode(stored) @ state["rotation"].T
    expected = expected * state["std"] + state["mean"]
    np.testing.assert_allclose(codec.decode(stored), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("spec", ["int8", "pq4", "mvq2"])
def test_a_training_repeated_is_the_same_and_its_seed_counts(spec):
    frames = embeddings(600, 32)
    few = {"iterations": 4} if spec == "mvq2" else {}
    a, b = (codec_sha256(train_codec(spec, frames, **few)) for _ in range(2))
    assert a == b
    if spec != "int8":
        assert codec_sha256(train_codec(spec, frames, seed=1, **few)) != a


def test_the_training_of_mvq_leaves_other_random_numbers_alone():
    torch.manual_seed(5)
    random.seed(5)
    expected = torch.rand(3), random.random()
    torch.manual_seed(5)
    random.seed(5)
    codec = train_codec("mvq1", embeddings(300, 8), iterations=4)
    codec.encode(embeddings(3, 8))
    assert torch.equal(torch.rand(3), expected[0])
    assert random.random() == expected[1]


def test_mvq_encodes_and_decodes_as_its_package_does():
    from multi_quantization import Quantizer

    from icefall_kd.fields.codecs.mvq import quantizer_state

    torch.manual_seed(0)
    quantizer = Quantizer(dim=32, codebook_size=256, num_codebooks=8)
    with torch.no_grad():  # as after a training
        quantizer.logits_scale.fill_(0.07)
        quantizer.centers_scale.fill_(-0.03)
    unit = {"mean": np.zeros(32, np.float32), "std": np.ones(32, np.float32)}
    codec = Mvq(8, {**unit, **quantizer_state(quantizer)})
    x = torch.randn(80, 32)
    with torch.no_grad():
        codes = quantizer.encode(x)
        expected = quantizer.decode(codes)
    stored = codec.encode(x.numpy())
    assert stored.dtype == np.uint8 and stored.shape == (80, 8)
    assert (stored == codes.numpy()).mean() > 0.99  # else rounding at a tie
    np.testing.assert_allclose(codec.decode(codes.numpy()), expected, atol=1e-5)


def test_more_iterations_make_mvq_better_and_are_told(caplog):
    frames, x = embeddings(300, 16), embeddings(100, 16, seed=1)
    with caplog.at_level("INFO"):
        errors = [
            normalised_error(train_codec("mvq1", frames, iterations=n), x)
            for n in (4, 100)
        ]
    assert errors[1] < 0.9 * errors[0]
    assert "mvq1: 100 of 100 iterations, relative error 0." in caplog.text


@pytest.mark.parametrize("iterations", [1, 0, 2.5, "many"])
def test_iterations_that_make_no_sense_are_refused(iterations):
    with pytest.raises(ValueError, match="iterations=.* at least 2"):
        train_codec("mvq8", embeddings(300, 8), iterations=iterations)


def test_an_unknown_option_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"no options \['steps'\].*\['iterations'\]"):
        train_codec("mvq8", embeddings(300, 8), steps=3)
    with pytest.raises(ValueError, match=r"no options \['iterations'\]; it has \[\]"):
        train_codec("pq16", embeddings(300, 8), iterations=3)


@pytest.mark.parametrize("spec", ["pq16", "mvq8"])
def test_too_few_frames_are_refused_with_the_number_needed(spec):
    with pytest.raises(ValueError, match="256 centroids.* 255 frames.*--codec-frames"):
        train_codec(spec, embeddings(255, 32))


def test_few_frames_are_warned_of(caplog):
    train_codec("pq4", embeddings(300, 32))
    assert "pq4: only 300 training frames" in caplog.text


def test_mvq_refuses_a_number_of_codebooks_that_its_package_cannot_train():
    with pytest.raises(ValueError, match=r"mvq3: .*\(1, 2, 4, 8, 16, 32\)"):
        train_codec("mvq3", embeddings(300, 8))


@pytest.mark.parametrize(
    "spec, module, package",
    [
        ("pq4", "faiss", "faiss-cpu"),
        ("mvq2", "multi_quantization", "multi_quantization"),
    ],
)
def test_a_package_that_is_absent_is_named(spec, module, package, monkeypatch):
    few = {"iterations": 2} if module != "faiss" else {}
    codec = train_codec(spec, embeddings(300, 8), **few)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=f"pip install {package}"):
        train_codec(spec, embeddings(300, 8), **few)
    with pytest.raises(ValueError, match=f"pip install {package}"):
        pickle.loads(pickle.dumps(codec)).encode(embeddings(3, 8))


def test_decoding_needs_none_of_the_packages_of_the_encoders(tmp_path):
    x = embeddings(10, 32, seed=1)
    for spec, few in (("pq4", {}), ("mvq1", {"iterations": 2})):
        codec = train_codec(spec, embeddings(300, 32), **few)
        save_codec(codec, tmp_path, spec)
        np.savez(tmp_path / spec, stored=codec.encode(x), back=_again(codec, x))
    code = f"""
import sys
sys.modules.update(dict.fromkeys(["faiss", "multi_quantization"]))
import numpy as np
from icefall_kd.fields.codecs.storage import read_codec
for spec in ("pq4", "mvq1"):
    data = np.load(f"{tmp_path}/{{spec}}.npz")
    back = read_codec("{tmp_path}", spec).decode(data["stored"])
    np.testing.assert_allclose(back, data["back"], rtol=1e-5, atol=1e-4)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_topk_holds_ids_probabilities_and_the_tail():
    log_probs = torch.randn(2, 9, 500).log_softmax(dim=-1)
    frames = pack_topk(log_probs, 8)
    codec = make_codec("topk")
    stored = codec.encode(frames[0].numpy())
    assert stored.nbytes == 9 * codec.bytes_per_frame(17) == 9 * 34
    ids, values, tail = unpack_topk(torch.from_numpy(codec.decode(stored)))
    expected, places = log_probs[0].topk(8)
    assert (ids == places).all()
    torch.testing.assert_close(values, expected, atol=0, rtol=1e-3)
    torch.testing.assert_close(tail, 1 - expected.exp().sum(-1), atol=1e-3, rtol=0)
    back = codec.decode(stored[3:5])
    np.testing.assert_array_equal(back, codec.decode(stored)[3:5])


def test_topk_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="topk must be in 1 .. 5"):
        pack_topk(torch.zeros(3, 5), 6)
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
    with pytest.raises(ValueError, match="x.codec.npz: damaged"):
        read_codec(tmp_path, "x")


def test_frames_that_are_not_finite_train_no_codec():
    with pytest.raises(ValueError, match="codec 'int8'.* finite"):
        train_codec("int8", np.full((3, 2), np.nan, np.float32))


def test_a_codec_of_another_training_is_refused(extracted, tiny):
    from icefall_kd.fields.extract import extract

    infos, _ = extract(extracted, [tiny], codec="int8", overwrite=True)
    info = infos["whisper_tiny_en"]
    load_codec(extracted, info)
    save_codec(train_codec("int8", embeddings(50, 384)), extracted, info.name)
    with pytest.raises(ValueError, match="codec.npz is not the codec that field"):
        load_codec(extracted, info)
