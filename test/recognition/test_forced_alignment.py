"""CTC paths compared with all paths, and word times of real prompts."""

import copy
import itertools

import numpy as np
import pytest
import soundfile
import torch
from lhotse import Recording

from icefall_kd import ENCODER_SHIFT
from icefall_kd.core.frames import align_frames
from icefall_kd.data.cuts import load_wave
from icefall_kd.decoding import DecodeOptions
from icefall_kd.recognition.forced_alignment import (
    ON_BLANK,
    align_cuts,
    align_words_to_frames,
    ctc_log_probs,
    ctc_path,
    frame_end,
    min_ctc_frames,
)
from icefall_kd.recognition.recognise import decode_waves, recognise

VOCAB = 4
TOKENS = [(), (1,), (1, 2), (3, 3), (1, 2, 1), (2, 2, 2)]


def collapse(symbols):
    """Return the tokens of a CTC path, and the token's position in each frame."""
    tokens, positions, last = [], [], 0
    for symbol in symbols:
        if symbol and symbol != last:
            tokens.append(symbol)
        positions.append(len(tokens) - 1 if symbol else ON_BLANK)
        last = symbol
    return tuple(tokens), positions


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("num_frames", [1, 2, 5, 6])
def test_path_is_best_of_all_paths(tokens, num_frames):
    if num_frames < min_ctc_frames(tokens):
        with pytest.raises(ValueError, match=f"{len(tokens)} tokens need .* frames"):
            ctc_path(torch.zeros(num_frames, VOCAB), tokens)
        return
    for seed in range(5):
        torch.manual_seed(seed)
        log_probs = (2 * torch.randn(num_frames, VOCAB)).log_softmax(-1)
        paths = {}
        for symbols in itertools.product(range(VOCAB), repeat=num_frames):
            path_tokens, positions = collapse(symbols)
            if path_tokens == tokens:
                score = sum(float(log_probs[t, s]) for t, s in enumerate(symbols))
                paths[score] = positions
        assert ctc_path(log_probs, tokens).tolist() == paths[max(paths)]


def test_shortest_path_has_blanks_between_equal_tokens():
    assert [min_ctc_frames(tokens) for tokens in TOKENS] == [0, 1, 2, 3, 3, 5]
    assert ctc_path(torch.zeros(3, VOCAB), (3, 3)).tolist() == [0, ON_BLANK, 1]
    assert ctc_path(torch.zeros(0, VOCAB), ()).tolist() == []


def test_word_lasts_from_first_to_last_frame():
    frames = [0, 1, 1, 0, 2, 0, 3]  # the words (1, 2) and (3,)
    log_probs = torch.full((7, VOCAB), 0.1).log()
    log_probs[range(7), frames] = torch.tensor(0.7).log()
    log_probs[6] = torch.tensor([0.2, 0.2, 0.2, 0.4]).log()
    first, second = align_words_to_frames(log_probs, ["AB", "C"], [(1, 2), (3,)])
    assert (first.symbol, second.symbol) == ("AB", "C")
    assert first.start == pytest.approx(0.075)  # frame 1 is centred at 95 ms
    assert first.end == pytest.approx(0.235)  # and frame 4 at 215 ms
    assert (second.start, second.end) == pytest.approx((0.275, 0.315))
    assert (first.score, second.score) == pytest.approx((0.7, 0.4))


def test_frame_end_agrees_with_alignment_of_teachers():
    """Align teacher frames of 5 ms whose values are their indexes."""
    counted = torch.arange(400, dtype=torch.float32)[None, :, None]
    lens, out_lens = torch.tensor([400]), torch.tensor([40])
    aligned = align_frames(counted, lens, 0.005, out_lens)[0, :, 0]
    for frame in range(1, 39):  # the first and the last reach to the edges
        centre = float(aligned[frame] + 0.5) * 0.005
        assert frame_end(frame) == pytest.approx(centre + ENCODER_SHIFT / 2)


def test_greedy_hypothesis_is_aligned_to_its_frames(student, cuts):
    """The best of all paths is the best path of its own tokens."""
    greedy, num_tokens = DecodeOptions("ctc_greedy_search"), 0
    for cut in cuts[:5]:
        (hyp,) = decode_waves(student, [load_wave(cut)], greedy)
        path = ctc_path(ctc_log_probs(student, cut), hyp.tokens).tolist()
        assert [path.index(u) for u in range(len(hyp.tokens))] == hyp.timestamps
        num_tokens += len(hyp.tokens)
    assert num_tokens > 50


def test_words_are_in_order_within_the_cut(student, cuts, tokenizer):
    times = align_cuts(student, cuts[:5], tokenizer)
    assert list(times) == [cut.id for cut in cuts[:5]]
    for cut in cuts[:5]:
        items = times[cut.id]
        assert [i.symbol for i in items] == cut.supervisions[0].text.split()
        assert all(0 < i.score <= 1 and i.duration > 0 for i in items)
        starts, ends = [i.start for i in items], [i.end for i in items]
        for end, start in zip([0.0, *ends], [*starts, cut.duration]):
            assert end <= start + 1e-6


def test_word_frames_are_those_of_last_tokens(student, cuts, tokenizer):
    greedy = DecodeOptions("ctc_greedy_search", unk_id=tokenizer.unk_id)
    found, _ = recognise(student, cuts[:5], tokenizer, greedy)
    for cut, recognition in zip(cuts, found):
        (hyp,) = decode_waves(student, [load_wave(cut)], greedy)
        assert len(recognition.frames) == len(recognition.hyp)
        for word, frame in enumerate(recognition.frames):
            before = [t for t, f in zip(hyp.tokens, hyp.timestamps) if f < frame]
            until = [t for t, f in zip(hyp.tokens, hyp.timestamps) if f <= frame]
            words = tokenizer.decode(until).split()
            assert words == recognition.hyp[: word + 1]
            assert tokenizer.decode(before).split() != words


def test_transcripts_without_path_are_reported(student, cuts, tokenizer):
    cuts = copy.deepcopy(cuts[:3])
    cuts[1].supervisions[0].text = "NINE " * 200
    cuts[2].supervisions[0].text = "PRESS \x8f NOW"  # sentencepiece removes it
    with pytest.raises(ValueError, match="2 of 3 cuts cannot be aligned") as refused:
        align_cuts(student, cuts, tokenizer)
    assert f"{cuts[1].id}: no path: " in str(refused.value)
    assert f"{cuts[2].id}: '\\x8f' has no token" in str(refused.value)


def test_long_cut_is_aligned_in_windows(student, parts, tmp_path):
    soundfile.write(tmp_path / "a.wav", np.concatenate(parts), 16000, subtype="FLOAT")
    cut = Recording.from_file(tmp_path / "a.wav", recording_id="a").to_cut()
    windowed = ctc_log_probs(student, cut, max_utterance=10.0)
    for number, part in enumerate(parts):
        soundfile.write(tmp_path / "b.wav", part, 16000, subtype="FLOAT")
        alone = Recording.from_file(tmp_path / "b.wav", recording_id="b").to_cut()
        log_probs = ctc_log_probs(student, alone)
        first = 175 * number  # 7 s of 40 ms
        assert torch.equal(windowed[first : first + len(log_probs)], log_probs)
        between = windowed[first + len(log_probs) : first + 175].exp()
        assert (between[:, 0] > 0.999).all()
        assert torch.allclose(between.sum(1), torch.ones(len(between)))
