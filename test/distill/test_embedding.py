"""The ``embedding`` term with all teachers, one drawn at random, or their average."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from term_inputs import (
    DIM,
    LENS,
    SLOW_LOSSES,
    TOKENS,
    build,
    embedding_field,
    embedding_infos,
    remove_target,
    reverse_batch,
    without_targets,
)

from icefall_kd.core.frames import align_frames
from icefall_kd.distill.embedding import EmbeddingConfig, EmbeddingTerm, draw_teachers

CUTS = [SimpleNamespace(id="first"), SimpleNamespace(id="second")]


@pytest.fixture
def infos():
    return embedding_infos({"wise": 5, "old": 3})


@pytest.fixture
def batch():
    torch.manual_seed(0)
    fields = {
        "wise": embedding_field(5, 0.02, [50, 30]),
        "old": embedding_field(3, 0.04, [25, 15]),
    }
    return {"tokens": TOKENS, "fields": fields, "cuts": CUTS}


def make(student, infos, **options):
    options = {"teachers": {"wise": 0.7, "old": 0.3}, "losses": {"l1": 1.0}, **options}
    return build(EmbeddingTerm(EmbeddingConfig(**options)), student, infos)


def slow_value(term, student, batch, infos, delay=0):
    """Return the loss, summed frame by frame and without padding."""
    total = 0.0
    for name, weight in term.teachers.items():
        field, info = batch["fields"][name], infos[name]
        head = student.heads["embedding"][name]
        for n, frames in enumerate(LENS):
            valid = field["lens"][n : n + 1]
            x = field["x"][n : n + 1, : int(valid)]
            aligned = align_frames(
                x, valid, field["frame_shift"], torch.tensor([frames])
            )
            target = (aligned[0] - torch.tensor(info.mean)) / torch.tensor(info.std)
            prediction = head.proj(student.encoder_out[n, :frames]).detach()
            for t in range(delay, frames):
                pair = prediction[t].double().numpy(), target[t - delay].numpy()
                for kind, scale in term.losses.items():
                    total += weight * scale * SLOW_LOSSES[kind](*pair)
    return total


@pytest.mark.parametrize("losses", [{"l1": 1.0}, {"l2": 0.5, "cosine": 2.0}])
@pytest.mark.parametrize("delay", [0, 3])
def test_the_value_equals_the_slow_reference(student, infos, batch, losses, delay):
    term, student = make(student, infos, losses=losses, delay=delay)
    output = term(student, batch, 0)
    slow = slow_value(term, student, batch, infos, delay)
    assert float(output.sum) == pytest.approx(slow, rel=1e-4)
    assert output.count == sum(LENS) - 2 * delay


def test_padding_is_ignored(student, infos, batch):
    term, student = make(student, infos, losses={"l2": 1.0, "cosine": 1.0})
    before = term(student, batch, 0)
    before.sum.backward()
    gradient = student.encoder_out.grad.clone()
    assert gradient[1, LENS[1] :].abs().sum() == 0
    assert gradient[1, : LENS[1]].abs().sum() > 0
    batch["fields"]["wise"]["x"][1, 30:] = 1e6
    with torch.no_grad():
        student.encoder_out[1, LENS[1] :] = 1e6
    assert float(term(student, batch, 0).sum) == pytest.approx(float(before.sum))


def test_the_order_of_the_batch_does_not_matter(student, infos, batch):
    term, student = make(student, infos)
    before = float(term(student, batch, 0).sum)
    assert float(term(*reverse_batch(student, batch), 0).sum) == pytest.approx(before)


def test_a_perfect_student_has_no_loss(student, infos, batch):
    term, student = make(student, infos, teachers={"old": 1.0, "wise": 0.0})
    assert term.fields == ("old",)
    head = student.heads["embedding"]["old"]
    field = batch["fields"]["old"]
    target = head.normalise(align_frames(field["x"], field["lens"], 0.04, student.lens))
    encoder_out = torch.cat([target, torch.zeros(2, max(LENS), DIM - 3)], dim=2)
    with torch.no_grad():
        head.proj.weight.copy_(torch.eye(DIM)[:3])
        head.proj.bias.zero_()
    perfect = dataclasses.replace(student, encoder_out=encoder_out)
    assert float(term(perfect, batch, 0).sum) == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("row", [0, 1])
def test_utterances_without_a_target_add_nothing(student, infos, batch, row):
    term, student = make(student, infos, losses={"l1": 1.0, "cosine": 0.5})
    for field in batch["fields"].values():
        remove_target(field, row)
    output = term(student, batch, 0)
    other = 1 - row
    fields = {
        name: {
            "x": field["x"][other : other + 1],
            "lens": field["lens"][other : other + 1],
            "frame_shift": field["frame_shift"],
        }
        for name, field in batch["fields"].items()
    }
    alone = dataclasses.replace(
        student,
        encoder_out=student.encoder_out[other : other + 1, : LENS[other]],
        lens=student.lens[other : other + 1],
    )
    expected = term(alone, {**batch, "fields": fields}, 0)
    assert float(output.sum) == pytest.approx(float(expected.sum), rel=1e-5)
    assert output.count == expected.count == LENS[other]
    assert (output.skipped, expected.skipped) == ({"no_target": [row]}, {})
    for name, (value, frames) in expected.extras.items():
        assert output.extras[name][1] == frames == LENS[other]
        assert float(output.extras[name][0]) == pytest.approx(float(value), rel=1e-5)
    output.sum.backward()
    gradient = student.encoder_out.grad
    assert gradient[row].abs().sum() == 0 and gradient[other].abs().sum() > 0


def test_each_teacher_counts_its_own_targets(student, infos, batch):
    term, student = make(student, infos)
    remove_target(batch["fields"]["old"], 1)
    output = term(student, batch, 0)
    assert output.extras["old_l1"][1] == LENS[0]
    assert output.extras["wise_l1"][1] == sum(LENS)
    assert output.count == sum(LENS) and output.skipped == {}


def test_a_batch_without_any_target_counts_nothing(student, infos, batch):
    term, student = make(student, infos)
    batch["fields"] = without_targets(batch["fields"])
    output = term(student, batch, 0)
    assert (output.count, float(output.sum)) == (0, 0.0)
    assert output.skipped == {"no_target": [0, 1]}


@pytest.mark.parametrize("choose", ["all", "average"])
def test_a_delay_does_not_apply_with_full_context(student, infos, batch, choose):
    student = dataclasses.replace(student, chunk_size=-1)
    options = {"choose": choose, "teachers": {"wise": 1.0}}
    plain, late = (
        term(s, batch, 0)
        for term, s in (make(student, infos, **options, delay=d) for d in (0, 3))
    )
    assert float(late.sum) == float(plain.sum) and late.count == sum(LENS)


def test_a_delay_longer_than_the_audio_counts_nothing(student, infos, batch):
    term, student = make(student, infos, delay=40)
    output = term(student, batch, 0)
    assert output.count == 0 and float(output.sum) == 0.0
    assert output.skipped == {"too_short": [0, 1]}


def test_utterances_that_are_not_finite_are_listed(student, infos, batch):
    term, student = make(student, infos)
    with torch.no_grad():
        student.encoder_out[1, 2] = float("nan")
    assert term(student, batch, 0).suspects == (1,)


@pytest.mark.parametrize(
    "options, match",
    [
        ({"losses": {"l9": 1.0}}, r"terms.embedding.losses: .*l9.*cosine"),
        ({"teachers": {}}, "at least one teacher"),
        ({"losses": {"l1": 0.0}}, "at least one teacher"),
        ({"delay": -1}, "terms.embedding.delay: -1"),
        ({"choose": "random", "teachers": {"wise": -1.0}}, "teachers: .*negative"),
    ],
)
def test_invalid_options_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        EmbeddingTerm(EmbeddingConfig(**{"teachers": {"wise": 1.0}, **options}))


def test_a_random_teacher_is_used_for_each_utterance(student, infos, batch):
    """Each teacher has a head; the loss has the weight of all teachers together."""
    student.model.train()
    weights = {"wise": 0.9, "old": 0.3}
    term, student = make(student, infos, choose="random", teachers=weights)
    has_target = {name: torch.ones(2).bool() for name in weights}
    seen = set()
    for step in range(30):
        output = term(student, batch, step)
        drawn = draw_teachers(has_target, term.teachers, ["first", "second"], step)
        expected = 0.0
        for name, is_drawn in drawn.items():
            single, other = make(student, infos, teachers={name: 1.0})
            other.heads["embedding"][name] = student.heads["embedding"][name]
            field = batch["fields"][name]
            fields = {name: {**field, "lens": field["lens"] * is_drawn}}
            expected += 1.2 * float(single(other, {**batch, "fields": fields}, 0).sum)
        assert float(output.sum) == pytest.approx(expected, rel=1e-5)
        assert output.count == sum(LENS) and output.skipped == {}
        seen.add(tuple(drawn["wise"].tolist()))
    assert len(seen) >= 3  # "wise" for both utterances, for one of them, or for none


def test_the_draw_depends_on_step_and_utterance_only():
    has_target = {name: torch.ones(2000).bool() for name in ("wise", "old", "far")}
    ids = [f"cut-{i}" for i in range(2000)]
    weights = {"wise": 0.5, "old": 0.2, "far": 0.1}
    drawn = draw_teachers(has_target, weights, ids, 7)
    per_utterance = sum(is_drawn.long() for is_drawn in drawn.values())
    assert torch.equal(per_utterance, torch.ones(2000).long())
    shares = [float(drawn[name].double().mean()) for name in weights]
    assert shares == pytest.approx([0.625, 0.25, 0.125], abs=0.04)
    again = draw_teachers(has_target, weights, ids[::-1], 7)
    assert all(torch.equal(again[name].flip(0), drawn[name]) for name in weights)
    later = draw_teachers(has_target, weights, ids, 8)
    changed = (later["wise"] != drawn["wise"]).double().mean()
    assert float(changed) == pytest.approx(2 * 0.625 * 0.375, abs=0.05)


def test_the_draw_is_among_the_teachers_with_a_target():
    has_target = {name: torch.ones(2000).bool() for name in ("wise", "old", "far")}
    has_target["wise"][:1000] = False
    ids = [f"cut-{i}" for i in range(2000)]
    weights = {"wise": 0.5, "old": 0.2, "far": 0.1}
    drawn = draw_teachers(has_target, weights, ids, 7)
    assert not drawn["wise"][:1000].any()
    assert float(drawn["old"][:1000].double().mean()) == pytest.approx(2 / 3, abs=0.05)
    none = {name: torch.zeros(2).bool() for name in weights}
    drawn = draw_teachers(none, weights, ids[:2], 7)
    assert not any(is_drawn.any() for is_drawn in drawn.values())


def test_evaluation_uses_all_teachers_instead_of_a_random_one(student, infos, batch):
    term, random = make(student, infos, choose="random")
    every, other = make(student, infos)
    expected = float(every(other, batch, 0).sum)
    assert not student.model.training
    assert float(term(random, batch, 0).sum) == pytest.approx(expected)


def test_the_average_of_teachers_has_one_projection(student, infos, batch):
    infos["old"] = infos["wise"]  # the same dimension
    torch.manual_seed(4)
    batch["fields"]["old"] = embedding_field(5, 0.04, [25, 15])
    term, student = make(student, infos, choose="average", losses={"l2": 1.0})
    heads = student.heads["embedding"]
    assert [head.proj is not None for head in heads.values()] == [True, False]
    output = term(student, batch, 0)
    total = 0.0
    for n, frames in enumerate(LENS):
        target = 0.0
        for name, weight in {"wise": 0.7, "old": 0.3}.items():
            field = batch["fields"][name]
            aligned = align_frames(
                field["x"][n : n + 1],
                field["lens"][n : n + 1],
                field["frame_shift"],
                torch.tensor([frames]),
            )
            target = target + weight * heads[name].normalise(aligned)[0]
        prediction = heads["wise"].proj(student.encoder_out[n, :frames])
        total += float((prediction - target).square().mean(dim=1).sum())
    assert float(output.sum) == pytest.approx(total, rel=1e-4)
    assert set(output.extras) == {"average_l2"} and output.count == sum(LENS)
    for field in batch["fields"].values():
        remove_target(field, 1)
    output = term(student, batch, 0)
    assert output.skipped == {"no_target": [1]}
    assert output.extras["average_l2"][1] == LENS[0]
    output.sum.backward()
    assert student.encoder_out.grad[1].abs().sum() == 0


def test_the_average_is_over_the_teachers_with_a_target(student, infos, batch):
    infos["old"] = infos["wise"]
    batch["fields"]["old"] = {**batch["fields"]["wise"], "x": torch.randn(2, 50, 5)}
    batch["fields"]["old"]["lens"] = torch.zeros(2).long()
    term, average = make(student, infos, choose="average")
    single, other = make(student, infos, teachers={"wise": 1.0})
    other.heads["embedding"]["wise"] = average.heads["embedding"]["wise"]
    expected = float(single(other, batch, 0).sum)
    assert float(term(average, batch, 0).sum) == pytest.approx(expected, rel=1e-5)


def test_teachers_of_different_dimensions_have_no_average(student, infos):
    with pytest.raises(ValueError, match="teachers: .*'wise': 5, 'old': 3.*random"):
        make(student, infos, choose="average")
