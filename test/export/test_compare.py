"""PyTorch, ONNX Runtime and sherpa-onnx on test prompts."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from icefall_kd.data.features import compute_fbank
from icefall_kd.decoding import DecodeOptions, Hypothesis
from icefall_kd.export.compare import (
    FEATURE_TOLERANCE,
    Comparison,
    Difference,
    FeatureFlip,
    compare_engines,
    decision_margin,
    find_flip,
    first_difference,
    greedy_logits,
)
from icefall_kd.export.onnx import export_joiner
from icefall_kd.export.ort import OrtHypothesis
from icefall_kd.recognition.recognise import decode_full_context

GREEDY = DecodeOptions(unk_id=2)
CTC_GREEDY = DecodeOptions("ctc_greedy_search", unk_id=2)


@pytest.mark.parametrize(
    "options, prompts", [(GREEDY, 50), (CTC_GREEDY, 20)], ids=["transducer", "ctc"]
)
@pytest.mark.parametrize("kind", ["full", "chunk-16", "chunk-32"])
def test_three_engines_agree(
    kind, options, prompts, exported, exported_ctc, student, waves
):
    files = (exported if options is GREEDY else exported_ctc)[kind]
    result = compare_engines(
        student, files, dict(list(waves.items())[:prompts]), options
    )
    print("\n".join(result.lines()))  # with -s or on failure
    assert result.prompts == prompts
    assert result.tokens > 20 * prompts
    assert result.differences == []
    assert all(flip.is_explained for flip in result.flips)
    assert result.feature_difference < FEATURE_TOLERANCE
    assert result.ok


def test_joiner_of_another_model_is_detected(exported, student, waves, tmp_path):
    files = exported["full"]
    for path in (files.encoder, files.decoder, files.tokens):
        (tmp_path / path.name).symlink_to(path)
    with torch.no_grad():
        student.joiner.output_linear.weight[7] *= 1.5
    export_joiner(student, tmp_path / "joiner.onnx")
    with torch.no_grad():
        student.joiner.output_linear.weight[7] /= 1.5
    few = dict(list(waves.items())[:5])
    result = compare_engines(student, type(files).in_folder(tmp_path), few, GREEDY)
    assert {d.engines for d in result.differences} == {
        "PyTorch and ONNX Runtime",
        "PyTorch and sherpa-onnx",
    }
    assert not result.ok
    assert result.differences[0].cut_id in "\n".join(result.lines())
    assert result.as_dict()["ok"] is False


def test_greedy_logits_are_those_of_greedy_search(student, waves):
    features = compute_fbank([torch.from_numpy(next(iter(waves.values())))])[0]
    logits = greedy_logits(student, features, GREEDY, None)
    best = [int(i) for i in logits.argmax(axis=1) if i not in (0, 2)]
    assert best == decode_full_context(student, [features], GREEDY)[0].tokens
    logits = greedy_logits(student, features, CTC_GREEDY, None)
    best = [token for token, _ in itertools.groupby(logits.argmax(axis=1)) if token]
    assert best == decode_full_context(student, [features], CTC_GREEDY)[0].tokens


def test_first_difference_is_by_frame():
    a = Hypothesis([5, 6, 7], [0, 3, 9])
    assert first_difference(a, Hypothesis([5, 6, 7], [0, 3, 9])) is None
    assert first_difference(a, Hypothesis([5, 8, 7], [0, 3, 9])) == 3
    assert first_difference(a, Hypothesis([5, 6], [0, 3])) == 9
    assert first_difference(a, Hypothesis([5, 6, 7], [0, 2, 9])) == 2


def test_ctc_decision_may_be_at_earlier_frame():
    margins = np.array([9, 9, 1e-5, 9, 9], np.float32)
    hyp = OrtHypothesis([5, 5], [1, 3], margins=margins)  # or one token, frames 1 to 3
    assert decision_margin(hyp, 3, "ctc") == pytest.approx(1e-5)
    assert decision_margin(hyp, 3, "transducer") == 9
    assert decision_margin(hyp, 1, "ctc") == 9


def test_flip_is_explained_by_shift_of_scores():
    a = np.array([[0, 1, 9, 3], [0.0, 5.0, 2.0, 4.9]])  # <unk> (2), then 1 before 3
    b = np.array([[9, 1, 0, 3], [0.0, 5.0, 2.0, 5.2]])  # blank, then 3 before 1
    flip = find_flip("x", (a, b), unk_id=2, feature_difference=1e-3)
    assert (flip.frame, flip.time, flip.symbols) == (1, 0.04, (1, 3))
    assert flip.margin == pytest.approx(0.1)
    assert flip.shift == pytest.approx(0.3)
    assert flip.is_explained
    coarse = find_flip("x", (a, b), unk_id=2, feature_difference=0.5)
    assert not coarse.is_explained  # larger than rounding


def test_only_ties_are_accepted():
    def compare(margin):
        tokens = ([5], [6])
        return Comparison(differences=[Difference("x", "A and B", 3, margin, tokens)])

    assert compare(1e-5).ok
    assert "a tie" in compare(1e-5).lines()[1]
    assert not compare(1e-3).ok


def test_first_line_has_the_verdict():
    tokens, margins = ([5], [6]), {"tie": 1e-5, "wrong": 1e-3}
    difference = {k: Difference(k, "A and B", 3, m, tokens) for k, m in margins.items()}
    flip = FeatureFlip("flip", 1, 0.04, (1, 3), 0.1, 0.3, 1e-3)
    cases = {
        "match": ([], []),
        "match except for ties (1)": ([difference["tie"]], []),
        "match except for explained flips (1)": ([], [flip]),
        "match except for ties (1), explained flips (1)": ([difference["tie"]], [flip]),
        "MISMATCH on 1 of 9 prompts": (list(difference.values()), [flip]),
    }
    for verdict, (differences, flips) in cases.items():
        result = Comparison(9, tokens=50, differences=differences, flips=flips)
        assert f"sherpa-onnx: {verdict} (9 prompts" in result.lines()[0]
        assert result.ok is ("MISMATCH" not in verdict)
    unexplained = dataclasses.replace(flip, margin=0.5)
    result = Comparison(prompts=9, flips=[unexplained])
    assert result.verdict == "MISMATCH on 1 of 9 prompts"
    assert "no token was recognised" in Comparison(prompts=9).verdict


def test_difference_without_flip_is_not_explained():
    logits = np.array([[0.0, 1.0]])
    assert not find_flip("x", (logits, logits), None, 0.0).is_explained
