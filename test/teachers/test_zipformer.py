"""Zipformer teachers with random weights, on real prompts."""

import dataclasses
import hashlib

import pytest
import students
import torch
from lhotse import CutSet
from torch.nn.utils.rnn import pad_sequence

from icefall_kd import LOG_EPS
from icefall_kd.core.frames import ENCODER_FIRST_CENTRE, unpack_path, unpack_topk
from icefall_kd.data.features import compute_fbank
from icefall_kd.data.shar import write_shar
from icefall_kd.data.tokens import train_bpe
from icefall_kd.dataset.dataset import load_batch
from icefall_kd.decoding import DecodeOptions, decode
from icefall_kd.fields.codecs import make_codec
from icefall_kd.fields.extract import extract
from icefall_kd.fields.reader import load_field, open_shar
from icefall_kd.teachers import build_teacher
from icefall_kd.teachers.zipformer_frames import compute_padded_fbank
from icefall_kd.transducer.checkpoint import save_pretrained
from icefall_kd.transducer.model import build_model
from icefall_kd.transducer.path import score_path
from icefall_kd.zipformer.subsampling import encoder_output_lens

FULL_CONTEXT = dataclasses.replace(
    students.STUDENT,
    encoder=dataclasses.replace(
        students.STUDENT.encoder,
        downsampling_factor=(1, 4, 2),
        causal=False,
        chunk_size=(-1,),
        left_context_frames=(-1,),
    ),
)
CHUNKS = {"chunk_size": 16, "left_context": 32}


@pytest.fixture(scope="module")
def full_context_student(waves):
    """A model that is not causal."""
    some = [torch.from_numpy(w) for w in list(waves.values())[:4]]
    return students.random_student(FULL_CONTEXT, some, seed=1)


@pytest.fixture(scope="module")
def full_context(full_context_student, tokenizer, tmp_path_factory):
    """The checkpoint of ``full_context_student``."""
    path = tmp_path_factory.mktemp("full_context") / "pretrained.pt"
    bpe_model = tokenizer.model_bytes
    save_pretrained(
        path, full_context_student.state_dict(), FULL_CONTEXT, bpe_model, {}
    )
    return path


@pytest.fixture(params=["full_context", "causal", "chunks"])
def model(request, full_context, checkpoint):
    """Checkpoint and options of a teacher: full context, causal, causal with chunks."""
    path = full_context if request.param == "full_context" else checkpoint
    return path, CHUNKS if request.param == "chunks" else {}


def teacher_of(path, **options):
    return build_teacher("zipformer", path, "zip", **options)


def run(teacher, waves):
    """Return field -> the frames of each wave of one batch."""
    lens = torch.tensor([len(w) for w in waves])
    outputs = teacher.forward(pad_sequence(waves, batch_first=True), lens)
    return {
        field: [x[:n] for x, n in zip(output.x, output.lens.tolist())]
        for field, output in outputs.items()
    }


def test_an_utterance_alone_and_in_a_batch_gives_the_same(model, prompts):
    path, options = model
    every = ["embedding", "ctc"]
    teacher = teacher_of(path, outputs=every, layers=[0, 1, 2], topk=5, **options)
    mixed = [*prompts[:4], prompts[0][:100], prompts[1][:5000], prompts[2][:17001]]
    together = run(teacher, mixed)
    assert set(together) == {"zip_layer0", "zip_layer1", "zip_layer2", "zip_ctc"}
    for i, wave in enumerate(mixed):
        for field, (alone,) in run(teacher, [wave]).items():
            found = together[field][i]
            assert alone.abs().max() > 0.1
            torch.testing.assert_close(found, alone, atol=1e-4, rtol=1e-4)


def test_audio_after_the_end_of_an_utterance_has_no_influence(model, prompts):
    path, options = model
    teacher = teacher_of(path, **options)
    wave = prompts[0][:20000]
    noisy = torch.cat([wave, torch.randn(20000)])[None]
    found = teacher.forward(noisy, torch.tensor([20000]))["zip"]
    torch.testing.assert_close(found.x[0], run(teacher, [wave])["zip"][0])


def test_the_embedding_equals_the_encoder_output_in_a_training_batch(
    model, prompts, full_context_student, student
):
    """For the shorter of two utterances that differ by 3 s."""
    path, options = model
    is_causal = not path.parent.name.startswith("full_context")
    encoder_model = student if is_causal else full_context_student
    encoder_model.encoder.set_chunk(*(options.values() or (-1, -1)))
    short = prompts[0][:24000]
    longer = torch.cat([short, *prompts])[: 24000 + 3 * 16000]
    features = compute_fbank([short, longer])
    x = pad_sequence(features, batch_first=True, padding_value=LOG_EPS)
    with torch.no_grad():
        y, y_lens, stacks = encoder_model.forward_stacks(
            x, torch.tensor([len(f) for f in features])
        )
    n = int(y_lens[0])
    (found,) = run(teacher_of(path, **options), [short])["zip"]
    torch.testing.assert_close(found[1 : n + 1], y[0, :n], atol=1e-4, rtol=1e-4)
    middle = (len(features[0]) - 7) // 2
    (found,) = run(teacher_of(path, layers=1, **options), [short])["zip"]
    expected = stacks[1][0, :middle]
    torch.testing.assert_close(found[2 : middle + 2], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("samples", [1, 399, 400, 640, 641, 1440, 6400, 15999, 16001])
def test_frames_cover_exactly_the_utterance(full_context, samples):
    teacher = teacher_of(
        full_context, outputs=["embedding", "ctc"], layers=[0, -1], topk=3
    )
    lens = torch.tensor([samples])
    outputs = teacher.forward(torch.randn(1, samples) * 0.1, lens)
    steps = {"zip_layer0": (320, 32), "zip_layer2": (320, 64), "zip_ctc": (640, 7)}
    assert set(outputs) == set(teacher.outputs) == set(steps)
    for field, (step, width) in steps.items():
        expected = -(-samples // step)
        if field == "zip_ctc":  # as many frames as a student has
            expected = max(1, encoder_output_lens((samples + 80) // 160))
        assert outputs[field].lens.tolist() == [expected]
        assert outputs[field].lens.dtype == torch.int64
        assert outputs[field].x.shape == (1, expected, width)
        assert outputs[field].x.dtype == torch.float32
        described = teacher.outputs[field]
        assert (described.dim, described.frame_shift) == (width, step / 16000)
        assert described.kind == ("ctc" if field == "zip_ctc" else "embedding")


def test_frames_beyond_the_valid_ones_are_zero(full_context, prompts):
    batch = pad_sequence([prompts[0][:16000], prompts[1][:19200]], batch_first=True)
    output = teacher_of(full_context).forward(batch, torch.tensor([16000, 19200]))[
        "zip"
    ]
    assert output.lens.tolist() == [25, 30]
    assert output.x[0, 25:].abs().sum() == 0 and output.x[0, 24].abs().sum() > 0


def test_the_field_contains_the_teacher_s_frame_i_at_the_time_of_the_student_s(
    full_context, full_context_student, prompts
):
    wave, teacher = prompts[0], teacher_of(full_context)
    (found,) = run(teacher, [wave])["zip"]
    x, lens = compute_padded_fbank(
        wave[None], torch.tensor([len(wave)]), full_context_student.encoder, "cpu"
    )
    with torch.no_grad():
        y, y_lens = full_context_student.forward_encoder(x, lens)
    shift = teacher.outputs["zip"].frame_shift
    for i in range(int(y_lens[0])):
        k = int((ENCODER_FIRST_CENTRE + 0.04 * i) / shift)
        torch.testing.assert_close(found[k], y[0, i], atol=1e-5, rtol=1e-5)


def test_frames_follow_the_audio_in_time(full_context, prompts):
    """Speech 0.4 s later is most similar 10 frames later."""
    teacher = teacher_of(full_context)
    now = run(teacher, prompts[:6])["zip"]
    then = run(teacher, [torch.cat([torch.zeros(6400), w]) for w in prompts[:6]])
    apart = {}
    for shift in (9, 10, 11):
        pairs = zip(now, then["zip"])
        apart[shift] = sum(
            (y[5 + shift : shift + len(x) - 5] - x[5:-5]).norm().item()
            for x, y in pairs
        )
    assert min(apart, key=apart.get) == 10, apart


def test_ctc_contains_the_best_tokens_of_the_softmax(
    full_context, full_context_student, prompts
):
    teacher = teacher_of(full_context, outputs="ctc", topk=6)
    (found,) = run(teacher, prompts[:1])["zip_ctc"]
    lens = torch.tensor([len(prompts[0])])
    x, lens = compute_padded_fbank(
        prompts[0][None], lens, full_context_student.encoder, "cpu"
    )
    with torch.no_grad():
        y, y_lens = full_context_student.forward_encoder(x, lens)
        probs = full_context_student.ctc_output[1](y).softmax(dim=-1)[
            0, : int(y_lens[0])
        ]
    ids, log_probs, tail = unpack_topk(found)
    best, expected = probs.topk(6, dim=-1)
    assert torch.equal(ids, expected)
    torch.testing.assert_close(log_probs.exp(), best, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(tail, 1 - best.sum(dim=-1), atol=1e-5, rtol=1e-4)


def test_a_weighted_sum_of_stacks_is_one_field(tmp_path, prompts):
    encoder = dataclasses.replace(FULL_CONTEXT.encoder, encoder_dim=(48, 48, 64))
    config = dataclasses.replace(FULL_CONTEXT, encoder=encoder)
    weights = build_model(config).state_dict()
    save_pretrained(tmp_path / "pretrained.pt", weights, config, None, {})
    layers = {"layers": [0, -2], "layer_weights": [0.25, 0.75]}
    summed = teacher_of(tmp_path, **layers)
    (found,) = run(summed, prompts[:1])["zip"]
    each = run(teacher_of(tmp_path, layers=[0, 1]), prompts[:1])
    expected = 0.25 * each["zip_layer0"][0] + 0.75 * each["zip_layer1"][0]
    torch.testing.assert_close(found, expected)
    assert summed.outputs["zip"].fingerprint["layer_weights"] == [0.25, 0.75]
    with pytest.raises(ValueError, match=r"layer_weights: .*\[48, 64\]"):
        teacher_of(tmp_path, layers=[0, 2], layer_weights=[1, 1])
    with pytest.raises(ValueError, match="layer_weights: 1 weights for 2 layers"):
        teacher_of(tmp_path, layers=[0, 1], layer_weights=[1])
    with pytest.raises(ValueError, match="layer_weights: .*last"):
        teacher_of(tmp_path, layer_weights=[1])


def test_a_checkpoint_of_icefall_gives_the_same_outputs(
    checkpoint, pristine_student, tokenizer, tmp_path, prompts
):
    ours = teacher_of(checkpoint, outputs=["embedding", "ctc"])
    torch.save({"model": pristine_student.state_dict()}, tmp_path / "pretrained.pt")
    (tmp_path / "bpe.model").write_bytes(tokenizer.model_bytes)
    heads = {"query_head_dim": 8, "value_head_dim": "8,4,8"}
    theirs = teacher_of(tmp_path, outputs=["embedding", "ctc"], **heads)
    assert theirs.outputs == ours.outputs
    expected = run(ours, prompts[:2])
    for field, frames in run(theirs, prompts[:2]).items():
        for x, y in zip(frames, expected[field]):
            assert torch.equal(x, y)


def test_options_and_weights_change_the_fingerprint(
    checkpoint, full_context, tokenizer
):
    every = {"outputs": ["embedding", "ctc"]}
    found = [
        teacher_of(path, **options).outputs["zip"].fingerprint
        for path, options in [
            (checkpoint, {}),
            (checkpoint, CHUNKS),
            (checkpoint, {**CHUNKS, "left_context": 64}),
            (checkpoint, {"layers": 0}),
            (checkpoint, {"layers": 1}),
            (full_context, {}),
        ]
    ]
    assert all(a != b for i, a in enumerate(found) for b in found[:i])
    ctc = teacher_of(checkpoint, **every).outputs["zip_ctc"].fingerprint
    assert ctc["vocab_sha256"] == hashlib.sha256(tokenizer.model_bytes).hexdigest()
    assert (ctc["vocab_size"], ctc["topk"]) == (students.VOCAB_SIZE, 10)
    assert ctc["model_sha256"] != found[0]["model_sha256"]


def test_the_path_does_not_change_the_fingerprint(checkpoint, tmp_path):
    moved = tmp_path / "elsewhere.pt"
    moved.write_bytes(checkpoint.read_bytes())
    assert teacher_of(moved).outputs == teacher_of(checkpoint).outputs


@pytest.mark.parametrize(
    "options, message",
    [
        ({"layers": 3}, "layers: no layer 3.*0 to 2"),
        ({"layers": [0, -4]}, "0 to 2"),
        ({"layers": [0, -3]}, "layers: .*twice"),
        ({"layers": "first"}, "layers: .*first"),
        ({"outputs": ["text"]}, "outputs: .*text.*ctc"),
        ({"outputs": []}, "outputs: "),
        ({"outputs": "ctc", "topk": 91}, "topk: 91 .*90"),
        ({"outputs": "path", "topk": 0}, "topk: 0 .*90"),
        ({"chunk_size": 16}, "causal"),
        ({"left_context": 16}, "left_context: 16 .*chunk_size"),
        ({"dtype": "fp16"}, "dtype: fp16 .*float32"),
        ({"dtype": "int8"}, "dtype: .*int8.*bf16"),
        ({"query_head_dim": 8}, "contains its configuration"),
        ({"layer": 1}, r"no option \['layer'\]"),
    ],
)
def test_invalid_options_are_refused(full_context, options, message):
    with pytest.raises(ValueError, match=message):
        teacher_of(full_context, **options)


def test_ctc_needs_a_head_and_the_tokens_of_its_training(
    pristine_student, tokenizer, cuts, full_context, tmp_path
):
    heads = {"query_head_dim": 8, "value_head_dim": [8, 4, 8], "outputs": "ctc"}
    weights = pristine_student.state_dict()
    torch.save({"model": weights}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="a.pt contains no BPE model.*bpe_model"):
        teacher_of(tmp_path / "a.pt", **heads)
    (tmp_path / "some.model").write_bytes(tokenizer.model_bytes)
    teacher = teacher_of(tmp_path / "a.pt", bpe_model=tmp_path / "some.model", **heads)
    assert list(teacher.outputs) == ["zip_ctc"]
    other = train_bpe(["ONE TWO THREE FOUR"], 14)
    (tmp_path / "other.model").write_bytes(other)
    with pytest.raises(ValueError, match="has 90 tokens, its BPE model 14"):
        teacher_of(tmp_path / "a.pt", bpe_model=tmp_path / "other.model", **heads)
    texts = [cut.supervisions[0].text[::-1] for cut in cuts]
    same_size = train_bpe(texts, tokenizer.vocab_size)
    (tmp_path / "same_size.model").write_bytes(same_size)
    with pytest.raises(ValueError, match="same_size.model has other tokens than"):
        teacher_of(full_context, outputs="ctc", bpe_model=tmp_path / "same_size.model")
    bare = {k: v for k, v in weights.items() if not k.startswith("ctc_output")}
    torch.save({"model": bare}, tmp_path / "b.pt")
    with pytest.raises(ValueError, match="b.pt: the model has no ctc head"):
        teacher_of(tmp_path / "b.pt", **heads)


def test_a_missing_or_untrained_head_is_refused(
    pristine_student, checkpoint, tokenizer, tmp_path
):
    heads = {"query_head_dim": 8, "value_head_dim": [8, 4, 8]}
    weights = pristine_student.state_dict()
    bare = {k: v for k, v in weights.items() if k.split(".")[0] != "joiner"}
    torch.save({"model": bare}, tmp_path / "bare.pt")
    with pytest.raises(ValueError, match="bare.pt: the model has no transducer head"):
        teacher_of(tmp_path / "bare.pt", outputs="path", **heads)
    trained = {"config": {"terms": {"ctc": {"weight": 1.0}}}}
    path = tmp_path / "ctc.pt"
    save_pretrained(path, weights, students.STUDENT, tokenizer.model_bytes, trained)
    assert list(teacher_of(path, outputs="ctc").outputs) == ["zip_ctc"]
    with pytest.raises(ValueError, match="ctc.pt: no term trained"):
        teacher_of(path, outputs=["ctc", "path"])


def test_paths_emit_the_transcript_or_the_hypothesis(
    full_context, full_context_student, cuts, tokenizer
):
    teacher = teacher_of(full_context, outputs="path", topk=7)
    assert teacher.needs_text and not teacher_of(full_context).needs_text
    some = [c for c in cuts if c.duration < 3][:3]
    waves = [torch.from_numpy(c.load_audio()[0]) for c in some]
    texts = [some[0].supervisions[0].text, "", "A" * 999]
    lens = torch.tensor([len(w) for w in waves])
    outputs = teacher.forward(pad_sequence(waves, batch_first=True), lens, texts)
    output = outputs["zip_path"]
    described = teacher.outputs["zip_path"]
    assert (described.kind, described.dim, described.frame_shift) == ("path", 16, 0.04)
    emitted, frames = unpack_path(output.x)
    for i, wave in enumerate(waves):
        x, x_lens = compute_padded_fbank(
            wave[None], lens[i : i + 1], full_context_student.encoder, "cpu"
        )
        with torch.no_grad():
            y, y_lens = full_context_student.forward_encoder(x, x_lens)
            n = int(y_lens[0])
            tokens = tokenizer.encode(texts[i])
            if i > 0:  # no transcript, or one with more tokens than frames
                options = DecodeOptions("modified_beam_search", 4, unk_id=2)
                tokens = decode(full_context_student, y[:, :n], y_lens, options)[
                    0
                ].tokens
            logits, _ = score_path(
                full_context_student, y[:, :n], emitted[i : i + 1, :n]
            )
        assert int(output.lens[i]) == n and output.x[i, n:].abs().sum() == 0
        assert tokens and [t for t in emitted[i].tolist() if t] == tokens
        ids, log_probs, _ = unpack_topk(frames[i, :n])
        values, best = logits[0].log_softmax(-1).topk(7)
        assert torch.equal(ids, best)
        torch.testing.assert_close(log_probs, values, atol=1e-3, rtol=1e-3)
    with pytest.raises(ValueError, match="0 transcripts for 3 utterances"):
        teacher.forward(pad_sequence(waves, batch_first=True), lens)


def test_beam_and_transducer_weights_change_the_fingerprint_of_a_path(
    checkpoint, full_context
):
    found = [
        teacher_of(path, outputs="path", **options).outputs["zip_path"].fingerprint
        for path, options in [
            (checkpoint, {}),
            (checkpoint, {"beam": 8}),
            (checkpoint, {"topk": 5}),
            (full_context, {}),
        ]
    ]
    assert all(a != b for i, a in enumerate(found) for b in found[:i])
    ctc = teacher_of(checkpoint, outputs="ctc").outputs["zip_ctc"].fingerprint
    assert ctc["model_sha256"] != found[0]["model_sha256"] and "beam" not in ctc


def test_a_folder_without_pretrained_is_refused_with_its_checkpoints(tmp_path):
    (tmp_path / "epoch-3.pt").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"no pretrained.pt.*epoch-3.pt"):
        teacher_of(tmp_path)
    with pytest.raises(FileNotFoundError, match="none.pt: no such checkpoint"):
        teacher_of(tmp_path / "none.pt")
    with pytest.raises(ValueError, match="'zipformer'.*model_dir"):
        build_teacher("zipformer")


def test_extraction_writes_embedding_and_ctc_in_one_pass(full_context, cuts, tmp_path):
    folder = tmp_path / "shar"
    write_shar([c for c in cuts if 1.0 < c.duration < 3.0][:6], folder, shard_size=4)
    teacher = teacher_of(full_context, outputs=["embedding", "ctc"], topk=4)
    infos, report = extract(folder, [teacher])
    assert report.shards_done == 4 and set(infos) == {"zip", "zip_ctc"}
    assert (infos["zip_ctc"].kind, infos["zip_ctc"].codec) == ("ctc", "topk")
    codecs = {"zip": make_codec("fp16"), "zip_ctc": make_codec("topk")}
    found = list(open_shar(folder, list(codecs)))
    for cut in found:
        outputs = run(teacher, [torch.from_numpy(cut.load_audio()[0])])
        for field, tolerance in (("zip", 2e-3), ("zip_ctc", 1e-2)):
            (expected,) = outputs[field]
            stored = torch.from_numpy(load_field(cut, field, codecs[field]))
            assert 0 <= len(expected) - len(stored) <= 1
            torch.testing.assert_close(
                stored, expected[: len(stored)], atol=tolerance, rtol=tolerance
            )
    batch = load_batch(CutSet.from_cuts(found), codecs)
    for field, width in (("zip", 64), ("zip_ctc", 9)):
        read = batch["fields"][field]
        assert read["x"].shape == (6, int(read["lens"].max()), width)
        assert read["frame_shift"] == 0.04


@pytest.mark.gpu
def test_cuda_equals_the_cpu(full_context, prompts):
    expected = run(teacher_of(full_context), prompts[:3])
    exact = run(teacher_of(full_context, device="cuda"), prompts[:3])
    for x, y in zip(exact["zip"], expected["zip"]):
        torch.testing.assert_close(x.cpu(), y, atol=1e-2, rtol=1e-2)
    half = teacher_of(full_context, device="cuda", dtype="fp16")
    for x, y in zip(run(half, prompts[:3])["zip"], expected["zip"]):
        assert torch.cosine_similarity(x.cpu(), y).mean() > 0.99
    assert half.outputs["zip"].fingerprint["dtype"] == "fp16"
