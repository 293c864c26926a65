"""Export of a checkpoint to a folder, with checks."""

import copy
import json
import shutil

import pytest
from students import STUDENT

from icefall_kd.core.files import sha256_file, write_json
from icefall_kd.data.tokens import train_bpe, write_lang
from icefall_kd.decoding import DecodeOptions
from icefall_kd.export import transcribe
from icefall_kd.export.convert import EngineMismatch, Exporter
from icefall_kd.export.files import ModelFiles
from icefall_kd.export.onnx import export_joiner
from icefall_kd.export.quantize import Int8Refused
from icefall_kd.recognition.options import Chunking
from icefall_kd.transducer.checkpoint import save_pretrained


def test_folder_has_all_files_of_a_recogniser(exported):
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


def test_export_json_names_checkpoint_and_hashes(exported, checkpoint):
    folder = exported["full"].encoder.parent
    info = json.loads((folder / "export.json").read_text())
    assert info["checkpoint_sha256"] == sha256_file(checkpoint)
    assert info["encoders"]["encoder.onnx"]["parameters"] > 100_000
    assert {name: e["tail_padding"] for name, e in info["encoders"].items()} == {
        "encoder.onnx": 0.0,
        "encoder-streaming-chunk-16-left-64.onnx": 0.75,
        "encoder-streaming-chunk-32-left-64.onnx": 1.07,
    }
    parts = {path.name for path in folder.iterdir()} - {"export.json"}
    assert info["files"] == {name: sha256_file(folder / name) for name in parts}
    assert sorted(info["encoders"]) == sorted(
        files.encoder.name for files in exported.values()
    )


def test_export_of_another_checkpoint_is_removed(checkpoint, tmp_path, caplog):
    stale = tmp_path / "encoder-streaming-chunk-16-left-64.int8.onnx"
    stale.write_bytes(b"of another")
    (tmp_path / "silero_vad.onnx").write_bytes(b"of the user")
    old = {"checkpoint": "other.pt", "checkpoint_sha256": "x", "encoders": {"e": {}}}
    write_json(tmp_path / "export.json", {**old, "files": {stale.name: "y"}})
    Exporter(checkpoint, tmp_path).write(None)
    assert sorted(p.name for p in tmp_path.glob("*.onnx")) == [
        *("decoder.onnx", "encoder.onnx", "joiner.onnx", "silero_vad.onnx")
    ]
    assert "the export of another checkpoint, other.pt" in caplog.text
    assert f"removed {stale}" in caplog.text
    info = ModelFiles.in_folder(tmp_path).read_info()
    assert list(info["encoders"]) == ["encoder.onnx"]
    assert stale.name not in info["files"]


@pytest.fixture
def folder(exported, tmp_path):
    """A copy of the exported files."""
    source = exported["full"].encoder.parent
    return shutil.copytree(source, tmp_path / "export")


def put_other_tokens(folder, student, tokenizer):
    texts = [tokenizer.piece(i).strip("▁") for i in range(3, 90)]
    write_lang(train_bpe(texts, 60), folder)


def put_other_joiner(folder, student, tokenizer):
    student.joiner.output_linear.bias.data[0] -= 1.0
    export_joiner(student, folder / "joiner.onnx")


def cut_encoder(folder, student, tokenizer):
    with open(folder / "encoder.onnx", "r+b") as f:
        f.truncate(100_000)


@pytest.mark.parametrize(
    "damage, names",
    [
        (put_other_tokens, ["tokens.txt", "bpe.vocab", "bpe.model"]),
        (put_other_joiner, ["joiner.onnx"]),
        (cut_encoder, ["encoder.onnx"]),
    ],
)
def test_changed_file_is_reported(
    folder, student, tokenizer, checkpoint, cuts, tmp_path, damage, names
):
    files, audio = ModelFiles.in_folder(folder), tmp_path / "a.wav"
    audio.write_bytes(b"")
    before = files.sha256
    damage(folder, student, tokenizer)
    assert files.sha256 != before
    found = " .*".join(f"{folder / name}: changed after," for name in names)[:-1]
    message = f"^{found} the export.*--checkpoint {checkpoint} --out-dir {folder}"
    for use in (
        lambda: list(transcribe.transcribe_files(files, [audio], DecodeOptions(), 1)),
        lambda: transcribe.sherpa_info(files, DecodeOptions(), 1, False),
        lambda: transcribe.read_export_hotwords(files, tmp_path / "hotwords.txt", 1.0),
        lambda: Exporter(checkpoint, folder).check(files, cuts[:1]),
        lambda: Exporter(checkpoint, folder).quantize(files, cuts[:1]),
    ):
        with pytest.raises(ValueError, match=message):
            use()


def test_encoder_that_export_did_not_write_is_refused(folder, exported):
    other = folder / "encoder-streaming-chunk-64-left-128.onnx"
    shutil.copy(exported["chunk-32"].encoder, other)
    files = ModelFiles.in_folder(folder, Chunking(64, 128))
    with pytest.raises(
        ValueError, match=f"^{other}: not a file of the export.*--chunk-size 64 --left"
    ):
        files.read_info()
    exported["chunk-32"].read_info()


def test_export_without_hashes_is_refused(folder, checkpoint):
    info = json.loads((folder / "export.json").read_text())
    del info["files"]
    write_json(folder / "export.json", info)
    with pytest.raises(ValueError, match=f"older version.*--checkpoint {checkpoint}"):
        ModelFiles.in_folder(folder).read_info()
    Exporter(checkpoint, folder).write(None)
    ModelFiles.in_folder(folder).read_info()  # only this encoder was exported again
    with pytest.raises(ValueError, match="chunk-16-left-64.onnx: not a file of"):
        ModelFiles.in_folder(folder, Chunking(16, 64)).read_info()


def test_files_of_another_checkpoint_are_refused(
    folder, pristine_student, tokenizer, cuts, tmp_path
):
    other, weights = tmp_path / "other.pt", pristine_student.state_dict()
    save_pretrained(other, weights, STUDENT, tokenizer.model_bytes, {"epoch": 2})
    with pytest.raises(ValueError, match=f"export of .*, not of {other}"):
        Exporter(other, folder).check(ModelFiles.in_folder(folder), cuts[:1])


def without_text(cut):
    cut = copy.deepcopy(cut)
    cut.supervisions[0].text = None
    return cut


def test_int8_is_compared_with_float32_without_text(folder, checkpoint, cuts, caplog):
    exporter, files = Exporter(checkpoint, folder), ModelFiles.in_folder(folder)
    unlabelled = [without_text(cut) for cut in cuts[:3]]
    with pytest.raises(Int8Refused, match=r"float32 0\.00 %, a loss of \d+"):
        exporter.quantize(files, unlabelled)
    assert "the float32 hypotheses are the references" in caplog.text
    assert not list(folder.glob("*.int8.onnx"))
    info = files.read_info()
    assert info["encoders"]["encoder.onnx"]["int8"]["accepted"] is False
    assert not any("int8" in name for name in info["files"])
    result = exporter.quantize(files, unlabelled, max_loss=1000.0)
    assert result.wer_float == 0.0 < result.wer_int8
    info = files.int8.read_info()
    facts = info["encoders"]["encoder.onnx"]["int8"]
    assert facts["references"] == "float32 hypotheses"
    assert info["files"]["encoder.int8.onnx"] == sha256_file(files.int8.encoder)


def test_int8_skips_cuts_without_text(folder, checkpoint, cuts, caplog):
    exporter, files = Exporter(checkpoint, folder), ModelFiles.in_folder(folder)
    alone = exporter.quantize(files, cuts[:2], max_loss=1000.0)
    mixed = [*cuts[:2], without_text(cuts[2])]
    assert exporter.quantize(files, mixed, max_loss=1000.0) == alone
    assert "1 cuts have no text" in caplog.text


def test_int8_is_refused_if_no_word_is_recognised(student, tokenizer, cuts, tmp_path):
    student.joiner.output_linear.bias.data[0] += 1000.0
    weights, path = student.state_dict(), tmp_path / "pretrained.pt"
    save_pretrained(path, weights, STUDENT, tokenizer.model_bytes, {})
    exporter = Exporter(path, tmp_path)
    files = exporter.write(None)
    with pytest.raises(Int8Refused, match="no word in 2 cuts without text"):
        exporter.quantize(files, [without_text(cut) for cut in cuts[:2]])


def test_mismatch_lists_the_prompts(exports, head, checkpoint, cuts, tmp_path):
    shutil.copytree(exports["full"].folder, tmp_path, dirs_exist_ok=True)
    exporter = Exporter(checkpoint, tmp_path, head)
    files = ModelFiles.in_folder(tmp_path, head=head)
    assert exporter.check(files, cuts[:3]).ok
    info = json.loads((tmp_path / "export.json").read_text())
    assert info["encoders"][files.encoder.name]["check"]["ok"] is True
    model = exporter.model
    output = model.ctc_output[1] if head == "ctc" else model.joiner.output_linear
    output.bias.data[0] -= 6.0
    message = rf"MISMATCH on 3 of 3 prompts[^$]*{cuts[0].id}"
    with pytest.raises(EngineMismatch, match=message):
        exporter.check(files, cuts[:3])


def test_both_heads_share_a_folder(checkpoint, tmp_path):
    for head in ("transducer", "ctc"):
        Exporter(checkpoint, tmp_path, head).write(None)
    assert {p.name for p in tmp_path.glob("*.onnx")} == {
        *("encoder.onnx", "decoder.onnx", "joiner.onnx", "model.onnx")
    }
    entries = json.loads((tmp_path / "export.json").read_text())["encoders"]
    assert 0 < entries["model.onnx"]["parameters"]
    assert entries["model.onnx"]["parameters"] != entries["encoder.onnx"]["parameters"]


def test_bpe_model_of_another_size_is_refused(pristine_student, cuts, tmp_path):
    texts = [cut.supervisions[0].text for cut in cuts]
    path = tmp_path / "pretrained.pt"
    weights = pristine_student.state_dict()
    save_pretrained(path, weights, STUDENT, train_bpe(texts, 60), {})
    with pytest.raises(ValueError, match="90 tokens.*60"):
        Exporter(path, tmp_path / "export")
    assert not (tmp_path / "export").exists()


def test_checkpoint_without_tokenizer_is_refused(pristine_student, tmp_path):
    path = tmp_path / "pretrained.pt"
    save_pretrained(path, pristine_student.state_dict(), STUDENT, None, {})
    with pytest.raises(ValueError, match="no tokenizer"):
        Exporter(path, tmp_path / "export")
