"""A recogniser over teachers' fields, from its training to a teacher of its own."""

import dataclasses

import numpy as np
import pytest
import real_teachers
import torch
from lhotse import CutSet

from icefall_kd.bin import align
from icefall_kd.bin.decode import get_parser, run
from icefall_kd.core.config import AdapterConfig, ModelConfig, to_dict
from icefall_kd.core.frames import align_frames, unpack_path, unpack_topk
from icefall_kd.data.shar import write_shar
from icefall_kd.data.tokens import Tokenizer, train_bpe
from icefall_kd.dataset.loader import BatchDataset
from icefall_kd.decoding import decode
from icefall_kd.fields.codecs import make_codec
from icefall_kd.fields.extract import extract
from icefall_kd.fields.reader import load_field, open_shar
from icefall_kd.fields.run_teachers import teach_batch
from icefall_kd.teachers import build_teachers
from icefall_kd.training.averaging import write_average
from icefall_kd.training.run import train
from icefall_kd.training.setup import prepare
from icefall_kd.transducer.build import build_model
from icefall_kd.transducer.checkpoint import load_model, pack_bytes
from icefall_kd.transducer.denominator import (
    fuse,
    load_bigram,
    make_bigram_table,
    save_bigram,
)
from icefall_kd.transducer.embedding_model import hide_stretches

tiny_dir, tiny = real_teachers.tiny_dir, real_teachers.tiny  # fixtures
ADAPTER = AdapterConfig(fields=("wise", "old"), dim=16, num_layers=2)


@pytest.fixture
def adapted(only):
    """The run of a small adapter over both teachers, transducer and CTC loss."""
    config = only("transducer", "ctc")
    model = ModelConfig(adapter=ADAPTER, vocab_size=24, decoder_dim=16, joiner_dim=16)
    data = dataclasses.replace(config.data, spec_augment=False)
    return dataclasses.replace(config, model=model, data=data)


def test_its_frames_are_the_student_s_and_hold_the_teachers_frames(adapted, config):
    setup, student = prepare(adapted), prepare(config)
    assert setup.config.model.adapter.dims == (6, 3)
    cuts = list(setup.train_stream)[:4]
    batch = BatchDataset(fields=setup.fields)[CutSet.from_cuts(cuts)]
    x, lens = setup.student.model.inputs(batch)
    _, expected = student.student.model.forward_encoder(
        batch["features"], batch["feature_lens"]
    )
    assert lens.tolist() == expected.tolist()
    assert x.shape == (4, int(lens.max()), 9)
    wise = batch["fields"]["wise"]
    aligned = align_frames(wise["x"], wise["lens"], 0.02, lens)
    torch.testing.assert_close(x[:, :, :6], aligned)


def test_the_fields_are_normalised_by_their_statistics(adapted):
    setup = prepare(adapted)
    encoder = setup.student.model.encoder
    assert encoder.mean.shape == (9,) and encoder.std.min() > 0
    frames = [load_field(c, "wise", setup.fields["wise"]) for c in setup.train_stream]
    expected = torch.from_numpy(np.concatenate(frames))
    torch.testing.assert_close(encoder.mean[:6], expected.mean(0), atol=1e-4, rtol=1e-3)


def test_an_utterance_alone_and_in_a_batch_gives_the_same():
    torch.manual_seed(0)
    config = dataclasses.replace(ADAPTER, dims=(6, 3))
    model = build_model(ModelConfig(adapter=config, vocab_size=24, decoder_dim=8))
    model.eval()
    x, lens = torch.randn(3, 30, 9), torch.tensor([30, 17, 1])
    together, _ = model.forward_encoder(x, lens)
    for row, n in enumerate(lens.tolist()):
        alone, _ = model.forward_encoder(x[row : row + 1, :n], lens[row : row + 1])
        torch.testing.assert_close(together[row, :n], alone[0], atol=1e-5, rtol=1e-5)
        assert (together[row, n:] == 0).all()


def test_hidden_stretches_take_the_share_they_should():
    torch.manual_seed(0)
    keep = hide_stretches(torch.tensor([1000, 200]), 1000, 0.2, 5)
    assert 0.1 < 1 - keep[0].mean() <= 0.2 and 0.1 < 1 - keep[1, :200].mean() <= 0.2
    assert (keep[1, 200:] == 1).all()
    assert (hide_stretches(torch.tensor([9]), 9, 0.0, 5) == 1).all()


def test_it_trains_resumes_and_is_decoded_from_fields(adapted, data_dir, tmp_path):
    train(dataclasses.replace(adapted, num_epochs=1))
    train(adapted)  # goes on
    assert (tmp_path / "exp/epoch-2.pt").is_file()
    path = tmp_path / "adapter.pt"
    write_average(tmp_path / "exp", 0, 1, path)
    model, tokenizer, _ = load_model(path)
    assert model.fields == ("wise", "old") and tokenizer is not None
    options = ["--checkpoint", str(path), "--shar-dir", str(data_dir / "shar/dev")]
    result = run(get_parser().parse_args([*options, "--out-dir", str(tmp_path / "o")]))
    assert result["utterances"] == 4
    ctm = ["--output", str(tmp_path / "dev.ctm")]
    times = align.run(align.get_parser().parse_args([*options, *ctm]))
    assert sum(map(len, times.values())) == result["words"]
    with pytest.raises(ValueError, match="not causal and cannot stream"):
        run(get_parser().parse_args([*options, "--out-dir", "o", "--streaming"]))


def test_cuts_that_it_could_not_hear_may_not_be_missing(adapted):
    data = dataclasses.replace(adapted.data, missing="skip")
    with pytest.raises(ValueError, match="data.missing is skip.*cannot hear"):
        prepare(dataclasses.replace(adapted, data=data))


def test_it_trains_in_bfloat16(adapted):
    train(dataclasses.replace(adapted, num_epochs=1, amp="bf16"))


def test_a_field_that_is_not_there_is_named(adapted):
    adapter = dataclasses.replace(ADAPTER, fields=("nobody",))
    model = dataclasses.replace(adapted.model, adapter=adapter)
    with pytest.raises(FileNotFoundError, match="'nobody' does not exist"):
        prepare(dataclasses.replace(adapted, model=model))
    adapter = dataclasses.replace(ADAPTER, fields=())
    model = dataclasses.replace(adapted.model, adapter=adapter)
    with pytest.raises(ValueError, match="model.adapter.fields is empty"):
        prepare(dataclasses.replace(adapted, model=model))


@pytest.fixture(scope="module")
def adapter_file(asterisk, tmp_path_factory):
    """An untrained adapter over Whisper tiny.en, as a checkpoint."""
    torch.manual_seed(0)
    fields = AdapterConfig(fields=("whisper_tiny_en",), dims=(384,), dim=32)
    config = ModelConfig(adapter=fields, vocab_size=150, decoder_dim=8, joiner_dim=8)
    path = tmp_path_factory.mktemp("adapter") / "pretrained.pt"
    bpe = pack_bytes((asterisk / "data/lang_bpe_150/bpe.model").read_bytes())
    checkpoint = {"model": build_model(config).state_dict(), "bpe_model": bpe}
    torch.save({**checkpoint, "model_config": to_dict(config), "info": {}}, path)
    return path


def describe(adapter_file, tiny_dir, **options):
    members = {"whisper_tiny_en": {"model_dir": str(tiny_dir)}}
    options = {"family": "adapter", "model_dir": str(adapter_file), **options}
    return {"judge": {"members": members, "topk": 5, **options}}


def test_as_a_teacher_it_says_what_it_says_of_cached_fields(
    adapter_file, tiny_dir, tiny, asterisk, tmp_path
):
    cuts = [c for c in open_shar(asterisk / "data/shar/test") if c.duration < 3][:5]
    write_shar(cuts, tmp_path / "shar")
    (judge,) = build_teachers(describe(adapter_file, tiny_dir))
    infos, _ = extract(tmp_path / "shar", [tiny, judge])
    assert infos["judge_ctc"].kind == "ctc" and infos["judge_ctc"].codec == "topk"
    model, _, _ = load_model(adapter_file)
    codecs = {"whisper_tiny_en": make_codec("fp16"), "judge_ctc": make_codec("topk")}
    cuts = CutSet.from_cuts(open_shar(tmp_path / "shar", list(codecs)))
    batch = BatchDataset(fields=codecs)[cuts]
    with torch.no_grad():
        out, lens = model.forward_encoder(*model.inputs(batch))
        log_probs = model.ctc_output(out)
    cached = batch["fields"]["judge_ctc"]
    assert cached["lens"].tolist() == lens.tolist() and cached["frame_shift"] == 0.04
    ids, values, tail = unpack_topk(cached["x"])
    for row, n in enumerate(lens.tolist()):
        expected = log_probs[row, :n].gather(1, ids[row, :n])
        difference = (values[row, :n] - expected).abs()
        # A cached field may lack the half frame that ends a cut: the last differs.
        assert difference[: n - 1].max() < 0.02 and difference[n - 1].max() < 0.2
        rest = 1 - expected.exp().sum(dim=1)
        assert (tail[row, :n] - rest).abs()[: n - 1].max() < 0.02


def test_its_paths_spell_the_transcript_or_what_it_recognises(
    adapter_file, tiny_dir, asterisk
):
    described = describe(adapter_file, tiny_dir, outputs=["path"])
    (judge,) = build_teachers(described)
    cuts = [c for c in open_shar(asterisk / "data/shar/test") if c.duration < 3][:3]
    texts = [cuts[0].supervisions[0].text, "", "A" * 999]
    waves = [torch.from_numpy(c.load_audio()[0]) for c in cuts]
    (said, silent, long) = teach_batch(waves, [judge], texts)
    emitted, frames = unpack_path(torch.from_numpy(said["judge_path"]))
    tokens = [t for t in emitted.tolist() if t]
    assert judge.tokenizer.decode(tokens) == texts[0]
    ids, values, tail = unpack_topk(frames)
    assert ids.shape[1] == 5 and ((values.exp().sum(1) + tail) - 1).abs().max() < 1e-4
    # Without a transcript that fits, the path is that of what the search finds.
    model, wave = judge.model, waves[1]
    x, lens = model.inputs(judge._hear(wave[None], torch.tensor([len(wave)])))
    encoder_out, lens = model.forward_encoder(x, lens)
    found = decode(model, encoder_out, lens, judge.paths.search)[0].tokens
    emitted, _ = unpack_path(torch.from_numpy(silent["judge_path"]))
    assert [t for t in emitted.tolist() if t] == found
    assert len(unpack_path(torch.from_numpy(long["judge_path"]))[0]) > 0


def test_several_adapters_are_one_teacher(adapter_file, tiny_dir, asterisk, tmp_path):
    saved = torch.load(adapter_file)
    other, foreign = tmp_path / "other.pt", tmp_path / "foreign.pt"
    weights = {k: v + 0.1 * torch.randn_like(v) for k, v in saved["model"].items()}
    torch.save({**saved, "model": weights}, other)
    options = {"outputs": ["ctc", "path"], "topk": 150}
    files = {"a": adapter_file, "b": other, "both": [str(adapter_file), str(other)]}
    described = {
        name: {**describe(adapter_file, tiny_dir, **options)["judge"], "model_dir": f}
        for name, f in files.items()
    }
    teachers = build_teachers(described)
    cut = next(c for c in open_shar(asterisk / "data/shar/test") if c.duration < 3)
    wave, texts = torch.from_numpy(cut.load_audio()[0]), [cut.supervisions[0].text]
    (said,) = teach_batch([wave], teachers, texts)
    probs = {}
    for name in files:
        ids, values, _ = unpack_topk(torch.from_numpy(said[f"{name}_ctc"]))
        probs[name] = torch.zeros(len(ids), 150).scatter(1, ids, values.exp())
    mean = (probs["a"] + probs["b"]) / 2
    torch.testing.assert_close(probs["both"], mean, atol=1e-5, rtol=1e-4)
    emitted, _ = unpack_path(torch.from_numpy(said["both_path"]))
    both = teachers[2]
    assert both.tokenizer.decode([t for t in emitted.tolist() if t]) == texts[0]
    hashes = both.outputs["both_path"].fingerprint["model_sha256"]
    assert hashes == [
        t.outputs[f"{t.name}_path"].fingerprint["model_sha256"] for t in teachers[:2]
    ]
    bpe = train_bpe(["some other words than these"] * 3, 18)
    torch.save({**saved, "bpe_model": pack_bytes(bpe)}, foreign)
    described["both"]["model_dir"] = [str(adapter_file), str(foreign)]
    with pytest.raises(ValueError, match="foreign.pt is of other tokens"):
        build_teachers(described)


@pytest.fixture(scope="module")
def bigram(asterisk, tmp_path_factory):
    """Counted in the transcripts of the test prompts, with the adapter's tokens."""
    tokenizer = Tokenizer(asterisk / "data/lang_bpe_150/bpe.model")
    cuts = open_shar(asterisk / "data/shar/test")
    tokens = [tokenizer.encode(cut.supervisions[0].text) for cut in cuts]
    path = tmp_path_factory.mktemp("lm") / "bigram.pt"
    save_bigram(make_bigram_table(tokens, 150), tokenizer.sha256, path)
    return path


def test_a_language_model_has_its_say_on_paths_and_leaves_the_blank(
    adapter_file, tiny_dir, asterisk, bigram
):
    outputs = {"outputs": ["ctc", "path"], "topk": 150}
    described = describe(adapter_file, tiny_dir, **outputs)["judge"]
    lms = {"off": {"lm_scale": 0.0}, "on": {"lm_scale": 0.7}}
    lms = {name: {**described, "lm": str(bigram), **lm} for name, lm in lms.items()}
    plain, off, on = build_teachers({"plain": described, **lms})
    cut = next(
        iter(c for c in open_shar(asterisk / "data/shar/test") if c.duration < 3)
    )
    wave, texts = torch.from_numpy(cut.load_audio()[0]), [cut.supervisions[0].text]
    (said,) = teach_batch([wave], [plain, off, on], texts)
    assert np.array_equal(said["off_path"], said["plain_path"])
    assert np.array_equal(said["on_ctc"], said["plain_ctc"])
    dense = {}
    for name in ("plain", "on"):
        emitted, frames = unpack_path(torch.from_numpy(said[f"{name}_path"]))
        ids, values, _ = unpack_topk(frames)
        dense[name] = torch.zeros(len(ids), 150).scatter(1, ids, values)
        assert [t for t in emitted.tolist() if t] == on.tokenizer.encode(texts[0])
    table = load_bigram(bigram, on.tokenizer.sha256)
    before = 0
    for t, token in enumerate(emitted.tolist()):  # one frame at a time
        expected = fuse(dense["plain"][t], torch.tensor(before), table, 0.7)
        torch.testing.assert_close(dense["on"][t], expected, atol=1e-3, rtol=1e-3)
        before = token or before
    assert (dense["on"] - dense["plain"]).abs().max() > 0.1


def test_a_language_model_is_in_the_fingerprint_of_paths_alone(
    adapter_file, tiny_dir, bigram
):
    found = []
    for options in ({}, {"lm_scale": 0.0}, {}, {"lm_scale": 0.5}):
        lm = {"lm": str(bigram)} if found else {}
        outputs = {"outputs": ["ctc", "path"], **lm, **options}
        (judge,) = build_teachers(describe(adapter_file, tiny_dir, **outputs))
        found.append({n: o.fingerprint for n, o in judge.outputs.items()})
    none, zero, some, more = found
    assert none == zero and none["judge_ctc"] == some["judge_ctc"]
    paths = [f["judge_path"] for f in (none, some, more)]
    assert all(a != b for i, a in enumerate(paths) for b in paths[:i])
    assert paths[1]["lm_scale"] == 0.3 and len(paths[1]["lm_sha256"]) == 64


@pytest.mark.parametrize("options", [{"outputs": ["ctc"]}, {"lm_scale": -0.1}])
def test_a_language_model_with_nothing_to_say_is_refused(
    adapter_file, tiny_dir, bigram, options
):
    options = {"outputs": ["path"], "lm": str(bigram), **options}
    with pytest.raises(ValueError, match="teacher 'judge'.*has a say in the output"):
        build_teachers(describe(adapter_file, tiny_dir, **options))


def test_an_adapter_without_its_members_is_refused(adapter_file, tiny_dir, tmp_path):
    described = describe(adapter_file, tiny_dir)
    described["judge"]["members"] = {
        "other": {"family": "whisper_tiny_en", "model_dir": str(tiny_dir)}
    }
    with pytest.raises(ValueError, match=r"hears the fields \['whisper_tiny_en'\]"):
        build_teachers(described)
    with pytest.raises(FileNotFoundError, match="no such checkpoint of an adapter"):
        build_teachers(describe(tmp_path / "none.pt", tiny_dir))
    described["judge"]["model_dir"] = []
    with pytest.raises(ValueError, match="'judge': model_dir is an empty list"):
        build_teachers(described)
