"""The recipe's prepare.sh, on copies of the recipe and on wrong input."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from icefall_kd.bin import prepare_corpus

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


def test_folder_without_transcripts_is_refused_and_nothing_touched(asterisk, tmp_path):
    recipe = copy_recipe(tmp_path / "copy")
    audio = next((asterisk / "download/asterisk").rglob("*.g722"))
    shutil.copy(audio, tmp_path / "copy")
    before = listing(tmp_path)
    done = run(recipe / "prepare.sh", "--corpus-dir", tmp_path / "copy")
    assert done.returncode != 0
    assert "core-sounds-en.txt" in done.stderr and "Remedy" in done.stderr
    assert "Traceback" not in done.stderr
    assert listing(tmp_path) == before


def test_unknown_pool_is_refused(tmp_path):
    done = run(RECIPE / "prepare.sh", "--pool", "half")
    assert done.returncode != 0 and "--pool wants none, quick or full" in done.stderr


def test_second_run_repeats_nothing(asterisk):
    before = listing(asterisk / "data")
    done = run(RECIPE / "prepare.sh", "--pool", "none")
    assert done.returncode == 0
    assert listing(asterisk / "data") == before


def test_given_folder_gives_the_same_corpus(asterisk, tmp_path):
    recipe = copy_recipe(tmp_path)
    done = run(
        recipe / "prepare.sh",
        *("--corpus-dir", asterisk / "download/asterisk"),
        *("--pool", "none", "--speeds", "1.0"),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert not (recipe / "download").exists()
    bpe = "data/lang_bpe_150/bpe.model"
    assert (recipe / bpe).read_bytes() == (asterisk / bpe).read_bytes()
    report = json.loads((recipe / "data/shar/train.gate.json").read_text())
    assert set(report["reasons"]) == {"too_long"} and report["kept"] > 400


@pytest.fixture
def without_apt(tmp_path):
    """A PATH on which everything but apt-get and dpkg can be found."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for source in ("/bin", "/usr/bin"):
        for tool in Path(source).iterdir():
            if not tool.name.startswith(("apt", "dpkg")):
                link = folder / tool.name
                if not link.exists():
                    link.symlink_to(tool)
    return str(folder)


def test_without_debian_packages_the_projects_site_serves(
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


def test_without_any_network_the_remedy_is_told(tmp_path, without_apt):
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
        ("train_bpe --manifest no.jsonl.gz --output x", "no such manifest"),
        ("make_shar --manifest m.jsonl.gz --output x --bpe-model b", "no such BPE"),
        ("make_shar --manifest m.jsonl.gz --output x", "no such manifest"),
        (
            "prepare_corpus queen --source . --name q --audio a --output x",
            "no queen.1c",
        ),
        ("prepare_corpus asterisk --source . --check", "core-sounds-en.txt"),
        ("prepare_corpus queen --source .", "give --audio and --output"),
        ("prepare_corpus queen --source . --audio a --output x", "give --splits"),
    ],
)
def test_commands_end_with_one_message_and_write_nothing(tmp_path, command, message):
    verb, *arguments = command.split()
    done = subprocess.run(
        [sys.executable, "-m", f"icefall_kd.bin.{verb}", *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 1
    assert message in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


QUEEN = "queen --source . --name q --audio a --output x"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (f"{QUEEN} --labelled", "queen has no transcripts"),
        (f"{QUEEN} --parts p", "--parts is no option of queen"),
        ("queen --source . --check", "--check: queen has none"),
        ("asterisk --source . --check --parts p", "--parts is no option of asterisk"),
        ("librispeech --source . --name x", "give --output"),
        (
            "librispeech --source . --name x --output x --parts dev-clean",
            r"dev-clean: no \*/\*/\*.trans.txt in it. Remedy",
        ),
    ],
)
def test_a_corpus_refuses_what_it_does_not_know(
    tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["prepare_corpus", *arguments.split()])
    with pytest.raises(SystemExit, match=message):
        prepare_corpus.main()
    assert list(tmp_path.iterdir()) == []
