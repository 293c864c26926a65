"""Codecs: errors, sizes, training and the packages that they need."""

import pickle
import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from icefall_kd.core.frames import pack_topk, unpack_topk
from icefall_kd.fields.codecs import CODECS, Codec, make_codec, train_codec
from icefall_kd.fields.codecs.mvq import Mvq, quantizer_state
from icefall_kd.fields.codecs.storage import read_codec, save_codec

DIM = 96
# spec -> largest relative error on correlated frames with large dimensions
ERRORS = {"fp16": 1e-3, "int8": 1e-2, "pq16": 0.2, "pq7": 0.4, "mvq2": 0.5}
SHORT = {"mvq2": {"iterations": 60}}  # training options


def make_frames(num_frames: int, dim: int, seed: int = 0) -> np.ndarray:
    """Return correlated frames with a few large dimensions, as Whisper's, (F, W)."""
    mix = np.random.default_rng(99).normal(size=(8, dim)) / 8**0.5
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(num_frames, 8)) @ mix
    x += 0.05 * rng.normal(size=(num_frames, dim))
    scale = np.where(np.arange(dim) % 50 == 7, 40.0, 1.0)
    return (scale * (1 + x)).astype(np.float32)


def round_trip(codec: Codec, x: np.ndarray) -> np.ndarray:
    return codec.decode(codec.encode(x))


def normalised_error(codec: Codec, x: np.ndarray) -> float:
    """Return |x' - x| / |x| of frames normalised in each dimension."""
    a, b = ((y - x.mean(axis=0)) / x.std(axis=0) for y in (x, round_trip(codec, x)))
    return float(np.linalg.norm(b - a) / np.linalg.norm(a))


@pytest.fixture(params=sorted(ERRORS), scope="module")
def codec(request):
    spec = request.param
    frames = 256 if spec in SHORT else 2000
    return train_codec(spec, make_frames(frames, DIM), **SHORT.get(spec, {}))


def test_decoded_frames_are_close_to_the_encoded_ones(codec):
    x = make_frames(70, DIM, seed=1)
    stored = codec.encode(x)
    assert stored.nbytes == len(x) * codec.bytes_per_frame(DIM)
    assert stored.shape[0] == len(x)
    decoded = codec.decode(stored)
    assert decoded.dtype == np.float32 and decoded.shape == x.shape
    assert np.linalg.norm(decoded - x) < ERRORS[codec.spec] * np.linalg.norm(x)


def test_slices_in_time_can_be_decoded(codec):
    stored = codec.encode(make_frames(70, DIM, seed=2))
    decoded = codec.decode(stored)
    for part in (slice(10, 20), slice(69, 70), slice(5, 5)):
        np.testing.assert_allclose(
            codec.decode(stored[part]), decoded[part], rtol=1e-5, atol=1e-4
        )


def test_batch_is_decoded_as_its_arrays(codec):
    x = make_frames(60, DIM, seed=4)
    stored = torch.from_numpy(codec.encode(x)).unflatten(0, (3, 20))
    before = stored.clone()
    found = codec.decode_tensor(stored)
    assert found.dtype == torch.float32 and found.shape == (3, 20, DIM)
    assert torch.equal(stored, before)
    for row, array in zip(found, stored):
        expected = torch.from_numpy(codec.decode(array.numpy()))
        torch.testing.assert_close(row, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.gpu
def test_batch_on_gpu_is_decoded_there(codec):
    stored = torch.from_numpy(codec.encode(make_frames(60, DIM, seed=4)))
    found = codec.decode_tensor(stored.cuda())
    assert found.is_cuda
    expected = codec.decode_tensor(stored)
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-3)


def test_pickled_or_saved_codec_decodes_the_same(codec, tmp_path):
    stored = codec.encode(make_frames(20, DIM, seed=3))
    copies = [pickle.loads(pickle.dumps(codec))]
    if codec.trained:
        save_codec(codec, tmp_path, "x")
        copies.append(read_codec(tmp_path, "x"))
    for copy in copies:
        assert copy.sha256() == codec.sha256()
        np.testing.assert_array_equal(copy.decode(stored), codec.decode(stored))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(codec, value):
    x = make_frames(3, DIM)
    x[1, 5] = value
    with pytest.raises(ValueError, match="not finite"):
        codec.encode(x)


def test_fp16_refuses_values_beyond_its_range():
    with pytest.raises(ValueError, match="100000.*fp16"):
        make_codec("fp16").encode(np.array([[1.0, 1e5]], dtype=np.float32))


def test_frames_of_another_dimension_are_refused(codec):
    if codec.trained:
        with pytest.raises(ValueError, match=f"{DIM + 1}.* {codec.spec} .* {DIM} "):
            codec.encode(make_frames(3, DIM + 1))


def test_stored_arrays_of_another_dimension_are_refused():
    codec = train_codec("int8", make_frames(300, DIM))
    with pytest.raises(ValueError, match=rf"int8 \(4, {DIM + 1}\)"):
        codec.decode(np.zeros((4, DIM + 1), np.int8))


def test_int8_keeps_small_dimensions_next_to_large_ones():
    x = make_frames(2000, 100)
    decoded = round_trip(train_codec("int8", x), x)
    error = np.linalg.norm(decoded - x, axis=0) / np.linalg.norm(x, axis=0)
    assert error.max() < 0.02


def test_more_bytes_reduce_the_error():
    frames, x = make_frames(1000, 32), make_frames(300, 32, seed=1)
    errors = [normalised_error(train_codec(f"pq{n}", frames), x) for n in (2, 4, 16)]
    assert 1 > errors[0] > errors[1] > errors[2]


def test_pq_error_is_similar_in_all_dimensions():
    frames, x = make_frames(1000, DIM), make_frames(300, DIM, seed=1)
    decoded = round_trip(train_codec("pq8", frames), x)
    error = np.linalg.norm(decoded - x, axis=0) / np.linalg.norm(x - x.mean(0), axis=0)
    assert error.max() < 2 * np.median(error)


def test_pq_decodes_as_faiss():
    codec = train_codec("pq16", make_frames(600, DIM))
    stored = codec.encode(make_frames(50, DIM, seed=1))
    state = codec.state()
    expected = codec._quantizer.decode(stored) @ state["rotation"].T
    expected = expected * state["std"] + state["mean"]
    np.testing.assert_allclose(codec.decode(stored), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("spec", ["int8", "pq4", "mvq2"])
def test_training_depends_only_on_frames_and_seed(spec):
    frames = make_frames(600, 32)
    options = {"iterations": 4} if spec == "mvq2" else {}
    a, b = (train_codec(spec, frames, **options).sha256() for _ in range(2))
    assert a == b
    if spec != "int8":
        assert train_codec(spec, frames, seed=1, **options).sha256() != a


def test_mvq_training_leaves_global_random_states_unchanged():
    torch.manual_seed(5)
    random.seed(5)
    expected = torch.rand(3), random.random()
    torch.manual_seed(5)
    random.seed(5)
    codec = train_codec("mvq1", make_frames(300, 8), iterations=4)
    codec.encode(make_frames(3, 8))
    assert torch.equal(torch.rand(3), expected[0])
    assert random.random() == expected[1]


def test_mvq_encodes_and_decodes_as_its_package():
    from multi_quantization import Quantizer

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
    assert (stored == codes.numpy()).mean() > 0.99  # ties may be rounded differently
    np.testing.assert_allclose(codec.decode(codes.numpy()), expected, atol=1e-5)


def test_more_iterations_improve_mvq_and_are_logged(caplog):
    frames, x = make_frames(300, 16), make_frames(100, 16, seed=1)
    with caplog.at_level("INFO"):
        errors = [
            normalised_error(train_codec("mvq1", frames, iterations=n), x)
            for n in (4, 100)
        ]
    assert errors[1] < 0.9 * errors[0]
    assert "mvq1: 100 of 100 iterations" in caplog.text


@pytest.mark.parametrize("iterations", [1, 0, 2.5, "many"])
def test_invalid_number_of_iterations_is_refused(iterations):
    with pytest.raises(ValueError, match="iterations=.* at least 2"):
        train_codec("mvq8", make_frames(300, 8), iterations=iterations)


def test_unknown_training_options_are_refused():
    with pytest.raises(ValueError, match=r"'mvq8'.*'steps'.*'iterations'"):
        train_codec("mvq8", make_frames(300, 8), steps=3)
    with pytest.raises(ValueError, match=r"'pq16'.*'iterations'"):
        train_codec("pq16", make_frames(300, 8), iterations=3)


@pytest.mark.parametrize("spec", ["pq16", "mvq8"])
def test_too_few_training_frames_are_refused(spec):
    with pytest.raises(ValueError, match=f"{spec}.* 256 .* 255 .*--codec-frames"):
        train_codec(spec, make_frames(255, 32))


def test_few_training_frames_cause_a_warning(caplog):
    train_codec("pq4", make_frames(300, 32))
    assert "pq4" in caplog.text and "300" in caplog.text and "9984" in caplog.text


def test_training_frames_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="'int8'.* finite"):
        train_codec("int8", np.full((3, 2), np.nan, np.float32))


def test_mvq_refuses_sizes_that_its_package_cannot_train():
    with pytest.raises(ValueError, match=r"mvq3: .*\(1, 2, 4, 8, 16, 32\)"):
        train_codec("mvq3", make_frames(300, 8))


@pytest.mark.parametrize(
    "spec, module, package",
    [
        ("pq4", "faiss", "faiss-cpu"),
        ("mvq2", "multi_quantization", "multi_quantization"),
    ],
)
def test_missing_package_is_named(spec, module, package, monkeypatch):
    options = {"iterations": 2} if module != "faiss" else {}
    codec = train_codec(spec, make_frames(300, 8), **options)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=f"pip install {package}"):
        train_codec(spec, make_frames(300, 8), **options)
    with pytest.raises(ValueError, match=f"pip install {package}"):
        pickle.loads(pickle.dumps(codec)).encode(make_frames(3, 8))


def test_decoding_needs_no_encoder_package(tmp_path):
    x = make_frames(10, 32, seed=1)
    for spec, options in (("pq4", {}), ("mvq1", {"iterations": 2})):
        codec = train_codec(spec, make_frames(300, 32), **options)
        save_codec(codec, tmp_path, spec)
        stored = codec.encode(x)
        np.savez(tmp_path / spec, stored=stored, decoded=codec.decode(stored))
    code = f"""
import sys
sys.modules.update(dict.fromkeys(["faiss", "multi_quantization"]))
import numpy as np
from icefall_kd.fields.codecs.storage import read_codec
for spec in ("pq4", "mvq1"):
    data = np.load(f"{tmp_path}/{{spec}}.npz")
    decoded = read_codec("{tmp_path}", spec).decode(data["stored"])
    np.testing.assert_allclose(decoded, data["decoded"], rtol=1e-5, atol=1e-4)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_topk_stores_ids_probabilities_and_tail():
    log_probs = torch.randn(2, 9, 500).log_softmax(dim=-1)
    frames = pack_topk(log_probs, 8)
    codec = make_codec("topk")
    stored = codec.encode(frames[0].numpy())
    assert stored.nbytes == 9 * codec.bytes_per_frame(17) == 9 * 34
    ids, values, tail = unpack_topk(torch.from_numpy(codec.decode(stored)))
    expected, expected_ids = log_probs[0].topk(8)
    assert (ids == expected_ids).all()
    torch.testing.assert_close(values, expected, atol=0, rtol=1e-3)
    torch.testing.assert_close(tail, 1 - expected.exp().sum(-1), atol=1e-3, rtol=0)
    part = codec.decode(stored[3:5])
    np.testing.assert_array_equal(part, codec.decode(stored)[3:5])


def test_topk_refuses_more_tokens_than_there_are():
    with pytest.raises(ValueError, match="topk must be in 1 .. 5"):
        pack_topk(torch.zeros(3, 5), 6)


def test_topk_refuses_ids_beyond_16_bits():
    with pytest.raises(ValueError, match="70000.* 16 bits"):
        make_codec("topk").encode(np.array([[70000.0, -1.0, 0.0]], dtype=np.float32))


@pytest.mark.parametrize("spec", ["lzma", "fp17", "int88", "fp", ""])
def test_unknown_codec_is_refused_with_the_known_ones(spec):
    with pytest.raises(ValueError, match=f"'{spec}'.*fp16"):
        make_codec(spec)


def test_trained_codec_without_state_is_refused():
    for name, cls in CODECS.items():
        if cls.trained and not cls.sized:
            with pytest.raises(ValueError, match=f"'{name}' must be trained"):
                make_codec(name)
