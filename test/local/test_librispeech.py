"""The scripts of the LibriSpeech recipe, on a small corpus of the same layout."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import students
import torch
import yaml
from lhotse import CutSet
from small_librispeech import UTTERANCES

from icefall_kd.core.frames import unpack_path
from icefall_kd.data.cuts import load_wave
from icefall_kd.data.tokens import Tokenizer
from icefall_kd.fields.codecs.storage import load_codec
from icefall_kd.fields.format import load_field_info
from icefall_kd.fields.reader import load_field, open_shar
from icefall_kd.transducer.checkpoint import save_pretrained

ROOT = Path(__file__).resolve().parents[2]
RECIPE = "egs/librispeech/KD"
LABELLED = "train-clean-100"
UNLABELLED = ("unlabelled_train-clean-360", "unlabelled_train-other-500")
SETS = (LABELLED, *UNLABELLED, "dev-other")
VOCAB = 60
STUDENT = """
model:
  encoder:
    frontend_channels: [4, 8, 16]
    convnext_expansion: 1
    downsampling_factor: [1, 2]
    num_encoder_layers: [1]
    encoder_dim: [32, 48]
    encoder_unmasked_dim: [32]
    feedforward_dim: [48]
    num_heads: [2]
    query_head_dim: [8]
    cnn_module_kernel: [7]
  decoder_dim: 32
  joiner_dim: 32
"""
OPTIONS = f"""--model.vocab_size {VOCAB} --data.num_workers 0 --data.max_duration 30
    --data.bpe_model data/lang_bpe_{VOCAB}/bpe.model --data.num_buckets 2 --amp none
    --optim.frozen_batches 2 --memory_probe false --tensorboard false"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """``recipe("prepare.sh", ...)`` runs a script in a copy of the recipe."""
    root = tmp_path_factory.mktemp("repository")
    folder = root / RECIPE
    shutil.copytree(ROOT / "local", root / "local")
    for room in ("training", "export"):  # files that run_once --code names
        shutil.copytree(ROOT / "icefall_kd" / room, root / "icefall_kd" / room)
    ignored = shutil.ignore_patterns("data", "exp", "download")
    shutil.copytree(ROOT / RECIPE, folder, ignore=ignored)
    env = {"ICEFALL_KD_VENV": sys.prefix, "PYTHONPATH": str(ROOT)}

    def run(script, *options):
        command = ["bash", str(folder / script), *map(str, options)]
        done = subprocess.run(
            command, env={**os.environ, **env}, text=True, capture_output=True
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done

    run.folder = folder
    return run


def prepare(recipe, corpus):
    """Run prepare.sh for some of the sets."""
    options = ("--vocab-size", VOCAB, "--sets", " ".join(SETS))
    return recipe("prepare.sh", "--corpus-dir", corpus, *options)


@pytest.fixture(scope="module")
def prepared(recipe, librispeech):
    """Return the recipe after prepare.sh."""
    prepare(recipe, librispeech)
    return recipe


@pytest.fixture(scope="module")
def extracted(prepared, tiny_dir, tmp_path_factory):
    """Return the recipe after teachers.sh, with Whisper tiny.en as the only teacher."""
    teachers = tmp_path_factory.mktemp("teachers") / "teachers.yaml"
    teachers.write_text(f"whisper_tiny_en: {{model_dir: {tiny_dir}}}\n")
    prepared(
        *("teachers.sh", "--teachers", teachers, "--codec", "fp16"),
        *("--whisper", tiny_dir, "--compute-type", "int8"),
        *("--device", "cpu", "--num-threads", "1"),
    )
    return prepared


def cuts_of(recipe, name):
    return list(CutSet.from_shar(in_dir=recipe.folder / "data/shar" / name))


@pytest.mark.slow
def test_only_labelled_sets_have_texts_and_three_speeds(prepared):
    cuts = cuts_of(prepared, LABELLED)
    assert len(cuts) == 3 * 2 * UTTERANCES
    assert {cut.custom["speed"] for cut in cuts} == {0.9, 1.0, 1.1}
    assert all(len(cut.supervisions) == 1 for cut in cuts)
    assert len(cuts_of(prepared, "dev-other")) == UTTERANCES
    for name in UNLABELLED:
        cuts = cuts_of(prepared, name)
        assert len(cuts) == UTTERANCES
        assert not any(cut.supervisions for cut in cuts)
    lang = prepared.folder / f"data/lang_bpe_{VOCAB}"
    assert (lang / "bigram.pt").exists()
    assert not list(prepared.folder.rglob("*.flac"))


@pytest.mark.slow
def test_a_second_preparation_writes_nothing(prepared, librispeech):
    data = prepared.folder / "data"
    before = {p: p.stat().st_mtime_ns for p in data.rglob("*")}
    done = prepare(prepared, librispeech)
    assert done.stderr.count("done before") == 2 * len(SETS) + 2
    assert {p: p.stat().st_mtime_ns for p in data.rglob("*")} == before


@pytest.mark.slow
def test_a_student_trains_on_unlabelled_audio_and_its_pseudo_labels(extracted):
    student = extracted.folder / "conf/tiny.yaml"
    student.write_text(STUDENT)
    system = "whisper_tiny_en_unlabelled+pseudo"
    extracted(
        *("train.sh", "--systems", system, "--student", student, "--exp", "exp/tiny"),
        *("--epochs", "1", "--avg", "1", "--", *OPTIONS.split()),
    )
    runs = extracted.folder / "exp/tiny/unified"
    pretrain = runs / "whisper_tiny_en_unlabelled/pretrain"
    finetune = runs / system / "finetune"
    assert (finetune / "pretrained.pt").exists()
    config = yaml.safe_load((finetune / "config.yaml").read_text())
    assert config["init_encoder"].endswith(
        "whisper_tiny_en_unlabelled/pretrain/pretrained.pt"
    )
    assert set(config["data"]["train"]) == {
        LABELLED,
        *(f"{n}_whisper" for n in UNLABELLED),
    }
    for folder, losses in (
        (
            pretrain,
            {"embedding.whisper_tiny_en_l1", "embedding.whisper_tiny_en_cosine"},
        ),
        (finetune, {"transducer.pruned", "ctc"}),
    ):
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        dev = [m for m in map(json.loads, lines) if m["kind"] == "dev"][-1]
        assert losses <= set(dev) and all(0 < dev[name] < 100 for name in losses)


@pytest.fixture(scope="module")
def zipformer(extracted):
    """Return the recipe after teachers.sh --stage 3 with a random Zipformer."""
    bpe = extracted.folder / f"data/lang_bpe_{VOCAB}/bpe.model"
    config = dataclasses.replace(students.STUDENT, vocab_size=VOCAB)
    waves = [load_wave(c) for c in open_shar(extracted.folder / "data/shar/dev-other")]
    # The path of conf/zipformer_teacher.yaml.
    path = extracted.folder / "exp/100h-m/unified/baseline/finetune/pretrained.pt"
    path.parent.mkdir(parents=True)
    weights = students.random_student(config, waves).state_dict()
    save_pretrained(path, weights, config, bpe.read_bytes(), {})
    options = ("--device", "cpu", "--num-threads", "1")
    extracted("teachers.sh", "--stage", "3", "--stop-stage", "3", *options)
    return extracted


@pytest.mark.slow
def test_a_zipformer_teacher_writes_ctc_and_path_fields(zipformer):
    tokenizer = Tokenizer(zipformer.folder / f"data/lang_bpe_{VOCAB}/bpe.model")
    for name in (LABELLED, *(f"{name}_whisper" for name in UNLABELLED), "dev-other"):
        folder = zipformer.folder / "data/shar" / name
        assert load_field_info(folder, "zipformer_ctc").kind == "ctc"
        info = load_field_info(folder, "zipformer_path")
        assert info.kind == "path"
        codec = load_codec(folder, info)
        cuts = list(open_shar(folder, ["zipformer_path"]))
        assert len(cuts) == info.num_cuts > 0
        for cut in cuts:
            frames = torch.from_numpy(load_field(cut, "zipformer_path", codec))
            emitted, _ = unpack_path(frames)
            tokens = [t for t in emitted.tolist() if t]
            assert tokens, cut.id
            if cut.supervisions:  # forced alignment; beam search without a text
                assert tokens == tokenizer.encode(cut.supervisions[0].text), cut.id


@pytest.mark.slow
def test_a_student_trains_on_paths_and_lattices(zipformer):
    student = zipformer.folder / "conf/tiny_kd.yaml"
    student.write_text(STUDENT)
    system = "baseline+one_best+lfmmi"
    bigram = f"data/lang_bpe_{VOCAB}/bigram.pt"
    zipformer(
        *("train.sh", "--systems", system, "--student", student, "--exp", "exp/kd"),
        *("--epochs", "1", "--avg", "1", "--", *OPTIONS.split()),
        *("--terms.lfmmi.bigram", bigram),
    )
    metrics = zipformer.folder / f"exp/kd/unified/{system}/finetune/metrics.jsonl"
    lines = map(json.loads, metrics.read_text().splitlines())
    dev = [line for line in lines if line["kind"] == "dev"][-1]
    for term in ("one_best", "lfmmi"):
        assert 0 < dev[term] < 1000 and dev[f"{term}.skipped"] == 0, dev


def test_all_teachers_have_the_same_weight(run_librispeech):
    run_librispeech.add_fields(
        LABELLED, "hubert_large", "wavlm_large", "whisper_large_v3"
    )
    done, commands = run_librispeech("train.sh", "--systems", "all_unlabelled+pseudo")
    assert done.returncode == 0, done.stderr
    pretrain, average, finetune, _ = commands
    assert (
        '{"hubert_large": 0.333, "wavlm_large": 0.333, "whisper_large_v3": 0.333}'
        in pretrain
    )
    assert f"--data.train [{LABELLED}, {UNLABELLED[0]}, {UNLABELLED[1]}] " in pretrain
    assert "exp/100h/unified/all_unlabelled/pretrain " in pretrain
    assert (
        f"[{LABELLED}, {UNLABELLED[0]}_whisper, {UNLABELLED[1]}_whisper] " in finetune
    )
    assert "--config conf/kd/pseudo.yaml" in finetune


def test_a_profile_without_unlabelled_sets_is_reported(
    run_librispeech,
):
    run_librispeech.add_fields(LABELLED, "wavlm_large")
    options = ("train.sh", "--profile", "960h", "--systems")
    for system in ("wavlm_large_unlabelled", "baseline+pseudo"):
        done, commands = run_librispeech(*options, system)
        assert done.returncode != 0 and commands == []
        assert f"'{system}'" in done.stderr and "960h" in done.stderr
    done, commands = run_librispeech(*options, "wavlm_large baseline")
    assert done.returncode == 0, done.stderr
    train_sets = "--data.train [train-clean-100, train-clean-360, train-other-500] "
    assert sum(train_sets in command for command in commands) == 3


def test_a_missing_field_is_reported(run_librispeech):
    done, commands = run_librispeech("train.sh", "--systems", "all")
    assert done.returncode != 0 and commands == []
    assert "no field hubert_large in data/shar/train-clean-100.fields" in done.stderr


def test_a_field_of_an_earlier_version_is_found(run_librispeech):
    shar = run_librispeech.recipe / "data/shar" / LABELLED
    (shar / "wavlm_large.json").touch()
    done, commands = run_librispeech("train.sh", "--systems", "wavlm_large")
    assert done.returncode == 0, done.stderr
    assert len(commands) == 4


def test_both_test_sets_are_decoded_by_both_engines(run_librispeech):
    done, commands = run_librispeech("decode.sh", "--systems", "baseline")
    assert done.returncode == 0, done.stderr
    kinds = [command.split()[1].rsplit(".")[-1] for command in commands]
    # two methods, two sets, full context and streaming
    assert kinds == ["align"] * 2 + ["decode"] * 8
    before = len(commands)
    done, commands = run_librispeech("export.sh", "--systems", "baseline")
    assert done.returncode == 0, done.stderr
    exports, transcriptions = commands[before : before + 2], commands[before + 2 :]
    assert all("--check-shar data/shar/dev-clean" in c for c in exports)
    assert [c.split("--shar-dir ")[1].split()[0] for c in transcriptions] == [
        "data/shar/test-clean",
        "data/shar/test-other",
    ] * 2


def test_the_zipformer_teacher_reads_the_sets_with_pseudo_labels(run_librispeech):
    done, (command,) = run_librispeech(
        *("teachers.sh", "--stage", "3", "--stop-stage", "3"),
        *("--num-processes", "4"),
    )
    assert done.returncode == 0, done.stderr
    folders = (LABELLED, *(f"{name}_whisper" for name in UNLABELLED), "dev-other")
    assert " ".join(f"data/shar/{name}" for name in folders) in command
    assert "--nproc_per_node 4 -m icefall_kd.bin.extract" in command
    assert "--teachers conf/zipformer_teacher.yaml" in command


def test_several_processes_write_pseudo_labels(run_librispeech):
    done, commands = run_librispeech(
        *("teachers.sh", "--stage", "2", "--stop-stage", "2"),
        *("--num-processes", "4", "--whisper", "large"),
    )
    assert done.returncode == 0, done.stderr
    assert len(commands) == len(UNLABELLED)
    for command, name in zip(commands, UNLABELLED):
        assert "--nproc_per_node 4 -m icefall_kd.bin.pseudo_label" in command
        assert f"--shar-dir data/shar/{name} --model-dir large" in command
        assert command.endswith(f"--output data/shar/{name}_whisper")


def test_missing_parts_of_the_corpus_are_reported(run_librispeech, librispeech):
    python = run_librispeech.recipe.parents[2] / "venv/bin/python"
    text = python.read_text()
    python.write_text(text + "exit 1\n")  # no network
    sets = "dev-clean train-clean-100 unlabelled_train-clean-360"
    done, commands = run_librispeech("prepare.sh", "--sets", sets)
    parts = "dev-clean train-clean-100 train-clean-360"
    assert commands == [f"local/fetch_librispeech.py download {parts}"]
    assert done.returncode != 0
    assert "cannot download" in done.stderr and "--corpus-dir" in done.stderr
    python.write_text(text)
    (python.parents[2] / "commands").unlink()
    done, commands = run_librispeech("prepare.sh", "--sets", "dev-clean")
    assert done.returncode != 0 and commands == []
    assert "--sets: train-clean-100 is missing" in done.stderr
    given = ("prepare.sh", "--corpus-dir", str(librispeech))
    done, commands = run_librispeech(*given)
    assert done.returncode != 0 and commands == []
    assert "LibriSpeech/dev-clean" in done.stderr
    assert "dev-clean.tar.gz" in done.stderr
    done, commands = run_librispeech(*given, "--sets", "train-clean-5")
    assert done.returncode != 0 and commands == []
    assert "--sets: no train-clean-5 in profile 100h" in done.stderr


@pytest.mark.parametrize("script", ["train.sh", "decode.sh", "export.sh"])
@pytest.mark.parametrize("corpus", ["asterisk", "librispeech"])
def test_a_wrapper_prints_the_help_of_the_shared_script(corpus, script):
    env = {**os.environ, "ICEFALL_KD_VENV": sys.prefix}
    helps = [
        subprocess.run(
            ["bash", str(path), "--help"], env=env, text=True, capture_output=True
        ).stdout
        for path in (ROOT / "egs" / corpus / "KD" / script, ROOT / "local" / script)
    ]
    assert helps[0] == helps[1]
    assert "Stage 2: " in helps[0] and "--exp " in helps[0]


def test_a_shared_script_outside_of_a_recipe_is_reported():
    env = {**os.environ, "ICEFALL_KD_VENV": sys.prefix}
    done = subprocess.run(
        ["bash", "local/train.sh"], cwd=ROOT, env=env, text=True, capture_output=True
    )
    assert done.returncode == 1
    assert "no recipe in" in done.stderr and "egs/<corpus>/KD" in done.stderr


def test_streaming_is_decoded_with_every_chunk_size(run_librispeech):
    done, commands = run_librispeech(
        *("decode.sh", "--systems", "baseline", "--stage", "1", "--stop-stage", "1"),
        *("--sets", "dev-clean", "--chunk-size", "16 32"),
    )
    assert done.returncode == 0, done.stderr
    sizes = [c.partition("--chunk-size ")[2].split(" ")[0] for c in commands]
    assert sizes == ["", "16", "32"]


def test_paths_are_relative_to_the_folder_of_the_call(
    run_librispeech, tmp_path, monkeypatch
):
    folder = tmp_path / "my own"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name in ("my.yaml", "words.txt", "aligner.pt"):
        (folder / name).touch()
    for script, options, stage in (
        ("teachers.sh", {"teachers": "my.yaml"}, "1"),
        ("train.sh", {"student": "my.yaml", "systems": "baseline"}, "2"),
        ("decode.sh", {"hotwords": "words.txt", "systems": "baseline"}, "2"),
    ):
        words = [word for pair in options.items() for word in ("--" + pair[0], pair[1])]
        words += ["--stage", stage, "--stop-stage", stage]
        done, commands = run_librispeech(script, *words)
        assert done.returncode == 0, done.stderr
        expected = f"{folder}/{next(iter(options.values()))}"
        assert any(expected in command for command in commands)
    done, commands = run_librispeech("teachers.sh", "--stop-stage", "1")
    assert "--teachers conf/teachers.yaml" in commands[-1]
