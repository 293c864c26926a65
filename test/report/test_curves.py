"""Training curves."""

import math

import pytest
from reported import Page

from icefall_kd.report.curves import Axis, Chart, charts, draw, round_ticks
from icefall_kd.report.results import find_results
from icefall_kd.report.runs import Run, Stage, find_run


@pytest.fixture
def runs(exp):
    found = {}
    for name in ("baseline", "kd"):
        result = find_results(name, exp / name)[0]
        found[name] = find_run(result.path, result.facts["checkpoint"])
    return found


def test_every_stage_has_the_loss_and_its_terms(runs):
    assert [(c.stage, c.metric) for c in charts(runs)] == [
        ("pretrain", "loss"),
        ("pretrain", "ctc"),
        ("pretrain", "transducer"),
        ("finetune", "loss"),
        ("finetune", "ctc"),
        ("finetune", "transducer"),
    ]
    chart = charts(runs)[3]
    assert chart.lines["kd", "dev"] == [(100, 1.25), (200, 0.75), (300, 0.5)]
    assert chart.lines["baseline", "train"][0] == (100, 3.0)


def test_the_word_error_rate_on_dev_comes_first_with_its_name():
    lines = [
        {"kind": "train", "step": 5, "epoch": 1, "loss": 2.0, "ctc": 2.0},
        {"kind": "epoch", "step": 5, "epoch": 1, "cuts": 7},
        {"kind": "dev", "step": 5, "epoch": 1, "loss": 1.0, "ctc": 1.0, "wer_ctc": 64},
    ]
    found = charts({"kd": Run((Stage("finetune", tuple(lines)),))})
    assert [c.metric for c in found] == ["wer_ctc", "ctc"]  # the loss is the term's
    assert found[0].lines == {("kd", "dev"): [(5, 64)]}
    figure = draw(found[0], ["kd"])
    assert "finetune: WER % on dev, greedy search of the CTC head" in figure
    assert "<title>kd, 5 updates: 64</title>" in figure


def test_metrics_are_chosen_by_name_and_an_unknown_one_is_refused(runs):
    assert {c.metric for c in charts(runs, ["transducer.pruned"])} == {
        "transducer.pruned"
    }
    with pytest.raises(ValueError, match=r"\['wer'\].*'ctc', 'loss', 'lr'"):
        charts(runs, ["loss", "wer"])


def test_a_chart_has_a_line_for_each_system_and_kind(runs):
    chart = charts(runs)[3]
    figure = draw(chart, ["baseline", "kd"])
    lines = [a for tag, a in Page(figure).tags if tag == "polyline"]
    assert [len(line["points"].split()) for line in lines] == [3] * 4
    for name, values in (("baseline", "1.5 1.25 1.125"), ("kd", "1.25 0.75 0.5")):
        for epoch, value in enumerate(values.split(), 1):
            assert f"<title>{name}, {100 * epoch} updates: {value}</title>" in figure


def test_a_larger_value_lies_higher_and_in_the_frame(runs):
    for chart in charts(runs):
        dots = [a for t, a in Page(draw(chart, ["baseline", "kd"])).tags]
        dots = [(float(a["cx"]), float(a["cy"])) for a in dots if "cx" in a]
        points = [
            p for (_, kind), ps in chart.lines.items() if kind == "dev" for p in ps
        ]
        assert len(dots) == len(points)
        by_value = sorted(zip(points, dots), key=lambda pair: pair[0][1])
        heights = [y for _, (_, y) in by_value]
        assert heights == sorted(heights, reverse=True)
        assert all(0 <= x <= 440 and 0 <= y <= 280 for x, y in dots)


@pytest.mark.parametrize("log", [False, True])
def test_an_axis_maps_its_ends_and_its_ticks_lie_within(log):
    axis = Axis(0.04, 9.0, 10.0, 110.0, log)
    assert (axis(0.04), axis(9.0)) == (10.0, pytest.approx(110.0))
    ticks = axis.ticks()
    assert len(ticks) >= 3
    assert all(0.04 <= t <= 9.0 for t in ticks)
    middle = math.sqrt(0.04 * 9.0) if log else (0.04 + 9.0) / 2
    assert axis(middle) == pytest.approx(60.0)


@pytest.mark.parametrize(
    "low, high, ticks",
    [
        (0, 1450, [0, 500, 1000]),
        (0.0, 1.0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (-3.0, -1.0, [-3, -2.5, -2, -1.5, -1]),
        (2.0, 2.0, [2.0]),
    ],
)
def test_ticks_are_round(low, high, ticks):
    assert round_ticks(low, high) == pytest.approx(ticks)


def test_a_single_value_is_drawn():
    figure = draw(Chart("finetune", "loss", {("a", "dev"): [(7, 0.5)]}), ["a"])
    (dot,) = [a for tag, a in Page(figure).tags if tag == "circle"]
    assert math.isfinite(float(dot["cx"])) and math.isfinite(float(dot["cy"]))
