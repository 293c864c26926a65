"""Recognition of real prompts with a small student."""

import copy

import numpy as np
import pytest
import soundfile
import torch
from lhotse import Recording
from lhotse.utils import fastcopy

from icefall_kd.data.cuts import load_wave
from icefall_kd.decoding import DecodeOptions
from icefall_kd.fields.reader import open_shar
from icefall_kd.recognition.ctm import count_transcripts
from icefall_kd.recognition.options import Chunking
from icefall_kd.recognition.recognise import (
    decode_full_context,
    decode_waves,
    group_by_duration,
    recognise,
)
from icefall_kd.transducer.checkpoint import count_parameters

GREEDY = DecodeOptions(unk_id=2)


def test_recognitions_have_the_order_of_the_set(student, cuts, tokenizer):
    some = cuts[:4]
    found, rtf = recognise(student, some, tokenizer, GREEDY)
    assert [r.cut_id for r in found] == [cut.id for cut in some]
    assert [" ".join(r.ref) for r in found] == [c.supervisions[0].text for c in some]
    assert all(r.hyp for r in found)
    assert 0 < rtf < 10


def test_letters_without_token_are_logged(student, cuts, tokenizer, caplog):
    supervision = fastcopy(cuts[0].supervisions[0], text="HALLÖ")
    recognise(
        student, [fastcopy(cuts[0], supervisions=[supervision])], tokenizer, GREEDY
    )
    assert "are <unk>, for the letters Ö (U+00D6) 1" in caplog.text


def test_streams_do_not_depend_on_batch(student, cuts, tokenizer):
    def words(max_duration):
        found, _ = recognise(
            student,
            cuts[:8],
            tokenizer,
            GREEDY,
            Chunking(16, 64),
            max_duration=max_duration,
        )
        return [r.hyp for r in found]

    assert words(0.0) == words(1000.0)


def test_too_few_frames_give_empty_hypothesis(student):
    long, short = torch.randn(90, 80), torch.randn(8, 80)
    empty, recognised = decode_full_context(student, [short, long], GREEDY)
    assert (empty.tokens, empty.score) == ([], 0.0)
    assert recognised.tokens == decode_full_context(student, [long], GREEDY)[0].tokens


def test_wave_shorter_than_fbank_window_gives_empty_hypothesis(student):
    waves = [torch.zeros(0), torch.randn(399), torch.randn(16000)]
    found = decode_waves(student, waves, GREEDY)
    assert [hypothesis.tokens for hypothesis in found[:2]] == [[], []]
    alone = decode_waves(student, waves[2:], GREEDY)
    assert found[2].tokens == alone[0].tokens


def test_shortest_inputs_decode(student):
    for frames in range(9, 40):
        decode_full_context(student, [torch.randn(frames, 80)], GREEDY)


def test_groups_keep_order_and_duration(cuts):
    groups = list(group_by_duration(cuts, 20.0))
    assert [c.id for g in groups for c in g] == [c.id for c in cuts]
    assert len(groups) < len(cuts)
    for group in groups:
        padded = max(c.duration for c in group) * len(group)
        assert padded <= 20.0 or len(group) == 1
    assert [len(g) for g in group_by_duration(cuts, 0.0)] == [1] * len(cuts)


def test_audio_of_another_rate_is_refused(cuts):
    with pytest.raises(ValueError, match=f"'{cuts[0].id}' is 8000 Hz.*16000"):
        load_wave(cuts[0].resample(8000))


def test_samples_that_are_not_finite_are_refused(waves, tmp_path):
    wave = next(iter(waves.values())).copy()
    wave[100] = np.nan
    soundfile.write(tmp_path / "a.wav", wave, 16000, subtype="FLOAT")
    cut = Recording.from_file(tmp_path / "a.wav", recording_id="a").to_cut()
    with pytest.raises(ValueError, match=f"'{cut.id}'.*NaN.*make_shar"):
        load_wave(cut)


def test_count_transcripts_counts_all_cuts(asterisk):
    folder = asterisk / "data/shar/test"
    total, _ = count_transcripts(folder)
    assert total == len(list(open_shar(folder))) == 100


@pytest.mark.parametrize(
    "head, unused",
    [
        ("transducer", ("ctc_output", "simple_am_proj", "simple_lm_proj")),
        ("ctc", ("decoder", "joiner", "simple_am_proj", "simple_lm_proj")),
    ],
)
def test_only_parameters_of_decoding_are_counted(student, head, unused):
    bare = copy.deepcopy(student)
    for name in unused:
        setattr(bare, name, None)
    counted = count_parameters(student, head)
    assert counted == sum(p.numel() for p in bare.parameters())
