"""Pseudo-labels of real prompts, by Whisper and by fakes."""

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
import torch
from dummies import FakeTranscriber, FakeTranscript, free_port
from kaldialign import edit_distance
from shar_files import copy_shar, shar_files

from icefall_kd.bin import pseudo_label as command
from icefall_kd.core.distributed import World
from icefall_kd.data.shar import fields_dir, write_shar
from icefall_kd.data.tokens import Tokenizer
from icefall_kd.fields.extract import SINGLE_PROCESS
from icefall_kd.fields.integrity import find_fields
from icefall_kd.fields.reader import check_field, open_shar
from icefall_kd.fields.run_teachers import load_shar_wave
from icefall_kd.pseudo.progress import confidence_step
from icefall_kd.pseudo.pseudo_label import TranscriptFilter, pseudo_label
from icefall_kd.teachers.whisper_ct2 import WhisperText

SHARDS = [f"{n:06d}" for n in range(4)]


@pytest.fixture(scope="module")
def whisper(tiny_dir):
    return WhisperText(tiny_dir, num_threads=1, compute_type="int8")


@pytest.fixture(scope="module")
def labelled(extracted_shar, whisper, tmp_path_factory):
    """Output folder and summary of Whisper's pseudo-labels by one process."""
    output = tmp_path_factory.mktemp("pseudo") / "shar"
    return output, pseudo_label(extracted_shar, output, whisper)


@pytest.fixture
def tokenizer(asterisk):
    """The corpus' own BPE model, of upper-case English."""
    return Tokenizer(bpe_model(asterisk))


def bpe_model(asterisk):
    return asterisk / "data/lang_bpe_150/bpe.model"


def worker(rank, size):
    return World(rank, size, SINGLE_PROCESS.device)


def texts(folder):
    """Return cut id -> text, "" for a cut without supervision."""
    return {
        c.id: c.supervisions[0].text if c.supervisions else ""
        for c in open_shar(folder)
    }


def totals_path(output):
    return fields_dir(output) / "pseudo_labels.json"


def read_totals(output):
    return json.loads(totals_path(output).read_text())


def finished_parts(output):
    """Return the finished shards of an output with missing shards."""
    return {p.stem[-6:] for p in fields_dir(output).glob("pseudo_labels-*.json")}


def modified(paths):
    return {p: p.stat().st_mtime_ns for p in paths}


def run_command(monkeypatch, shar, output, *options):
    arguments = ["--shar-dir", shar, "--model-dir", "none", "--output", output]
    monkeypatch.setattr("sys.argv", ["pseudo_label", *map(str, [*arguments, *options])])
    command.main()


def check_same(output, labelled):
    """Compare an output with that of a single undisturbed process."""
    expected, _ = labelled
    assert read_totals(output) == read_totals(expected)
    names = [{p.name for p in shar_files(folder)} for folder in (output, expected)]
    assert names[0] == names[1]
    assert texts(output) == texts(expected)
    check_field(output, "whisper_tiny_en")


def test_whisper_transcribes_the_prompts(extracted_shar, labelled):
    output, summary = labelled
    assert summary.missing == 0
    references, hypotheses = texts(extracted_shar), texts(output)
    assert references.keys() == hypotheses.keys()
    assert sum(summary.counts.values()) == len(references)
    pairs = [(r.split(), hypotheses[i].split()) for i, r in references.items()]
    pairs = [(r, h) for r, h in pairs if h]
    errors = sum(edit_distance(r, h)["total"] for r, h in pairs)
    words = sum(len(r) for r, _ in pairs)
    assert words > 60 and errors / words < 0.15
    assert summary.counts["labelled"] >= 16


def test_audio_and_fields_are_those_of_the_input(extracted_shar, labelled):
    output, _ = labelled
    check_field(output, "whisper_tiny_en")
    before = list(open_shar(extracted_shar, ["whisper_tiny_en"]))
    after = list(open_shar(output, ["whisper_tiny_en"]))
    for a, b in zip(before, after):
        assert a.id == b.id and (a.load_audio() == b.load_audio()).all()
        assert (a.whisper_tiny_en.load() == b.whisper_tiny_en.load()).all()
    assert -1.0 < after[0].supervisions[0].custom["confidence"] <= 0.0


def test_second_run_transcribes_nothing(extracted_shar, labelled):
    output, summary = labelled
    before = modified(shar_files(output))
    transcriber = FakeTranscriber(fingerprint=read_totals(output)["reader"])
    assert pseudo_label(extracted_shar, output, transcriber) == summary
    assert transcriber.num_waves == 0
    assert modified(shar_files(output)) == before


def test_second_run_transcribes_nothing_of_uncompressed_cuts(pristine_shar, tmp_path):
    shar = copy_shar(pristine_shar, tmp_path / "plain")
    for path in shar.glob("cuts.*.gz"):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    first = pseudo_label(shar, tmp_path / "out", FakeTranscriber())
    transcriber = FakeTranscriber()
    assert pseudo_label(shar, tmp_path / "out", transcriber) == first
    assert transcriber.num_waves == 0


def test_transcripts_of_other_options_are_not_mixed(extracted_shar, labelled, whisper):
    with pytest.raises(ValueError, match="min_confidence is -0.7, wanted -0.1"):
        pseudo_label(extracted_shar, labelled[0], whisper, TranscriptFilter(-0.1))


def test_rejected_transcripts_are_counted_and_written_without_text(
    extracted_shar, tmp_path
):
    class Unreliable(FakeTranscriber):
        words = iter(["", "one two three " * 50, "yes", "maybe"])

        def transcribe(self, waves):
            words = [next(self.words, "yes") for _ in waves]
            return [FakeTranscript(w, -3.0 if w == "maybe" else -0.1) for w in words]

    calls = []
    summary = pseudo_label(
        extracted_shar,
        tmp_path / "out",
        Unreliable(),
        batch_size=1,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert summary.counts == {
        "empty": 1,
        "too many words": 1,
        "uncertain": 1,
        "labelled": 15,
    }
    assert summary.confidences == {"-0.1": 17, "-2.0": 1}
    assert sorted(texts(tmp_path / "out").values()) == [""] * 3 + ["YES"] * 15
    # Progress is reported after every batch.
    done, totals = zip(*calls)
    assert len(calls) == 18 and list(done) == sorted(set(done))
    seconds = sum(cut.duration for cut in open_shar(extracted_shar))
    assert done[-1] == pytest.approx(seconds)
    assert totals == (pytest.approx(seconds),) * 18


@pytest.mark.parametrize(
    "confidence, step",
    [(0.0, "-0.1"), (-0.1, "-0.1"), (-0.11, "-0.2"), (-0.7, "-0.7"), (-9.0, "-2.0")]
    + [(float("nan"), "-2.0"), (float("-inf"), "-2.0")],
)
def test_confidences_are_counted_in_steps(confidence, step):
    assert confidence_step(confidence) == step


def test_command_logs_histogram_of_confidences(shar, tmp_path, monkeypatch, capsys):
    class Fading(FakeTranscriber):
        def transcribe(self, waves):
            first, self.num_waves = self.num_waves, self.num_waves + len(waves)
            return [
                FakeTranscript("yes", -0.05 - 0.1 * i)
                for i in range(first, self.num_waves)
            ]

    monkeypatch.setattr(command, "WhisperText", lambda *_, **options: Fading())
    run_command(monkeypatch, shar, tmp_path / "out")
    lines = capsys.readouterr().err.splitlines()
    rows = [line.split() for line in lines if re.match(r" +-\d\.\d \.\. ", line)]
    assert len(rows) == 18
    assert rows[0] == ["-0.1", "..", "0.0", "1", "5.6", "%", "#" * 30]
    assert rows[6][:6] == ["-0.7", "..", "-0.6", "1", "38.9", "%"]
    assert rows[-1][4] == "100.0"
    assert any("11 uncertain" in line and "7 labelled" in line for line in lines)


def test_whisper_is_the_same_on_two_threads(tiny_dir, pristine_shar):
    waves = [load_shar_wave(cut) for cut in open_shar(pristine_shar)][:3]
    options = {"compute_type": "int8"}
    one = WhisperText(tiny_dir, num_threads=1, **options).transcribe(waves)
    whisper = WhisperText(tiny_dir, num_threads=2, **options)
    two = whisper.transcribe(waves)
    assert [t.text for t in one] == [t.text for t in two]
    assert [t.confidence for t in one] == pytest.approx([t.confidence for t in two])
    assert whisper.transcribe([]) == []


def test_whisper_refuses_missing_tokenizer_and_other_language(tiny_dir, tmp_path):
    with pytest.raises(FileNotFoundError, match="tokenizer.json"):
        WhisperText(tmp_path)
    with pytest.raises(ValueError, match="'de'"):
        WhisperText(tiny_dir, language="de", num_threads=1)


@pytest.mark.parametrize(
    "text, confidence, verdict",
    [
        ("A B", -0.2, "labelled"),
        ("", -0.2, "empty"),
        ("A", -0.9, "uncertain"),
        ("A B C D E F G", -0.1, "too many words"),
    ],
)
def test_filter_returns_verdict(text, confidence, verdict):
    assert TranscriptFilter(-0.7, 6.0).verdict(text, confidence, 1.0) == verdict


def test_identity_contains_options_off_their_defaults(tokenizer, labelled):
    defaults = {
        "min_confidence": -0.7,
        "max_words_per_second": 6.0,
        "numbers": "spoken",
    }
    assert TranscriptFilter().identity() == defaults
    keys = {"of", "reader", "counts", "confidences", *defaults}
    assert set(read_totals(labelled[0])) == keys
    other = TranscriptFilter(language="fr", case="lower", tokenizer=tokenizer)
    assert other.identity() == {
        **defaults,
        "language": "fr",
        "case": "lower",
        "bpe_model": tokenizer.sha256,
    }


def test_spellings_are_not_mixed(shar, tmp_path):
    transcriber = FakeTranscriber("L’été, à 8 h…")
    output = tmp_path / "out"
    french = TranscriptFilter(language="fr", case="lower")
    pseudo_label(shar, output, transcriber, french)
    assert set(texts(output).values()) == {"l'été à huit h"}
    with pytest.raises(ValueError, match="case is 'lower', wanted None.*--output"):
        pseudo_label(shar, output, transcriber, TranscriptFilter(language="fr"))
    with pytest.raises(ValueError, match="--case title"):
        title_case = TranscriptFilter(case="title")
        pseudo_label(shar, tmp_path / "none", transcriber, title_case)
    assert not (tmp_path / "none").exists()


def test_command_writes_numbers_in_its_style(shar, tmp_path, monkeypatch):
    transcriber = FakeTranscriber("In 1842, $5.")
    monkeypatch.setattr(command, "WhisperText", lambda *_, **options: transcriber)
    many_words = ["--max-words-per-second", 50]
    for numbers, options, text in (
        ("spoken", [], "IN EIGHTEEN FORTY TWO FIVE DOLLARS"),
        ("digits", ["--numbers", "digits"], "IN ONE EIGHT FOUR TWO FIVE"),
    ):
        output = tmp_path / numbers
        run_command(monkeypatch, shar, output, *many_words, *options)
        assert set(texts(output).values()) == {text}
        assert read_totals(output)["numbers"] == numbers
    with pytest.raises(SystemExit, match="numbers is 'digits', wanted 'spoken'"):
        run_command(monkeypatch, shar, tmp_path / "digits", *many_words)
    with pytest.raises(SystemExit, match="--language el"):
        run_command(monkeypatch, shar, tmp_path / "el", "--language", "el")
    assert not (tmp_path / "el").exists()


def test_transcripts_of_version_without_number_styles_are_not_reused(shar, tmp_path):
    output = tmp_path / "out"
    pseudo_label(shar, output, FakeTranscriber("1842"))
    totals = read_totals(output)
    del totals["numbers"]
    path = fields_dir(output) / "pseudo_labels.json"
    path.write_text(json.dumps(totals))
    with pytest.raises(ValueError, match="numbers is None, wanted 'spoken'"):
        pseudo_label(shar, output, FakeTranscriber("1842"))
    path.rename(output / path.name)  # where the first version wrote it
    with pytest.raises(ValueError, match=f"mv {output}/pseudo_labels"):
        pseudo_label(shar, output, FakeTranscriber("1842"))


def test_spelling_that_the_tokens_cannot_write_causes_a_warning(
    shar, tokenizer, tmp_path, caplog
):
    upper = TranscriptFilter(tokenizer=tokenizer)
    summary = pseudo_label(shar, tmp_path / "upper", FakeTranscriber(), upper)
    assert summary.counts == {"labelled": 18}
    assert "BPE model" not in caplog.text
    lower = TranscriptFilter(tokenizer=tokenizer, case="lower")
    summary = pseudo_label(shar, tmp_path / "lower", FakeTranscriber(), lower)
    assert summary.counts == {"unknown tokens": 18}
    assert set(texts(tmp_path / "lower").values()) == {""}
    (warning,) = (r.getMessage() for r in caplog.records if r.levelname == "WARNING")
    for fact in ("18 of 18", "BPE model", "--case", "--language"):
        assert fact in warning


def test_few_unknown_tokens_are_counted_without_a_warning(
    shar, tokenizer, tmp_path, caplog
):
    class Mixed(FakeTranscriber):
        def transcribe(self, waves):
            self.num_waves += len(waves)
            text = "yes" if self.num_waves % 2 else "été"
            return [FakeTranscript(text, -0.1) for _ in waves]

    caplog.set_level("INFO")
    french = TranscriptFilter(language="fr", tokenizer=tokenizer)
    summary = pseudo_label(shar, tmp_path / "out", Mixed(), french, batch_size=1)
    assert summary.counts == {"labelled": 9, "unknown tokens": 9}
    assert set(texts(tmp_path / "out").values()) == {"", "YES"}
    assert "É (U+00C9) 18" in caplog.text
    assert "BPE model" not in caplog.text


def start_command(shar, output, tiny_dir, ranks):
    """Start the command as torchrun does, once per rank."""
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


def test_two_processes_write_what_one_writes(
    extracted_shar, labelled, tiny_dir, tmp_path
):
    output = tmp_path / "out"
    processes = start_command(extracted_shar, output, tiny_dir, 2)
    logs = [p.communicate(timeout=120)[1] for p in processes]
    assert [p.returncode for p in processes] == [0, 0], logs
    check_same(output, labelled)
    counts = f"{labelled[1].counts['labelled']} labelled"
    assert any(counts in log for log in logs), logs
    # Both may finish last; otherwise the first one logs that shards are missing.
    assert all(counts in log or "not complete" in log for log in logs), logs
    assert all("2 of 4 shards to transcribe" in log for log in logs), logs


def test_any_number_of_processes_continues_after_a_kill(
    extracted_shar, labelled, whisper, tiny_dir, tmp_path
):
    output = tmp_path / "out"
    processes = start_command(extracted_shar, output, tiny_dir, 2)
    while not finished_parts(output) and all(p.poll() is None for p in processes):
        time.sleep(0.005)
    for process in processes:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    finished = finished_parts(output)
    assert finished and finished != set(SHARDS), "killed too late"
    before = modified(output / f"cuts.{s}.jsonl.gz" for s in finished)
    assert "pseudo_labels" not in find_fields(output)
    for rank, own in ((2, {"000002"}), (0, {"000000", "000003"}), (1, {"000001"})):
        summary = pseudo_label(extracted_shar, output, whisper, world=worker(rank, 3))
        finished |= own
        assert summary.missing == len(set(SHARDS) - finished)
    assert summary == labelled[1]
    check_same(output, labelled)
    assert modified(before) == before, "a finished shard was transcribed again"


def test_unfinished_output_of_an_earlier_version_is_completed(
    extracted_shar, labelled, whisper, tmp_path
):
    output = copy_shar(labelled[0], tmp_path / "out")
    totals = read_totals(output)
    del totals["counts"]["000001"], totals["counts"]["000002"]
    totals_path(output).write_text(json.dumps(totals))
    (output / "cuts.000002.jsonl.gz").unlink()
    (output / "cuts.000003.jsonl.gz").unlink()  # lost after it was counted
    partial = totals_path(output).with_name(".elsewhere.7.partial.pseudo_labels.json")
    partial.touch()
    os.utime(partial, (0, 0))
    kept = modified([output / "cuts.000000.jsonl.gz"])
    first = pseudo_label(extracted_shar, output, whisper, world=worker(1, 2))
    assert first.missing == 1 and sum(first.counts.values()) == 13
    assert finished_parts(output) == {"000001", "000003"}
    last = pseudo_label(extracted_shar, output, whisper, world=worker(0, 2))
    assert last == labelled[1]
    check_same(output, labelled)
    assert modified(kept) == kept


def test_parts_of_another_identity_are_replaced(shar, tmp_path):
    output = tmp_path / "out"
    summary = pseudo_label(shar, output, FakeTranscriber("yes"), world=worker(0, 2))
    assert summary.missing == 2
    totals_path(output).unlink()
    transcriber = FakeTranscriber("no")
    assert pseudo_label(shar, output, transcriber).missing == 0
    assert transcriber.num_waves == 18 and set(texts(output).values()) == {"NO"}


def test_transcripts_of_changed_cuts_are_replaced(shar, tmp_path):
    output = tmp_path / "out"
    assert pseudo_label(shar, output, FakeTranscriber("yes", {"x": 1})).missing == 0
    cuts = list(open_shar(shar))
    shutil.rmtree(shar)
    write_shar(cuts, shar, shard_size=5, seed=1)
    transcriber = FakeTranscriber("no", {"x": 1})
    assert pseudo_label(shar, output, transcriber).missing == 0
    assert transcriber.num_waves == 18 and set(texts(output).values()) == {"NO"}
    shutil.rmtree(shar)
    write_shar(cuts, shar, shard_size=9)
    with pytest.raises(ValueError, match="cuts.000002.jsonl.gz.*another set"):
        pseudo_label(shar, output, transcriber)


def test_links_of_another_process_are_accepted(extracted_shar, tmp_path, monkeypatch):
    link = Path.symlink_to

    def link_twice(self, target, *rest):
        link(self, target, *rest)
        link(self, target, *rest)

    monkeypatch.setattr(Path, "symlink_to", link_twice)
    summary = pseudo_label(extracted_shar, tmp_path / "out", FakeTranscriber())
    assert summary.missing == 0
    check_field(tmp_path / "out", "whisper_tiny_en")


def test_broken_link_is_named(shar, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    link = output / "recording.000002.tar"
    link.symlink_to("moved/recording.000002.tar")
    with pytest.raises(FileExistsError, match=f"{re.escape(str(link))}.*Delete it"):
        pseudo_label(shar, output, FakeTranscriber())
    link.unlink()
    transcriber = FakeTranscriber()
    assert pseudo_label(shar, output, transcriber).missing == 0
    assert transcriber.num_waves == 0


def test_counts_of_a_pseudo_labelled_input_are_not_reused(shar, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    pseudo_label(shar, first, FakeTranscriber())
    summary = pseudo_label(first, second, FakeTranscriber())
    totals = read_totals(second)
    assert totals["of"] == "first"
    for shard, counts in totals["counts"].items():  # as before they are merged
        part = fields_dir(second) / f"pseudo_labels-{shard}.json"
        own = {"counts": counts, "confidences": totals["confidences"][shard]}
        part.write_text(json.dumps({**totals, **own}))
    totals_path(second).unlink()
    transcriber = FakeTranscriber()
    assert pseudo_label(first, second, transcriber) == summary
    assert read_totals(second) == totals and finished_parts(second) == set()
    assert transcriber.num_waves == 0


def test_command_uses_its_gpu_and_spelling(
    shar, asterisk, tmp_path, monkeypatch, capsys
):
    given = {}

    def make_whisper(model_dir, language, beam, **options):
        given.update(options, language=language)
        return FakeTranscriber("L'été")

    monkeypatch.setattr(command, "WhisperText", make_whisper)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "1")
    output = tmp_path / "out"
    spelling = ["--language", "fr", "--case", "lower", "--bpe-model"]
    options = ["--device", "cuda", *spelling, bpe_model(asterisk)]
    run_command(monkeypatch, shar, output, *options)
    assert (given["device"], given["language"]) == ("cuda:1", "fr")
    totals = read_totals(output)
    assert (totals["language"], totals["case"]) == ("fr", "lower")
    assert f"{output}: 18 unknown tokens" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="bpe.model"):
        run_command(monkeypatch, shar, output, *spelling, tmp_path / "bpe.model")
