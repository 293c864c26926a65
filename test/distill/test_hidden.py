"""The ``hidden`` term: slow reference, padding, order, a copy of the teacher."""

import dataclasses

import numpy as np
import pytest
import students
import torch
from lhotse import CutSet
from term_inputs import (
    LENS,
    MODEL,
    SLOW_LOSSES,
    build,
    embedding_field,
    embedding_infos,
    reverse_batch,
    without_targets,
)

from icefall_kd.core.config import FieldEncoderConfig, ModelConfig
from icefall_kd.core.frames import align_frames, align_to_stack
from icefall_kd.data.shar import write_shar
from icefall_kd.dataset.dataset import load_batch
from icefall_kd.distill.hidden import HiddenConfig, HiddenTerm
from icefall_kd.fields.codecs import make_codec
from icefall_kd.fields.extract import extract
from icefall_kd.fields.reader import open_shar
from icefall_kd.teachers import build_teacher
from icefall_kd.training.student import DistilledStudent, build_heads
from icefall_kd.transducer.model import build_model

FBANK = [98, 59]  # frames of 10 ms
FINE = [45, 26]  # of the stacks, 20 ms
FIELDS = {"near": (5, 0.02, [51, 31]), "far": (7, 0.04, [26, 15])}  # dim, shift, lens
BOTH = HiddenConfig(stacks={0: "far", -1: "near"}, stack_weights={0: 3.0})


@pytest.fixture
def infos():
    return embedding_infos({name: dim for name, (dim, _, _) in FIELDS.items()})


@pytest.fixture
def batch():
    torch.manual_seed(0)
    fields = {name: embedding_field(*shape) for name, shape in FIELDS.items()}
    return {"feature_lens": torch.tensor(FBANK), "fields": fields}


def make(options, student, infos):
    return build(HiddenTerm(options), student, infos)


def slow_value(term, student, batch, infos, delay):
    """Return the loss, summed frame by frame and without padding."""
    total = 0.0
    for stack, share in term.shares.items():
        name = term.config.stacks[stack]
        field, info = batch["fields"][name], infos[name]
        head = student.heads["hidden"][str(stack)]
        for n, frames in enumerate(FINE):
            valid = field["lens"][n : n + 1]
            x = field["x"][n : n + 1, : int(valid)]
            x = align_to_stack(x, valid, field["frame_shift"], torch.tensor([frames]))
            target = (x[0].numpy() - info.mean) / np.array(info.std)
            h = student.stacks[stack][n, :frames].detach()
            prediction = (
                (h.numpy() - info.mean) / np.array(info.std)
                if (head.proj is None)
                else head.proj(h).detach().numpy()
            )
            for t in range(2 * delay, frames):
                for kind, scale in term.losses.items():
                    value = SLOW_LOSSES[kind](
                        prediction[t].astype(float), target[t - 2 * delay]
                    )
                    total += share * scale * value
    return total / 2  # to frames of 40 ms


@pytest.mark.parametrize("losses", [{"l2": 1.0}, {"l2": 0.5, "cosine": 2.0}])
@pytest.mark.parametrize("delay", [0, 3])
@pytest.mark.parametrize("project", ["auto", "always"])
def test_the_value_equals_the_slow_reference(
    student, infos, batch, losses, delay, project
):
    options = dataclasses.replace(BOTH, losses=losses, delay=delay, project=project)
    term, student = make(options, student, infos)
    assert term.shares == {0: 0.75, -1: 0.25}
    projected = [head.proj is not None for head in student.heads["hidden"].values()]
    assert projected == [True, project == "always"]
    output = term(student, batch, 0)
    slow = slow_value(term, student, batch, infos, delay)
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
    after = float(term(*reverse_batch(student, batch), 0).sum)
    assert after == pytest.approx(before, rel=1e-5)


def test_a_stack_of_weight_zero_is_off(student, infos, batch):
    options = dataclasses.replace(BOTH, stack_weights={0: 0.0})
    term, one = make(options, student, infos)
    assert term.fields == ("near",) and list(one.heads["hidden"]) == ["-1"]
    alone, other = make(HiddenConfig(stacks={-1: "near"}), student, infos)
    found = float(term(one, batch, 0).sum)
    assert found == pytest.approx(float(alone(other, batch, 0).sum))


@pytest.mark.parametrize("row", [0, 1])
def test_utterances_without_a_target_are_listed_and_add_nothing(
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
    batch["fields"] = without_targets(FIELDS)
    output = term(student, batch, 0)
    assert (output.count, float(output.sum)) == (0, 0.0)
    assert output.skipped == {"no_target": [0, 1]}


def test_a_delay_longer_than_the_audio_counts_nothing(student, infos, batch):
    term, student = make(dataclasses.replace(BOTH, delay=40), student, infos)
    output = term(student, batch, 0)
    assert output.count == 0 and float(output.sum) == 0.0
    assert output.skipped == {"too_short": [0, 1]}


def test_utterances_that_are_not_finite_are_listed(student, infos, batch):
    with torch.no_grad():
        student.stacks[0][1, 2] = float("nan")
    term, student = make(BOTH, student, infos)
    assert term(student, batch, 0).suspects == (1,)


def test_a_constant_dimension_of_the_teacher_does_not_dominate(student, infos, batch):
    term, student = make(HiddenConfig(stacks={1: "near"}), student, infos)
    infos["near"].std[2] = 0.0
    _, constant = make(HiddenConfig(stacks={1: "near"}), student, infos)
    least = 0.01 * np.mean(infos["near"].std)
    assert float(constant.heads["hidden"]["1"].std[2]) == pytest.approx(least, rel=1e-5)
    usual = float(term(student, batch, 0).sum)
    assert float(term(constant, batch, 0).sum) < 1e5 * usual


def test_frames_at_the_rate_of_the_stacks_are_copied_and_others_averaged():
    x = torch.arange(60.0).reshape(1, 60, 1)
    lens, out_lens = torch.tensor([60]), torch.tensor([50])
    same = align_to_stack(x, lens, 0.02, out_lens)[0, :, 0]
    # Frame j of a stack is centred at 20 j + 45 ms, in input frame j + 2.  The first
    # and the last output frame also average the remaining input frames.
    torch.testing.assert_close(same[1:49], torch.arange(3.0, 51.0))
    other = align_to_stack(x, lens, 0.01, torch.tensor([20]))
    expected = align_frames(x, lens, 0.01, torch.tensor([20]), 0.02, 0.045)
    torch.testing.assert_close(other, expected)


@pytest.mark.parametrize(
    "options, match",
    [
        ({"stacks": {}, "stack_weights": {}}, "at least one stack"),
        ({"stack_weights": {0: 0.0, -1: 0.0}}, "at least one stack"),
        ({"stack_weights": {1: 1.0}}, r"terms.hidden.stack_weights: .*\[-1, 0\]"),
        ({"stack_weights": {0: -1.0}}, "stack_weights: .*negative"),
        ({"losses": {"l2": 0.0}}, "at least one stack and one loss"),
        ({"losses": {"l9": 1.0}}, "terms.hidden.losses: .*l9"),
        ({"delay": -1}, "terms.hidden.delay: -1"),
        (
            {"stacks": {2: "near"}, "stack_weights": {}},
            "no stack 2. Available: -2 to 1",
        ),
    ],
)
def test_invalid_options_are_refused(student, infos, options, match):
    with pytest.raises(ValueError, match=match):
        make(dataclasses.replace(BOTH, **options), student, infos)


def test_a_field_of_another_kind_and_a_model_without_stacks_are_refused(infos):
    term = HiddenTerm(BOTH)
    config = ModelConfig(field_encoder=FieldEncoderConfig(fields=("near",)))
    with pytest.raises(ValueError, match="no stacks"):
        term.build_heads(config, infos)
    infos["near"].kind = "ctc"
    with pytest.raises(ValueError, match="is of kind 'ctc', not 'embedding'"):
        term.build_heads(MODEL, infos)


@pytest.fixture(scope="module")
def stack_fields(checkpoint, cuts, tmp_path_factory):
    """A batch of prompts whose fields are a student's stacks, and ``FieldInfo``s."""
    folder = tmp_path_factory.mktemp("stacks") / "shar"
    write_shar([c for c in cuts if 1.0 < c.duration < 2.5][:4], folder)
    options = {"layers": [0, 1, 2], "chunk_size": 16, "left_context": 64}
    teacher = build_teacher("zipformer", checkpoint, "same", **options)
    infos, _ = extract(folder, [teacher])
    assert list(infos) == ["same_layer0", "same_layer1", "same_layer2"]
    assert {i.frame_shift for i in infos.values()} == {0.02}
    codecs = {name: make_codec("fp16") for name in infos}
    batch = load_batch(CutSet.from_cuts(open_shar(folder, codecs)), codecs)
    return batch, infos


def loss_of(model, stack_fields, chunk_size=16, **options):
    batch, infos = stack_fields
    options = {"stacks": {i: f"same_layer{i}" for i in range(3)}, **options}
    terms = [(1.0, HiddenTerm(HiddenConfig(**options)))]
    heads = build_heads(terms, students.STUDENT, infos, seed=0)
    model.encoder.set_chunk(chunk_size, 64)
    with torch.no_grad():
        _, frames, outputs = DistilledStudent(model, terms, heads).eval()(batch, 0)
    return float(outputs["hidden"].sum) / frames


def test_a_copy_of_the_teacher_has_no_loss_and_another_student_has(
    pristine_student, stack_fields
):
    """The remaining loss is from the field's half precision and the last frames."""
    assert loss_of(pristine_student, stack_fields) < 0.01
    assert loss_of(pristine_student, stack_fields, delay=1) > 0.1
    # A delay does not apply with full context.
    plain = loss_of(pristine_student, stack_fields, chunk_size=-1)
    assert loss_of(pristine_student, stack_fields, chunk_size=-1, delay=1) == plain
    torch.manual_seed(5)
    assert loss_of(build_model(students.STUDENT), stack_fields) > 0.5
