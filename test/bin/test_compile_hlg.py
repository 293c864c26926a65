"""bin.compile_hlg on the transcripts of real prompts, and bin.decode with its graph."""

import logging
import re

import pytest
from students import STREAMING, call, call_decode, write_unlabelled

from icefall_kd.bin import compile_hlg, decode_fields, tune_hlg
from icefall_kd.decoding.hlg import read_graph
from icefall_kd.fields.extract import extract
from icefall_kd.fields.reader import open_shar
from icefall_kd.recognition.recognise import reference_words
from icefall_kd.teachers import build_teacher

HLG = ("--method", "ctc_hlg", "--graph")


@pytest.fixture
def bpe_model(tokenizer, tmp_path):
    path = tmp_path / "bpe.model"
    path.write_bytes(tokenizer.model_bytes)
    return path


@pytest.fixture
def compile_graph(bpe_model, tmp_path):
    """Function that runs bin.compile_hlg with options; it returns the graph's file."""

    def run(*options, output=tmp_path / "HLG.fst"):
        call(compile_hlg, "--bpe-model", bpe_model, "--output", output, *options)
        return output

    return run


@pytest.fixture(scope="module")
def texts(cuts):
    return sorted({" ".join(reference_words(cut)) for cut in cuts})


def test_decoding_with_a_graph(
    compile_graph, checkpoint, own_words, texts, tokenizer, tmp_path
):
    """The hypotheses consist of words of the graph if other words are too expensive."""
    book = tmp_path / "book.txt"
    book.write_text("\n".join(texts))
    graph = compile_graph("--text", own_words, book, "--oov-penalty", "1000")
    out = tmp_path / "decode"
    full = call_decode(checkpoint, own_words, out, *HLG, graph)
    streaming = call_decode(checkpoint, own_words, out, *HLG, graph, *STREAMING)
    for result in (full, streaming):
        assert result["graph"] == str(graph) and result["beam"] is None
        assert result["graph_sha256"] == read_graph(graph, tokenizer).sha256
        assert f"ctc_hlg-{result['graph_sha256'][:8]}" in result["recogs"]
        known = set(" ".join(texts).split())
        recogs = (out / result["recogs"]).read_text()
        words = [w for line in recogs.split("\n") for w in line.split("'")[1::2]]
        assert sum(w in known for w in words) > 10
    assert call_decode(checkpoint, own_words, out, *HLG, graph)["rtf"] == full["rtf"]
    graph = compile_graph("--text", book, "--word-bonus", "-5")
    fewer = call_decode(checkpoint, own_words, out, *HLG, graph)
    assert fewer["ins"] < full["ins"] or fewer["hyp_words"] < full["hyp_words"]


def test_best_weights_are_chosen(
    compile_graph, checkpoint, own_words, pair, tmp_path, capsys
):
    tuned = tmp_path / "tuned.fst"
    options = ["--checkpoint", checkpoint, "--shar-dir", pair, "--output", tuned]
    weights = ["--word-bonus", "-5", "3", "--oov-penalty", "0", "20"]
    wer, best = call(tune_hlg, *options, "--text", own_words, *weights)
    lines = capsys.readouterr().out.strip().split("\n")
    wers = [float(re.search(r"WER ([\d.]+) %", line)[1]) for line in lines]
    assert len(wers) == 5 and len(set(wers)) > 2
    assert min(wers[:4]) == wers[4] == pytest.approx(wer, abs=0.01)
    weights = ["--word-bonus", best.word_bonus, "--oov-penalty", best.oov_penalty]
    graph = compile_graph("--text", own_words, *weights)
    assert graph.read_bytes() == tuned.read_bytes()
    result = call_decode(checkpoint, pair, tmp_path / "decode", *HLG, graph)
    assert result["wer"] == pytest.approx(wer, abs=0.01)
    unlabelled = write_unlabelled(tmp_path / "unlabelled", list(open_shar(pair)))
    with pytest.raises(ValueError, match="unlabelled: no transcripts"):
        call(tune_hlg, *options, "--shar-dir", unlabelled, "--text", own_words)


def test_fields_are_decoded_with_a_graph(
    compile_graph, checkpoint, pair, bpe_model, tmp_path
):
    teacher = build_teacher("zipformer", checkpoint, "student", outputs=["ctc"])
    extract(pair, [teacher])
    options = ["--fields", "student_ctc", "--bpe-model", bpe_model, *HLG]
    graph = compile_graph("--text", pair)
    out = ["--out-dir", tmp_path / "decode"]
    result = call(decode_fields, "--shar-dir", pair, *options, graph, *out)
    assert result["method"] == "ctc_hlg" and result["graph_sha256"]


def test_held_out_texts_are_removed(compile_graph, texts, tmp_path, caplog):
    book, test = tmp_path / "book.txt", tmp_path / "test.txt"
    book.write_text("\n".join(texts))
    test.write_text("\n".join([*texts[:7], "ANOTHER TEXT"]))
    small = compile_graph("--text", book, "--held-out", test).read_bytes()
    assert "removed 7 of" in caplog.text and min(texts[:7]) in caplog.text
    book.write_text("\n".join(texts[7:]))
    assert compile_graph("--text", book).read_bytes() == small


def test_sources_of_words(compile_graph, texts, tokenizer, tmp_path, caplog):
    """A file of phrases, an ARPA file, and further words."""
    caplog.set_level(logging.INFO)
    phrases, words, arpa = (tmp_path / n for n in ("phrases", "words", "lm.arpa"))
    phrases.write_text("\n".join(texts[:3]))
    words.write_text("\n".join(texts))
    lexicon = len(set(" ".join(texts[:3]).split()))
    compile_graph("--grammar", phrases)
    assert f": {lexicon} words" in caplog.text
    compile_graph("--grammar", phrases, "--words", words)
    assert f": {len(set(' '.join(texts).split()))} words" in caplog.text
    arpa.write_text(compile_hlg.train_ngram(texts[:3], 3))
    by_arpa = compile_graph("--arpa", arpa).read_bytes()
    assert compile_graph("--text", phrases, "--order", "3").read_bytes() == by_arpa


def test_invalid_sources_are_refused(compile_graph, tmp_path):
    for option in ("--text", "--grammar", "--arpa"):
        with pytest.raises(FileNotFoundError, match="nowhere.*not found"):
            compile_graph(option, tmp_path / "nowhere")
    other = tmp_path / "lower.txt"
    other.write_text("press one now\n")
    with pytest.raises(ValueError, match="--text: .* texts are lower case"):
        compile_graph("--text", other)
    assert not (tmp_path / "HLG.fst").exists()


def test_graph_option_is_checked(checkpoint, own_words, compile_graph, tmp_path):
    with pytest.raises(ValueError, match="--graph: ctc_hlg needs a graph"):
        call_decode(checkpoint, own_words, tmp_path, "--method", "ctc_hlg")
    with pytest.raises(FileNotFoundError, match="nowhere.fst: graph not found"):
        call_decode(checkpoint, own_words, tmp_path, *HLG, tmp_path / "nowhere.fst")
    graph = compile_graph("--text", own_words)
    with pytest.raises(ValueError, match="--graph: greedy_search does not read"):
        call_decode(checkpoint, own_words, tmp_path, "--graph", graph)
