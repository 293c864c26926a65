"""What the recipe's export.sh does again, by the commands that it runs."""

import os

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
    return run


def test_both_encoders_are_exported_once(export_sh):
    exports, transcriptions = export_sh()
    assert len(exports) == len(transcriptions) == 2
    assert "--chunk-size 16" in exports[1] and "--streaming" not in exports[0]
    exports, transcriptions = export_sh()
    assert exports == [] and len(transcriptions) == 2


def test_chunks_of_another_size_are_another_encoder(export_sh):
    export_sh()
    (export,), _ = export_sh("--chunk-size", "24")
    assert "--chunk-size 24" in export


def test_a_checkpoint_that_was_trained_further_is_exported_again(export_sh):
    export_sh()
    os.utime(export_sh.folder / "finetune/pretrained.pt", (2e9, 2e9))
    exports, _ = export_sh()
    assert len(exports) == 2


def test_delays_are_measured_where_there_is_an_alignment(export_sh):
    _, transcriptions = export_sh()
    assert not any("--alignment" in c for c in transcriptions)
    words = export_sh.folder.parents[1] / "alignment/test.ctm"
    words.parent.mkdir()
    words.write_text("")
    _, transcriptions = export_sh()
    assert all("--alignment exp/quick/alignment/test.ctm" in c for c in transcriptions)
