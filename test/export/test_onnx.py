"""ONNX files: format, and outputs at lengths and batch sizes that were not traced."""

import dataclasses

import numpy as np
import onnx
import pytest
import torch
from students import STUDENT, random_student

from icefall_kd.decoding import DecodeOptions, make_search
from icefall_kd.decoding.streaming import encode_chunks
from icefall_kd.export.files import OUTPUTS
from icefall_kd.export.onnx import export_model
from icefall_kd.export.ort import open_model, open_session
from icefall_kd.export.sherpa import sherpa_features
from icefall_kd.recognition.options import Chunking

ATOL = {"transducer": 2e-4, "ctc": 5e-3}  # of projected output, of log-probabilities


@torch.no_grad()
def project(model, encoder_out, options):
    """Return the input of the search, which an exported encoder returns."""
    return make_search(model, len(encoder_out), options)._project(encoder_out).numpy()


@torch.no_grad()
def torch_encode(model, features, options):
    """Return the input (T', D) of the search for (F, 80), with full context."""
    model.encoder.set_chunk(-1, -1)
    out, _ = model.forward_encoder(features[None], torch.tensor([len(features)]))
    return project(model, out, options)[0]


def names(values):
    return [v.name for v in values]


def test_graphs_are_valid_at_opset_13(exports):
    for path in {p for files in exports.values() for p in files.onnx}:
        model = onnx.load(str(path))
        onnx.checker.check_model(model, full_check=True)
        assert [o.version for o in model.opset_import if o.domain == ""] == [13]


def test_inputs_and_outputs_have_icefalls_names(exported, exported_ctc):
    encoder, decoder, joiner = map(open_session, exported["full"].onnx)
    assert names(encoder.get_inputs()) == ["x", "x_lens"]
    assert names(encoder.get_outputs()) == ["encoder_out", "encoder_out_lens"]
    assert names(decoder.get_inputs() + decoder.get_outputs()) == ["y", "decoder_out"]
    assert names(joiner.get_inputs()) == ["encoder_out", "decoder_out"]
    assert names(joiner.get_outputs()) == ["logit"]
    (ctc,) = map(open_session, exported_ctc["full"].onnx)
    assert names(ctc.get_inputs()) == ["x", "x_lens"]
    log_probs, lens = ctc.get_outputs()
    assert (log_probs.name, lens.name) == ("log_probs", "log_probs_len")
    assert log_probs.shape[2] == 90  # sherpa-onnx reads the vocabulary size here
    assert lens.type == "tensor(int64)"


def test_streaming_states_have_sherpas_order_and_shapes(exports, head):
    encoder = open_session(exports["chunk-16"].encoder)
    inputs, outputs = encoder.get_inputs(), encoder.get_outputs()
    states = [
        f"{name}_{layer}"
        for layer in range(3)
        for name in (
            "cached_key",
            "cached_nonlin_attn",
            "cached_val1",
            "cached_val2",
            "cached_conv1",
            "cached_conv2",
        )
    ] + ["embed_states", "processed_lens"]
    assert names(inputs) == ["x", *states]
    assert names(outputs) == [OUTPUTS[head], *(f"new_{s}" for s in states)]
    shapes = {i.name: tuple(i.shape) for i in inputs}
    assert shapes["x"] == ("N", 45, 80)
    c = STUDENT.encoder
    for i, left in enumerate((64, 32, 16)):
        heads = c.num_heads[i]
        key, value = c.query_head_dim[i] * heads, c.value_head_dim[i] * heads
        dim, kernel = c.encoder_dim[i], c.cnn_module_kernel[i]
        assert shapes[f"cached_key_{i}"] == (left, "N", key)
        assert shapes[f"cached_nonlin_attn_{i}"] == (1, "N", left, 3 * dim // 4)
        assert shapes[f"cached_val1_{i}"] == (left, "N", value)
        assert shapes[f"cached_conv2_{i}"] == ("N", dim, kernel // 2)
    assert shapes["embed_states"] == ("N", 128, 3, 19)
    assert shapes["processed_lens"] == ("N",)
    assert inputs[-1].type == "tensor(int64)"


def test_any_length_encodes_as_in_pytorch(exports, head, greedy, student):
    engine = open_model(exports["full"], greedy)
    torch.manual_seed(1)
    for frames in [*range(9, 45), 233, 301, 1200]:
        features = torch.randn(frames, 80)
        expected = torch_encode(student, features, greedy)
        assert len(expected) == ((frames - 7) // 2 + 1) // 2
        found = engine.encode(features.numpy())
        np.testing.assert_allclose(found, expected, atol=ATOL[head])


def test_model_that_is_not_causal_encodes_any_length(tmp_path):
    shape = dataclasses.replace(
        STUDENT.encoder, causal=False, chunk_size=(-1,), left_context_frames=(-1,)
    )
    config = dataclasses.replace(STUDENT, encoder=shape)
    model = random_student(config, [torch.randn(40000)])
    files = export_model(model, tmp_path)[0]
    files.tokens.write_text("")
    engine = open_model(files, DecodeOptions())
    for frames in (9, 10, 31, 500):
        features = torch.randn(frames, 80)
        expected = torch_encode(model, features, DecodeOptions())
        np.testing.assert_allclose(engine.encode(features.numpy()), expected, atol=2e-4)
    with pytest.raises(ValueError, match="causal=true"):
        export_model(model, tmp_path / "streaming", [Chunking(16, 64)])
    assert not (tmp_path / "streaming").exists()


@torch.no_grad()
def test_padded_batch_encodes_as_in_pytorch(exports, head, greedy, student):
    student.encoder.set_chunk(-1, -1)
    x, lens = torch.randn(3, 150, 80), torch.tensor([80, 150, 33])
    out, out_lens = student.forward_encoder(x, lens)
    session = open_session(exports["full"].encoder)
    ort_out, ort_lens = session.run(None, {"x": x.numpy(), "x_lens": lens.numpy()})
    expected = project(student, out, greedy)
    np.testing.assert_array_equal(ort_lens, out_lens.numpy())
    for row, end in enumerate(ort_lens):
        found = ort_out[row, :end]
        np.testing.assert_allclose(found, expected[row, :end], atol=ATOL[head])


@torch.no_grad()
def test_streams_in_a_batch_encode_as_in_pytorch(exports, head, greedy, student):
    features = [torch.randn(200, 80) for _ in range(3)]
    engine = open_model(exports["chunk-32"], greedy)
    chunks = engine.encode_chunks([f.numpy() for f in features])
    steps = 0
    for ours, (theirs, _) in zip(chunks, encode_chunks(student, features, 32, 64)):
        expected = project(student, theirs, greedy)
        np.testing.assert_allclose(ours, expected, atol=ATOL[head])
        steps += 1
    assert steps == 2


def test_new_states_have_the_shapes_of_the_old(exported):
    session = open_session(exported["chunk-16"].encoder)
    rng = np.random.RandomState(0)
    feed = {"x": rng.randn(2, 45, 80).astype(np.float32)}
    for node in session.get_inputs()[1:]:
        shape = [2 if d == "N" else d for d in node.shape]
        kind = np.int64 if node.name == "processed_lens" else np.float32
        feed[node.name] = np.zeros(shape, kind)
    encoder_out, *states = session.run(None, feed)
    assert encoder_out.shape == (2, 8, 32)
    old = [(v.shape, v.dtype) for v in list(feed.values())[1:]]
    assert [(v.shape, v.dtype) for v in states] == old
    assert states[-1].tolist() == [16, 16]


def test_unk_would_be_emitted_if_export_kept_it(student, waves):
    emitted = 0
    for wave in list(waves.values())[:5]:
        features = torch.from_numpy(sherpa_features(wave))
        kept, moved = (
            torch_encode(
                student, features, DecodeOptions("ctc_greedy_search", unk_id=i)
            )
            for i in (None, 2)
        )
        emitted += (kept.argmax(axis=1) == 2).sum()
        assert (moved.argmax(axis=1) != 2).all()
    assert emitted > 0


@torch.no_grad()
def test_predictor_maps_minus_one_to_zero_embedding(exported, student):
    session = open_session(exported["full"].decoder)
    y = torch.tensor([[-1, 0], [0, 0], [5, 7], [-1, -1]])
    out = session.run(None, {"y": y.numpy()})[0]
    expected = student.joiner.decoder_proj(student.decoder(y, need_pad=False)[:, 0])
    assert out.ndim == 2
    np.testing.assert_allclose(out, expected.numpy(), atol=1e-5)
    assert np.abs(out[0] - out[1]).max() > 0.01


@pytest.mark.parametrize(
    "chunking, message",
    [
        (Chunking(15, 64), "chunk_size 15"),
        (Chunking(-1, 64), "chunk_size -1"),
        (Chunking(16, 30), "left_context 30"),
        (Chunking(16, 0), "left_context 0"),
    ],
)
def test_invalid_chunks_are_refused(student, tmp_path, chunking, message):
    with pytest.raises(ValueError, match=message):
        export_model(student, tmp_path / "out", [chunking])
    assert not (tmp_path / "out").exists()


def test_front_end_of_another_width_is_refused(tmp_path):
    shape = dataclasses.replace(STUDENT.encoder, frontend_channels=(4, 8, 64))
    model = random_student(
        dataclasses.replace(STUDENT, encoder=shape), [torch.randn(40000)]
    )
    with pytest.raises(ValueError, match="128"):
        export_model(model, tmp_path / "out", [Chunking(16, 64)])
    assert not (tmp_path / "out").exists()
