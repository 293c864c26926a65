"""Output and exit status of the command ``fields``."""

import json

import pytest
from damage import change_array, flip_a_bit
from shar_files import copy_shar

from icefall_kd.bin import fields
from icefall_kd.fields.format import info_path, load_field_info, state_path
from icefall_kd.fields.reader import open_shar

FIELD = "whisper_tiny_en"


@pytest.fixture
def run(capsys):
    """Run the command in this process; return its status, output and messages."""

    def command(*arguments):
        try:
            status = fields.main([str(a) for a in arguments])
        except SystemExit as e:
            status = e.code
        out, err = capsys.readouterr()
        if isinstance(status, str):  # Python prints it to stderr and exits with 1
            status, err = 1, err + status
        return status, out, err

    return command


def test_ls_lists_the_fields_of_each_folder(run, extracted, pristine_shar):
    # bin.make_shar writes the report of the data gate next to the folder.
    report = extracted.with_name("extracted.gate.json")
    report.write_text("{}")
    status, out, _ = run("ls", extracted, report, pristine_shar)
    assert status == 0
    lines = out.splitlines()
    assert lines[0] == f"{extracted}: 1 fields, 4 shards"
    assert lines[1].split()[:4] == ["field", "state", "kind", "dim"]
    assert lines[2].split()[:4] == [FIELD, "complete", "embedding", "384"]
    assert lines[3:] == ["", f"{pristine_shar}: 0 fields, 4 shards", "  no fields"]


def test_ls_as_json_has_the_summary(run, extracted):
    state_path(extracted, FIELD, "000003").unlink()
    info = load_field_info(extracted, FIELD)
    info_path(extracted, FIELD).unlink()
    status, out, _ = run("ls", "--json", extracted)
    (summary,) = json.loads(out)[str(extracted)]
    assert status == 0
    assert (summary["state"], summary["shards_done"], summary["shards"]) == (
        "unfinished",
        3,
        4,
    )
    assert summary["fingerprint"] == info.fingerprint
    assert 0 < summary["hours"] < info.num_frames * 0.02 / 3600


def test_show_fails_if_cuts_have_no_target(run, extracted):
    status, out, _ = run("show", extracted, FIELD)
    assert status == 0 and "model_sha256" in out
    (extracted / f"{FIELD}.000001.tar").unlink()
    status, out, _ = run("show", extracted, FIELD)
    assert status == 1
    assert "targets: 13 of 18 cuts" in out
    assert "missing: 5, for example asterisk" in out


def test_verify_reports_and_deletes_damaged_files(run, extracted):
    flip_a_bit(extracted / f"{FIELD}.000001.tar")
    status, out, err = run("verify", extracted, "--delete-damaged")
    assert status == 1
    fault, count, *deleted = out.splitlines()
    assert fault.startswith(f"{extracted / FIELD}.000001.tar: damaged, another SHA-256")
    assert count == f"{extracted} {FIELD}: 1 faults (every array)"
    paths = [info_path(extracted, FIELD), state_path(extracted, FIELD, "000001")]
    paths.append(extracted / f"{FIELD}.000001.tar")
    assert sorted(deleted) == sorted(f"deleted {path}" for path in paths)
    assert f"verify {FIELD}: 100%" in err


def test_verify_quick_reads_no_arrays(run, extracted):
    change_array(extracted, FIELD, "000001", 0, lambda x: x * float("nan"))
    assert run("verify", "--quick", extracted)[0] == 0
    status, out, _ = run("verify", extracted, FIELD)
    assert status == 1 and "1 arrays are not finite: asterisk" in out
    assert (extracted / f"{FIELD}.000001.tar").is_file()  # nothing was deleted


def test_verify_of_an_intact_folder_succeeds(run, extracted, pristine_shar):
    status, out, _ = run("verify", extracted)
    assert (status, out) == (0, f"{extracted} {FIELD}: no faults (every array)\n")
    assert run("verify", pristine_shar)[:2] == (0, f"{pristine_shar}: no fields\n")


def test_rm_lists_the_files_and_asks(run, extracted, monkeypatch):
    names = sorted(p.name for p in extracted.iterdir())
    status, out, _ = run("rm", extracted, FIELD, "--dry-run")
    assert status == 0 and out.endswith("9 files would be removed\n")
    asked = []
    for answer in ("", "n"):
        monkeypatch.setattr("builtins.input", lambda q, a=answer: asked.append(q) or a)
        assert "nothing was removed" in run("rm", extracted, FIELD)[1]
    assert asked == ["remove these 9 files? [y/N] "] * 2
    assert sorted(p.name for p in extracted.iterdir()) == names
    monkeypatch.setattr("builtins.input", lambda question: "y")
    assert run("rm", extracted, FIELD)[1].endswith("9 files removed\n")
    left = sorted(p.name for p in extracted.iterdir())
    assert left == [n for n in names if not n.startswith(f"{FIELD}.")]


def test_rm_without_a_terminal_removes_nothing(run, extracted, monkeypatch):
    def end_of_input(question):
        raise EOFError

    monkeypatch.setattr("builtins.input", end_of_input)
    assert "nothing was removed" in run("rm", extracted, FIELD)[1]
    assert info_path(extracted, FIELD).is_file()


def test_copy_writes_a_complete_field(run, extracted, pristine_shar, tmp_path):
    target = tmp_path / "target"
    copy_shar(pristine_shar, target)
    assert run("copy", extracted, target, FIELD)[0] == 0
    assert run("verify", target)[0] == 0
    assert len(list(open_shar(target, [FIELD]))) == 18


def test_plot_writes_a_png(run, extracted, tmp_path):
    pytest.importorskip("matplotlib")
    cut = next(iter(open_shar(extracted))).id
    out = tmp_path / "cut.png"
    assert run("plot", extracted, cut, FIELD, "--out", out)[0] == 0
    assert out.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["ls", "{tmp}/none"], "fields ls: {tmp}/none: no such Shar folder"),
        (["ls", "{shar}/cuts.000000.jsonl.gz"], "jsonl.gz: no such Shar folder"),
        (["ls", "{tmp}"], "has no cuts.*.jsonl.gz: it is not a Shar folder"),
        (
            ["show", "{shar}", "whisper"],
            f"'whisper' does not exist. Available: {FIELD}",
        ),
        (["verify", "{shar}", "whisper"], "'whisper' does not exist"),
        (["rm", "{shar}", "recording"], "'recording' cannot name a field"),
        (["copy", "{shar}", "{tmp}", FIELD], "{tmp} has no cuts"),
        (["plot", "{shar}", "asterisk", FIELD, "--out", "a.png"], "ids: asterisk-"),
        (["plot", "{shar}", "asterisk", FIELD], "required: --out"),
        (["mv", "{shar}"], "invalid choice: 'mv'"),
    ],
    ids=lambda x: x[0] if isinstance(x, list) else "",
)
def test_missing_folders_fields_and_cuts_have_status_2(
    run, extracted_shar, tmp_path, arguments, message
):
    places = {"tmp": tmp_path, "shar": extracted_shar}
    status, out, err = run(*(a.format(**places) for a in arguments))
    assert (status, out) == (2, "")
    assert message.format(**places) in err


def test_refused_copy_has_status_1(run, extracted):
    status, _, err = run("copy", extracted, extracted, FIELD)
    assert status == 1 and "source and target are one folder" in err
