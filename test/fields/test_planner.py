"""Selection of shards, and predictions of disk space and time."""

import json

import pytest

from icefall_kd.bin import extract as command
from icefall_kd.fields.codecs import CODECS
from icefall_kd.fields.extract import extract, measure_speed
from icefall_kd.fields.planner import (
    Volume,
    forecast,
    format_forecast,
    measure_volume,
    parse_outputs,
    select_shards,
)

FIELD = "whisper_tiny_en"
IDS = [f"{n:06d}" for n in range(10)]
# The training of mvq takes minutes.
SPECS = [
    f"{n}16" if c.sized else n for n, c in CODECS.items() if n not in ("topk", "mvq")
]


@pytest.mark.parametrize(
    "selection, indices",
    [
        (None, range(10)),
        ("0:3", [0, 1, 2]),
        ("8:100", [8, 9]),
        ("::4", [0, 4, 8]),
        ("1::4", [1, 5, 9]),
        ("7, 2:4,3", [2, 3, 7]),
        ("-2:", [8, 9]),
    ],
)
def test_shards_are_selected_by_index(selection, indices):
    assert select_shards(IDS, selection) == [IDS[n] for n in indices]


@pytest.mark.parametrize("selection", ["3,10", "-1", "a:b", "1:2:3:4", "::0", ""])
def test_invalid_selection_is_refused(selection):
    part = selection.rpartition(",")[2]
    with pytest.raises(ValueError, match=f"--shards {selection}: '{part}' .*10 shards"):
        select_shards(IDS, selection)


def test_empty_selection_is_refused():
    with pytest.raises(ValueError, match="--shards 10:20 .*10 shards"):
        select_shards(IDS, "10:20")


@pytest.mark.parametrize("spec", SPECS)
def test_predicted_bytes_are_right_within_10_percent(spec, asterisk, tiny, tmp_path):
    shar = tmp_path / "dev"
    shar.mkdir()
    for path in (asterisk / "data/shar/dev").glob("[cr]*.000000.*"):
        (shar / path.name).symlink_to(path)
    extract(shar, [tiny], codec=spec, codec_frames=1000)
    written = sum(p.stat().st_size for p in tmp_path.rglob(f"{FIELD}.0*"))
    result = forecast(measure_volume([shar]), tiny.outputs, [spec])
    assert result["totals"][0]["bytes"] == result["fields"][0]["bytes"]
    assert abs(result["totals"][0]["bytes"] / written - 1) < 0.1


def test_only_selected_shards_count(shar):
    parts = [measure_volume([shar], shards) for shards in ("0:1", "1:")]
    assert [(v.num_cuts, v.num_shards) for v in parts] == [(5, 1), (13, 3)]
    assert sum(parts, Volume()).seconds == pytest.approx(measure_volume([shar]).seconds)


def test_speed_of_reading_teachers_and_codecs_is_measured(shar, tiny):
    before = sorted(p.name for p in shar.iterdir())
    codecs = ["fp16", "int8"]
    speed = measure_speed(shar, [tiny], codecs, seconds=15.0)
    assert 15.0 <= speed.seconds < 20.0
    assert 0 < speed.reading < 0.1
    assert 0 < speed.teachers[FIELD] < 1
    assert set(speed.codecs) == {(FIELD, codec) for codec in codecs}
    assert all(0 < cost < 0.1 for cost in speed.codecs.values())
    volume = measure_volume([shar])
    result = forecast(volume, tiny.outputs, codecs, free=10**6, speed=speed)
    hours = result["hours"]
    for total in result["totals"]:
        parts = hours["reading"] + hours["teachers"][FIELD]
        assert total["hours"] == pytest.approx(parts + hours["codecs"][total["codec"]])
    assert sorted(p.name for p in shar.iterdir()) == before


def dry_run(monkeypatch, capsys, *options):
    """Return the output of the command."""
    monkeypatch.setattr("sys.argv", ["extract", "--dry-run", *map(str, options)])
    monkeypatch.setattr(command, "setup_logging", lambda: None)  # keep pytest's
    command.main()
    return capsys.readouterr().out


def test_corpus_and_teachers_on_another_machine_are_planned(monkeypatch, capsys):
    options = ["--hours", 60000, "--cut-duration", 12, "--codec", "fp16", "int8"]
    options += ["--dims", "large=1280@50", "wavlm=1024@50"]
    result = json.loads(dry_run(monkeypatch, capsys, "--json", *options))
    assert (result["cuts"], result["shards"]) == (18_000_000, 18_000)
    frames = 60000 * 3600 * 50
    for row, per_frame in zip(result["fields"], (2560, 1280, 2048, 1024)):
        assert row["bytes_per_frame"] == per_frame
        assert 1 < row["bytes"] / (frames * per_frame) < 1.03  # with the tars' headers
    table = dry_run(monkeypatch, capsys, *options)
    assert "60,000.0 h of audio, 18,000,000 cuts, 18,000 shards" in table
    assert "large" in table and "free" not in table and "hours of" not in table


def test_dry_run_prints_disk_space_and_hours_and_writes_nothing(
    monkeypatch, capsys, shar, tiny_dir
):
    before = sorted(p.name for p in shar.iterdir())
    options = ["--shar-dir", shar, "--teacher", FIELD, "--model-dir", tiny_dir]
    options += ["--num-threads", 1, "--probe", 10, "--codec", "fp16", "int8"]
    table = dry_run(monkeypatch, capsys, *options)
    assert sorted(p.name for p in shar.iterdir()) == before
    for text in ("18 cuts, 4 shards", "free: ", "fp16 needs", "all, int8", FIELD):
        assert text in table, table


def test_forecast_that_exceeds_the_free_space_is_marked():
    outputs = parse_outputs(["a=1280@50"])
    result = forecast(Volume.of_corpus(10, 12.0), outputs, ["fp16"], free=5 * 10**9)
    assert result["totals"][0]["fits"] is False
    table = format_forecast(result)
    assert "fp16 needs 5.1 GB" in table and "NOT ENOUGH" in table


@pytest.mark.parametrize("text", ["a", "a=1280", "a=x@50", "a=10@0", "=10@50"])
def test_invalid_dims_are_refused(text):
    with pytest.raises(ValueError, match=f"--dims {text}: .*NAME=VALUES@HZ"):
        parse_outputs([text])
