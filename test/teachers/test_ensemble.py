"""Ensembles of real teachers: Whisper tiny.en and Zipformers with random weights."""

import dataclasses

import pytest
import students
import torch
from torch.nn.utils.rnn import pad_sequence

from icefall_kd.core.frames import average_topk, pack_topk, unpack_topk
from icefall_kd.data.shar import write_shar
from icefall_kd.data.tokens import Tokenizer, train_bpe
from icefall_kd.distill.term import check_vocabulary
from icefall_kd.fields.codecs import make_codec
from icefall_kd.fields.extract import extract
from icefall_kd.fields.format import load_field_info
from icefall_kd.fields.reader import load_field, open_shar
from icefall_kd.teachers import TEACHERS, Teacher, build_teacher, build_teachers
from icefall_kd.teachers.base import Output, TeacherOutput
from icefall_kd.teachers.ensemble import can_average, shortest_lens
from icefall_kd.transducer.checkpoint import save_pretrained

NARROW = dataclasses.replace(
    students.STUDENT,
    encoder=dataclasses.replace(
        students.STUDENT.encoder,
        encoder_dim=(32, 40, 48),
        num_encoder_layers=(1, 2, 1),
    ),
)


@pytest.fixture(scope="module")
def write(waves, tokenizer, tmp_path_factory):
    """Return a function that writes another random student and returns its path."""
    some = [torch.from_numpy(w) for w in list(waves.values())[:4]]

    def write_student(config=students.STUDENT, bpe_model=tokenizer.model_bytes, seed=7):
        model = students.random_student(config, some, seed)
        path = tmp_path_factory.mktemp("other") / "pretrained.pt"
        save_pretrained(path, model.state_dict(), config, bpe_model, {})
        return path

    return write_student


@pytest.fixture(scope="module")
def other(write):
    """A second student of the same shape and tokens."""
    return write()


def pair(first, second, one=None, two=None):
    """Return descriptions of two Zipformers, with their options, as members."""
    return {
        "a": {"family": "zipformer", "model_dir": first, **(one or {})},
        "b": {"family": "zipformer", "model_dir": second, **(two or one or {})},
    }


def ensemble_of(members, **options):
    return build_teacher("ensemble", name="both", members=members, **options)


def run(teacher, waves):
    lens = torch.tensor([len(w) for w in waves])
    return teacher.forward(pad_sequence(waves, batch_first=True), lens)


def run_each(members, waves):
    """Return field -> output of its member."""
    outputs = {}
    for teacher in build_teachers(members):
        outputs.update(run(teacher, waves))
    return outputs


def expand(x, vocab_size):
    """Return the probabilities of all tokens, with equal shares of the tail."""
    ids, log_probs, tail = unpack_topk(x)
    probs = torch.zeros(*ids.shape[:-1], vocab_size)
    for n in range(len(ids)):
        for t in range(ids.shape[1]):
            best = dict(zip(ids[n, t].tolist(), log_probs[n, t].exp().tolist()))
            rest = tail[n, t].item() / (vocab_size - len(best))
            probs[n, t] = torch.tensor([best.get(v, rest) for v in range(vocab_size)])
    return probs


def test_equal_embeddings_are_averaged_into_one_field(checkpoint, other, prompts):
    members = pair(checkpoint, other)
    both = ensemble_of(members)
    assert list(both.outputs) == ["both"]
    found, each = run(both, prompts[:3])["both"], run_each(members, prompts[:3])
    torch.testing.assert_close(found.x, (each["a"].x + each["b"].x) / 2)
    assert torch.equal(found.lens, each["a"].lens)
    described, one = both.outputs["both"], build_teachers(members)[0].outputs["a"]
    assert (described.kind, described.dim) == ("embedding", one.dim)
    assert described.frame_shift == one.frame_shift


def test_weights_are_normalised(checkpoint, other, prompts):
    members = pair(checkpoint, other)
    found = run(ensemble_of(members, weights={"b": 1, "a": 3}), prompts[:2])["both"]
    each = run_each(members, prompts[:2])
    torch.testing.assert_close(found.x, 0.75 * each["a"].x + 0.25 * each["b"].x)


def test_layers_are_averaged_one_by_one(checkpoint, other, prompts):
    members = pair(checkpoint, other, {"layers": [0, 2]})
    both = ensemble_of(members)
    assert list(both.outputs) == ["both_layer0", "both_layer2"]
    found, each = run(both, prompts[:2]), run_each(members, prompts[:2])
    for k in (0, 2):
        expected = (each[f"a_layer{k}"].x + each[f"b_layer{k}"].x) / 2
        torch.testing.assert_close(found[f"both_layer{k}"].x, expected)


def test_embeddings_of_other_dimensions_stay_separate_fields(
    checkpoint, other, tiny_dir, prompts
):
    whisper = {"family": "whisper_tiny_en", "model_dir": tiny_dir}
    members = {"tiny": whisper, "b": pair(checkpoint, other)["b"]}
    both = ensemble_of(members, num_threads=1, device="cpu")  # for every member
    assert {f: (o.dim, o.frame_shift) for f, o in both.outputs.items()} == {
        "tiny": (384, 0.02),
        "b": (64, 0.04),
    }
    found, each = run(both, prompts[:2]), run_each(members, prompts[:2])
    for field in members:
        # CTranslate2 adds in another order with another number of threads.
        torch.testing.assert_close(found[field].x, each[field].x, atol=1e-3, rtol=1e-3)
        assert both.outputs[field].fingerprint["teacher"] == field
    with pytest.raises(ValueError, match="weights: .*384.*64"):
        ensemble_of(members, weights={"tiny": 1, "b": 2})


def test_only_corresponding_outputs_are_averaged(checkpoint, write, prompts):
    every = {"outputs": ["embedding", "ctc"], "topk": 4}
    both = ensemble_of(pair(checkpoint, write(NARROW), every))
    assert list(both.outputs) == ["a", "b", "both_ctc"]
    assert [o.dim for o in both.outputs.values()] == [64, 48, 9]
    assert set(run(both, prompts[:1])) == {"a", "b", "both_ctc"}


def test_distributions_are_averaged_as_probabilities(checkpoint, other, prompts):
    one, two = {"outputs": "ctc", "topk": 5}, {"outputs": "ctc", "topk": 3}
    members = pair(checkpoint, other, one, two)
    both = ensemble_of(members, weights={"a": 2, "b": 1}, topk=4)
    found, each = run(both, prompts[:2])["both_ctc"], run_each(members, prompts[:2])
    size = students.VOCAB_SIZE
    mean = (2 * expand(each["a_ctc"].x, size) + expand(each["b_ctc"].x, size)) / 3
    ids, log_probs, tail = unpack_topk(found.x)
    for row, n in enumerate(found.lens.tolist()):
        best = mean[row, :n].topk(4, dim=-1)
        torch.testing.assert_close(log_probs[row, :n].exp(), best.values)
        picked = mean[row, :n].gather(-1, ids[row, :n])
        torch.testing.assert_close(picked, best.values)  # ids, but for ties
        total = log_probs[row, :n].exp().sum(-1) + tail[row, :n]
        torch.testing.assert_close(total, torch.ones(n))
        assert found.x[row, n:].abs().sum() == 0
    described = both.outputs["both_ctc"]
    assert (described.kind, described.dim) == ("ctc", 9)
    assert ensemble_of(members).outputs["both_ctc"].dim == 11


def test_the_mean_of_distributions_with_all_tokens_is_exact():
    torch.manual_seed(0)
    probs = [torch.randn(2, 3, 7).softmax(dim=-1) for _ in range(2)]
    packed = [pack_topk(p.log(), 7) for p in probs]
    found = average_topk(packed, [0.5, 0.5], 7, 7)
    expected = pack_topk(((probs[0] + probs[1]) / 2).log(), 7)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_the_best_tokens_of_the_mean_are_best_tokens_of_members():
    torch.manual_seed(1)
    log_probs = [(3 * torch.randn(1, 50, 20)).log_softmax(dim=-1) for _ in range(3)]
    packed = [pack_topk(x, 2) for x in log_probs]
    found, _, _ = unpack_topk(average_topk(packed, [0.2, 0.5, 0.3], 20, 2))
    union = torch.cat([unpack_topk(x)[0] for x in packed], dim=-1)
    assert (found.unsqueeze(-1) == union.unsqueeze(-2)).any(dim=-1).all()


def test_distributions_over_other_tokens_stay_separate_fields(
    checkpoint, write, cuts, prompts
):
    texts = ["ONE TWO THREE FOUR FIVE", "SIX SEVEN EIGHT NINE TEN"] * 3
    config = dataclasses.replace(students.STUDENT, vocab_size=20)
    members = pair(
        checkpoint, write(config, train_bpe(texts, 20)), {"outputs": "ctc", "topk": 3}
    )
    assert list(ensemble_of(members).outputs) == ["a_ctc", "b_ctc"]


@pytest.mark.parametrize("kind", ["ctc", "path"])
def test_unknown_tokens_and_paths_cannot_be_averaged(kind):
    output = Output(kind, 9, 0.04, {"teacher": "a"})
    assert not can_average([output, output])


def test_an_utterance_alone_and_in_a_batch_gives_the_same(checkpoint, other, prompts):
    both = ensemble_of(pair(checkpoint, other, {"outputs": ["embedding", "ctc"]}))
    together = run(both, prompts[:4])
    for i, wave in enumerate(prompts[:4]):
        for field, alone in run(both, [wave]).items():
            n = int(alone.lens[0])
            assert int(together[field].lens[i]) == n
            found = together[field].x[i, :n]
            torch.testing.assert_close(found, alone.x[0], atol=1e-4, rtol=1e-4)


def test_lengths_may_differ_by_one_frame():
    lens = [torch.tensor([5, 7, 9]), torch.tensor([6, 7, 8])]
    assert shortest_lens(["a", "b"], lens).tolist() == [5, 7, 8]
    lens[1][1] = 9
    with pytest.raises(ValueError, match="utterance 1 .* 9 frames in 'b' and 7 in 'a'"):
        shortest_lens(["a", "b"], lens)


def test_the_fingerprint_contains_members_and_weights(checkpoint, other):
    members = pair(checkpoint, other)
    plain = ensemble_of(members).outputs["both"].fingerprint
    weighted = (
        ensemble_of(members, weights={"a": 3, "b": 1}).outputs["both"].fingerprint
    )
    assert plain["family"] == "ensemble" and set(plain["members"]) == {"a", "b"}
    assert weighted["members"]["a"]["weight"] == 0.75
    a, b = (plain["members"][m]["model_sha256"] for m in "ab")
    assert a != b and plain != weighted


@pytest.mark.parametrize(
    "options, message",
    [
        ({"weights": {"a": 1}}, r"weights: \['a'\].*\['a', 'b'\]"),
        ({"weights": {"a": 1, "b": 0}}, "weights: .*positive"),
        ({"weights": {"a": 1, "b": float("nan")}}, "weights: .*positive"),
        ({"context": 1.0}, "teacher 'a': .*zipformer.*no option.*context"),
    ],
)
def test_invalid_options_are_refused(checkpoint, other, options, message):
    with pytest.raises(ValueError, match=message):
        ensemble_of(pair(checkpoint, other), **options)


def test_an_ensemble_needs_members(checkpoint):
    with pytest.raises(ValueError, match="'whisper_ct2'.*no_such_option"):
        build_teacher("whisper_ct2", checkpoint, no_such_option=1)
    with pytest.raises(ValueError, match="'ensemble'.*members"):
        build_teacher("ensemble")
    with pytest.raises(ValueError, match="teacher 'x': family 'ensemble'.*'members'"):
        build_teachers({"x": {"family": "ensemble"}})
    with pytest.raises(ValueError, match="members: 1"):
        ensemble_of({"a": {"family": "zipformer", "model_dir": checkpoint}})
    with pytest.raises(ValueError, match="teacher 'a': family 'zipformer'.*model_dir"):
        ensemble_of({"a": {"family": "zipformer"}, "b": {"family": "zipformer"}})


def test_an_ensemble_is_extracted_and_refused_for_other_vocabularies(
    checkpoint, other, cuts, tokenizer, tmp_path
):
    folder = tmp_path / "shar"
    write_shar([c for c in cuts if 1.0 < c.duration < 3.0][:4], folder, shard_size=4)
    both = ensemble_of(pair(checkpoint, other, {"outputs": ["embedding", "ctc"]}))
    extract(folder, [both])
    info = load_field_info(folder, "both_ctc")
    check_vocabulary(info, tokenizer)
    for cut in open_shar(folder, ["both_ctc"]):
        ids, log_probs, tail = unpack_topk(
            torch.from_numpy(load_field(cut, "both_ctc", make_codec("topk")))
        )
        assert ids.shape[1] == 10 and int(ids.max()) < students.VOCAB_SIZE
        total = log_probs.exp().sum(dim=-1) + tail
        torch.testing.assert_close(total, torch.ones(len(ids)), atol=3e-3, rtol=0)
    same_size = Tokenizer.from_bytes(
        train_bpe([c.supervisions[0].text for c in cuts][::2], students.VOCAB_SIZE)
    )
    with pytest.raises(ValueError, match="'both_ctc' .*90 tokens.*student .*90"):
        check_vocabulary(info, same_size)
    with pytest.raises(ValueError, match="both_ctc.*bpe_model"):
        check_vocabulary(info, None)
    with pytest.raises(ValueError, match="'both' of kind 'embedding' has no voc"):
        check_vocabulary(load_field_info(folder, "both"), tokenizer)


class Ones(Teacher):
    """Returns ones every 20 ms, ``missing`` frames too few."""

    def __init__(self, name, missing=0, **_):
        self.name, self.missing = name, missing
        self.outputs = {name: Output("embedding", 4, 0.02, {})}

    def forward(self, waves, wave_lens):
        x = torch.ones(len(waves), waves.shape[1] // 320, 4)
        return {self.name: TeacherOutput(x, wave_lens // 320 - self.missing)}


def test_a_wrong_output_of_a_member_names_the_member(monkeypatch):
    monkeypatch.setitem(TEACHERS, "ones", Ones)
    ensemble = ensemble_of({"a": {"family": "ones"}, "b": {"family": "ones"}})
    assert run(ensemble, [torch.zeros(16000)])["both"].x.shape == (1, 50, 4)
    members = {"a": {"family": "ones"}, "b": {"family": "ones", "missing": 5}}
    with pytest.raises(ValueError, match="teacher 'b', field 'b': .*45 frames"):
        run(ensemble_of(members), [torch.zeros(16000)])
