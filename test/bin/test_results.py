"""Results of bin.decode and bin.transcribe: reuse, sets without text, chunks."""

import copy
import json
import shutil

import pytest
from students import STREAMING, call, call_decode, write_unlabelled

from icefall_kd.bin import report, transcribe
from icefall_kd.data.shar import write_shar
from icefall_kd.export.files import ModelFiles, find_chunking
from icefall_kd.recognition.options import Chunking
from icefall_kd.transducer.checkpoint import load_checkpoint, save_checkpoint


def test_another_set_at_same_path_is_decoded_again(
    checkpoint, own_words, model_dir, cuts, tmp_path
):
    shar, out = tmp_path / "set", tmp_path / "out"
    options = ["--model-dir", model_dir, "--shar-dir", shar, "--out-dir", out]
    found = {}
    for name, source in (("own", own_words), ("test", None)):
        shutil.rmtree(shar, ignore_errors=True)
        if source:
            shutil.copytree(source, shar)
        else:
            write_shar(cuts[:3], shar)
        call(transcribe, *options)
        sherpa = json.loads((out / "result-set-sherpa-greedy_search.json").read_text())
        found[name] = call_decode(checkpoint, shar, out), sherpa
    for own, test in zip(*found.values()):
        assert (own["utterances"], test["utterances"]) == (10, 3)
        assert own["wer"] < 20 < test["wer"]


@pytest.mark.parametrize(
    "option", [("--max-duration", "20"), ("--beam", "2"), ("--left-context", "128")]
)
def test_changed_option_decodes_again(checkpoint, pair, tmp_path, option):
    base = ["--method", "modified_beam_search", *STREAMING]
    call_decode(checkpoint, pair, tmp_path, *base)
    for path in tmp_path.glob("result-*.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "mark": 1}))
    assert "mark" in call_decode(checkpoint, pair, tmp_path, *base)
    assert "mark" not in call_decode(checkpoint, pair, tmp_path, *base, *option)


def test_default_chunks_are_those_of_the_checkpoint(checkpoint, pair, tmp_path):
    changed = load_checkpoint(checkpoint)
    changed["model_config"]["encoder"].update(
        chunk_size=[-1, 32, 16], left_context_frames=[128, 64]
    )
    save_checkpoint(tmp_path / "b.pt", changed)
    result = call_decode(tmp_path / "b.pt", pair, tmp_path, "--streaming")
    assert (result["chunk_size"], result["left_context"]) == (32, 128)
    result = call_decode(checkpoint, pair, tmp_path, "--streaming", "--chunk-size", 32)
    assert (result["chunk_size"], result["left_context"]) == (32, 64)
    changed["model_config"]["encoder"]["left_context_frames"] = [-1]
    save_checkpoint(tmp_path / "c.pt", changed)
    with pytest.raises(ValueError, match=r"c\.pt: .*left context .*set --left-context"):
        call_decode(tmp_path / "c.pt", pair, tmp_path, "--streaming")


def test_only_streaming_encoder_needs_no_options(model_dir, pair, tmp_path):
    folder, out = shutil.copytree(model_dir, tmp_path / "export"), tmp_path / "out"
    assert (folder / "encoder-streaming-chunk-16-left-64.onnx").is_file()
    options = ["--model-dir", folder, "--shar-dir", pair, "--out-dir", out]
    call(transcribe, *options, "--streaming")
    assert list(out.glob("result-pair-sherpa-greedy_search-chunk-16-left-64.json"))
    other = folder / "encoder-streaming-chunk-32-left-64.onnx"
    other.write_bytes(b"")
    with pytest.raises(ValueError, match="several .*chunk-16-left-64.*chunk-32-left"):
        call(transcribe, *options, "--streaming")
    assert find_chunking(folder, chunk_size=16) == Chunking(16, 64)
    with pytest.raises(FileNotFoundError, match="no encoder-.*chunk-24.*chunk-16"):
        find_chunking(folder, chunk_size=24)
    for path in folder.glob("encoder*.onnx"):
        if "int8" in path.name or "streaming" not in path.name:
            path.unlink()
    with pytest.raises(FileNotFoundError, match="no encoder-.*--check-shar SET"):
        find_chunking(folder, int8=True)
    with pytest.raises(FileNotFoundError, match="use --streaming"):
        ModelFiles.in_folder(folder).check_exist()


def test_set_without_transcripts_is_not_in_reports(
    checkpoint, cuts, pair, model_dir, tmp_path, caplog, capsys
):
    bare = write_unlabelled(tmp_path / "bare", cuts[:2])
    out = tmp_path / "exp/kd/decode"
    result = call_decode(checkpoint, bare, out)
    assert caplog.messages[0].startswith(f"{bare}: no cut has a transcript")
    assert (result["wer"], result["utterances"]) == (None, 2)
    lines = (out / "hyps-bare-greedy_search.txt").read_text().splitlines()
    assert len(lines) == 2 and all(len(line.split()) > 1 for line in lines)
    options = ["--model-dir", model_dir, "--shar-dir", bare, "--out-dir", out]
    call(transcribe, *options)
    assert "no transcripts, hypotheses in recogs-bare" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no result has a WER"):
        call(report, "--exp", tmp_path / "exp")
    call_decode(checkpoint, pair, out)
    caplog.clear()
    text = call(report, "--exp", tmp_path / "exp")
    assert "Set pair:" in text and "Set bare:" not in text
    assert "2 results of sets without transcripts" in caplog.text


def test_cut_without_transcript_is_reported(checkpoint, cuts, tmp_path, caplog):
    some = copy.deepcopy(cuts[:2])
    some[0].supervisions = []
    write_shar(some, tmp_path / "half")
    assert call_decode(checkpoint, tmp_path / "half", tmp_path)["ins"] > 0
    assert "1 of 2 cuts have no transcript" in caplog.text


def test_model_that_emits_only_blanks_is_reported(checkpoint, pair, tmp_path, caplog):
    mute = load_checkpoint(checkpoint)
    mute["model"]["joiner.output_linear.bias"][0] += 1000
    save_checkpoint(tmp_path / "mute.pt", mute)
    assert call_decode(tmp_path / "mute.pt", pair, tmp_path)["empty_rate"] == 1
    assert "2 of 2 hypotheses are empty" in caplog.text
    assert "--blank-penalty" in caplog.text
