"""BPE models: training, files, tokens and words."""

import pickle
import random

import pytest
from lhotse import CutSet

from icefall_kd.data.tokens import WORD_START, Tokenizer, train_bpe, write_lang


@pytest.fixture(scope="module")
def texts(asterisk):
    cuts = CutSet.from_file(asterisk / "data/manifests/train.jsonl.gz")
    return [cut.supervisions[0].text for cut in cuts]


def test_training_is_deterministic(asterisk, texts, tokenizer):
    assert train_bpe(texts, 150) == train_bpe(texts, 150) == tokenizer.model_bytes


def test_special_symbols_have_their_ids(asterisk, tokenizer):
    lines = (asterisk / "data/lang_bpe_150/tokens.txt").read_text().splitlines()
    assert lines[:3] == ["<blk> 0", "<sos/eos> 1", "<unk> 2"]
    assert len(lines) == tokenizer.vocab_size == 150
    assert [line.split()[1] for line in lines] == [str(i) for i in range(150)]
    assert (tokenizer.blank_id, tokenizer.unk_id) == (0, 2)


def test_bpe_vocab_has_a_piece_and_a_score_in_each_line(asterisk):
    lines = (asterisk / "data/lang_bpe_150/bpe.vocab").read_text().splitlines()
    pieces = [line.split("\t") for line in lines]
    assert len(pieces) == 150 and all(len(p) == 2 and float(p[1]) <= 0 for p in pieces)


def test_every_text_of_the_corpus_is_encoded_and_decoded(asterisk, texts, tokenizer):
    for split in ("dev", "test"):
        cuts = CutSet.from_file(asterisk / f"data/manifests/{split}.jsonl.gz")
        texts = texts + [cut.supervisions[0].text for cut in cuts]
    for text in texts:
        ids = tokenizer.encode(text)
        assert tokenizer.unk_id not in ids and tokenizer.blank_id not in ids
        assert tokenizer.decode(ids) == text


def test_tokenizer_is_restored_from_bytes_and_pickle(tokenizer):
    for other in (
        Tokenizer.from_bytes(tokenizer.model_bytes),
        pickle.loads(pickle.dumps(tokenizer)),
    ):
        assert other.encode("PRESS ONE") == tokenizer.encode("PRESS ONE")


def test_files_of_a_model_are_written(tmp_path, tokenizer):
    write_lang(tokenizer.model_bytes, tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["bpe.model", "bpe.vocab", "tokens.txt"]
    assert Tokenizer(tmp_path / "bpe.model").model_bytes == tokenizer.model_bytes


def test_vocabulary_too_large_for_the_texts_is_refused(texts):
    with pytest.raises(ValueError, match="5000 pieces on 3 texts"):
        train_bpe(texts[:3], 5000)


def test_missing_model_is_reported(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such BPE model"):
        Tokenizer(tmp_path / "bpe.model")


def test_file_that_is_not_a_model_is_refused(tmp_path):
    (tmp_path / "bpe.model").write_bytes(b"not a model")
    with pytest.raises(ValueError, match="not a sentencepiece model"):
        Tokenizer(tmp_path / "bpe.model")


def test_words_have_their_first_and_last_token(tokenizer):
    ids = tokenizer.encode("PLEASE ENTER YOUR EXTENSION")
    spans = tokenizer.word_spans(ids)
    words = [tokenizer.decode(ids[first : last + 1]) for first, last in spans]
    assert words == ["PLEASE", "ENTER", "YOUR", "EXTENSION"]
    assert [first for first, _ in spans[1:]] == [last + 1 for _, last in spans[:-1]]
    assert (spans[0][0], spans[-1][1]) == (0, len(ids) - 1)
    assert tokenizer.word_spans([]) == []


def test_word_spans_of_random_tokens_match_the_text(tokenizer):
    """Words may start within a token or at a token of a single space."""
    draw = random.Random(0)
    space = [i for i in range(150) if tokenizer.piece(i) == WORD_START]
    assert space
    for _ in range(500):
        spoken = [*range(3, 150)] + space * 20
        ids = draw.choices(spoken, k=draw.randrange(12))
        words = tokenizer.decode(ids).split()
        spans = tokenizer.word_spans(ids)
        assert len(spans) == len(words)
        for word, (_, last) in enumerate(spans):
            # Complete with its last token, and not before.
            assert tokenizer.decode(ids[: last + 1]).split() == words[: word + 1]
            assert tokenizer.decode(ids[:last]).split() != words[: word + 1]
