"""The exported CTC model: files, engines, int8, and refused options."""

import dataclasses
import json
import shutil

import numpy as np
import onnx
import pytest
import torch

from icefall_kd.decoding import DecodeOptions
from icefall_kd.decoding.ctc_search import CtcGreedySearch
from icefall_kd.decoding.streaming import encode_chunks
from icefall_kd.export.compare import (
    OrtHypothesis,
    decision_margin,
)
from icefall_kd.export.convert import EngineMismatch, Exporter
from icefall_kd.export.files import ModelFiles, check_sherpa_metadata, read_metadata
from icefall_kd.export.ort import OrtCtc, open_model, open_session
from icefall_kd.export.quantize import Int8Refused, quantize_checked, quantize_model
from icefall_kd.export.sherpa import SherpaRecogniser, sherpa_features
from icefall_kd.recognition.recognise import decode_full_context

GREEDY = DecodeOptions("ctc_greedy_search", unk_id=2)


@torch.no_grad()
def torch_log_probs(model, features, options=GREEDY):
    """Log-probabilities (T', V) of (F, 80), full context."""
    model.encoder.set_chunk(-1, -1)
    out, _ = model.forward_encoder(features[None], torch.tensor([len(features)]))
    return CtcGreedySearch(model, 1, options)._project(out)[0].numpy()


def collapse(labels):
    """Return the tokens of frames: no repetitions, then no blanks."""
    previous = [0, *labels[:-1]]
    return [
        token for before, token in zip(previous, labels) if token not in (0, before)
    ]


def test_token_across_chunks_is_one_token(exported_ctc, student, waves):
    files = exported_ctc["chunk-16"]
    some = list(waves.values())[:20]
    engine, frames = OrtCtc(files, GREEDY), 16 // 2
    tail = np.zeros(12000, np.float32)
    split = 0
    for wave, hyp in zip(some, SherpaRecogniser(files, GREEDY).decode(some)):
        log_probs = engine.encode(sherpa_features(np.concatenate([wave, tail])))
        labels = log_probs.argmax(axis=1).tolist()
        assert hyp.tokens == collapse(labels)
        apart = [
            collapse(labels[i : i + frames]) for i in range(0, len(labels), frames)
        ]
        split += sum(apart, []) != hyp.tokens
    assert split > 3


def test_file_is_valid_and_has_icefalls_names(exported_ctc):
    for kind, files in exported_ctc.items():
        assert files.onnx == (files.encoder,)
        model = onnx.load(str(files.encoder))
        onnx.checker.check_model(model, full_check=True)
        assert [o.version for o in model.opset_import if o.domain == ""] == [13]
        session = open_session(files.encoder)
        inputs = [i.name for i in session.get_inputs()]
        outputs = session.get_outputs()
        assert outputs[0].name == "log_probs"
        assert outputs[0].shape[2] == 90  # sherpa-onnx reads the vocabulary size here
        if kind == "full":
            assert inputs == ["x", "x_lens"]
            assert [o.name for o in outputs] == ["log_probs", "log_probs_len"]
            assert outputs[1].type == "tensor(int64)"
        else:
            assert inputs[1] == "cached_key_0" and inputs[-1] == "processed_lens"
            assert [o.name for o in outputs[1:]] == [f"new_{i}" for i in inputs[1:]]


def test_metadata_are_those_of_each_kind(exported_ctc):
    offline = read_metadata(exported_ctc["full"].encoder)
    assert offline["model_type"] == "zipformer2_ctc"
    streaming = read_metadata(exported_ctc["chunk-16"].encoder)
    expected = {"model_type": "zipformer2", "T": "45", "decode_chunk_len": "32"}
    assert {**expected, "left_context_len": "64,32,16"}.items() <= streaming.items()
    for files in exported_ctc.values():
        check_sherpa_metadata(files)


def test_any_length_has_log_probs_of_pytorch(exported_ctc, student):
    engine = OrtCtc(exported_ctc["full"], GREEDY)
    torch.manual_seed(1)
    for frames in (9, 10, 11, 31, 44, 233, 700):
        features = torch.randn(frames, 80)
        ours = torch_log_probs(student, features)
        theirs = engine.encode(features.numpy())
        np.testing.assert_allclose(np.exp(theirs).sum(axis=1), 1.0, atol=1e-4)
        np.testing.assert_allclose(theirs, ours, atol=5e-3)


@torch.no_grad()
def test_batches_encode_as_in_pytorch(exported_ctc, student):
    student.encoder.set_chunk(-1, -1)
    search = CtcGreedySearch(student, 3, GREEDY)
    x, lens = torch.randn(3, 150, 80), torch.tensor([80, 150, 33])
    out, out_lens = student.forward_encoder(x, lens)
    session = open_session(exported_ctc["full"].encoder)
    log_probs, ends = session.run(None, {"x": x.numpy(), "x_lens": lens.numpy()})
    np.testing.assert_array_equal(ends, out_lens.numpy())
    expected = search._project(out).numpy()
    for row, end in enumerate(ends):
        np.testing.assert_allclose(log_probs[row, :end], expected[row, :end], atol=5e-3)
    engine = OrtCtc(exported_ctc["chunk-32"], GREEDY)
    features = [torch.randn(200, 80) for _ in range(3)]
    chunks = engine.encode_chunks([f.numpy() for f in features])
    for ours, (theirs, _) in zip(chunks, encode_chunks(student, features, 32, 64)):
        np.testing.assert_allclose(ours, search._project(theirs).numpy(), atol=5e-3)


def test_sherpa_decodes_padded_batches_as_pytorch(exported_ctc, student, waves):
    some = list(waves.values())[:20]
    theirs = SherpaRecogniser(exported_ctc["full"], GREEDY).decode(some)
    features = [torch.from_numpy(sherpa_features(w)) for w in some]
    for ours, hyp in zip(decode_full_context(student, features, GREEDY), theirs):
        assert (ours.tokens, ours.timestamps) == (hyp.tokens, hyp.timestamps)
        assert "<unk>" not in hyp.text
    assert sum(len(hyp.tokens) for hyp in theirs) > 300


def test_unk_has_best_score_without_the_export_step(student, waves):
    emitted = 0
    for wave in list(waves.values())[:5]:
        features = torch.from_numpy(sherpa_features(wave))
        options = dataclasses.replace(GREEDY, unk_id=None)
        emitted += (torch_log_probs(student, features, options).argmax(1) == 2).sum()
        assert (torch_log_probs(student, features).argmax(1) != 2).all()
    assert emitted > 0


def test_ctc_tie_may_be_at_earlier_frame():
    margins = np.array([9, 9, 1e-5, 9, 9], np.float32)
    hyp = OrtHypothesis([5, 5], [1, 3], margins=margins)  # or one token, frames 1 to 3
    assert decision_margin(hyp, 3, "ctc") == pytest.approx(1e-5)
    assert decision_margin(hyp, 3, "transducer") == 9
    assert decision_margin(hyp, 1, "ctc") == 9


def test_mismatch_is_an_error(exported_ctc, checkpoint, cuts, tmp_path):
    shutil.copytree(exported_ctc["full"].encoder.parent, tmp_path, dirs_exist_ok=True)
    conversion = Exporter(checkpoint, tmp_path, "ctc")
    files = ModelFiles.in_folder(tmp_path, head="ctc")
    assert conversion.check(files, cuts[:2]).ok
    conversion.model.ctc_output[1].bias.data[0] -= 6.0
    with pytest.raises(EngineMismatch, match=cuts[0].id):
        conversion.check(files, cuts[:2])


def test_both_heads_share_a_folder(checkpoint, tmp_path):
    for head in ("transducer", "ctc"):
        Exporter(checkpoint, tmp_path, head).write(None)
    assert {p.name for p in tmp_path.glob("*.onnx")} == {
        *("encoder.onnx", "decoder.onnx", "joiner.onnx", "model.onnx")
    }
    entries = json.loads((tmp_path / "export.json").read_text())["encoders"]
    assert 0 < entries["model.onnx"]["parameters"]
    assert entries["model.onnx"]["parameters"] != entries["encoder.onnx"]["parameters"]


def test_lossy_int8_is_refused_and_removed(exported_ctc, waves, tmp_path):
    """Random weights do not survive 8 bits.  The transducer's files are kept."""
    source = exported_ctc["chunk-16"]
    for path in (source.encoder, source.tokens):
        shutil.copy(path, tmp_path)
    (tmp_path / "decoder.int8.onnx").write_bytes(b"of the transducer")
    files = ModelFiles.in_folder(tmp_path, source.chunking, head="ctc")
    features = [sherpa_features(w) for w in list(waves.values())[:3]]
    expected = [OrtCtc(files, GREEDY).decode(f).tokens for f in features]

    def wer(candidate):
        engine = open_model(candidate, GREEDY)
        wrong = [engine.decode(f).tokens != e for f, e in zip(features, expected)]
        return 100.0 * sum(wrong) / len(wrong)

    before = sorted(tmp_path.iterdir())
    with pytest.raises(Int8Refused, match=r"model-streaming.*a loss of \d+\.\d\d"):
        quantize_checked(files, wer)
    assert sorted(tmp_path.iterdir()) == before
    assert quantize_checked(files, wer, max_loss=1000.0).wer_int8 > 0


def test_int8_keeps_metadata_and_runs_in_sherpa(exported_ctc, waves, tmp_path):
    for kind in ("full", "chunk-16"):
        source = exported_ctc[kind]
        for path in (source.encoder, source.tokens):
            shutil.copy(path, tmp_path)
        files = ModelFiles.in_folder(tmp_path, source.chunking, head="ctc")
        int8 = quantize_model(files)
        assert int8 == files.int8 and int8.float32 == files
        assert int8.encoder.stat().st_size < files.encoder.stat().st_size
        large = read_metadata(files.encoder).items()
        assert large <= read_metadata(int8.encoder).items()
        hyp = SherpaRecogniser(int8, GREEDY).decode([next(iter(waves.values()))])[0]
        assert len(hyp.tokens) > 5


@pytest.mark.parametrize(
    "options, message",
    [
        (DecodeOptions("ctc_prefix_beam_search"), "ctc_prefix_beam_search.*bin.decode"),
        (DecodeOptions("ctc_greedy_search", blank_penalty=1.0), "--blank-penalty 1"),
        (DecodeOptions("greedy_search"), "a ctc recogniser.*--head transducer"),
    ],
)
def test_options_that_sherpa_lacks_are_refused(exported_ctc, options, message):
    with pytest.raises(ValueError, match=message):
        SherpaRecogniser(exported_ctc["full"], options)


def test_file_of_other_head_is_refused(exported, exported_ctc):
    for kind in ("full", "chunk-16"):
        ours, other = exported_ctc[kind], exported[kind]
        with pytest.raises(ValueError, match="encoder_out.*--head ctc"):
            check_sherpa_metadata(dataclasses.replace(ours, encoder=other.encoder))
        with pytest.raises(ValueError, match="log_probs.*--head transducer"):
            check_sherpa_metadata(dataclasses.replace(other, encoder=ours.encoder))
    absent = ModelFiles.in_folder(exported["full"].encoder.parent, head="ctc")
    with pytest.raises(FileNotFoundError, match=r"model.onnx.*--head ctc.*none"):
        absent.check_exist()
