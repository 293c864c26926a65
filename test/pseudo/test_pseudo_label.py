"""Transcripts of a real Whisper in the place of a person's."""

import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import real_teachers
import torch
from dummies import Heard, Says, free_port
from kaldialign import edit_distance
from shar_files import copy_shar, shar_files

from icefall_kd.bin import pseudo_label as command
from icefall_kd.core.distributed import World
from icefall_kd.data.shar import fields_dir, write_shar
from icefall_kd.data.tokens import Tokenizer
from icefall_kd.fields.extract import SINGLE_PROCESS
from icefall_kd.fields.reader import check_field, open_shar
from icefall_kd.fields.run_teachers import load_shar_wave
from icefall_kd.fields.survey import find_fields
from icefall_kd.pseudo.progress import step_of
from icefall_kd.pseudo.pseudo_label import Limits, TranscriptFilter, pseudo_label
from icefall_kd.teachers.whisper_text import WhisperText

tiny_dir = real_teachers.tiny_dir  # fixture
SHARDS = [f"{n:06d}" for n in range(4)]


@pytest.fixture(scope="module")
def reader(tiny_dir):
    return WhisperText(tiny_dir, num_threads=1, compute_type="int8")


@pytest.fixture(scope="module")
def labelled(taught_shar, reader, tmp_path_factory):
    output = tmp_path_factory.mktemp("pseudo") / "shar"
    return output, pseudo_label(taught_shar, output, reader)


def texts(folder):
    return {
        c.id: c.supervisions[0].text if c.supervisions else ""
        for c in open_shar(folder)
    }


def test_a_real_whisper_reads_the_prompts(taught_shar, labelled):
    output, report = labelled
    counts = report.counts
    assert report.missing == 0
    right, heard = texts(taught_shar), texts(output)
    assert right.keys() == heard.keys() and sum(counts.values()) == len(right)
    errors = sum(
        edit_distance(text.split(), heard[i].split())["total"]
        for i, text in right.items()
        if heard[i]
    )
    words = sum(len(text.split()) for i, text in right.items() if heard[i])
    assert words > 60 and errors / words < 0.15
    assert counts["labelled"] >= 16


def test_audio_and_fields_are_those_of_the_input(taught_shar, labelled):
    output, _ = labelled
    check_field(output, "whisper_tiny_en")
    before = list(open_shar(taught_shar, ["whisper_tiny_en"]))
    after = list(open_shar(output, ["whisper_tiny_en"]))
    for a, b in zip(before, after):
        assert a.id == b.id and (a.load_audio() == b.load_audio()).all()
        assert (a.whisper_tiny_en.load() == b.whisper_tiny_en.load()).all()
    confidence = after[0].supervisions[0].custom["confidence"]
    assert -1.0 < confidence <= 0.0


def note_path(output):
    return fields_dir(output) / "pseudo_labels.json"


def note_of(output):
    return json.loads(note_path(output).read_text())


def test_a_second_run_keeps_what_is_there(taught_shar, labelled):
    output, report = labelled
    before = {p: p.stat().st_mtime_ns for p in shar_files(output)}
    deaf = Says(fingerprint=note_of(output)["reader"])
    assert pseudo_label(taught_shar, output, deaf) == report
    assert deaf.waves == 0
    assert {p: p.stat().st_mtime_ns for p in shar_files(output)} == before


def test_a_second_run_keeps_what_is_there_of_uncompressed_cuts(pristine_shar, tmp_path):
    shar = copy_shar(pristine_shar, tmp_path / "plain")
    for path in shar.glob("cuts.*.gz"):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    first = pseudo_label(shar, tmp_path / "out", Says("yes"))
    deaf = Says("yes")
    assert pseudo_label(shar, tmp_path / "out", deaf) == first
    assert deaf.waves == 0


def test_transcripts_made_otherwise_are_refused(taught_shar, labelled, reader):
    output, _ = labelled
    with pytest.raises(ValueError, match="holds transcripts made otherwise"):
        pseudo_label(taught_shar, output, reader, min_confidence=-0.1)


def test_what_is_not_taken_is_counted_and_has_no_text(taught_shar, tmp_path):
    class Babbler:
        words = iter(["", "one two three " * 50, "yes", "maybe"])

        def fingerprint(self):
            return {}

        def transcribe(self, waves):
            said = [next(self.words, "yes") for _ in waves]
            return [Heard(s, -3.0 if s == "maybe" else -0.1) for s in said]

    calls = []
    report = pseudo_label(
        *(taught_shar, tmp_path / "out", Babbler()),
        batch_size=1,
        progress=lambda done, total: calls.append((done, total)),
    )
    # After every batch, not every shard.
    done, totals = zip(*calls)
    assert len(calls) == 18 and list(done) == sorted(set(done))
    seconds = sum(cut.duration for cut in open_shar(taught_shar))
    assert done[-1] == pytest.approx(seconds) and totals == (totals[-1],) * 18
    assert totals[-1] == pytest.approx(seconds)
    expected = {"empty": 1, "too many words": 1, "uncertain": 1, "labelled": 15}
    assert report.counts == expected
    assert report.confidences == {"-0.1": 17, "-2.0": 1}
    assert sorted(texts(tmp_path / "out").values()) == [""] * 3 + ["YES"] * 15
    with gzip.open(tmp_path / "out/cuts.000000.jsonl.gz", "rt") as f:
        assert len(f.readlines()) == 5


@pytest.mark.parametrize(
    "confidence, step",
    [(0.0, "-0.1"), (-0.1, "-0.1"), (-0.11, "-0.2"), (-0.7, "-0.7"), (-9.0, "-2.0")]
    + [(float("nan"), "-2.0"), (float("-inf"), "-2.0")],
)
def test_confidences_are_counted_in_steps(confidence, step):
    assert step_of(confidence) == step


def test_the_command_logs_a_histogram_of_all_shards_confidences(
    shar, tmp_path, monkeypatch, capsys
):
    class Fading(Says):
        def transcribe(self, waves):
            first, self.waves = self.waves, self.waves + len(waves)
            return [Heard("yes", -0.05 - 0.1 * i) for i in range(first, self.waves)]

    monkeypatch.setattr(command, "WhisperText", lambda *_, **options: Fading())
    arguments = ["--shar-dir", shar, "--model-dir", "none", "--output"]
    run_command(monkeypatch, *arguments, tmp_path / "out")
    lines = capsys.readouterr().err.splitlines()
    rows = [line.split() for line in lines if re.match(r" +-\d\.\d \.\. ", line)]
    assert len(rows) == 18
    assert rows[0] == ["-0.1", "..", "0.0", "1", "5.6", "%", "#" * 30]
    assert rows[6][:6] == ["-0.7", "..", "-0.6", "1", "38.9", "%"]
    assert rows[-1][4] == "100.0"
    assert any("11 uncertain" in line and "7 labelled" in line for line in lines)


def test_threads_read_what_one_reads(tiny_dir, pristine_shar):
    waves = [load_shar_wave(cut) for cut in open_shar(pristine_shar)][:3]
    options = {"compute_type": "int8"}
    one = WhisperText(tiny_dir, num_threads=1, **options).transcribe(waves)
    two = WhisperText(tiny_dir, num_threads=2, **options).transcribe(waves)
    assert [t.text for t in one] == [t.text for t in two]
    assert [t.confidence for t in one] == pytest.approx([t.confidence for t in two])
    assert WhisperText(tiny_dir, num_threads=2, **options).transcribe([]) == []


@pytest.mark.parametrize(
    "text, confidence, verdict",
    [
        ("A B", -0.2, "labelled"),
        ("", -0.2, "empty"),
        ("A", -0.9, "uncertain"),
        ("A B C D E F G", -0.1, "too many words"),
    ],
)
def test_limits_say_why(text, confidence, verdict):
    assert Limits(-0.7, 6.0).verdict(text, confidence, 1.0) == verdict


def test_a_folder_without_tokenizer_and_another_language_are_refused(
    tiny_dir, tmp_path
):
    with pytest.raises(FileNotFoundError, match="tokenizer.json is missing"):
        WhisperText(tmp_path)
    with pytest.raises(ValueError, match="reads English, not 'de'"):
        WhisperText(tiny_dir, language="de", num_threads=1)


def bpe_model(asterisk):
    return asterisk / "data/lang_bpe_150/bpe.model"


def test_transcripts_are_identified_by_their_numbers_and_options_off_the_default(
    asterisk, labelled
):
    limits = Limits(-0.7, 6.0)
    as_ever = {
        "min_confidence": -0.7,
        "max_words_per_second": 6.0,
        "numbers": "spoken",
    }
    assert TranscriptFilter(limits).identity() == as_ever
    assert set(note_of(labelled[0])) == {
        *("of", "reader", "counts", "confidences"),
        *as_ever,
    }
    tokenizer = Tokenizer(bpe_model(asterisk))
    assert TranscriptFilter(limits, "fr", "lower", "spoken", tokenizer).identity() == {
        **as_ever,
        "language": "fr",
        "case": "lower",
        "bpe_model": tokenizer.sha256,
    }


def test_another_spelling_is_written_and_not_mixed_with_the_first(shar, tmp_path):
    reader = Says("L’été, à 8 h…")
    french = {"language": "fr", "case": "lower"}
    pseudo_label(shar, tmp_path / "out", reader, **french)
    assert set(texts(tmp_path / "out").values()) == {"l'été à huit h"}
    message = "made otherwise .case is 'lower', wanted None.*another --output"
    with pytest.raises(ValueError, match=message):
        pseudo_label(shar, tmp_path / "out", reader, language="fr")
    with pytest.raises(ValueError, match="--case title"):
        pseudo_label(shar, tmp_path / "none", reader, case="title")
    assert not (tmp_path / "none").exists()


def test_numbers_are_written_in_the_style_of_the_command(shar, tmp_path, monkeypatch):
    heard = Says("In 1842, $5.")
    monkeypatch.setattr(command, "WhisperText", lambda *_, **options: heard)
    arguments = ["--shar-dir", shar, "--model-dir", "none", "--output"]
    for numbers, options, text in (
        ("spoken", [], "IN EIGHTEEN FORTY TWO FIVE DOLLARS"),
        ("digits", ["--numbers", "digits"], "IN ONE EIGHT FOUR TWO FIVE"),
    ):
        output = tmp_path / numbers
        options = ["--max-words-per-second", 50, *options]
        run_command(monkeypatch, *arguments, output, *options)
        assert set(texts(output).values()) == {text}
        assert note_of(output)["numbers"] == numbers
    with pytest.raises(SystemExit, match="made otherwise .numbers is 'digits', wanted"):
        run_command(
            monkeypatch, *arguments, tmp_path / "digits", "--max-words-per-second", 50
        )
    with pytest.raises(SystemExit, match="--language el: num2words cannot write"):
        run_command(monkeypatch, *arguments, tmp_path / "el", "--language", "el")
    assert not (tmp_path / "el").exists()


def test_transcripts_of_an_earlier_version_are_not_taken_for_spoken_ones(
    shar, tmp_path
):
    output = tmp_path / "out"
    pseudo_label(shar, output, Says("1842"))
    note = note_of(output)
    del note["numbers"]
    (output / "pseudo_labels.json").write_text(json.dumps(note))
    with pytest.raises(ValueError, match="numbers is None, wanted 'spoken'"):
        pseudo_label(shar, output, Says("1842"))


def test_a_spelling_that_the_tokens_cannot_write_is_told(
    shar, asterisk, tmp_path, caplog
):
    tokenizer = Tokenizer(bpe_model(asterisk))  # of upper-case texts
    report = pseudo_label(shar, tmp_path / "upper", Says(), tokenizer=tokenizer)
    assert report.counts == {"labelled": 18}
    assert "BPE model" not in caplog.text
    report = pseudo_label(
        shar, tmp_path / "lower", Says(), tokenizer=tokenizer, case="lower"
    )
    assert report.counts == {"unknown tokens": 18}
    assert set(texts(tmp_path / "lower").values()) == {""}
    (record,) = (r for r in caplog.records if r.levelname == "WARNING")
    told = record.getMessage()
    assert "18 of 18 transcripts have tokens that the BPE model does not" in told
    assert "--case" in told and "--language" in told


def test_some_unknown_tokens_are_counted_without_a_warning(
    shar, asterisk, tmp_path, caplog
):
    class Mixed(Says):
        def transcribe(self, waves):
            self.waves += len(waves)
            return [Heard("yes" if self.waves % 2 else "été", -0.1) for _ in waves]

    caplog.set_level("INFO")
    tokenizer = Tokenizer(bpe_model(asterisk))
    options = {"tokenizer": tokenizer, "language": "fr", "batch_size": 1}
    report = pseudo_label(shar, tmp_path / "out", Mixed(), **options)
    assert report.counts == {"labelled": 9, "unknown tokens": 9}
    assert set(texts(tmp_path / "out").values()) == {"", "YES"}
    assert "are <unk>, for the letters É (U+00C9) 18" in caplog.text
    assert "BPE model" not in caplog.text


def start(shar, output, tiny_dir, ranks):
    """Start the command as torchrun would, ``ranks`` times."""
    line = [sys.executable, "-m", "icefall_kd.bin.pseudo_label"]
    line += ["--shar-dir", shar, "--output", output, "--model-dir", tiny_dir]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(ranks)}
    env.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    return [
        subprocess.Popen(
            [*map(str, line), "--num-threads", "1"],
            env={**env, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]


def made(output):
    """Return the shards that are declared whole while others are missing."""
    return {p.stem[-6:] for p in fields_dir(output).glob("pseudo_labels-*.json")}


def check_same(output, labelled):
    """Compare with what one process wrote undisturbed."""
    expected, _ = labelled
    assert note_of(output) == note_of(expected)
    names = [{p.name for p in shar_files(folder)} for folder in (output, expected)]
    assert names[0] == names[1]
    assert texts(output) == texts(expected)
    check_field(output, "whisper_tiny_en")


def test_two_processes_write_what_one_writes(taught_shar, labelled, tiny_dir, tmp_path):
    output = tmp_path / "out"
    processes = start(taught_shar, output, tiny_dir, 2)
    told = [p.communicate(timeout=120)[1] for p in processes]
    assert [p.returncode for p in processes] == [0, 0], told
    check_same(output, labelled)
    totals = f"{labelled[1].counts['labelled']} labelled"
    assert any(totals in text for text in told), told
    # The other one was last too, or says that it was not.
    assert all(totals in text or "not complete, " in text for text in told), told
    # Each reads two shards of its own, and none of the other's.
    assert all("2 of 4 shards to transcribe" in text for text in told), told


def test_killed_processes_are_followed_by_any_number_of_others(
    taught_shar, labelled, reader, tiny_dir, tmp_path
):
    output = tmp_path / "out"
    processes = start(taught_shar, output, tiny_dir, 2)
    while not made(output) and all(p.poll() is None for p in processes):
        time.sleep(0.005)
    for process in processes:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    kept = made(output)
    assert kept and kept != set(SHARDS), "killed too late"
    before = {s: (output / f"cuts.{s}.jsonl.gz").stat().st_mtime_ns for s in kept}
    assert "pseudo_labels" not in find_fields(output)
    there = set(kept)
    for rank, own in ((2, {"000002"}), (0, {"000000", "000003"}), (1, {"000001"})):
        world = World(rank, 3, SINGLE_PROCESS.device)
        report = pseudo_label(taught_shar, output, reader, world=world)
        there |= own
        assert report.missing == len(set(SHARDS) - there)
    assert report == labelled[1]
    check_same(output, labelled)
    after = {s: (output / f"cuts.{s}.jsonl.gz").stat().st_mtime_ns for s in kept}
    assert after == before, "a whole shard was made again"


def test_what_an_earlier_version_left_half_done_is_completed(
    taught_shar, labelled, reader, tmp_path
):
    output = copy_shar(labelled[0], tmp_path / "out")
    note = note_of(output)
    del note["counts"]["000001"], note["counts"]["000002"]
    note_path(output).write_text(json.dumps(note))
    (output / "cuts.000002.jsonl.gz").unlink()
    (output / "cuts.000003.jsonl.gz").unlink()  # counted, and lost since
    partial = note_path(output).with_name(".elsewhere.7.partial.pseudo_labels.json")
    partial.touch()
    os.utime(partial, (0, 0))
    kept = (output / "cuts.000000.jsonl.gz").stat().st_mtime_ns
    first = pseudo_label(
        taught_shar, output, reader, world=World(1, 2, SINGLE_PROCESS.device)
    )
    assert first.missing == 1 and sum(first.counts.values()) == 13
    assert made(output) == {"000001", "000003"}
    last = pseudo_label(
        taught_shar, output, reader, world=World(0, 2, SINGLE_PROCESS.device)
    )
    assert last == labelled[1]
    check_same(output, labelled)
    assert (output / "cuts.000000.jsonl.gz").stat().st_mtime_ns == kept


def test_shards_that_a_deleted_note_identified_are_made_again(shar, tmp_path):
    output, half = tmp_path / "out", World(0, 2, SINGLE_PROCESS.device)
    assert pseudo_label(shar, output, Says("yes"), world=half).missing == 2
    note_path(output).unlink()
    reader = Says("no")
    assert pseudo_label(shar, output, reader).missing == 0
    assert reader.waves == 18 and set(texts(output).values()) == {"NO"}


def test_transcripts_of_a_set_that_was_made_again_are_made_again(shar, tmp_path):
    output = tmp_path / "out"
    assert pseudo_label(shar, output, Says("yes", {"says": 1})).missing == 0
    cuts = list(open_shar(shar))
    shutil.rmtree(shar)
    write_shar(cuts, shar, shard_size=5, seed=1)
    reader = Says("no", {"says": 1})
    assert pseudo_label(shar, output, reader).missing == 0
    assert reader.waves == 18 and set(texts(output).values()) == {"NO"}
    shutil.rmtree(shar)
    write_shar(cuts, shar, shard_size=9)
    with pytest.raises(ValueError, match="holds cuts.000002.jsonl.gz, .*no audio"):
        pseudo_label(shar, output, reader)


def test_links_made_by_another_process_meanwhile_are_harmless(
    taught_shar, tmp_path, monkeypatch
):
    link = Path.symlink_to

    def late(self, target, *rest):
        link(self, target, *rest)  # the other one's
        link(self, target, *rest)

    monkeypatch.setattr(Path, "symlink_to", late)
    assert pseudo_label(taught_shar, tmp_path / "out", Says()).missing == 0
    check_field(tmp_path / "out", "whisper_tiny_en")


def test_a_link_that_leads_nowhere_is_named(shar, tmp_path):
    (tmp_path / "out").mkdir()
    link = tmp_path / "out/recording.000002.tar"
    link.symlink_to("moved/recording.000002.tar")
    message = f"{re.escape(str(link))} is a link to what is not there; delete it"
    with pytest.raises(FileExistsError, match=message):
        pseudo_label(shar, tmp_path / "out", Says())
    link.unlink()
    reader = Says()
    assert pseudo_label(shar, tmp_path / "out", reader).missing == 0
    assert reader.waves == 0


def test_the_note_of_transcribed_audio_is_not_taken_for_ones_own(shar, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    pseudo_label(shar, first, Says())
    report = pseudo_label(first, second, Says())
    note = note_of(second)
    assert note["of"] == "first"
    for shard, counts in note["counts"].items():  # whole, but not put together
        part = fields_dir(second) / f"pseudo_labels-{shard}.json"
        own = {"counts": counts, "confidences": note["confidences"][shard]}
        part.write_text(json.dumps({**note, **own}))
    note_path(second).unlink()
    reader = Says()
    assert pseudo_label(first, second, reader) == report
    assert note_of(second) == note and made(second) == set()
    assert reader.waves == 0


def run_command(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["pseudo_label", *map(str, arguments)])
    command.main()


def test_each_process_has_a_gpu_and_the_spelling_of_the_command(
    shar, asterisk, tmp_path, monkeypatch, capsys
):
    asked = {}

    def reader(model_dir, language, beam, **options):
        asked.update(options, language=language)
        return Says("L'été")

    monkeypatch.setattr(command, "WhisperText", reader)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "1")
    arguments = ["--shar-dir", shar, "--model-dir", "none", "--output"]
    spelling = ["--language", "fr", "--case", "lower", "--bpe-model"]
    output = tmp_path / "out"
    run_command(
        *(monkeypatch, *arguments, output, "--device", "cuda"),
        *(*spelling, bpe_model(asterisk)),
    )
    assert (asked["device"], asked["language"]) == ("cuda:1", "fr")
    assert note_of(output)["language"] == "fr" and note_of(output)["case"] == "lower"
    assert f"{output}: 18 unknown tokens" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="no such BPE model"):
        run_command(monkeypatch, *arguments, output, *spelling, tmp_path / "bpe.model")
