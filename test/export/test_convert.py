"""From a checkpoint to a folder."""

import json
import shutil

import pytest
from students import STUDENT

from icefall_kd.data.tokens import train_bpe
from icefall_kd.export.convert import Conversion, EnginesDisagree
from icefall_kd.export.files import ModelFiles
from icefall_kd.io import sha256_file, write_json
from icefall_kd.training.checkpoint import save_pretrained


def test_the_folder_has_all_that_a_recogniser_needs(exported):
    folder = exported["full"].encoder.parent
    assert {p.name for p in folder.iterdir()} == {
        "bpe.model",
        "bpe.vocab",
        "decoder.onnx",
        "encoder.onnx",
        "encoder-streaming-chunk-16-left-64.onnx",
        "encoder-streaming-chunk-32-left-64.onnx",
        "export.json",
        "joiner.onnx",
        "tokens.txt",
    }


def test_the_folder_says_where_it_comes_from(exported, checkpoint):
    folder = exported["full"].encoder.parent
    info = json.loads((folder / "export.json").read_text())
    assert info["checkpoint_sha256"] == sha256_file(checkpoint)
    assert info["encoders"]["encoder.onnx"]["parameters"] > 100_000
    assert sorted(info["encoders"]) == sorted(
        files.encoder.name for files in exported.values()
    )


def test_encoders_of_another_checkpoint_do_not_stay(checkpoint, tmp_path):
    stale = tmp_path / "encoder-streaming-chunk-16-left-64.int8.onnx"
    stale.write_bytes(b"of another")
    write_json(
        tmp_path / "export.json", {"checkpoint_sha256": "x", "encoders": {"e": {}}}
    )
    conversion = Conversion(checkpoint, tmp_path)
    conversion.write(None)
    assert [p.name for p in tmp_path.glob("encoder*.onnx")] == ["encoder.onnx"]


def test_engines_that_disagree_are_an_error_that_lists_prompts(
    exported, checkpoint, cuts, tmp_path
):
    shutil.copytree(exported["full"].encoder.parent, tmp_path, dirs_exist_ok=True)
    conversion = Conversion(checkpoint, tmp_path)
    files = ModelFiles.of(tmp_path)
    report = conversion.check(files, cuts[:3])
    assert report.ok
    info = json.loads((tmp_path / "export.json").read_text())
    assert info["encoders"]["encoder.onnx"]["check"]["ok"] is True
    conversion.model.joiner.output_linear.bias.data[0] -= 6.0
    with pytest.raises(EnginesDisagree, match=cuts[0].id):
        conversion.check(files, cuts[:3])


def test_a_bpe_model_of_another_size_is_refused(pristine_student, cuts, tmp_path):
    texts = [cut.supervisions[0].text for cut in cuts]
    path = tmp_path / "pretrained.pt"
    weights = pristine_student.state_dict()
    save_pretrained(path, weights, STUDENT, train_bpe(texts, 60), {})
    with pytest.raises(ValueError, match="90 tokens.*60"):
        Conversion(path, tmp_path / "export")
    assert not (tmp_path / "export").exists()


def test_a_model_that_saw_no_text_is_refused(pristine_student, tmp_path):
    path = tmp_path / "pretrained.pt"
    save_pretrained(path, pristine_student.state_dict(), STUDENT, None, {})
    with pytest.raises(ValueError, match="no text"):
        Conversion(path, tmp_path / "export")
