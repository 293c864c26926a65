"""8-bit files: kept if the WER stays nearly the same, else refused and removed."""

import shutil

import onnx
import pytest
import torch

from icefall_kd.decoding import DecodeOptions
from icefall_kd.export.convert import compute_sherpa_fbank
from icefall_kd.export.files import read_metadata
from icefall_kd.export.onnx import export_model
from icefall_kd.export.ort import OrtTransducer
from icefall_kd.export.quantize import (
    EXCLUDED_SHARES,
    Int8Refused,
    matrix_errors,
    quantize_checked,
    quantize_model,
)
from icefall_kd.export.sherpa import SherpaRecogniser
from icefall_kd.recognition.scoring import Recognition, count_errors

GREEDY = DecodeOptions(unk_id=2)


@pytest.fixture
def files(exported, tmp_path):
    """Float32 files of chunks of 16, in a separate folder."""
    source = exported["chunk-16"]
    for path in (*source.onnx, source.tokens):
        shutil.copy(path, tmp_path)
    return type(source).in_folder(tmp_path, source.chunking)


@pytest.fixture
def wer(files, cuts, tokenizer):
    """A function that returns the WER of files, with float32 as the reference."""
    features = compute_sherpa_fbank(files, cuts[:8])

    def words(engine, x):
        return tokenizer.decode(engine.decode(x).tokens).split()

    engine = OrtTransducer(files, GREEDY)
    expected = {k: words(engine, x) for k, x in features.items()}

    def measure(candidate):
        engine = OrtTransducer(candidate, GREEDY)
        found = [
            Recognition(k, expected[k], words(engine, x)) for k, x in features.items()
        ]
        return count_errors(found).wer

    return measure


def test_lossy_int8_is_refused_and_removed(files, wer):
    """Random weights do not survive 8 bits."""
    before = sorted(files.encoder.parent.iterdir())
    with pytest.raises(Int8Refused, match=r"0\.00 %, a loss of \d+\.\d\d") as refused:
        quantize_checked(files, wer)
    assert refused.value.result.loss > 0.3
    assert sorted(files.encoder.parent.iterdir()) == before
    assert wer(files) == 0.0


def test_int8_with_small_loss_is_kept(files, wer):
    report = quantize_checked(files, wer, max_loss=1000.0)
    assert report.accepted
    assert report.wer_float == 0.0 < report.wer_int8
    int8 = (
        type(files)
        .in_folder(files.encoder.parent, files.chunking, int8=True)
        .check_exist()
    )
    for small, large in zip(int8.onnx, files.onnx):
        assert small.stat().st_size < large.stat().st_size


def test_worst_matrices_stay_in_float32(files):
    calls = []

    def wer(candidate):
        calls.append(candidate)
        return [10.0, 12.0, 10.2][len(calls) - 1]

    report = quantize_checked(files, wer)
    total = len(matrix_errors(files.encoder))
    assert report.float_nodes == round(EXCLUDED_SHARES[1] * total) > 5
    graph = onnx.load(str(calls[-1].encoder)).graph
    names = {n.name for n in graph.node if n.op_type == "MatMul"}
    assert {name for name, _ in matrix_errors(files.encoder)[:5]} <= names


def test_outlier_gives_largest_matrix_error(student, tmp_path):
    with torch.no_grad():
        student.encoder_embed.out.weight[3, 4] = 40.0
    files = export_model(student, tmp_path)[0]
    (worst, error), (_, second) = matrix_errors(files.encoder)[:2]
    assert "encoder_embed" in worst or "/out/" in worst
    assert error > 5 * second


def test_int8_keeps_metadata_and_runs_in_sherpa(files, waves):
    int8 = quantize_model(files)
    for small, large in zip(int8.onnx, files.onnx):
        assert read_metadata(large).items() <= read_metadata(small).items()
    shutil.copy(files.tokens, int8.tokens) if files.tokens != int8.tokens else None
    hyp = SherpaRecogniser(int8, GREEDY).decode([next(iter(waves.values()))])[0]
    assert len(hyp.tokens) > 5


def test_only_constant_weights_are_quantised(files):
    int8 = quantize_model(files)
    before = onnx.load(str(files.encoder)).graph.node
    after = onnx.load(str(int8.encoder)).graph.node

    def count(nodes, kind):
        return sum(node.op_type == kind for node in nodes)

    constant = len(matrix_errors(files.encoder))
    assert count(after, "MatMulInteger") == constant
    assert count(before, "MatMul") - constant == count(after, "MatMul") > 0
    assert count(before, "Conv") == count(after, "Conv")
