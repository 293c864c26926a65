"""bin.decode, export, transcribe and report on real prompts."""

import json
import re
import shutil

import numpy as np
import pytest
import soundfile
import torch
from encoded_audio import encoded
from lhotse import Recording, SupervisionSegment
from lhotse.supervision import AlignmentItem
from report_files import Page
from students import STREAMING, call, call_decode, write_unlabelled

from icefall_kd.bin import decode, export, report, transcribe
from icefall_kd.core.files import as_path
from icefall_kd.data.shar import write_shar
from icefall_kd.fields.reader import open_shar
from icefall_kd.recognition.ctm import write_ctm
from icefall_kd.recognition.recognise import reference_words
from icefall_kd.transducer.checkpoint import load_checkpoint, save_checkpoint

KEYS = {
    *("wer", "errors", "words", "ins", "del", "sub", "utterances", "rtf", "method"),
    *("checkpoint", "parameters", "interval", "empty_rate", "streaming", "chunk_size"),
}

DELAYS = [
    f"{kind}_{figure}_ms"
    for kind in ("emission_delay", "latency")
    for figure in ("mean", "p90")
]


def test_set_at_url_is_decoded_and_checked(checkpoint, own_words, tmp_path, capsys):
    url = as_path("memory://bucket/sets/own")
    for path in own_words.iterdir():
        (url / path.name).write_bytes(path.read_bytes())
    try:
        result = call_decode(checkpoint, str(url), tmp_path)
        assert (result["wer"], result["utterances"]) == (0.0, 10)
        assert list(tmp_path.glob("recogs-own-greedy_search.txt"))
        paths = ["--checkpoint", str(checkpoint), "--out-dir", str(tmp_path / "onnx")]
        call(export, *paths, "--no-int8", "--check", "--check-shar", str(url))
        options = ["--model-dir", str(tmp_path / "onnx"), "--shar-dir", str(url)]
        call(transcribe, *options, "--out-dir", str(tmp_path / "sherpa"))
        assert list((tmp_path / "sherpa").glob("recogs-own-*.txt"))
    finally:
        url.fs.rm(url.path, recursive=True)


def test_decode_writes_result_files(checkpoint, own_words, tmp_path):
    result = call_decode(checkpoint, own_words, tmp_path)
    assert result["wer"] == 0.0  # the transcripts are the student's hypotheses
    assert KEYS <= set(result)
    assert (result["streaming"], result["utterances"]) == (False, 10)
    assert {p.name for p in tmp_path.iterdir()} == {
        "recogs-own-greedy_search.txt",
        "errs-own-greedy_search.txt",
        "wer-summary-own-greedy_search.txt",
        "result-own-greedy_search.json",
    }


def test_streaming_and_beam_have_their_own_files(
    checkpoint,
    own_words,
    tmp_path,
):
    streaming = call_decode(checkpoint, own_words, tmp_path, *STREAMING)
    beam = ["--method", "modified_beam_search", "--beam", "3"]
    result = call_decode(checkpoint, own_words, tmp_path, *beam)
    assert (streaming["chunk_size"], streaming["tail_padding"]) == (16, 0.75)
    assert streaming["suffix"] == "greedy_search-chunk-16-left-64"
    assert result["suffix"] == "modified_beam_search-beam-3"
    assert len(list(tmp_path.glob("result-*.json"))) == 2


def test_result_is_reused_until_checkpoint_changes(
    checkpoint,
    own_words,
    tmp_path,
):
    first = call_decode(checkpoint, own_words, tmp_path / "out")
    path = tmp_path / "out/result-own-greedy_search.json"
    path.write_text(json.dumps({**first, "mark": 1}))
    assert "mark" in call_decode(checkpoint, own_words, tmp_path / "out")
    assert "mark" not in call_decode(checkpoint, own_words, tmp_path / "out", "--force")
    path.write_text(json.dumps({**first, "mark": 1}))
    changed = load_checkpoint(checkpoint)
    changed["info"] = {"epoch": 2}
    save_checkpoint(tmp_path / "b.pt", changed)
    assert "mark" not in call_decode(tmp_path / "b.pt", own_words, tmp_path / "out")


def test_model_that_is_not_causal_cannot_stream(
    checkpoint,
    own_words,
    tmp_path,
):
    other = load_checkpoint(checkpoint)
    other["model_config"]["encoder"].update(causal=False, chunk_size=[-1])
    other["model"] = {
        # a plain convolution instead of the two of a causal layer
        k.replace("depthwise_conv.chunkwise_conv.", "depthwise_conv."): v
        for k, v in other["model"].items()
        if "causal_conv." not in k and "chunkwise_conv_scale" not in k
    }
    save_checkpoint(tmp_path / "b.pt", other)
    with pytest.raises(ValueError, match="not causal and cannot stream"):
        call_decode(tmp_path / "b.pt", own_words, tmp_path / "out", *STREAMING)
    assert call_decode(tmp_path / "b.pt", own_words, tmp_path / "out")["wer"] > 0


def test_missing_checkpoint_or_set_ends_in_one_message(
    own_words, tmp_path, monkeypatch, capsys
):
    arguments = ["--checkpoint", str(tmp_path / "no.pt"), "--out-dir", str(tmp_path)]
    for shar, name in ((own_words, "no.pt"), (tmp_path / "none", "none")):
        monkeypatch.setattr("sys.argv", ["decode", *arguments, "--shar-dir", str(shar)])
        with pytest.raises(SystemExit, match=name):
            decode.main()
    assert list(tmp_path.iterdir()) == []


def test_ctc_head_is_decoded_exported_and_transcribed(
    checkpoint,
    own_words,
    tmp_path,
):
    out, folder = tmp_path / "decode", tmp_path / "export"
    beam = ["--method", "ctc_prefix_beam_search", "--beam", "3", *STREAMING]
    assert call_decode(checkpoint, own_words, out, *beam)["beam"] == 3
    greedy = ["--method", "ctc_greedy_search"]
    ours = call_decode(checkpoint, own_words, out, *greedy)
    assert KEYS <= set(ours)
    suffixes = (
        "ctc_greedy_search",
        "ctc_prefix_beam_search-beam-3-chunk-16-left-64",
    )
    assert {p.name for p in out.iterdir()} == {
        f"{kind}-own-{suffix}.{'json' if kind == 'result' else 'txt'}"
        for kind in ("recogs", "errs", "wer-summary", "result")
        for suffix in suffixes
    }
    call(
        export,
        *("--checkpoint", str(checkpoint), "--out-dir", str(folder), "--head", "ctc"),
        *("--check", "--check-shar", str(own_words), "--no-int8"),
    )
    paths = ["--model-dir", str(folder), "--shar-dir", str(own_words)]
    call(transcribe, *paths, "--out-dir", str(out), *greedy)
    path = out / "result-own-sherpa-ctc_greedy_search.json"
    theirs = json.loads(path.read_text())
    assert theirs["parameters"] == ours["parameters"]
    assert abs(theirs["errors"] - ours["errors"]) <= 1  # a decision may flip
    with pytest.raises(FileNotFoundError, match="--head transducer"):
        call(transcribe, *paths, "--out-dir", str(out))


@pytest.fixture(scope="module")
def unlabelled(cuts, tmp_path_factory):
    """Five prompts without supervision."""
    return write_unlabelled(tmp_path_factory.mktemp("set") / "unlabelled", cuts[:5])


@pytest.mark.parametrize("check_set, count", [("own_words", 10), ("unlabelled", 5)])
def test_lossy_int8_export_exits_with_status_3(
    checkpoint, request, tmp_path, monkeypatch, capsys, check_set, count
):
    arguments = ["--checkpoint", str(checkpoint), "--out-dir", str(tmp_path)]
    arguments += ["--check", "--check-shar", str(request.getfixturevalue(check_set))]
    monkeypatch.setattr("sys.argv", ["export", *arguments])
    with pytest.raises(SystemExit) as refused:
        export.main()
    assert refused.value.code == export.INT8_REFUSED == 3
    printed = capsys.readouterr()
    assert re.search(r"a loss of \d+\.\d\d absolute", printed.err)
    assert (tmp_path / "encoder.onnx").is_file()
    assert not list(tmp_path.glob("*.int8.onnx"))
    engines = "PyTorch, ONNX Runtime and sherpa-onnx"
    verdict = rf"^encoder.onnx: {engines}: match.* \({count} prompts"
    assert re.search(verdict, printed.out, re.MULTILINE)
    for message in ("non constant B", "pre-processing", "not specified", "onnxruntime"):
        assert message not in printed.err


def test_both_commands_read_hotwords_equally(
    checkpoint, model_dir, own_words, tmp_path
):
    words = sorted(
        {word for cut in open_shar(own_words) for word in reference_words(cut)}
    )
    phrases = [" ".join(words[i : i + 2]) for i in range(0, len(words), 2)]
    (tmp_path / "clean.txt").write_text("\n".join(phrases))
    pieces = ["\u2581" + " ".join(p.replace(" ", "\u2581")) for p in phrases[::2]]
    messy = "\ufeff" + "\r".join([*pieces, *phrases[1::2]])
    (tmp_path / "messy.txt").write_bytes(messy.encode())
    search = ["--method", "modified_beam_search", "--hotwords-score", "9"]
    paths = ["--model-dir", model_dir, "--shar-dir", own_words]

    def texts(name, *hotwords):
        out = tmp_path / name
        call_decode(checkpoint, own_words, out, *search, *hotwords)
        call(transcribe, *paths, "--out-dir", out, *search, *hotwords)
        return {p.read_text() for p in out.glob("recogs-*.txt")}

    clean, messy = (
        texts(name, "--hotwords", tmp_path / f"{name}.txt")
        for name in ("clean", "messy")
    )
    assert len(clean) == 1 and messy == clean
    assert texts("without") != clean


def space_words(cut):
    """Return the words of a cut with equal durations."""
    words = reference_words(cut)
    length = cut.duration / max(1, len(words))
    return [AlignmentItem(word, i * length, length) for i, word in enumerate(words)]


def test_transcribe_agrees_with_decode(
    checkpoint,
    own_words,
    model_dir,
    tmp_path,
):
    times = tmp_path / "own.ctm"
    write_ctm(times, {cut.id: space_words(cut) for cut in open_shar(own_words)}, {})
    paths = ["--model-dir", model_dir, "--shar-dir", own_words]
    paths += ["--out-dir", tmp_path, "--alignment", times]
    for mode in ([], STREAMING):
        call(transcribe, *paths, *mode)
        mode = [*mode, "--alignment", str(times)]
        ours = call_decode(checkpoint, own_words, tmp_path, *mode)
        path = tmp_path / f"result-own-sherpa-{ours['suffix']}.json"
        theirs = json.loads(path.read_text())
        assert KEYS <= set(theirs)
        assert theirs["engine"].startswith("sherpa-onnx 2")
        assert theirs["threads"] == 1
        assert theirs["parameters"] == ours["parameters"]
        # The features differ slightly, so a decision may flip.
        assert theirs["errors"] <= ours["errors"] + 1
        assert theirs["alignment_sha256"] == ours["alignment_sha256"]
        for name in DELAYS if "chunk" in ours["suffix"] else DELAYS[:2]:
            assert theirs[name] == pytest.approx(ours[name], abs=60)
    call(transcribe, *paths, *STREAMING, "--int8")
    name = "result-own-sherpa-greedy_search-chunk-16-left-64-int8.json"
    assert json.loads((tmp_path / name).read_text())["int8"] is True


def test_transcribe_reads_files_of_any_rate(
    model_dir,
    waves,
    tmp_path,
    capsys,
):
    wave = torch.from_numpy(next(iter(waves.values())))
    stereo = torch.stack([wave, torch.zeros_like(wave)], dim=1).numpy()
    soundfile.write(tmp_path / "a.wav", stereo, 16000, subtype="FLOAT")
    soundfile.write(tmp_path / "b.flac", stereo[::2, 0], 8000)
    files = [str(tmp_path / name) for name in ("a.wav", "b.flac")]
    call(transcribe, "--model-dir", str(model_dir), *files)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[0] for line in lines] == files
    assert all(len(line.split("\t")[1].split()) > 1 for line in lines)


def test_transcribe_reports_unreadable_files_and_continues(
    model_dir, waves, tmp_path, capsys
):
    wave = np.concatenate(list(waves.values())[:2])
    names = ["ok.wav", "cut.wav", "cut.flac", "nan.wav", "more.flac"]
    ok, cut, cut_flac, nan, more = files = [tmp_path / name for name in names]
    soundfile.write(ok, wave, 16000)
    soundfile.write(more, wave, 16000)
    cut.write_bytes(ok.read_bytes()[: len(wave)])  # half of its 16-bit samples
    cut_flac.write_bytes(more.read_bytes()[: more.stat().st_size // 2])
    soundfile.write(nan, np.append(wave, np.nan), 16000, subtype="FLOAT")
    (tmp_path / "text.wav").write_text("this is no audio\n" * 100)
    (tmp_path / "empty.wav").touch()
    files += [tmp_path / name for name in ("text.wav", "empty.wav", "none.wav")]
    files += [encoded(tmp_path / "a.m4a", "aac", wave)]
    files += [encoded(tmp_path / "a.webm", "libopus", wave)]
    seconds = f"{len(wave) / 16000:.2f} s"
    reasons = {
        cut: f"is truncated: .* of the {seconds} that its header declares",
        cut_flac: f"is truncated or damaged after .* s of {seconds}",
        nan: "NaN",
        tmp_path / "text.wav": "cannot be decoded",
        tmp_path / "empty.wav": "cannot be decoded",
        tmp_path / "none.wav": "No such file",
    }
    with pytest.raises(SystemExit, match="6 of 10 files"):
        call(transcribe, "--model-dir", model_dir, *files)
    out, err = capsys.readouterr()
    lines = dict(line.split("\t") for line in out.splitlines())
    assert list(lines) == [str(f) for f in files if f not in reasons]
    assert all(len(text.split()) > 1 for text in lines.values())
    assert lines[str(ok)] == lines[str(more)]
    failures = [line for line in err.splitlines() if line.startswith("transcribe: ")]
    assert len(failures) == len(reasons)
    for (path, reason), line in zip(reasons.items(), failures):
        assert re.match(rf"transcribe: {re.escape(str(path))}: .*{reason}", line)


def test_both_engines_split_long_cuts(checkpoint, model_dir, parts, tmp_path):
    wave = np.concatenate(parts)
    soundfile.write(tmp_path / "a.flac", wave, 16000)
    cut = Recording.from_file(tmp_path / "a.flac", recording_id="a").to_cut()
    cut.supervisions = [SupervisionSegment("a", "a", 0.0, cut.duration, text="WORD")]
    shar, out = tmp_path / "long", tmp_path / "out"
    write_shar([cut], shar)
    limit = ["--max-utterance", "10"]
    ours = call_decode(checkpoint, shar, out, *limit)
    assert ours["max_utterance"] == 10.0
    paths = ["--model-dir", model_dir, "--shar-dir", shar, "--out-dir", out]
    call(transcribe, *paths, *limit)
    result = out / "result-long-sherpa-greedy_search.json"
    theirs = json.loads(result.read_text())
    assert theirs["max_utterance"] == 10.0
    assert abs(theirs["errors"] - ours["errors"]) <= 1 + ours["errors"] // 20
    assert ours["errors"] > 40


def test_transcribe_reports_missing_encoder(model_dir, own_words, tmp_path):
    paths = ["--shar-dir", str(own_words), "--out-dir", str(tmp_path / "out")]
    wrong = ["--streaming", "--chunk-size", "32"]
    with pytest.raises(FileNotFoundError, match="chunk-32.*encoder.onnx"):
        call(transcribe, "--model-dir", str(model_dir), *paths, *wrong)
    bare = tmp_path / "bare"
    shutil.copytree(model_dir, bare)
    (bare / "export.json").unlink()
    with pytest.raises(FileNotFoundError, match="export.json"):
        call(transcribe, "--model-dir", str(bare), *paths)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "module, arguments, message",
    [
        (transcribe, ["--model-dir", "x"], "audio files or .*--shar-dir"),
        (transcribe, ["--model-dir", "x", "--shar-dir", "y"], "--out-dir"),
        (export, ["--checkpoint", "x", "--out-dir", "y", "--check"], "--check-shar"),
        (report, ["--system", "x"], "NAME=PATH"),
        (report, [], "--exp FOLDER or --system"),
    ],
)
def test_contradicting_options_are_refused(module, arguments, message):
    with pytest.raises(ValueError, match=message):
        call(module, *arguments)


def test_report_writes_table_and_page_with_audio(
    checkpoint,
    own_words,
    tmp_path,
):
    exp = tmp_path / "exp"
    for system, more in (("baseline", ["--blank-penalty", "3"]), ("kd", [])):
        result = call_decode(checkpoint, own_words, exp / system / "decode", *more)
    call_decode(checkpoint, own_words, exp / "baseline/decode")
    out, html = tmp_path / "table.md", tmp_path / "page.html"
    files = ["--out", str(out), "--html", str(html), "--max-audio", "2"]
    named = ["--exp", str(exp), "--baseline", "baseline"]
    text = call(report, *named, *files, "--shar-dir", str(own_words))
    assert "full context, greedy, blank penalty 3" in text
    assert out.read_text().count("| own |") == 3
    page = Page(html.read_text())
    rows = {(r["system"][0], r["decoding"][0]): r for r in page.rows(0)}
    _, attrs = rows["kd", "full context, greedy"]["WER % [95 %]"]
    assert float(attrs["data-value"]) == result["wer"]
    audio = json.loads(page.scripts[0])["audio"]["own"]
    assert len(audio) == 2
    assert all(uri.startswith("data:audio/flac;base64,") for uri in audio.values())
    with pytest.raises(ValueError, match="no result of set 'decode'"):
        shar = ["--shar-dir", str(exp / "kd/decode")]
        call(report, *named, *files, *shar)
    with pytest.raises(ValueError, match="--set: .*'dev'.* own"):
        call(report, *named, "--set", "dev")


def test_report_without_results_ends_in_one_message(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["report", "--exp", str(tmp_path)])
    with pytest.raises(SystemExit, match=f"report: {tmp_path}: no result-"):
        report.main()
