"""prepare.sh and its commands, in copies of the recipe and with invalid input."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "egs/asterisk/KD"


def run(script, *options, **environment):
    return subprocess.run(
        ["bash", str(script), *map(str, options)],
        capture_output=True,
        text=True,
        env={**os.environ, "ICEFALL_KD_VENV": sys.prefix, **environment},
    )


def copy_recipe(folder):
    recipe = folder / "egs/asterisk/KD"
    shutil.copytree(ROOT / "local", folder / "local")
    recipe.mkdir(parents=True)
    shutil.copy(RECIPE / "prepare.sh", recipe)
    for name in ("local", "splits"):
        shutil.copytree(RECIPE / name, recipe / name)
    return recipe


def listing(folder):
    return {str(p): p.stat().st_mtime_ns for p in folder.rglob("*")}


def test_folder_without_transcripts_is_refused_and_not_changed(asterisk, tmp_path):
    recipe = copy_recipe(tmp_path / "copy")
    audio = next((asterisk / "download/asterisk").rglob("*.g722"))
    shutil.copy(audio, tmp_path / "copy")
    before = listing(tmp_path)
    done = run(recipe / "prepare.sh", "--corpus-dir", tmp_path / "copy")
    assert done.returncode != 0
    assert "core-sounds-en.txt" in done.stderr and "copy it" in done.stderr
    assert "Traceback" not in done.stderr
    assert listing(tmp_path) == before


def test_unknown_unlabelled_audio_is_refused(tmp_path):
    done = run(RECIPE / "prepare.sh", "--unlabelled", "half")
    assert done.returncode != 0 and "--unlabelled" in done.stderr


def test_second_run_repeats_nothing(asterisk):
    before = listing(asterisk / "data")
    done = run(RECIPE / "prepare.sh", "--unlabelled", "none")
    assert done.returncode == 0
    assert listing(asterisk / "data") == before


@pytest.mark.slow
def test_given_folder_gives_the_same_corpus(asterisk, tmp_path):
    recipe = copy_recipe(tmp_path)
    done = run(
        recipe / "prepare.sh",
        *("--corpus-dir", asterisk / "download/asterisk"),
        *("--unlabelled", "none", "--speeds", "1.0"),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert not (recipe / "download").exists()
    bpe = "data/lang_bpe_150/bpe.model"
    assert (recipe / bpe).read_bytes() == (asterisk / bpe).read_bytes()
    report = json.loads((recipe / "data/shar/train.gate.json").read_text())
    assert set(report["reasons"]) == {"too_long"} and report["kept"] > 400


@pytest.fixture
def without_apt(tmp_path):
    """Return a PATH with all tools except apt* and dpkg*."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for source in ("/bin", "/usr/bin"):
        for tool in Path(source).iterdir():
            if not tool.name.startswith(("apt", "dpkg")):
                link = folder / tool.name
                if not link.exists():
                    link.symlink_to(tool)
    return str(folder)


def test_archive_is_downloaded_where_debian_packages_are_missing(
    asterisk, tmp_path, without_apt
):
    (audio,) = (asterisk / "download/asterisk").rglob("hello.g722")
    (texts,) = (asterisk / "download/asterisk").rglob("core-sounds-en.txt.gz")
    release = tmp_path / "release"
    release.mkdir()
    shutil.copy(audio, release)
    shutil.copy(texts, release)
    archive = tmp_path / "asterisk-core-sounds-en-g722-1.6.1.tar.gz"
    subprocess.run(["tar", "-czf", archive, "-C", release, "."], check=True)
    done = run(
        RECIPE / "local/fetch_asterisk.sh",
        *("en", tmp_path / "into"),
        ASTERISK_SITE=f"file://{tmp_path}",
        PATH=without_apt,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "into/hello.g722").read_bytes() == audio.read_bytes()


def test_failed_download_is_reported_with_the_remedy(tmp_path, without_apt):
    done = run(
        RECIPE / "local/fetch_asterisk.sh",
        *("en", tmp_path / "into"),
        ASTERISK_SITE=f"file://{tmp_path}/nothing",
        PATH=without_apt,
    )
    assert done.returncode != 0
    assert "--corpus-dir" in done.stderr.splitlines()[-1]
    assert not list((tmp_path / "into").glob("*.tar.gz"))


@pytest.mark.parametrize(
    "command, message",
    [
        ("train_bpe --manifest no.gz --output x", "no such manifest"),
        (
            "make_shar --manifest m.gz --output x --bpe-model b",
            "no such BPE",
        ),
        ("make_shar --manifest m.gz --output x", "no such manifest"),
        (
            "asterisk/prepare_queen.py --source . --name q --audio a --output x",
            "no queen.1c",
        ),
        (
            "adventure/prepare_queen.py --source . --name q --audio a --output x",
            "no queen.1c",
        ),
        (
            "adventure/prepare_sky.py --source . --name s --audio a --output x",
            "no sky.dnr",
        ),
        ("asterisk/prepare_asterisk.py --source . --check", "core-sounds-en.txt"),
        (
            "asterisk/prepare_asterisk.py --source . --name x",
            "--audio and --output are required",
        ),
        (
            "librispeech/prepare_librispeech.py --source . --name x --output x "
            "--parts dev-clean",
            "dev-clean: no */*/*.trans.txt",
        ),
    ],
)
def test_commands_end_with_one_message_and_write_nothing(
    tmp_path, monkeypatch, capsys, command, message
):
    first, *arguments = command.split()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [first, *arguments])
    with pytest.raises(SystemExit) as ended:
        if "/" in first:
            corpus, _, name = first.partition("/")
            path = ROOT / "egs" / corpus / "KD/local" / name
            runpy.run_path(str(path), run_name="__main__")
        else:
            runpy.run_module(f"icefall_kd.bin.{first}", run_name="__main__")
    assert message in f"{ended.value}{capsys.readouterr().err}"
    assert list(tmp_path.iterdir()) == []
