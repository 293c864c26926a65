"""Checked outputs of teachers, and the choice of an encoder's layers."""

import pytest
import torch

from icefall_kd.teachers.base import (
    Output,
    Teacher,
    TeacherOutput,
    choose_layers,
    run_teacher,
)


@pytest.mark.parametrize(
    "layers, chosen",
    [("last", (12,)), (-1, (12,)), (0, (0,)), (-13, (0,)), ([9, -1, 6], (9, 12, 6))],
)
def test_layers_count_from_the_input_and_from_the_end(layers, chosen):
    assert choose_layers(layers, None, 12).layers == chosen


def test_several_layers_are_one_field_each_and_a_sum_is_one_field():
    each = choose_layers([6, -1], None, 12)
    assert list(each.describe_fields("w")) == ["w_layer6", "w_layer12"]
    assert list(choose_layers([6], None, 12).describe_fields("w")) == ["w"]
    summed = choose_layers([6, -1], [1, 3], 12)
    assert summed.describe_fields("w") == {
        "w": {"layers": [6, 12], "layer_weights": [1.0, 3.0]}
    }
    hidden = {6: torch.ones(1, 2, 3), 12: torch.full((1, 2, 3), 2.0)}
    assert each.select("w", hidden)["w_layer12"] is hidden[12]
    assert torch.equal(summed.select("w", hidden)["w"], torch.full((1, 2, 3), 7.0))


@pytest.mark.parametrize("layers", ["first", "3", 1.5, [], [1.0], True, None, [[1]]])
def test_layers_that_are_not_numbers_are_refused(layers):
    with pytest.raises(ValueError, match="layers: .*'last'.*number"):
        choose_layers(layers, None, 12)


@pytest.mark.parametrize("layers", [13, -14, [0, 13], [-14, 2]])
def test_a_layer_that_does_not_exist_is_refused(layers):
    with pytest.raises(ValueError, match="layers: no layer (13|-14).*0 to 12"):
        choose_layers(layers, None, 12)


def test_repeated_layers_and_too_many_weights_are_refused():
    with pytest.raises(ValueError, match=r"layers: \[12, -1\].*twice"):
        choose_layers([12, -1], None, 12)
    with pytest.raises(ValueError, match="layer_weights: 3 weights for 2 layers"):
        choose_layers([1, 2], [1, 1, 1], 12)


class WrongTeacher(Teacher):
    """Returns 40 values every 20 ms, changed by ``change(x, lens)``."""

    name = "wrong"

    def __init__(self, change, dim=40, frame_shift=0.02):
        self.change = change
        self.outputs = {"y": Output("embedding", dim, frame_shift, {})}

    def forward(self, waves, wave_lens):
        lens = wave_lens // 320
        return self.change(torch.ones(len(waves), int(lens.max()), 40), lens)


def test_an_unknown_kind_is_refused_with_the_available_ones():
    with pytest.raises(ValueError, match="kind.*'logits'.*embedding, ctc, path"):
        Output("logits", 4, 0.02, {})


def as_field(x, lens):
    return {"y": TeacherOutput(x, lens)}


@pytest.mark.parametrize(
    "change, described, parts",
    [
        (as_field, {"dim": 80}, ["'y'", r"\(119, 40\) for cut 'a'", "dim 80"]),
        (as_field, {"frame_shift": 0.01}, ["'y'", "119 frames for cut 'a'", "238.0"]),
        (lambda x, n: as_field(x, n - 5), {}, ["'y'", "114 frames for cut 'a'"]),
        (lambda x, n: as_field(x, n + 5), {}, ["'y'", "lens 124 for cut 'a'"]),
        (lambda x, n: as_field(x, n * 0), {}, ["'y'", "lens 0 for cut 'a'"]),
        (lambda x, n: as_field(x[..., 0], n), {}, ["'y'", r"x \(2, 119\)"]),
        (lambda x, n: as_field(x, n[:1]), {}, ["'y'", r"lens \(1,\)"]),
        (lambda x, n: {"y": (x, n)}, {}, ["'y'", "tuple", "TeacherOutput"]),
        (lambda x, n: (x, n), {}, ["a tuple", "dict"]),
        (lambda x, n: {"z": TeacherOutput(x, n)}, {}, [r"\['z'\]", r"\['y'\]"]),
    ],
    ids="dim shift short long empty 2-D lens pair tuple name".split(),
)
def test_outputs_that_contradict_the_description_are_refused(change, described, parts):
    waves, wave_lens = torch.zeros(2, 119 * 320), torch.tensor([119 * 320, 50 * 320])
    run_teacher(WrongTeacher(as_field), waves, wave_lens, cut_ids=["a", "b"])
    teacher = WrongTeacher(change, **described)
    with pytest.raises(ValueError, match="teacher 'wrong'.*" + ".*".join(parts)):
        run_teacher(teacher, waves, wave_lens, cut_ids=["a", "b"])
