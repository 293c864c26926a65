"""Hotwords: automaton, files and search."""

import dataclasses
import random

import pytest
import torch
from students import call, random_joiner

from icefall_kd.bin import decode as decode_command
from icefall_kd.data.tokens import Tokenizer, train_bpe
from icefall_kd.decoding import DecodeOptions, decode, make_search
from icefall_kd.decoding.hotwords import build_hotwords, read_hotwords

VOCAB, DIM, UNK = 11, 16, 2


def walk(hotwords, tokens):
    """Return the sum of bonuses after each token, and at the end of the utterance."""
    state, score, scores = 0, 0.0, []
    for token in tokens:
        score += float(hotwords.gain[state, token])
        state = int(hotwords.next[state, token])
        scores.append(score)
    return scores, score - float(hotwords.unfinished[state])


def slow_walk(phrases, tokens):
    """Return the results of :func:`walk`, by comparing token sequences."""
    bonuses = {}
    for phrase, bonus in phrases:
        for end in range(1, len(phrase) + 1):
            start = tuple(phrase[:end])
            bonuses[start] = max(bonus, bonuses.get(start, bonus))

    def earned(begun):
        return sum(bonuses[begun[: n + 1]] for n in range(len(begun)))

    def suffixes(sequence):
        return [sequence[n:] for n in range(len(sequence) + 1)]

    complete = {tuple(phrase) for phrase, _ in phrases}
    begun, kept, scores = (), 0.0, []
    for token in tokens:
        longest = next(s for s in suffixes(begun + (token,)) if not s or s in bonuses)
        ended = next((s for s in suffixes(longest) if s in complete), None)
        begun = longest if ended is None else ()
        kept += earned(ended or ())
        scores.append(kept + earned(begun))
    return scores, kept


@pytest.mark.parametrize("seed", range(20))
def test_tables_equal_slow_reference(seed):
    rng = random.Random(seed)
    phrases = [
        ([rng.randrange(1, 4) for _ in range(rng.randint(1, 4))], rng.choice([1, 2.5]))
        for _ in range(6)
    ]
    phrases.sort(key=lambda p: -p[1])
    hotwords = build_hotwords(phrases, 5)
    for _ in range(20):
        tokens = [rng.randrange(1, 5) for _ in range(30)]
        scores, kept = walk(hotwords, tokens)
        expected, expected_kept = slow_walk(phrases, tokens)
        assert scores == pytest.approx(expected), (phrases, tokens)
        assert kept == pytest.approx(expected_kept)


def test_incomplete_phrase_has_no_effect():
    hotwords = build_hotwords([([1, 2, 3], 2.0)], 5)
    assert walk(hotwords, [1, 2, 3, 4]) == ([2.0, 4.0, 6.0, 6.0], 6.0)
    assert walk(hotwords, [1, 2, 4]) == ([2.0, 4.0, 0.0], 0.0)
    assert walk(hotwords, [1, 2]) == ([2.0, 4.0], 0.0)
    assert walk(hotwords, [1, 1, 2, 3])[1] == 6.0


@pytest.mark.parametrize("phrases", [[], [([], 1.0)], [([1], 0.0)], [([1], -1.0)]])
def test_empty_phrases_are_refused(phrases):
    with pytest.raises(ValueError, match="hotwords: "):
        build_hotwords(phrases, 5)


def test_large_bonus_forces_hotwords():
    model = random_joiner(4, VOCAB, DIM)
    lens, x = torch.full((6,), 20), torch.randn(6, 20, DIM)
    # Bonuses are added after pruning, so the beam must contain every token.
    plain = DecodeOptions("modified_beam_search", beam=10 * VOCAB, unk_id=UNK)
    phrase = [7, 5, 9]

    def decode_with(bonus):
        hotwords = build_hotwords([(phrase, bonus)], VOCAB)
        options = dataclasses.replace(plain, hotwords=hotwords)
        return [hyp.tokens for hyp in decode(model, x, lens, options)]

    for tokens in decode_with(1000.0):  # larger than any score
        assert tokens[:6] == phrase + phrase
    assert decode_with(1e-9) == [hyp.tokens for hyp in decode(model, x, lens, plain)]


def test_bonus_of_incomplete_phrase_is_subtracted_at_the_end():
    model = random_joiner(4, VOCAB, DIM)
    x, lens = torch.randn(3, 4, DIM), torch.full((3,), 4)
    long_phrase = build_hotwords([([7, 5, 9, 7, 5, 9, 7], 1000.0)], VOCAB)
    options = DecodeOptions(
        "modified_beam_search", beam=10 * VOCAB, unk_id=UNK, hotwords=long_phrase
    )
    search = make_search(model, 3, options)
    search.advance(x, lens)
    assert all(hyp.tokens == [7, 5, 9, 7] for hyp in search.hypotheses())
    search.finish()
    scores = [hyp.score for hyp in search.hypotheses()]
    assert all(score < 0 for score in scores)  # without the bonus


def test_greedy_search_refuses_hotwords():
    options = DecodeOptions("greedy_search", hotwords=build_hotwords([([1], 1.0)], 5))
    with pytest.raises(
        ValueError, match="greedy_search.*hotwords.*modified_beam_search"
    ):
        make_search(random_joiner(0, VOCAB, DIM), 1, options)


def test_file_gives_phrases_with_bonuses(tokenizer, tmp_path):
    path = tmp_path / "hotwords.txt"
    path.write_text("CONFERENCE\n\nPLEASE  ENTER :3.5\n")
    hotwords = read_hotwords(path, tokenizer, 2.0)
    assert (hotwords.path, hotwords.score) == (path, 2.0)
    first, second = tokenizer.encode("CONFERENCE"), tokenizer.encode("PLEASE ENTER")
    assert walk(hotwords, first)[1] == pytest.approx(2.0 * len(first))
    assert walk(hotwords, second)[1] == pytest.approx(3.5 * len(second))
    path.write_text("CONFERENCE\nPLEASE ENTER :3\n")
    assert read_hotwords(path, tokenizer, 2.0).sha256 != hotwords.sha256


MESSY = (
    "\ufeff\u2581PLEASE\r\r\u2581EX T EN SION\u00a0 :3\r\u200b\r  CON\u200bFERENCE\t"
)


def test_format_of_file_does_not_change_phrases(tokenizer, tmp_path):
    path = tmp_path / "hotwords.txt"
    path.write_text("PLEASE\nEXTENSION :3\nCON FERENCE\n")
    clean = read_hotwords(path, tokenizer, 2.0)
    assert clean.text == "PLEASE :2.0\nEXTENSION :3.0\nCON FERENCE :2.0\n"
    path.write_bytes(MESSY.encode())
    messy = read_hotwords(path, tokenizer, 2.0)
    assert (messy.text, messy.sha256) == (clean.text, clean.sha256)
    assert torch.equal(messy.gain, clean.gain)


@pytest.mark.parametrize(
    "encoding, line", [("utf-16", 1), ("utf-16-be", 1), ("latin-1", 2)]
)
def test_other_encodings_are_refused(tokenizer, tmp_path, encoding, line):
    path = tmp_path / "hotwords.txt"
    path.write_bytes("PLEASE\rCAFÉ\r".encode(encoding))
    with pytest.raises(ValueError, match=f"hotwords.txt:{line}: not UTF-8 text"):
        read_hotwords(path, tokenizer, 2.0)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "no hotwords in the file"),
        ("PLEASE\nplease\n", "line 2: 'please' has letters"),
        ("PLEASE :2 ENTER\n", "line 1: .*bonus.*once at the end"),
        ("PLEASE :much\n", "line 1: ':much' is not a positive bonus"),
        ("PLEASE :-1\n", "line 1: ':-1' is not a positive bonus"),
    ],
)
def test_malformed_lines_are_reported(tokenizer, tmp_path, text, message):
    path = tmp_path / "hotwords.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as e:
        read_hotwords(path, tokenizer, 1.5)
    assert str(path) in str(e.value)


def test_missing_file_is_reported(tokenizer, tmp_path):
    with pytest.raises(FileNotFoundError, match="none.txt: hotwords file"):
        read_hotwords(tmp_path / "none.txt", tokenizer, 1.5)


def test_results_name_their_hotwords(checkpoint, asterisk, tmp_path):
    hotwords = tmp_path / "names.txt"
    hotwords.write_text("CONFERENCE\nEXTENSION :4\n")
    arguments = ["--checkpoint", checkpoint, "--shar-dir", asterisk / "data/shar/dev"]
    arguments += ["--out-dir", tmp_path, "--method", "modified_beam_search"]
    plain = call(decode_command, *arguments)
    arguments += ["--hotwords", hotwords, "--hotwords-score", 6]
    biased = call(decode_command, *arguments)
    assert plain["hotwords"] is None
    assert (biased["hotwords"], biased["hotwords_score"]) == (str(hotwords), 6)
    assert biased["suffix"].startswith(f"{plain['suffix']}-hotwords-6-")
    assert biased["wer"] != plain["wer"]
    hotwords.write_text("CONFERENCE\n")
    assert call(decode_command, *arguments)["suffix"] != biased["suffix"]


def test_wide_colon_is_refused_as_bonus(tmp_path):
    texts = ["A:B CD :EF GH"] * 5
    tokenizer = Tokenizer.from_bytes(train_bpe(texts, 14))
    path = tmp_path / "hotwords.txt"
    path.write_text("A:B\nCD \uff1aEF\n")
    with pytest.raises(ValueError, match="line 2: .*bonus"):
        read_hotwords(path, tokenizer, 1.5)
    path.write_text("A:B\n")
    assert read_hotwords(path, tokenizer, 1.5).text == "A:B :1.5\n"
