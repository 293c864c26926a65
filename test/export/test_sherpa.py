"""sherpa-onnx compared with PyTorch: features, batches, searches, hotwords."""

import dataclasses
import io

import numpy as np
import pytest
import sentencepiece
import sherpa_onnx
import soundfile
import torch
from lhotse import Recording
from students import STUDENT, random_student

from icefall_kd.data.tokens import Tokenizer, word_spans
from icefall_kd.decoding import DecodeOptions
from icefall_kd.decoding.hlg import HlgOptions, compile_hlg, read_graph
from icefall_kd.decoding.streaming import decode_streaming, pad_tail
from icefall_kd.decoding.word_lm import parse_arpa, train_ngram
from icefall_kd.export import transcribe
from icefall_kd.export.compare import decode_features
from icefall_kd.export.convert import Exporter
from icefall_kd.export.files import ModelFiles
from icefall_kd.export.ort import open_model
from icefall_kd.export.sherpa import SherpaRecogniser, read_tokens, sherpa_features
from icefall_kd.recognition.recognise import (
    decode_full_context,
    decode_waves,
    reference_words,
)
from icefall_kd.transducer.checkpoint import save_pretrained

GREEDY = DecodeOptions(unk_id=2)
CTC_GREEDY = DecodeOptions("ctc_greedy_search", unk_id=2)
BEAM = DecodeOptions("modified_beam_search", unk_id=2)


@pytest.fixture(scope="module")
def some(waves):
    return list(waves.values())[:20]


def assert_same(ours, theirs):
    for a, b in zip(ours, theirs):
        assert (a.tokens, a.timestamps) == (b.tokens, b.timestamps)
    assert sum(len(h.tokens) for h in theirs) > 300


def fbank(waves, chunking=None):
    waves = [torch.from_numpy(w) for w in waves]
    if chunking:
        waves = [pad_tail(w, chunking.chunk_size) for w in waves]
    return [torch.from_numpy(sherpa_features(w.numpy())) for w in waves]


def test_features_equal_those_of_sherpa_bit_for_bit(exported, some):
    files = exported["chunk-16"]
    recogniser = sherpa_onnx.OnlineRecognizer.from_transducer(
        tokens=str(files.tokens),
        encoder=str(files.encoder),
        decoder=str(files.decoder),
        joiner=str(files.joiner),
    )
    for wave in some[:5]:
        stream = recogniser.create_stream()
        stream.accept_waveform(16000, wave)
        stream.input_finished()
        features = sherpa_features(wave)
        held = stream.get_frames(0, len(features))
        np.testing.assert_array_equal(np.reshape(held, features.shape), features)


def test_no_samples_have_no_frames():
    assert sherpa_features(np.zeros(0, np.float32)).shape == (0, 80)


def test_padded_batches_agree(exports, greedy, student, some):
    theirs = SherpaRecogniser(exports["full"], greedy).decode(some)
    assert_same(decode_full_context(student, fbank(some), greedy), theirs)
    assert not any("<unk>" in hyp.text for hyp in theirs)


def collapse(labels):
    """Return the tokens of a CTC path: no repetitions, then no blanks."""
    previous = [0, *labels[:-1]]
    return [
        token for before, token in zip(previous, labels) if token not in (0, before)
    ]


def test_ctc_token_across_chunks_is_one_token(exported_ctc, some):
    files, frames, num_split = exported_ctc["chunk-16"], 16 // 2, 0
    engine = open_model(files, CTC_GREEDY)
    theirs = SherpaRecogniser(files, CTC_GREEDY).decode(some)
    for features, hyp in zip(fbank(some, files.chunking), theirs):
        labels = engine.encode(features.numpy()).argmax(axis=1).tolist()
        assert hyp.tokens == collapse(labels)
        chunks = [labels[i : i + frames] for i in range(0, len(labels), frames)]
        num_split += sum(map(collapse, chunks), []) != hyp.tokens
    assert num_split > 3


def test_waves_without_encoder_frame_give_empty_hypotheses(exported, student, some):
    short = [np.zeros(n, np.float32) for n in (0, 399, 1000, 1359)]
    waves = [short[0], some[0], *short[1:], some[1]]
    theirs = SherpaRecogniser(exported["full"], GREEDY).decode(waves)
    ours = decode_waves(student, [torch.from_numpy(w) for w in waves], GREEDY)
    assert [hyp.tokens for hyp in ours] == [hyp.tokens for hyp in theirs]
    assert [bool(hyp.tokens) for hyp in theirs] == [False, True, *[False] * 3, True]
    runtime = open_model(exported["full"], GREEDY)
    for wave in short:
        assert runtime.decode(sherpa_features(wave)).tokens == []


@pytest.mark.parametrize("options", [BEAM, DecodeOptions(blank_penalty=2.0, unk_id=2)])
def test_beam_search_and_blank_penalty_agree(exported, student, some, options):
    theirs = SherpaRecogniser(exported["full"], options).decode(some)
    assert_same(decode_full_context(student, fbank(some), options), theirs)


@pytest.mark.parametrize("kind", ["chunk-16", "chunk-32"])
def test_streaming_beam_search_agrees(exported, student, some, kind):
    files = exported[kind]
    features = fbank(some, files.chunking)
    size, left = files.chunking.chunk_size, files.chunking.left_context
    ours = decode_streaming(student, features, size, left, BEAM)
    assert_same(ours, SherpaRecogniser(files, BEAM).decode(some))


@pytest.fixture(scope="module")
def hotwords(exported, cuts, tmp_path_factory):
    """Words of the prompts, some with equal starts or within others."""
    words = sorted({word for cut in cuts for word in reference_words(cut)})
    lines = [f"{word} :{1 + n % 5}" for n, word in enumerate(words[::3])]
    lines += [" ".join(reference_words(cut)[1:4]) for cut in cuts[:20]]
    path = tmp_path_factory.mktemp("hotwords") / "hotwords.txt"
    path.write_text("\n".join(lines) + "\n")
    return transcribe.read_export_hotwords(exported["full"], path, 2.0)


@pytest.mark.parametrize("kind", ["full", "chunk-16"])
def test_hotwords_agree(exported, student, some, hotwords, kind):
    files, options = exported[kind], dataclasses.replace(BEAM, hotwords=hotwords)
    features = fbank(some, files.chunking)

    def decode(options):
        if files.chunking is None:
            return decode_full_context(student, features, options)
        size, left = files.chunking.chunk_size, files.chunking.left_context
        return decode_streaming(student, features, size, left, options)

    ours, without = decode(options), decode(BEAM)
    assert_same(ours, SherpaRecogniser(files, options).decode(some))
    assert sum(a.tokens != b.tokens for a, b in zip(ours, without)) > 10


def test_sherpa_and_pytorch_read_messy_file_equally(
    exported, student, some, hotwords, tmp_path
):
    """A byte order mark, CR line ends, and BPE pieces."""
    lines = hotwords.path.read_text().splitlines()
    lines[::2] = ["▁" + line.replace(" ", " ▁") for line in lines[::2]]
    path = tmp_path / "messy.txt"
    path.write_bytes(("\ufeff" + "\r".join(lines).replace("▁:", ":")).encode())
    messy = transcribe.read_export_hotwords(exported["full"], path, 2.0)
    assert messy.sha256 == hotwords.sha256
    options = dataclasses.replace(BEAM, hotwords=messy)
    ours = decode_full_context(student, fbank(some), options)
    assert_same(ours, SherpaRecogniser(exported["full"], options).decode(some))


def test_unsupported_hotwords_are_refused(exported, hotwords, tmp_path):
    with pytest.raises(ValueError, match="--hotwords.*modified_beam_search"):
        SherpaRecogniser(
            exported["full"], dataclasses.replace(GREEDY, hotwords=hotwords)
        )
    for path in exported["full"].tokens.parent.iterdir():
        if path.name != "bpe.vocab":
            (tmp_path / path.name).symlink_to(path)
    with pytest.raises(FileNotFoundError, match="bpe.vocab"):
        SherpaRecogniser(
            ModelFiles.in_folder(tmp_path), dataclasses.replace(BEAM, hotwords=hotwords)
        )


@pytest.mark.parametrize(
    "options, message",
    [
        (DecodeOptions("ctc_prefix_beam_search"), "ctc_prefix_beam_search.*bin.decode"),
        (DecodeOptions("ctc_greedy_search", blank_penalty=1.0), "--blank-penalty 1"),
        (DecodeOptions("greedy_search"), "a ctc recogniser.*--head transducer"),
    ],
)
def test_unsupported_searches_are_refused(exported_ctc, options, message):
    with pytest.raises(ValueError, match=message):
        SherpaRecogniser(exported_ctc["full"], options)


def test_text_is_that_of_the_tokens(exported, tokenizer, some):
    for hyp in SherpaRecogniser(exported["full"], GREEDY).decode(some[:5]):
        assert hyp.text.split() == tokenizer.decode(hyp.tokens).split()


def test_tokens_are_read_as_in_sherpa(exported, tokenizer):
    table = read_tokens(exported["full"].tokens)
    assert len(table) == tokenizer.vocab_size
    assert all(table[tokenizer.piece(i)] == i for i in range(tokenizer.vocab_size))
    assert (table["<blk>"], table["<unk>"]) == (0, tokenizer.unk_id)


@pytest.mark.parametrize(
    "wave", [np.zeros((1, 1600), np.float32), np.zeros(1600, np.int16)]
)
def test_waves_of_other_shape_or_type_are_refused(exported, wave):
    with pytest.raises(ValueError, match="float32"):
        SherpaRecogniser(exported["full"], GREEDY).decode([wave])


def test_long_audio_has_the_words_of_its_parts(exported, parts, tmp_path):
    options = DecodeOptions(unk_id=2, max_utterance=10.0)
    soundfile.write(tmp_path / "a.wav", np.concatenate(parts), 16000, subtype="FLOAT")
    ((_, text, reason),) = transcribe.transcribe_files(
        exported["full"], [tmp_path / "a.wav"], options, 1
    )
    alone = SherpaRecogniser(exported["full"], options).decode(parts)
    assert reason is None
    assert text.split() == [word for hyp in alone for word in hyp.text.split()]
    assert len(text.split()) > 40
    cut = Recording.from_file(tmp_path / "a.wav", recording_id="a").to_cut()
    ((recognition,), rtf) = transcribe.transcribe_cuts(
        exported["full"], [cut], options, 1
    )
    assert recognition.hyp == text.split()
    assert recognition.frames == [
        175 * i + hyp.timestamps[last]
        for i, hyp in enumerate(alone)
        for _, last in word_spans(hyp.pieces)
    ]
    assert 0 < rtf < 10


def test_streams_do_not_depend_on_block_size(exported, some):
    sherpa = SherpaRecogniser(exported["chunk-16"], GREEDY)
    blocks = [[w[i : i + 5000] for i in range(0, len(w), 5000)] for w in some]
    assert_same(sherpa.decode(some), sherpa.decode_streams(blocks))


@pytest.fixture(scope="module")
def byte_fallback(waves, cuts, tmp_path_factory):
    """Checkpoint and tokenizer of a student with byte fallback."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(" ".join(reference_words(cut)) for cut in cuts),
        model_writer=model,
        vocab_size=340,
        byte_fallback=True,
        user_defined_symbols=["<blk>", "<sos/eos>"],
        unk_id=2,
        bos_id=-1,
        eos_id=-1,
        minloglevel=2,
    )
    config = dataclasses.replace(STUDENT, vocab_size=340)
    some = [torch.from_numpy(w) for w in list(waves.values())[:6]]
    path = tmp_path_factory.mktemp("bytes") / "pretrained.pt"
    weights = random_student(config, some).state_dict()
    save_pretrained(path, weights, config, model.getvalue(), {})
    return path, Tokenizer.from_bytes(model.getvalue())


def test_byte_fallback_is_checked_and_transcribed(byte_fallback, cuts, some, tmp_path):
    checkpoint, tokenizer = byte_fallback
    exporter = Exporter(checkpoint, tmp_path)
    files = exporter.write(None)
    result = exporter.check(files, cuts[:8])
    assert result.ok and result.tokens > 100
    model, options, some = exporter.model, exporter.options, some[:8]
    sherpa = SherpaRecogniser(files, options)
    ours = decode_features(model, fbank(some), options, None)
    pieces = [tokenizer.piece(i) for hyp in ours for i in hyp.tokens]
    assert {"<0x41>", "A"} <= {tokenizer.piece(i) for i in range(tokenizer.vocab_size)}
    # some bytes are printed as characters, with or without a piece of the same symbol
    printed = [
        p for p in pieces if p.startswith("<0x") and 0x20 < int(p[3:5], 16) < 0x7F
    ]
    assert 20 < len(printed) < len(pieces)
    for a, wave in zip(ours, some):
        b = sherpa.decode([wave])[0]
        assert (sherpa.map_byte_tokens(a).tokens, a.timestamps) == (
            b.tokens,
            b.timestamps,
        )
        text = tokenizer.decode(a.tokens)
        if text.isprintable() and "\ufffd" not in text:  # else a letter is incomplete
            assert b.text.split() == text.split()


@pytest.mark.parametrize(
    "pieces, text, words",
    [
        ("▁PRESS ▁O NE", " PRESS ONE", "PRESS ONE"),
        ("▁PRESS ▁ <unk> ▁ONE", " PRESS<unk> ONE", "PRESS <unk> ONE"),
        ("<0xC3> <0xA9>", "é", "é"),
        ("", "", ""),
    ],
)
def test_each_word_has_a_frame_if_sherpa_drops_a_space(pieces, text, words):
    pieces = pieces.split()
    found, frames = transcribe._split_words(text, pieces, range(len(pieces)))
    assert found == words.split() and len(frames) == len(found)
    assert not frames or frames[-1] == len(pieces) - 1


@pytest.fixture(scope="module")
def graph(cuts, tokenizer, tmp_path_factory):
    """A graph of the words of the transcripts."""
    texts = sorted({" ".join(reference_words(cut)) for cut in cuts})
    fst = compile_hlg(parse_arpa(train_ngram(texts, 2), "lm"), tokenizer, HlgOptions())
    path = tmp_path_factory.mktemp("graph") / "HLG.fst"
    fst.write(str(path))
    return read_graph(path, tokenizer)


@pytest.mark.parametrize("kind", ["full", "chunk-16"])
def test_search_with_a_graph_agrees(exported_ctc, student, some, graph, kind):
    files = exported_ctc[kind]
    options = DecodeOptions("ctc_hlg", unk_id=2, graph=graph)
    theirs = SherpaRecogniser(files, options)
    found = [theirs.decode([wave])[0] for wave in some]
    features = fbank(some, files.chunking)
    assert_same(decode_features(student, features, options, files.chunking), found)
    greedy = SherpaRecogniser(files, CTC_GREEDY).decode(some)
    assert sum(a.tokens != b.tokens for a, b in zip(found, greedy)) > 10


def test_graph_is_exported_and_found(checkpoint, tokenizer, cuts, graph, tmp_path):
    files = Exporter(checkpoint, tmp_path, "ctc", graph.path).write(None)
    read = transcribe.read_export_graph(files, "ctc_hlg", None)
    assert (read.path, read.sha256) == (tmp_path / "HLG.fst", graph.sha256)
    assert transcribe.read_export_graph(files, "ctc_greedy_search", None) is None
    with pytest.raises(ValueError, match="--graph: ctc_hlg needs a graph"):
        SherpaRecogniser(files, DecodeOptions("ctc_hlg"))
    with pytest.raises(ValueError, match="--graph .*HLG.fst: only with --head ctc"):
        Exporter(checkpoint, tmp_path, "transducer", graph.path)
    before = files.sha256
    (tmp_path / "HLG.fst").write_bytes(b"")
    assert files.sha256 != before
    with pytest.raises(ValueError, match="HLG.fst: changed after"):
        transcribe.read_export_graph(files, "ctc_hlg", None)
