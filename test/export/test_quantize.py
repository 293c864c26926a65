"""8-bit files: kept if the WER increases little, else refused and removed."""

import shutil

import onnx
import pytest
import torch

from icefall_kd.export.convert import compute_sherpa_fbank
from icefall_kd.export.files import ModelFiles, read_metadata
from icefall_kd.export.onnx import export_model
from icefall_kd.export.ort import open_model
from icefall_kd.export.quantize import (
    EXCLUDED_SHARES,
    Int8Refused,
    matrix_errors,
    quantize_checked,
    quantize_model,
    remove_int8,
)
from icefall_kd.export.sherpa import SherpaRecogniser
from icefall_kd.recognition.options import Chunking
from icefall_kd.recognition.scoring import Recognition, count_errors


@pytest.fixture
def files(exports, head, tmp_path):
    """Float32 files of chunks of 16, in a separate folder."""
    source = exports["chunk-16"]
    for path in (*source.onnx, source.tokens):
        shutil.copy(path, tmp_path)
    return ModelFiles.in_folder(tmp_path, source.chunking, head=head)


@pytest.fixture
def compute_wer(files, greedy, cuts, tokenizer):
    """A function that returns the WER of files, with float32 as the reference."""
    features = compute_sherpa_fbank(files, cuts[:8])

    def words(engine, x):
        return tokenizer.decode(engine.decode(x).tokens).split()

    engine = open_model(files, greedy)
    expected = {k: words(engine, x) for k, x in features.items()}

    def compute(candidate):
        engine = open_model(candidate, greedy)
        found = [
            Recognition(k, expected[k], words(engine, x)) for k, x in features.items()
        ]
        return count_errors(found).wer

    return compute


def test_lossy_int8_is_refused_and_removed(files, compute_wer):
    """8 bits change the tokens of random weights."""
    before = sorted(files.encoder.parent.iterdir())
    with pytest.raises(Int8Refused, match=r"0\.00 %, a loss of \d+\.\d\d") as refused:
        quantize_checked(files, compute_wer)
    assert refused.value.result.loss > 0.3
    assert sorted(files.encoder.parent.iterdir()) == before
    assert compute_wer(files) == 0.0


def test_int8_within_maximum_loss_is_kept(files, compute_wer):
    result = quantize_checked(files, compute_wer, max_loss=1000.0)
    assert result.accepted
    assert result.wer_float == 0.0 < result.wer_int8
    for small, large in zip(files.int8.check_exist().onnx, files.onnx):
        assert small.stat().st_size < large.stat().st_size


def test_removal_keeps_files_of_other_encoders(tmp_path):
    chunking = Chunking(16, 64)
    full, streaming, ctc = (
        ModelFiles.in_folder(tmp_path, c, int8=True, head=head)
        for c, head in ((None, "transducer"), (chunking, "transducer"), (None, "ctc"))
    )
    for path in {*full.onnx, *streaming.onnx, *ctc.onnx}:
        path.touch()
    remove_int8(ctc)
    remove_int8(streaming)
    assert sorted(tmp_path.iterdir()) == sorted(full.onnx)
    remove_int8(full)
    assert not list(tmp_path.iterdir())


def test_worst_matrices_stay_in_float32(files):
    calls = []

    def compute_wer(candidate):
        calls.append(candidate)
        return [10.0, 12.0, 10.2][len(calls) - 1]

    result = quantize_checked(files, compute_wer)
    total = len(matrix_errors(files.encoder))
    assert result.float_nodes == round(EXCLUDED_SHARES[1] * total) > 5
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


@pytest.mark.parametrize("kind", ["full", "chunk-16"])
def test_int8_keeps_metadata_and_runs_in_sherpa(
    kind, exports, head, greedy, waves, tmp_path
):
    source = exports[kind]
    for path in (*source.onnx, source.tokens):
        shutil.copy(path, tmp_path)
    files = ModelFiles.in_folder(tmp_path, source.chunking, head=head)
    int8 = quantize_model(files)
    assert int8 == files.int8 and int8.float32 == files
    for small, large in zip(int8.onnx, files.onnx):
        assert read_metadata(large).items() <= read_metadata(small).items()
    hyp = SherpaRecogniser(int8, greedy).decode([next(iter(waves.values()))])[0]
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
