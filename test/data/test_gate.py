"""Faults in real prompts, which the data gate finds."""

import json

import numpy as np
import pytest
import soundfile
from lhotse import CutSet, MonoCut, MultiCut, Recording, SupervisionSegment
from lhotse.utils import fastcopy

from icefall_kd.data.features import num_frames
from icefall_kd.data.gate import REASONS, filter_cuts, write_gate_report
from icefall_kd.data.shar import perturb_speeds
from icefall_kd.zipformer.subsampling import encoder_output_lens


@pytest.fixture(scope="module")
def prompts(asterisk):
    cuts = CutSet.from_file(asterisk / "data/manifests/test.jsonl.gz").to_eager()
    return [with_absolute_path(cut, asterisk) for cut in cuts]


def with_absolute_path(cut, recipe):
    """Return the cut with the absolute path of its audio file."""
    source = fastcopy(
        cut.recording.sources[0], source=str(recipe / cut.recording.sources[0].source)
    )
    return fastcopy(cut, recording=fastcopy(cut.recording, sources=[source]))


def with_text(cut, text, **fields):
    supervision = fastcopy(cut.supervisions[0], text=text, **fields)
    return fastcopy(cut, supervisions=[supervision])


def with_file(cut, path):
    """Return the cut with another audio file."""
    source = fastcopy(cut.recording.sources[0], source=str(path))
    return fastcopy(cut, recording=fastcopy(cut.recording, sources=[source]))


def with_declared_length(cut, extra_samples):
    """Return the cut of a recording that declares more samples than it has."""
    samples = cut.recording.num_samples + extra_samples
    recording = fastcopy(cut.recording, num_samples=samples, duration=samples / 16000)
    return fastcopy(cut, recording=recording)


def complete_cut(cut):
    """Return a cut of the complete recording."""
    duration = cut.recording.duration
    supervision = fastcopy(cut.supervisions[0], duration=duration)
    return fastcopy(cut, duration=duration, supervisions=[supervision])


def with_samples(cut, path, samples):
    """Return the cut with other samples and their true duration."""
    soundfile.write(path, samples, 16000, subtype="FLOAT")
    recording = Recording.from_file(path, recording_id=cut.recording.id)
    supervision = fastcopy(cut.supervisions[0], duration=recording.duration)
    return fastcopy(
        cut,
        recording=recording,
        duration=recording.duration,
        supervisions=[supervision],
    )


def with_truncated_file(cut, path):
    """Return the cut with a truncated wav file.

    The manifest has the duration that libsndfile reads from it.
    """
    complete = with_samples(cut, path, cut.load_audio()[0])
    path.write_bytes(path.read_bytes()[: int(0.8 * path.stat().st_size)])
    recording = Recording.from_file(path, recording_id=cut.recording.id)
    return fastcopy(complete, recording=recording, duration=recording.duration)


@pytest.fixture(scope="module")
def faults(prompts, tmp_path_factory):
    """Reason -> cuts with this fault and no other."""
    tmp_path = tmp_path_factory.mktemp("faults")
    p = iter(prompts)  # each fault gets another prompt

    def samples(cut):
        return cut.load_audio()[0]

    repeated = next(p)
    two = next(p)
    two = fastcopy(two, supervisions=two.supervisions * 2)
    none = fastcopy(next(p), supervisions=[])
    glued = next(p)  # a transcript of many lines
    glued = with_text(glued, " ".join([glued.supervisions[0].text] * 20))
    loud = next(p)
    broken = tmp_path / "broken.flac"
    broken.write_bytes(b"fLaC" + bytes(200))
    cut_off = next(p)
    half = tmp_path / "half.flac"
    soundfile.write(half, samples(cut_off)[: cut_off.recording.num_samples // 2], 16000)
    nan, inf = next(p), next(p)
    nan_samples, inf_samples = samples(nan).copy(), samples(inf).copy()
    nan_samples[1000] = np.nan
    inf_samples[-1] = np.inf
    return {
        "duplicate_id": [repeated],
        "mixed_cut": [next(p).pad(duration=20.0), next(p).append(next(p))],
        "two_supervisions": [two, none],
        "empty_text": [with_text(next(p), text) for text in ("", None, "\u200b")],
        "unknown_tokens": [with_text(next(p), "你好"), with_text(next(p), "你 好")],
        "not_mono": [make_stereo(next(p), tmp_path / "stereo.wav")],
        "other_rate": [next(p).resample(8000)],
        "outside_recording": [
            with_late_end(next(p), 0.5),
            with_late_start(next(p)),
            fastcopy(next(p), start=-0.5),
        ],
        "too_long": [
            with_samples(loud, tmp_path / "long.wav", np.tile(samples(loud), 30))
        ],
        "too_short": [
            with_samples(next(p), tmp_path / f"{n}.wav", np.zeros(n, np.float32))
            for n in (79, 200, 1359)
        ],
        "too_few_frames": [glued],
        "unreadable": [with_file(next(p), broken), with_file(next(p), "/no/such.flac")],
        "wrong_length": [
            with_declared_length(next(p), 401),
            complete_cut(with_declared_length(next(p), -401)),
            with_declared_length(next(p), 2147483647),
            with_file(cut_off, half),
            with_truncated_file(next(p), tmp_path / "truncated.wav"),
        ],
        "not_finite": [
            with_samples(nan, tmp_path / "nan.wav", nan_samples),
            with_samples(inf, tmp_path / "inf.wav", inf_samples),
        ],
    }


def with_late_end(cut, seconds):
    """Return the cut with an end ``seconds`` after its recording."""
    return fastcopy(cut, duration=round(cut.duration + seconds, 6))


def with_late_start(cut):
    """Return the cut with a start after the end of its recording."""
    return fastcopy(cut, start=cut.recording.duration + 0.1)


def make_stereo(cut, path):
    """Return a two-channel version of the cut."""
    audio = cut.load_audio()[0]
    soundfile.write(path, np.stack([audio, audio], axis=1), 16000)
    new = Recording.from_file(path, recording_id=cut.recording.id).to_cut()
    return fastcopy(new, id=cut.id, supervisions=cut.supervisions)


@pytest.mark.parametrize("num_jobs", [1, 2])
def test_every_fault_is_found_and_no_other(
    prompts, tokenizer, faults, num_jobs, monkeypatch
):
    monkeypatch.setattr("icefall_kd.data.gate.CHUNK", 16)  # cuts for each process
    wrong = {cut.id: reason for reason, cuts in faults.items() for cut in cuts}
    good = [cut for cut in prompts if cut.id not in wrong]
    again = faults["duplicate_id"][0]
    faulty = [cut for cuts in faults.values() for cut in cuts]
    cuts = [*good, *faulty, again]
    kept, drops = filter_cuts(cuts, tokenize=tokenizer.encode, num_jobs=num_jobs)
    assert {drop.cut_id: drop.reason for drop in drops} == wrong
    assert len(drops) == len(wrong)
    assert set(faults) == set(REASONS)
    assert [cut.id for cut in kept] == [cut.id for cut in good] + [again.id]


def test_no_cut_of_a_good_corpus_is_dropped(prompts, tokenizer):
    kept, drops = filter_cuts(prompts, tokenize=tokenizer.encode)
    assert not drops and len(kept) == len(prompts)


def test_unlabelled_cuts_need_no_text(prompts, faults):
    silent = [fastcopy(cut, supervisions=[]) for cut in prompts[:5]]
    kept, drops = filter_cuts([*silent, *faults["not_finite"]])
    assert len(kept) == 5
    assert {drop.reason for drop in drops} == {"not_finite"}


def test_number_of_tokens_is_limited_by_encoder_frames(prompts):
    cut = prompts[0]
    frames = int(encoder_output_lens(num_frames(cut.num_samples)))
    kept, _ = filter_cuts([cut], tokenize=lambda text: [5] * (frames - 1))
    assert len(kept) == 1
    _, drops = filter_cuts([cut], tokenize=lambda text: [5] * frames)
    assert drops[0].reason == "too_few_frames"


def test_speed_changes_the_number_of_frames(prompts, tokenizer):
    cut = prompts[0]
    frames = int(encoder_output_lens(num_frames(cut.num_samples)))
    cuts = perturb_speeds([cut], [0.9, 1.0, 1.1])
    kept, drops = filter_cuts(cuts, tokenize=lambda text: [5] * (frames - 1))
    assert [c.custom["speed"] for c in kept] == [0.9, 1.0]
    assert drops[0].cut_id == f"{cut.id}_sp1.1"


def test_wrong_length_is_found_at_another_speed(prompts, tokenizer):
    cuts = perturb_speeds([with_declared_length(prompts[0], 4000)], [0.9])
    _, drops = filter_cuts(cuts, tokenize=tokenizer.encode)
    assert [drop.reason for drop in drops] == ["wrong_length"]


def test_part_of_a_recording_of_wrong_length_is_dropped_at_every_speed(prompts):
    cut = with_declared_length(prompts[0], 8000)
    part = fastcopy(cut, duration=cut.duration / 4)
    _, drops = filter_cuts(perturb_speeds([part], [0.9, 1.0, 1.1]))
    assert [drop.reason for drop in drops] == ["wrong_length"] * 3


@pytest.mark.parametrize("extra", [-400, -16, -1, 1, 16, 400])
@pytest.mark.parametrize("speed", [1.0, 0.9])
def test_rounded_durations_are_accepted_without_padding(prompts, extra, speed, caplog):
    caplog.set_level("INFO")
    cut = complete_cut(with_declared_length(prompts[0], extra))
    audio = prompts[0].load_audio()[0]
    kept, drops = filter_cuts(perturb_speeds([cut], [speed]))
    assert not drops
    length = min(len(audio), len(audio) + extra)  # no padding
    assert kept[0].num_samples == pytest.approx(length / speed, abs=2)
    found = kept[0].load_audio()[0]
    assert len(found) == kept[0].num_samples
    assert kept[0].supervisions[0].end <= kept[0].duration
    if speed == 1.0:
        np.testing.assert_array_equal(found, audio[:length])
    logged = "up to 400 samples (0.025 s) are tolerated" in caplog.text
    assert logged == (extra > 2 or (extra > 0 and speed == 1.0))


def test_end_of_a_cut_is_compared_with_its_audio(prompts, tmp_path):
    """MonoCuts and MultiCuts of a long 44.1 kHz recording, at several speeds."""
    path = tmp_path / "long.flac"
    tone = 0.1 * np.random.default_rng(0).standard_normal(44100 * 10)
    soundfile.write(path, tone, 44100)
    recording = Recording.from_file(path).resample(16000)
    spans = {
        "first": (0.0, 2.0),
        "last": (8.0, 2.0),
        "rounded": (8.0, 2.02),
        "over": (8.0, 2.5),
        "most": (1.0, 9.5),
        "after": (10.01, 1.0),
    }
    cuts = [
        fastcopy(
            recording.to_cut(),
            id=f"{name}-{kind.__name__}",
            **{"start": start, "duration": duration},
        )
        if kind is MonoCut
        else MultiCut(f"{name}-MultiCut", start, duration, [0], recording=recording)
        for name, (start, duration) in spans.items()
        for kind in (MonoCut, MultiCut)
    ]
    for speed in (0.9, 1.0, 1.1):
        kept, drops = filter_cuts(perturb_speeds(cuts, [speed]))
        assert {d.reason for d in drops} == {"outside_recording"}
        assert {d.cut_id.split("-")[0] for d in drops} == {"over", "most", "after"}
        assert len(kept) == len(drops) == 6
        ends = [cut.end * speed for cut in kept if not cut.id.startswith("first")]
        assert ends == pytest.approx([10.0] * 4, abs=2e-4)


def test_only_the_channel_of_a_cut_is_checked(prompts, tmp_path):
    audio = prompts[0].load_audio()[0].astype(np.float32)
    other = np.full_like(audio, np.nan)
    path = tmp_path / "stereo.wav"
    soundfile.write(path, np.stack([audio, other], axis=1), 16000, subtype="FLOAT")
    recording = Recording.from_file(path)
    cuts = [
        MonoCut(f"c{c}", 0.0, recording.duration, c, recording=recording)
        for c in (0, 1)
    ]
    kept, drops = filter_cuts(cuts)
    assert [cut.id for cut in kept] == ["c0"]
    assert [(d.cut_id, d.reason) for d in drops] == [("c1", "not_finite")]


def test_missing_file_is_reported_with_the_working_directory(
    prompts, tmp_path, monkeypatch, caplog
):
    monkeypatch.chdir(tmp_path)
    cuts = [
        fastcopy(with_file(cut, f"a/{n}.flac"), id=f"c{n}")
        for n, cut in enumerate(prompts[:40])
    ]
    _, drops = filter_cuts(cuts)
    assert drops[0].detail == f"no file a/0.flac in the working directory {tmp_path}"
    (line,) = [r.getMessage() for r in caplog.records if "unreadable" in r.getMessage()]
    assert f"40 cuts, its audio cannot be read: c0 ({drops[0].detail})" in line


def test_unknown_tokens_of_the_other_case_are_explained(prompts, tokenizer):
    cut = with_text(prompts[0], "hello")
    _, (drop,) = filter_cuts([cut], tokenize=tokenizer.encode)
    assert (drop.reason, drop.detail) == (
        "unknown_tokens",
        "hello: texts are lower case, tokens upper case",
    )


def test_only_the_part_of_a_long_recording_is_checked(prompts, tmp_path):
    speech = np.concatenate([cut.load_audio()[0] for cut in prompts[:20]])
    speech[16000 * 7 + 5] = np.nan
    path = tmp_path / "long.wav"
    soundfile.write(path, speech, 16000, subtype="FLOAT")
    complete = Recording.from_file(path).to_cut()
    cuts = [
        fastcopy(complete, id=f"s{n}", start=2.0 * n, duration=2.0) for n in range(10)
    ]
    for speeds in ([1.0], [0.9]):
        kept, drops = filter_cuts(perturb_speeds(cuts, speeds))
        ((dropped, reason),) = [(d.cut_id[:2], d.reason) for d in drops]
        assert (dropped, reason) == ("s3", "not_finite") and len(kept) == 9
    with open(path, "r+b") as f:
        f.truncate(16000 * 4 * 11)
    kept, drops = filter_cuts(cuts)
    assert {c.id for c in kept} == {"s0", "s1", "s2", "s4"}
    lost = {d.cut_id for d in drops if d.reason in ("wrong_length", "unreadable")}
    assert lost == {"s5", "s6", "s7", "s8", "s9"}


def test_report_lists_each_dropped_cut(faults, tokenizer, tmp_path):
    cuts = [cut for cuts in faults.values() for cut in cuts]
    kept, drops = filter_cuts(cuts, tokenize=tokenizer.encode)
    write_gate_report(tmp_path / "gate.json", drops, len(kept), {"seed": 0})
    report = json.loads((tmp_path / "gate.json").read_text())
    assert (report["kept"], report["dropped"]) == (len(kept), len(drops))
    assert report["reasons"]["not_finite"]["count"] == 2
    assert {c["cut_id"] for c in report["cuts"]} == {d.cut_id for d in drops}


def test_number_of_supervisions_is_reported(prompts, tokenizer):
    cut = prompts[0]
    second = SupervisionSegment("x", cut.recording.id, 0.0, 0.5, text="HELLO")
    cut = fastcopy(cut, supervisions=[*cut.supervisions, second])
    _, drops = filter_cuts([cut], tokenize=tokenizer.encode)
    assert drops[0].detail == "2 supervisions"
