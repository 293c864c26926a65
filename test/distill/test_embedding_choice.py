"""The term ``embedding`` with one teacher of several, or with their mean."""

from types import SimpleNamespace

import embeddings
import pytest
import torch
from embeddings import LENS, embedding, without_target

from icefall_kd.core.frames import align_frames
from icefall_kd.distill.embedding import draw_teachers

infos, batch, student = embeddings.infos, embeddings.batch, embeddings.student
CUTS = [SimpleNamespace(id="first"), SimpleNamespace(id="second")]


def test_a_random_teacher_teaches_each_utterance(student, infos, batch):
    """It is one of the two, with its own head, at the weight of both together."""
    student.model.train()
    batch["cuts"] = CUTS
    term, student = embedding(
        student, infos, choose="random", teachers={"wise": 0.9, "old": 0.3}
    )
    heads = student.heads["embedding"]
    seen = set()
    for step in range(30):
        output = term(student, batch, step)
        told = {n: torch.ones(2).bool() for n in ("wise", "old")}
        drawn = draw_teachers(told, term.teachers, ["first", "second"], step)
        expected = 0.0
        for name, chosen in drawn.items():
            one, other = embedding(student, infos, teachers={name: 1.0})
            other.heads["embedding"][name] = heads[name]
            field = batch["fields"][name]
            lens = field["lens"] * chosen
            fields = {name: {**field, "lens": lens}}
            expected += 1.2 * float(one(other, {**batch, "fields": fields}, 0).sum)
        assert float(output.sum) == pytest.approx(expected, rel=1e-5)
        assert output.count == sum(LENS) and output.skipped == {}
        seen.add(tuple(drawn["wise"].tolist()))
    assert len(seen) >= 3  # both, either, and seldom none


def test_a_random_teacher_is_the_same_for_the_step_and_the_utterance():
    told = {name: torch.ones(2000).bool() for name in ("wise", "old", "far")}
    ids = [f"cut-{i}" for i in range(2000)]
    weights = {"wise": 0.5, "old": 0.2, "far": 0.1}
    drawn = draw_teachers(told, weights, ids, 7)
    assert torch.equal(sum(c.long() for c in drawn.values()), torch.ones(2000).long())
    shares = [float(drawn[name].double().mean()) for name in weights]
    assert shares == pytest.approx([0.625, 0.25, 0.125], abs=0.04)
    again = draw_teachers(told, weights, ids[::-1], 7)
    assert all(torch.equal(again[name].flip(0), drawn[name]) for name in told)
    later = draw_teachers(told, weights, ids, 8)
    apart = (later["wise"] != drawn["wise"]).double().mean()
    assert float(apart) == pytest.approx(2 * 0.625 * 0.375, abs=0.05)
    told["wise"][:1000] = False  # the others of these utterances
    drawn = draw_teachers(told, weights, ids, 7)
    assert not drawn["wise"][:1000].any()
    assert float(drawn["old"][:1000].double().mean()) == pytest.approx(2 / 3, abs=0.05)
    nobody = {name: torch.zeros(2).bool() for name in told}
    drawn = draw_teachers(nobody, weights, ids[:2], 7)
    assert not any(chosen.any() for chosen in drawn.values())


def test_in_evaluation_all_teachers_teach(student, infos, batch):
    """Which is what random ones do in the mean."""
    term, student = embedding(student, infos, choose="random")
    both, other = embedding(student, infos)
    expected = float(both(other, batch, 0).sum)
    assert not student.model.training
    assert float(term(student, batch, 0).sum) == pytest.approx(expected)


def test_the_mean_of_teachers_is_learned_through_one_head(student, infos, batch):
    infos["old"] = infos["wise"]  # of one size
    torch.manual_seed(4)
    batch["fields"]["old"] = {
        "x": torch.randn(2, 25, 5),
        "lens": torch.tensor([25, 15]),
        "frame_shift": 0.04,
    }
    term, student = embedding(student, infos, choose="average", losses={"l2": 1.0})
    heads = student.heads["embedding"]
    assert [head.proj is not None for head in heads.values()] == [True, False]
    output = term(student, batch, 0)
    total = 0.0
    for n, frames in enumerate(LENS):
        goal = 0.0
        for name, weight in {"wise": 0.7, "old": 0.3}.items():
            field = batch["fields"][name]
            aligned = align_frames(
                field["x"][n : n + 1],
                field["lens"][n : n + 1],
                field["frame_shift"],
                torch.tensor([frames]),
            )
            goal = goal + weight * heads[name].normalise(aligned)[0]
        guess = heads["wise"].proj(student.encoder_out[n, :frames])
        total += float((guess - goal).square().mean(dim=1).sum())
    assert float(output.sum) == pytest.approx(total, rel=1e-4)
    assert set(output.extras) == {"average_l2"} and output.count == sum(LENS)
    without_target(batch["fields"]["old"], 1)
    without_target(batch["fields"]["wise"], 1)
    output = term(student, batch, 0)
    assert output.skipped == {"no_target": [1]}
    assert output.extras["average_l2"][1] == LENS[0]
    output.sum.backward()
    assert student.encoder_out.grad[1].abs().sum() == 0


def test_the_mean_is_of_the_teachers_that_say_something(student, infos, batch):
    infos["old"] = infos["wise"]
    batch["fields"]["old"] = {**batch["fields"]["wise"], "x": torch.randn(2, 50, 5)}
    term, student = embedding(student, infos, choose="average")
    without_target(batch["fields"]["old"], 0)
    without_target(batch["fields"]["old"], 1)
    alone, other = embedding(student, infos, teachers={"wise": 1.0})
    other.heads["embedding"]["wise"] = student.heads["embedding"]["wise"]
    expected = float(alone(other, batch, 0).sum)
    assert float(term(student, batch, 0).sum) == pytest.approx(expected, rel=1e-5)


def test_teachers_of_different_sizes_have_no_mean(student, infos):
    with pytest.raises(ValueError, match="'average'.*'wise': 5, 'old': 3.*or random"):
        embedding(student, infos, choose="average")
