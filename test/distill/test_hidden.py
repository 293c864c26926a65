"""The hidden term: slow reference, padding, order, a student that is its teacher."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import students
import torch
from lhotse import CutSet
from students import model_without_encoder
from torch import nn
from two_stacks import LENS, MODEL, STACKS

from icefall_kd.core.config import FieldEncoderConfig, ModelConfig
from icefall_kd.core.frames import align_frames, align_to_stack
from icefall_kd.data.shar import write_shar
from icefall_kd.dataset.loader import BatchDataset
from icefall_kd.distill.hidden import HiddenConfig, HiddenTerm
from icefall_kd.distill.term import StudentOutput
from icefall_kd.fields.codecs import make_codec
from icefall_kd.fields.extract import extract
from icefall_kd.fields.reader import open_shar
from icefall_kd.teachers import build_teacher
from icefall_kd.training.student import DistilledStudent, build_heads
from icefall_kd.transducer.model import build_model

cuts, waves, tokenizer = students.cuts, students.waves, students.tokenizer  # fixtures
pristine_student, checkpoint = students.pristine_student, students.checkpoint

FBANK = [98, 59]  # frames of 10 ms
FINE = [45, 26]  # of the stacks, 20 ms
FIELDS = {"near": (5, 0.02, [51, 31]), "far": (7, 0.04, [26, 15])}  # dim, shift, lens
BOTH = HiddenConfig(stacks={0: "far", -1: "near"}, stack_weights={0: 3.0})


@pytest.fixture
def infos():
    rng = np.random.default_rng(0)
    return {
        name: SimpleNamespace(
            name=name,
            kind="embedding",
            mean=rng.normal(size=dim).tolist(),
            std=rng.uniform(1, 3, dim).tolist(),
        )
        for name, (dim, _, _) in FIELDS.items()
    }


@pytest.fixture
def batch():
    torch.manual_seed(0)
    fields = {}
    for name, (dim, shift, lens) in FIELDS.items():
        x = torch.randn(2, max(lens), dim)
        x[1, lens[1] :] = 0
        fields[name] = {"x": x, "lens": torch.tensor(lens), "frame_shift": shift}
    return {"feature_lens": torch.tensor(FBANK), "fields": fields}


@pytest.fixture
def student():
    torch.manual_seed(1)
    stacks = tuple(torch.randn(2, max(FINE), d, requires_grad=True) for d in STACKS)
    return StudentOutput(
        torch.randn(2, max(LENS), 5),
        torch.tensor(LENS),
        model_without_encoder(9, 5),
        nn.ModuleDict(),
        16,
        stacks,
    )


def make(options, student, infos):
    torch.manual_seed(2)
    term = HiddenTerm(options)
    heads = nn.ModuleDict({"hidden": term.build_heads(MODEL, infos)})
    return term, dataclasses.replace(student, heads=heads)


SLOW = {
    "l2": lambda s, t: ((s - t) ** 2).mean(),
    "cosine": lambda s, t: 1 - s @ t / np.sqrt((s @ s) * (t @ t)),
}


def slow_hidden(term, student, batch, infos, delay):
    """Frame by frame, utterance by utterance, without any padding."""
    total = 0.0
    for stack, share in term.shares.items():
        name = term.config.stacks[stack]
        field, info = batch["fields"][name], infos[name]
        head = student.heads["hidden"][str(stack)]
        for n, frames in enumerate(FINE):
            valid = field["lens"][n : n + 1]
            x = field["x"][n : n + 1, : int(valid)]
            x = align_to_stack(x, valid, field["frame_shift"], torch.tensor([frames]))
            goal = (x[0].numpy() - info.mean) / np.array(info.std)
            h = student.stacks[stack][n, :frames].detach()
            guess = (
                (h.numpy() - info.mean) / np.array(info.std)
                if (head.proj is None)
                else head.proj(h).detach().numpy()
            )
            for t in range(2 * delay, frames):
                for kind, scale in term.losses.items():
                    value = SLOW[kind](guess[t].astype(float), goal[t - 2 * delay])
                    total += share * scale * value
    return total / 2  # frames of 20 ms in one of 40


@pytest.mark.parametrize("losses", [{"l2": 1.0}, {"l2": 0.5, "cosine": 2.0}])
@pytest.mark.parametrize("delay", [0, 3])
@pytest.mark.parametrize("project", ["auto", "always"])
def test_hidden_equals_the_slow_reference(
    student, infos, batch, losses, delay, project
):
    options = dataclasses.replace(BOTH, losses=losses, delay=delay, project=project)
    term, student = make(options, student, infos)
    assert term.shares == {0: 0.75, -1: 0.25}
    mapped = [head.proj is not None for head in student.heads["hidden"].values()]
    assert mapped == [True, project == "always"]
    output = term(student, batch, 0)
    slow = slow_hidden(term, student, batch, infos, delay)
    assert float(output.sum) == pytest.approx(slow, rel=1e-4)
    assert output.count == sum(LENS) - 2 * delay
    assert output.extras["stack0_l2"][1] == sum(FINE) - 4 * delay


def test_padding_is_ignored(student, infos, batch):
    term, student = make(BOTH, student, infos)
    before = term(student, batch, 0)
    before.sum.backward()
    for stack in student.stacks:
        assert stack.grad[1, FINE[1] :].abs().sum() == 0
        assert stack.grad[1, : FINE[1]].abs().sum() > 0
    with torch.no_grad():
        for stack in student.stacks:
            stack[1, FINE[1] :] = 1e6
    for name, (_, _, lens) in FIELDS.items():
        batch["fields"][name]["x"][1, lens[1] :] = 1e6
    assert float(term(student, batch, 0).sum) == pytest.approx(float(before.sum))


def test_the_order_of_the_batch_does_not_matter(student, infos, batch):
    term, student = make(BOTH, student, infos)
    before = float(term(student, batch, 0).sum)
    for field in batch["fields"].values():
        field["x"], field["lens"] = field["x"].flip(0), field["lens"].flip(0)
    batch["feature_lens"] = batch["feature_lens"].flip(0)
    flipped = dataclasses.replace(
        student,
        lens=student.lens.flip(0),
        stacks=tuple(s.flip(0) for s in student.stacks),
    )
    assert float(term(flipped, batch, 0).sum) == pytest.approx(before, rel=1e-5)


def test_a_stack_of_weight_zero_is_as_if_it_were_not_there(student, infos, batch):
    options = dataclasses.replace(BOTH, stack_weights={0: 0.0})
    term, one = make(options, student, infos)
    assert term.fields == ("near",) and list(one.heads["hidden"]) == ["-1"]
    alone, other = make(HiddenConfig(stacks={-1: "near"}), student, infos)
    found = float(term(one, batch, 0).sum)
    assert found == pytest.approx(float(alone(other, batch, 0).sum))


@pytest.mark.parametrize("row", [0, 1])
def test_utterances_without_a_target_are_counted_and_add_nothing(
    student, infos, batch, row
):
    term, student = make(BOTH, student, infos)
    for field in batch["fields"].values():
        field["lens"][row] = 0
    output = term(student, batch, 0)
    assert output.skipped == {"no_target": [row]} and output.count == LENS[1 - row]
    output.sum.backward()
    assert student.stacks[0].grad[row].abs().sum() == 0
    assert student.stacks[0].grad[1 - row].abs().sum() > 0
    batch["fields"]["near"]["lens"][1 - row] = 0
    output = term(student, batch, 0)
    assert set(output.extras) == {"stack0_l2"} and output.count == LENS[1 - row]
    empty = {"x": torch.zeros(2, 0, 0), "lens": torch.zeros(2).long()}
    none = {name: {**empty, "frame_shift": 0.0} for name in FIELDS}
    output = term(student, {**batch, "fields": none}, 0)
    assert (output.count, float(output.sum)) == (0, 0.0)
    assert output.skipped == {"no_target": [0, 1]}


def test_a_delay_longer_than_the_audio_counts_nothing(student, infos, batch):
    term, student = make(dataclasses.replace(BOTH, delay=40), student, infos)
    output = term(student, batch, 0)
    assert output.count == 0 and float(output.sum) == 0.0
    assert output.skipped == {"too_short": [0, 1]}


def test_utterances_that_are_not_finite_are_named(student, infos, batch):
    with torch.no_grad():
        student.stacks[0][1, 2] = float("nan")
    term, student = make(BOTH, student, infos)
    assert term(student, batch, 0).suspects == (1,)


def test_a_dimension_that_the_teacher_does_not_move_rules_nothing(
    student, infos, batch
):
    term, student = make(HiddenConfig(stacks={1: "near"}), student, infos)
    infos["near"].std[2] = 0.0
    _, still = make(HiddenConfig(stacks={1: "near"}), student, infos)
    least = 0.01 * np.mean(infos["near"].std)
    assert float(still.heads["hidden"]["1"].std[2]) == pytest.approx(least, rel=1e-5)
    assert float(term(still, batch, 0).sum) < 1e5 * float(term(student, batch, 0).sum)


def test_frames_of_the_stacks_own_rate_are_taken_whole_and_others_averaged():
    x = torch.arange(60.0).reshape(1, 60, 1)
    lens, out_lens = torch.tensor([60]), torch.tensor([50])
    same = align_to_stack(x, lens, 0.02, out_lens)[0, :, 0]
    # Frame j at 20 j + 45 ms lies in frame j + 2; the ends take in what is left over.
    torch.testing.assert_close(same[1:49], torch.arange(3.0, 51.0))
    other = align_to_stack(x, lens, 0.01, torch.tensor([20]))
    expected = align_frames(x, lens, 0.01, torch.tensor([20]), 0.02, 0.045)
    torch.testing.assert_close(other, expected)


@pytest.mark.parametrize(
    "options, match",
    [
        ({"stacks": {}, "stack_weights": {}}, "at least one stack"),
        ({"stack_weights": {0: 0.0, -1: 0.0}}, "at least one stack"),
        ({"stack_weights": {1: 1.0}}, r"be of the stacks \[-1, 0\]"),
        ({"stack_weights": {0: -1.0}}, "must not be negative"),
        ({"losses": {"l2": 0.0}}, "at least one stack and one loss"),
        ({"losses": {"l9": 1.0}}, r"terms.hidden.losses: unknown \['l9'\]"),
        ({"project": "never"}, "project is 'never'"),
        ({"delay": -1}, "delay is -1"),
        ({"stacks": {2: "near"}, "stack_weights": {}}, "no stack 2, there are 2"),
    ],
)
def test_impossible_options_are_refused(student, infos, options, match):
    with pytest.raises(ValueError, match=match):
        make(dataclasses.replace(BOTH, **options), student, infos)


def test_a_field_of_another_kind_and_a_model_without_stacks_are_refused(infos):
    term = HiddenTerm(BOTH)
    config = ModelConfig(field_encoder=FieldEncoderConfig(fields=("near",)))
    with pytest.raises(ValueError, match="embeddings has no stacks"):
        term.build_heads(config, infos)
    infos["near"].kind = "ctc"
    with pytest.raises(ValueError, match="is of kind 'ctc', not 'embedding'"):
        term.build_heads(MODEL, infos)


@pytest.fixture(scope="module")
def listening(checkpoint, cuts, tmp_path_factory):
    """A batch of real prompts with what a student's own stacks say, and their infos."""
    folder = tmp_path_factory.mktemp("own") / "shar"
    write_shar([c for c in cuts if 1.0 < c.duration < 2.5][:4], folder)
    options = {"layers": [0, 1, 2], "chunk_size": 16, "left_context": 64}
    teacher = build_teacher("zipformer", checkpoint, "own", **options)
    infos, _ = extract(folder, [teacher])
    assert list(infos) == ["own_layer0", "own_layer1", "own_layer2"]
    assert {i.frame_shift for i in infos.values()} == {0.02}
    codecs = {name: make_codec("fp16") for name in infos}
    batch = BatchDataset(fields=codecs)[CutSet.from_cuts(open_shar(folder, codecs))]
    return batch, infos


def loss_of(model, listening, chunk_size=16, **options):
    batch, infos = listening
    options = {"stacks": {i: f"own_layer{i}" for i in range(3)}, **options}
    terms = [(1.0, HiddenTerm(HiddenConfig(**options)))]
    heads = build_heads(terms, students.STUDENT, infos, seed=0)
    model.encoder.set_chunk(chunk_size, 64)
    with torch.no_grad():
        _, frames, outputs = DistilledStudent(model, terms, heads).eval()(batch, 0)
    return float(outputs["hidden"].sum) / frames


def test_a_student_that_is_its_teacher_has_no_loss_and_another_has(
    pristine_student, listening
):
    """Real audio; what is left is half precision of the field, and the last frames."""
    assert loss_of(pristine_student, listening) < 0.01
    assert loss_of(pristine_student, listening, delay=1) > 0.1
    # With full context it sees the future and does not lag.
    at_once = loss_of(pristine_student, listening, chunk_size=-1)
    assert loss_of(pristine_student, listening, chunk_size=-1, delay=1) == at_once
    torch.manual_seed(5)
    assert loss_of(build_model(students.STUDENT), listening) > 0.5
