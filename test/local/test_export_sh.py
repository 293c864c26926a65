"""The commands of decode.sh and export.sh."""

import os
import re

import pytest

SYSTEM = "exp/quick/unified/baseline"


@pytest.fixture
def export_sh(run_script):
    """``export_sh(...)`` returns the commands of bin.export and of bin.transcribe."""
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


def test_both_decodings_are_exported_once(export_sh):
    exports, transcriptions = export_sh()
    assert len(exports) == len(transcriptions) == 2
    assert "--streaming" in exports[1] and "--streaming" not in exports[0]
    assert not any("--chunk-size" in c or "--left-context" in c for c in exports)
    exports, transcriptions = export_sh()
    assert exports == [] and len(transcriptions) == 2


def test_another_chunk_size_is_another_export(export_sh):
    export_sh()
    (export,), _ = export_sh("--chunk-size", "24")
    assert "--chunk-size 24" in export


def test_the_profile_has_the_default_head(export_sh, run_script):
    def heads(*options):
        exports, transcriptions = export_sh(*options)
        assert all(" --head ctc" in c for c in exports)
        return {re.search(r"--method (\w+)", c)[1] for c in transcriptions}

    assert heads() == {"ctc_hlg"}  # quick: head: ctc, and hlg
    path = run_script.recipe / "conf/profiles.yaml"
    path.write_text(path.read_text().replace("head: ctc", "head: lm"))
    assert heads("--head", "ctc") == {"ctc_hlg"}
    done, _ = run_script("decode.sh", "--systems", "baseline")
    assert done.returncode == 1
    assert "conf/profiles.yaml, profile quick, head: no 'lm'" in done.stderr


def test_the_graph_of_the_profile_replaces_the_beam_search(export_sh, run_script):
    options = ("--systems", "baseline", "--stage", "1")
    done, commands = run_script("decode.sh", *options)
    assert done.returncode == 0, done.stderr
    (graph,) = (c for c in commands if "bin.compile_hlg" in c)
    assert "--output exp/quick/HLG.fst --text data/shar/train data/shar/un" in graph
    assert "--held-out data/shar/dev data/shar/test --bpe-model data/lang_bpe" in graph
    assert "--lm-scale" in graph and "--text data/shar/dev" not in graph
    search = "--method ctc_hlg --graph exp/quick/HLG.fst"
    assert sum(search in c for c in commands) == 2
    assert sum("--method ctc_greedy_search" in c for c in commands) == 2
    (run_script.recipe / "exp/quick/HLG.fst").write_bytes(b"1")
    export_sh()
    assert export_sh()[0] == []
    (run_script.recipe / "exp/quick/HLG.fst").write_bytes(b"2")
    assert sum("--graph exp/quick/HLG.fst" in c for c in export_sh()[0]) == 2
    _, commands = run_script("decode.sh", *options, "--head", "transducer")
    assert "--method modified_beam_search" in commands[-1]
    path = run_script.recipe / "conf/profiles.yaml"
    path.write_text(re.sub(r"\n  hlg:(\n    .*)+", "", path.read_text()))
    _, commands = run_script("decode.sh", *options)
    assert "--method ctc_prefix_beam_search" in commands[-1]


def test_a_changed_checkpoint_is_exported_again(export_sh):
    export_sh()
    checkpoint = export_sh.folder / "finetune/pretrained.pt"
    os.utime(checkpoint, (2e9, 2e9))
    assert export_sh()[0] == []
    checkpoint.write_bytes(b"1")
    os.utime(checkpoint, (1e9, 1e9))
    assert len(export_sh()[0]) == 2


def test_changed_check_sets_or_code_export_again(export_sh):
    export_sh()
    recipe = export_sh.folder.parents[3]
    shar = recipe / "data/shar/dev"
    for path in (shar / "recording.000000.tar", export_sh.code / "onnx.py"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("1")
        assert len(export_sh()[0]) == 2
        assert export_sh()[0] == []


def test_the_same_checkpoint_aligns_for_all_systems(run_script):
    def aligners(*options):
        before = len(run_script("decode.sh", "--stop-stage", "-1")[1])
        done, commands = run_script("decode.sh", *options, "--stop-stage", "0")
        assert done.returncode == 0, done.stderr
        return [re.search(r"--checkpoint (\S+)", c)[1] for c in commands[before:]]

    baseline = f"{SYSTEM}/finetune/pretrained.pt"
    assert aligners("--systems", "baseline") == [baseline]  # the only trained system
    last = "exp/quick/unified/both_unlabelled+pseudo/finetune/pretrained.pt"
    (run_script.recipe / last).parent.mkdir(parents=True)
    (run_script.recipe / last).write_bytes(b"")
    for systems in ("baseline", "both_unlabelled+pseudo baseline"):
        (found,) = aligners("--systems", systems)
        assert found == last
    assert aligners("--aligner", "exp/best.pt") == ["exp/best.pt"]


def test_the_checkpoint_has_the_default_chunk_size(run_script):
    done, commands = run_script("decode.sh", "--systems", "baseline", "--stage", "1")
    assert done.returncode == 0, done.stderr
    assert sum("--streaming" in c for c in commands) == 2
    assert not any("--chunk-size" in c or "--left-context" in c for c in commands)
    sizes = ("--chunk-size", "16 32", "--left-context", "64", "--stop-stage", "1")
    _, more = run_script("decode.sh", "--systems", "baseline", "--stage", "1", *sizes)
    streams = [c for c in more[len(commands) :] if "--streaming" in c]
    assert ["--chunk-size 16 --left-context 64" in c for c in streams] == [True, False]
    assert "--chunk-size 32 --left-context 64" in streams[1]


def test_an_existing_alignment_is_used_for_delays(export_sh):
    _, transcriptions = export_sh()
    assert not any("--alignment" in c for c in transcriptions)
    words = export_sh.folder.parents[1] / "alignment/test.ctm"
    words.parent.mkdir()
    words.write_text("")
    _, transcriptions = export_sh()
    assert all("--alignment exp/quick/alignment/test.ctm" in c for c in transcriptions)
