"""Vocabulary teachers: a recogniser over other teachers' embeddings."""

import numpy as np
import pytest
import torch
from lhotse import CutSet

from icefall_kd.core.config import FieldEncoderConfig, ModelConfig, to_dict
from icefall_kd.core.frames import unpack_path, unpack_topk
from icefall_kd.data.shar import write_shar
from icefall_kd.data.tokens import Tokenizer, train_bpe
from icefall_kd.dataset.dataset import load_batch
from icefall_kd.decoding import decode
from icefall_kd.fields.codecs import make_codec
from icefall_kd.fields.extract import extract
from icefall_kd.fields.reader import open_shar
from icefall_kd.fields.run_teachers import run_teachers_on_batch
from icefall_kd.teachers import build_teachers
from icefall_kd.transducer.bigram import (
    fuse_bigram,
    load_bigram,
    make_bigram_table,
    save_bigram,
)
from icefall_kd.transducer.checkpoint import load_model, pack_bytes
from icefall_kd.transducer.model import build_model


@pytest.fixture(scope="module")
def checkpoint(asterisk, tmp_path_factory):
    """An untrained vocabulary teacher over Whisper tiny.en, as a checkpoint."""
    torch.manual_seed(0)
    fields = FieldEncoderConfig(fields=("whisper_tiny_en",), dims=(384,), dim=32)
    config = ModelConfig(
        field_encoder=fields, vocab_size=150, decoder_dim=8, joiner_dim=8
    )
    path = tmp_path_factory.mktemp("vocab_teacher") / "pretrained.pt"
    bpe = pack_bytes((asterisk / "data/lang_bpe_150/bpe.model").read_bytes())
    checkpoint = {"model": build_model(config).state_dict(), "bpe_model": bpe}
    torch.save({**checkpoint, "model_config": to_dict(config), "info": {}}, path)
    return path


def describe(checkpoint, tiny_dir, **options):
    members = {"whisper_tiny_en": {"model_dir": str(tiny_dir)}}
    options = {
        "family": "vocab_teacher",
        "model_dir": str(checkpoint),
        **options,
    }
    return {"vocab": {"members": members, "topk": 5, **options}}


def test_the_outputs_equal_those_of_the_model_on_stored_fields(
    checkpoint, tiny_dir, tiny, asterisk, tmp_path
):
    cuts = [c for c in open_shar(asterisk / "data/shar/test") if c.duration < 3][:5]
    write_shar(cuts, tmp_path / "shar")
    (teacher,) = build_teachers(describe(checkpoint, tiny_dir))
    infos, _ = extract(tmp_path / "shar", [tiny, teacher])
    assert infos["vocab_ctc"].kind == "ctc" and infos["vocab_ctc"].codec == "topk"
    model, _, _ = load_model(checkpoint)
    codecs = {"whisper_tiny_en": make_codec("fp16"), "vocab_ctc": make_codec("topk")}
    cuts = CutSet.from_cuts(open_shar(tmp_path / "shar", list(codecs)))
    batch = load_batch(cuts, codecs)
    with torch.no_grad():
        out, lens = model.forward_encoder(*model.get_inputs(batch))
        log_probs = model.ctc_output(out)
    cached = batch["fields"]["vocab_ctc"]
    assert cached["lens"].tolist() == lens.tolist() and cached["frame_shift"] == 0.04
    ids, values, tail = unpack_topk(cached["x"])
    for row, n in enumerate(lens.tolist()):
        expected = log_probs[row, :n].gather(1, ids[row, :n])
        difference = (values[row, :n] - expected).abs()
        # A stored field may lack the last half frame of a cut.
        assert difference[: n - 1].max() < 0.02 and difference[n - 1].max() < 0.2
        rest = 1 - expected.exp().sum(dim=1)
        assert (tail[row, :n] - rest).abs()[: n - 1].max() < 0.02


def test_paths_emit_the_transcript_or_the_hypothesis(checkpoint, tiny_dir, asterisk):
    described = describe(checkpoint, tiny_dir, outputs=["path"])
    (teacher,) = build_teachers(described)
    cuts = [c for c in open_shar(asterisk / "data/shar/test") if c.duration < 3][:3]
    texts = [cuts[0].supervisions[0].text, "", "A" * 999]
    waves = [torch.from_numpy(c.load_audio()[0]) for c in cuts]
    (labelled, unlabelled, too_long) = run_teachers_on_batch(waves, [teacher], texts)
    emitted, frames = unpack_path(torch.from_numpy(labelled["vocab_path"]))
    tokens = [t for t in emitted.tolist() if t]
    assert teacher.tokenizer.decode(tokens) == texts[0]
    ids, values, tail = unpack_topk(frames)
    assert ids.shape[1] == 5 and ((values.exp().sum(1) + tail) - 1).abs().max() < 1e-4
    # Without a transcript, the path is that of the hypothesis.
    model, wave = teacher.model, waves[1]
    x, lens = model.get_inputs(
        teacher.compute_inputs(wave[None], torch.tensor([len(wave)]))
    )
    encoder_out, lens = model.forward_encoder(x, lens)
    found = decode(model, encoder_out, lens, teacher.paths.search)[0].tokens
    emitted, _ = unpack_path(torch.from_numpy(unlabelled["vocab_path"]))
    assert [t for t in emitted.tolist() if t] == found
    assert len(unpack_path(torch.from_numpy(too_long["vocab_path"]))[0]) > 0


def test_several_models_are_one_teacher(checkpoint, tiny_dir, asterisk, tmp_path):
    saved = torch.load(checkpoint)
    other, foreign = tmp_path / "other.pt", tmp_path / "foreign.pt"
    weights = {k: v + 0.1 * torch.randn_like(v) for k, v in saved["model"].items()}
    torch.save({**saved, "model": weights}, other)
    options = {"outputs": ["ctc", "path"], "topk": 150}
    files = {
        "a": checkpoint,
        "b": other,
        "both": [str(checkpoint), str(other)],
    }
    described = {
        name: {
            **describe(checkpoint, tiny_dir, **options)["vocab"],
            "model_dir": f,
        }
        for name, f in files.items()
    }
    teachers = build_teachers(described)
    cut = next(c for c in open_shar(asterisk / "data/shar/test") if c.duration < 3)
    wave, texts = torch.from_numpy(cut.load_audio()[0]), [cut.supervisions[0].text]
    (outputs,) = run_teachers_on_batch([wave], teachers, texts)
    probs = {}
    for name in files:
        ids, values, _ = unpack_topk(torch.from_numpy(outputs[f"{name}_ctc"]))
        probs[name] = torch.zeros(len(ids), 150).scatter(1, ids, values.exp())
    mean = (probs["a"] + probs["b"]) / 2
    torch.testing.assert_close(probs["both"], mean, atol=1e-5, rtol=1e-4)
    emitted, _ = unpack_path(torch.from_numpy(outputs["both_path"]))
    both = teachers[2]
    assert both.tokenizer.decode([t for t in emitted.tolist() if t]) == texts[0]
    hashes = both.outputs["both_path"].fingerprint["model_sha256"]
    assert hashes == [
        t.outputs[f"{t.name}_path"].fingerprint["model_sha256"] for t in teachers[:2]
    ]
    bpe = train_bpe(["some other words than these"] * 3, 18)
    torch.save({**saved, "bpe_model": pack_bytes(bpe)}, foreign)
    described["both"]["model_dir"] = [str(checkpoint), str(foreign)]
    with pytest.raises(ValueError, match="foreign.pt has other tokens"):
        build_teachers(described)


@pytest.fixture(scope="module")
def bigram(asterisk, tmp_path_factory):
    """A bigram of the transcripts of the test prompts, in the teacher's tokens."""
    tokenizer = Tokenizer(asterisk / "data/lang_bpe_150/bpe.model")
    cuts = open_shar(asterisk / "data/shar/test")
    tokens = [tokenizer.encode(cut.supervisions[0].text) for cut in cuts]
    path = tmp_path_factory.mktemp("lm") / "bigram.pt"
    save_bigram(make_bigram_table(tokens, 150), tokenizer.sha256, path)
    return path


def test_a_bigram_changes_distributions_on_paths_and_not_the_blank(
    checkpoint, tiny_dir, asterisk, bigram
):
    outputs = {"outputs": ["ctc", "path"], "topk": 150}
    described = describe(checkpoint, tiny_dir, **outputs)["vocab"]
    lms = {"off": {"lm_scale": 0.0}, "on": {"lm_scale": 0.7}}
    lms = {name: {**described, "lm": str(bigram), **lm} for name, lm in lms.items()}
    plain, off, on = build_teachers({"plain": described, **lms})
    cut = next(
        iter(c for c in open_shar(asterisk / "data/shar/test") if c.duration < 3)
    )
    wave, texts = torch.from_numpy(cut.load_audio()[0]), [cut.supervisions[0].text]
    (outputs,) = run_teachers_on_batch([wave], [plain, off, on], texts)
    assert np.array_equal(outputs["off_path"], outputs["plain_path"])
    assert np.array_equal(outputs["on_ctc"], outputs["plain_ctc"])
    dense = {}
    for name in ("plain", "on"):
        emitted, frames = unpack_path(torch.from_numpy(outputs[f"{name}_path"]))
        ids, values, _ = unpack_topk(frames)
        dense[name] = torch.zeros(len(ids), 150).scatter(1, ids, values)
        assert [t for t in emitted.tolist() if t] == on.tokenizer.encode(texts[0])
    table = load_bigram(bigram, on.tokenizer.sha256)
    before = 0
    for t, token in enumerate(emitted.tolist()):  # one frame at a time
        expected = fuse_bigram(dense["plain"][t], torch.tensor(before), table, 0.7)
        torch.testing.assert_close(dense["on"][t], expected, atol=1e-3, rtol=1e-3)
        before = token or before
    assert (dense["on"] - dense["plain"]).abs().max() > 0.1


def test_a_bigram_changes_the_fingerprint_of_paths_only(checkpoint, tiny_dir, bigram):
    found = []
    for options in ({}, {"lm_scale": 0.0}, {}, {"lm_scale": 0.5}):
        lm = {"lm": str(bigram)} if found else {}
        outputs = {"outputs": ["ctc", "path"], **lm, **options}
        (teacher,) = build_teachers(describe(checkpoint, tiny_dir, **outputs))
        found.append({n: o.fingerprint for n, o in teacher.outputs.items()})
    none, zero, some, more = found
    assert none == zero and none["vocab_ctc"] == some["vocab_ctc"]
    paths = [f["vocab_path"] for f in (none, some, more)]
    assert all(a != b for i, a in enumerate(paths) for b in paths[:i])
    assert paths[1]["lm_scale"] == 0.3 and len(paths[1]["lm_sha256"]) == 64


@pytest.mark.parametrize("options", [{"outputs": ["ctc"]}, {"lm_scale": -0.1}])
def test_a_bigram_without_effect_is_refused(checkpoint, tiny_dir, bigram, options):
    options = {"outputs": ["path"], "lm": str(bigram), **options}
    with pytest.raises(ValueError, match="teacher 'vocab': lm: .*path.*lm_scale"):
        build_teachers(describe(checkpoint, tiny_dir, **options))


def test_a_vocabulary_teacher_without_its_members_is_refused(
    checkpoint, tiny_dir, tmp_path
):
    described = describe(checkpoint, tiny_dir)
    described["vocab"]["members"] = {
        "other": {"family": "whisper_tiny_en", "model_dir": str(tiny_dir)}
    }
    with pytest.raises(ValueError, match=r"reads the fields \['whisper_tiny_en'\]"):
        build_teachers(described)
    with pytest.raises(
        FileNotFoundError, match="no such checkpoint of a vocabulary teacher"
    ):
        build_teachers(describe(tmp_path / "none.pt", tiny_dir))
    described["vocab"]["model_dir"] = []
    with pytest.raises(ValueError, match="'vocab': model_dir: .*empty"):
        build_teachers(described)


def test_a_checkpoint_with_the_former_name_loads(checkpoint, tmp_path):
    saved = torch.load(checkpoint)
    config = saved["model_config"]
    config["adapter"] = config.pop("field_encoder")
    old = tmp_path / "old.pt"
    run = {"model": config, "terms": {"hidden": {"stacks": {0: "near"}}}}
    torch.save({**saved, "info": {"config": run}}, old)
    model, _, info = load_model(old)
    assert model.fields == ("whisper_tiny_en",)
    assert info["config"]["model"]["field_encoder"]["dim"] == 32
    assert info["config"]["terms"] == run["terms"]


def test_the_former_family_name_builds_the_same_teacher(checkpoint, tiny_dir):
    described = describe(checkpoint, tiny_dir)
    (teacher,) = build_teachers(described)
    described["vocab"]["family"] = "adapter"
    (former,) = build_teachers(described)
    assert former.outputs == teacher.outputs
