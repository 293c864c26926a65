"""What the recipe's export.sh does again, by the commands that it runs."""

import os
import re

import pytest

SYSTEM = "exp/quick/unified/baseline"


@pytest.fixture
def export_sh(run_script):
    """``export_sh(...)``: the exports and transcriptions of this call alone."""
    folder = run_script.recipe / SYSTEM
    (folder / "finetune").mkdir(parents=True)
    (folder / "finetune/pretrained.pt").write_bytes(b"")
    before = 0

    def run(*options):
        nonlocal before
        done, commands = run_script("export.sh", "--systems", "baseline", *options)
        assert done.returncode == 0, done.stderr
        commands, before = commands[before:], len(commands)
        return (
            [c for c in commands if "bin.export " in c],
            [c for c in commands if "bin.transcribe " in c],
        )

    run.folder = folder
    run.code = run_script.recipe.parents[2] / "icefall_kd/export"
    return run


def test_both_encoders_are_exported_once(export_sh):
    exports, transcriptions = export_sh()
    assert len(exports) == len(transcriptions) == 2
    assert "--streaming" in exports[1] and "--streaming" not in exports[0]
    assert not any("--chunk-size" in c or "--left-context" in c for c in exports)
    exports, transcriptions = export_sh()
    assert exports == [] and len(transcriptions) == 2


def test_chunks_of_another_size_are_another_encoder(export_sh):
    export_sh()
    (export,), _ = export_sh("--chunk-size", "24")
    assert "--chunk-size 24" in export


def test_a_checkpoint_that_was_trained_further_is_exported_again(export_sh):
    export_sh()
    checkpoint = export_sh.folder / "finetune/pretrained.pt"
    os.utime(checkpoint, (2e9, 2e9))
    assert export_sh()[0] == []
    checkpoint.write_bytes(b"1")
    os.utime(checkpoint, (1e9, 1e9))
    assert len(export_sh()[0]) == 2


def test_another_set_to_check_on_or_other_code_exports_again(export_sh):
    export_sh()
    recipe = export_sh.folder.parents[3]
    shar = recipe / "data/shar/dev"
    shar.mkdir(parents=True)
    for path in (shar / "recording.000000.tar", export_sh.code / "onnx.py"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("1")
        assert len(export_sh()[0]) == 2
        assert export_sh()[0] == []


def test_one_checkpoint_aligns_whichever_systems_a_call_names(run_script):
    def aligners(*options):
        before = len(run_script("decode.sh", "--stop-stage", "-1")[1])
        done, commands = run_script("decode.sh", *options, "--stop-stage", "0")
        assert done.returncode == 0, done.stderr
        return [re.search(r"--checkpoint (\S+)", c)[1] for c in commands[before:]]

    baseline = f"{SYSTEM}/finetune/pretrained.pt"
    assert aligners("--systems", "baseline") == [baseline]  # no other is trained
    last = run_script.recipe / "exp/quick/unified/both_pool/finetune/pretrained.pt"
    last.parent.mkdir(parents=True)
    last.write_bytes(b"")
    for systems in ("baseline", "both_pool baseline"):
        (found,) = aligners("--systems", systems)
        assert found == "exp/quick/unified/both_pool/finetune/pretrained.pt"
    assert aligners("--aligner", "exp/best.pt") == ["exp/best.pt"]


def test_chunks_are_the_checkpoints_unless_a_call_names_them(run_script):
    done, commands = run_script("decode.sh", "--systems", "baseline", "--stage", "1")
    assert done.returncode == 0, done.stderr
    assert sum("--streaming" in c for c in commands) == 2
    assert not any("--chunk-size" in c or "--left-context" in c for c in commands)
    sizes = ("--chunk-size", "16 32", "--left-context", "64", "--stop-stage", "1")
    _, more = run_script("decode.sh", "--systems", "baseline", "--stage", "1", *sizes)
    streams = [c for c in more[len(commands) :] if "--streaming" in c]
    assert ["--chunk-size 16 --left-context 64" in c for c in streams] == [True, False]
    assert "--chunk-size 32 --left-context 64" in streams[1]


def test_delays_are_measured_where_there_is_an_alignment(export_sh):
    _, transcriptions = export_sh()
    assert not any("--alignment" in c for c in transcriptions)
    words = export_sh.folder.parents[1] / "alignment/test.ctm"
    words.parent.mkdir()
    words.write_text("")
    _, transcriptions = export_sh()
    assert all("--alignment exp/quick/alignment/test.ctm" in c for c in transcriptions)
