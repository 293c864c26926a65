"""bin.align, and bin.decode --alignment, on real prompts."""

import json

import pytest
from students import STREAMING, call, write_own_words, write_unlabelled

from icefall_kd.bin import align, decode
from icefall_kd.recognition.ctm import read_ctm
from icefall_kd.recognition.options import Chunking
from icefall_kd.transducer.checkpoint import load_checkpoint, save_checkpoint

EMISSION = [f"emission_delay_{x}_ms" for x in ("mean", "p90")]
LATENCY = [f"latency_{x}_ms" for x in ("mean", "p90")]


@pytest.fixture(scope="module")
def write_set(cuts, pristine_student, tokenizer, tmp_path_factory):
    """A function that writes two prompts with the student's hypotheses as text."""

    def write(name, chunking=None):
        folder = tmp_path_factory.mktemp("own") / name
        words = cuts[:2], pristine_student, tokenizer
        return write_own_words(folder, *words, "ctc_greedy_search", chunking)

    return write


@pytest.fixture(scope="module")
def own_words(write_set):
    return write_set("own")


def aligned(checkpoint, shar, folder):
    common = ["--checkpoint", checkpoint, "--shar-dir", shar]
    call(align, *common, "--output", folder / "new/words.ctm")
    return folder / "new/words.ctm"


@pytest.fixture(scope="module")
def ctm(checkpoint, own_words, tmp_path_factory):
    return aligned(checkpoint, own_words, tmp_path_factory.mktemp("ctm"))


@pytest.fixture
def call_decode(checkpoint, own_words, tmp_path):
    paths = ["--checkpoint", checkpoint, "--shar-dir", own_words]
    paths += ["--out-dir", tmp_path, "--method", "ctc_greedy_search"]
    return lambda *more: call(decode, *paths, *more)


def test_streaming_result_has_delays(
    checkpoint,
    call_decode,
    write_set,
    tmp_path,
):
    streamed = write_set("streamed", Chunking(16, 64))
    words = aligned(checkpoint, streamed, tmp_path)
    more = ["--shar-dir", streamed, "--alignment", words]
    result = call_decode(*STREAMING, *more)
    stored = json.loads(next(tmp_path.glob("result-*.json")).read_text())
    assert stored == result
    assert result["delay_words"] == result["words"] > 10
    for mean, p90 in (EMISSION, LATENCY):
        assert result[mean] <= result[p90]
    # A frame waits for its chunk at least 112.5 ms and at most 392.5 ms.
    assert 112.5 < result[LATENCY[0]] - result[EMISSION[0]] < 392.5
    assert result["alignment"] == str(words)
    header, line = next(tmp_path.glob("wer-summary-*")).read_text().splitlines()
    summary = dict(zip(header.split("\t"), line.split("\t")))
    assert float(summary["WER"]) == pytest.approx(result["wer"], abs=0.01)
    for name in (*EMISSION, *LATENCY, "delay_words"):
        assert float(summary[name]) == pytest.approx(result[name], rel=1e-4)


def test_emission_delay_of_the_aligner_is_not_positive(call_decode, ctm):
    result = call_decode("--alignment", ctm)
    assert result["delay_words"] == result["words"] > 10
    # A token of several frames is emitted in the first and ends with the last.
    assert -80 < result[EMISSION[0]] <= 0 and result[EMISSION[1]] == 0
    assert LATENCY[0] not in result


def test_result_without_alignment_has_no_delays(call_decode, ctm, tmp_path):
    plain = call_decode()
    names = {*EMISSION, *LATENCY, "delay_words", "alignment", "alignment_sha256"}
    names |= {"aligner", "aligner_sha256"}
    assert names.isdisjoint(plain)
    (summary,) = tmp_path.glob("wer-summary-*")
    assert summary.read_text().startswith("settings\tWER\n")
    measured = call_decode("--alignment", ctm)
    changed = {k: v for k, v in measured.items() if k not in names}
    assert {**changed, "rtf": 0} == {**plain, "rtf": 0}
    assert call_decode() == measured  # reused, with more entries


def test_another_alignment_decodes_again(call_decode, ctm, tmp_path):
    first = call_decode("--alignment", ctm)
    path = tmp_path / "result-own-ctc_greedy_search.json"
    path.write_text(json.dumps({**first, "mark": 1}))
    assert "mark" in call_decode("--alignment", ctm)
    other = tmp_path / "other.ctm"
    other.write_text(ctm.read_text() + ";; of another aligner\n")
    again = call_decode("--alignment", other)
    assert "mark" not in again and again["alignment"] == str(other)


def test_another_aligner_aligns_again(
    checkpoint, own_words, call_decode, tmp_path, caplog
):
    words = aligned(checkpoint, own_words, tmp_path)
    first = call_decode("--alignment", words)
    assert first["aligner"] == str(checkpoint)
    before = words.stat().st_mtime_ns
    aligned(checkpoint, own_words, tmp_path)
    assert words.stat().st_mtime_ns == before  # reused
    other = load_checkpoint(checkpoint)
    other["info"] = {"epoch": 2}  # another checkpoint that gives the same times
    save_checkpoint(tmp_path / "other.pt", other)
    aligned(tmp_path / "other.pt", own_words, tmp_path)
    assert words.stat().st_mtime_ns > before
    again = call_decode("--alignment", words)
    assert again["aligner"] == str(tmp_path / "other.pt")
    assert again["aligner_sha256"] != first["aligner_sha256"]
    assert again["alignment_sha256"] == first["alignment_sha256"]
    words.write_text(words.read_text().replace("1.000", "0.999"))
    words.write_text(words.read_text() + ";; changed by hand\n")
    assert call_decode("--alignment", words)["aligner"] is None
    caplog.clear()
    caplog.set_level("INFO")
    aligned(tmp_path / "other.pt", own_words, tmp_path)
    assert "by hand" not in words.read_text()
    assert "is computed again: it differs from the file" in caplog.text
    assert "nothing has changed" not in caplog.text


def test_set_without_transcripts_is_refused(checkpoint, cuts, tmp_path):
    with pytest.raises(ValueError, match="bare: no transcripts to align"):
        aligned(checkpoint, write_unlabelled(tmp_path / "bare", cuts[:2]), tmp_path)


def test_alignment_of_another_set_ends_in_one_message(
    checkpoint,
    own_words,
    ctm,
    tmp_path,
    monkeypatch,
):
    lines = ctm.read_text().splitlines(keepends=True)
    first = sorted(read_ctm(ctm))[0]
    bad = tmp_path / "bad.ctm"
    bad.write_text("".join(x for x in lines if not x.startswith(f"{first} ")))
    arguments = ["--checkpoint", str(checkpoint), "--shar-dir", str(own_words)]
    arguments += ["--out-dir", str(tmp_path / "out"), "--alignment", str(bad)]
    monkeypatch.setattr("sys.argv", ["decode", *arguments])
    with pytest.raises(SystemExit, match=f"^decode: .*1 of 2 cuts .*{first}"):
        decode.main()
    assert not (tmp_path / "out").exists()


def test_align_reports_missing_files_in_one_message(tmp_path, monkeypatch, own_words):
    arguments = ["align", "--checkpoint", str(tmp_path / "no.pt")]
    arguments += ["--output", str(tmp_path / "a.ctm"), "--shar-dir"]
    for shar, name in ((own_words, "no.pt"), (tmp_path / "none", "none")):
        monkeypatch.setattr("sys.argv", [*arguments, str(shar)])
        with pytest.raises(SystemExit, match=f"^align: .*{name}"):
            align.main()
    assert list(tmp_path.iterdir()) == []
