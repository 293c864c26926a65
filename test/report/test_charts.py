"""Charts of training metrics."""

import math

import pytest

from icefall_kd.report.charts import Axis, Chart, layout, make_charts, round_ticks
from icefall_kd.report.results import find_results
from icefall_kd.report.runs import Run, Stage, find_run


@pytest.fixture
def runs(exp):
    found = {}
    for name in ("baseline", "kd"):
        result = find_results(name, exp / name)[0]
        found[name] = find_run(result.path, result.facts["checkpoint"])
    return found


def test_each_stage_has_charts_of_the_loss_and_its_terms(runs):
    assert [(c.stage, c.metric) for c in make_charts(runs)] == [
        ("pretrain", "loss"),
        ("pretrain", "ctc"),
        ("pretrain", "transducer"),
        ("finetune", "loss"),
        ("finetune", "ctc"),
        ("finetune", "transducer"),
    ]
    chart = make_charts(runs)[3]
    assert chart.curves["kd", "dev"] == [(100, 1.25), (200, 0.75), (300, 0.5)]
    assert chart.curves["baseline", "train"][0] == (100, 3.0)


def test_the_word_error_rate_on_dev_is_the_first_chart():
    lines = [
        {"kind": "train", "step": 5, "epoch": 1, "loss": 2.0, "ctc": 2.0},
        {"kind": "epoch", "step": 5, "epoch": 1, "cuts": 7},
        {"kind": "dev", "step": 5, "epoch": 1, "loss": 1.0, "ctc": 1.0, "wer_ctc": 64},
    ]
    found = make_charts({"kd": Run((Stage("finetune", tuple(lines)),))})
    assert [c.metric for c in found] == [
        "wer_ctc",
        "ctc",
    ]  # ctc is the only term of the loss
    assert found[0].curves == {("kd", "dev"): [(5, 64)]}
    drawing = layout(found[0], ["kd"])
    assert drawing["title"] == "finetune: WER % on dev, greedy search of the CTC head"
    ((dot,),) = [curve["dots"] for curve in drawing["curves"]]
    assert dot[2] == "kd, 5 updates: 64"


def test_an_unknown_metric_is_reported(runs):
    assert {c.metric for c in make_charts(runs, ["transducer.pruned"])} == {
        "transducer.pruned"
    }
    with pytest.raises(ValueError, match=r"\['wer'\].*'ctc', 'loss', 'lr'"):
        make_charts(runs, ["loss", "wer"])


def test_a_chart_has_a_curve_for_each_system_and_kind(runs):
    drawing = layout(make_charts(runs)[3], ["baseline", "kd"])
    curves = {(c["index"], c["kind"]): c for c in drawing["curves"]}
    assert sorted(curves) == [(0, "dev"), (0, "train"), (1, "dev"), (1, "train")]
    assert all(len(c["points"].split()) == 3 for c in curves.values())
    assert curves[0, "train"]["dots"] == []
    assert [text for _, _, text in curves[1, "dev"]["dots"]] == [
        "kd, 100 updates: 1.25",
        "kd, 200 updates: 0.75",
        "kd, 300 updates: 0.5",
    ]


def test_a_larger_value_has_a_higher_position(runs):
    for chart in make_charts(runs):
        curves = layout(chart, ["baseline", "kd"])["curves"]
        dots = [(float(x), float(y)) for c in curves for x, y, _ in c["dots"]]
        points = [
            p for (_, kind), ps in chart.curves.items() if kind == "dev" for p in ps
        ]
        assert len(dots) == len(points)
        by_value = sorted(zip(points, dots), key=lambda pair: pair[0][1])
        heights = [y for _, (_, y) in by_value]
        assert heights == sorted(heights, reverse=True)
        assert all(0 <= x <= 440 and 0 <= y <= 280 for x, y in dots)


@pytest.mark.parametrize("is_log", [False, True])
def test_the_ticks_of_an_axis_are_between_its_ends(is_log):
    axis = Axis(0.04, 9.0, 10.0, 110.0, is_log)
    assert (axis(0.04), axis(9.0)) == (10.0, pytest.approx(110.0))
    ticks = axis.ticks()
    assert len(ticks) >= 3
    assert all(0.04 <= t <= 9.0 for t in ticks)
    middle = math.sqrt(0.04 * 9.0) if is_log else (0.04 + 9.0) / 2
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


def test_a_single_value_has_a_position():
    chart = Chart("finetune", "loss", {("a", "dev"): [(7, 0.5)]})
    ((dot,),) = [curve["dots"] for curve in layout(chart, ["a"])["curves"]]
    assert math.isfinite(float(dot[0])) and math.isfinite(float(dot[1]))
