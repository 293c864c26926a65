"""What an extraction takes, told before it is begun."""

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
)

FIELD = "whisper_tiny_en"
CODEC_SPECS = [f"{n}16" if c.sized else n for n, c in CODECS.items() if n != "topk"]


@pytest.fixture(scope="module")
def dev_shar(asterisk):
    """A folder of the corpus as it is, not to be written to."""
    return asterisk / "data/shar/dev"


@pytest.mark.parametrize("spec", [s for s in CODEC_SPECS if not s.startswith("mvq")])
def test_the_predicted_bytes_are_right_within_a_tenth(spec, dev_shar, tiny, tmp_path):
    shar = tmp_path / "dev"
    shar.mkdir()
    for path in dev_shar.glob("[cr]*.000000.*"):
        (shar / path.name).symlink_to(path)
    extract(shar, [tiny], codec=spec)
    written = sum(p.stat().st_size for p in tmp_path.rglob(f"{FIELD}.0*"))
    result = forecast(measure_volume([shar]), tiny.outputs, [spec])
    assert result["totals"][0]["bytes"] == result["fields"][0]["bytes"]
    assert abs(result["totals"][0]["bytes"] / written - 1) < 0.1


def test_only_the_selected_shards_count(shar):
    parts = [measure_volume([shar], shards) for shards in ("0:1", "1:")]
    assert [(v.num_cuts, v.num_shards) for v in parts] == [(5, 1), (13, 3)]
    assert Volume.sum(parts).seconds == pytest.approx(measure_volume([shar]).seconds)


def test_a_probe_times_reading_teachers_and_codecs(shar, tiny):
    before = sorted(p.name for p in shar.iterdir())
    speed = measure_speed(shar, [tiny], ["fp16", "int8"], seconds=15.0)
    assert 15.0 <= speed.seconds < 20.0
    assert 0 < speed.reading < 0.1
    assert 0 < speed.teachers[FIELD] < 1
    assert set(speed.codecs) == {(FIELD, "fp16"), (FIELD, "int8")}
    assert all(0 < cost < 0.1 for cost in speed.codecs.values())
    result = forecast(
        measure_volume([shar]), tiny.outputs, ["fp16", "int8"], free=10**6, speed=speed
    )
    hours = result["hours"]
    for total in result["totals"]:
        parts = hours["reading"] + hours["teachers"][FIELD]
        assert total["hours"] == pytest.approx(parts + hours["codecs"][total["codec"]])
    assert sorted(p.name for p in shar.iterdir()) == before


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr("sys.argv", ["extract", "--dry-run", *map(str, arguments)])
    monkeypatch.setattr(command, "setup_logging", lambda: None)  # keep pytest's
    command.main()
    return capsys.readouterr().out


def test_a_corpus_and_teachers_that_are_not_here_are_planned(monkeypatch, capsys):
    options = ["--hours", 60000, "--cut-duration", 12, "--codec", "fp16", "int8"]
    options += ["--dims", "large=1280@50", "wavlm=1024@50"]
    result = json.loads(run(monkeypatch, capsys, "--json", *options))
    assert (result["cuts"], result["shards"]) == (18_000_000, 18_000)
    frames = 60000 * 3600 * 50
    for row, per_frame in zip(result["fields"], (2560, 1280, 2048, 1024)):
        assert row["bytes_per_frame"] == per_frame
        assert 1 < row["bytes"] / (frames * per_frame) < 1.03  # and the tars' own
    table = run(monkeypatch, capsys, *options)
    assert "60,000.0 h of audio, 18,000,000 cuts, 18,000 shards" in table
    assert "large" in table and "free" not in table and "hours of" not in table


def test_a_dry_run_prints_room_and_hours_and_writes_nothing(
    monkeypatch, capsys, shar, tiny_dir
):
    before = sorted(p.name for p in shar.iterdir())
    options = ["--shar-dir", shar, "--teacher", FIELD, "--model-dir", tiny_dir]
    options += ["--num-threads", 1, "--probe", 10, "--codec", "fp16", "int8"]
    table = run(monkeypatch, capsys, *options)
    assert sorted(p.name for p in shar.iterdir()) == before
    for text in ("18 cuts, 4 shards", "free: ", "fp16 needs", "all, int8", FIELD):
        assert text in table, table


def test_what_does_not_fit_is_said():
    outputs = parse_outputs(["a=1280@50"])
    result = forecast(Volume.of_corpus(10, 12.0), outputs, ["fp16"], free=5 * 10**9)
    assert result["totals"][0]["fits"] is False
    assert "fp16 needs 5.1 GB, margin included: NOT ENOUGH SPACE" in format_forecast(
        result
    )


@pytest.mark.parametrize("text", ["a", "a=1280", "a=x@50", "a=10@0", "=10@50"])
def test_outputs_of_another_form_are_refused(text):
    with pytest.raises(ValueError, match="expected NAME=VALUES@HZ"):
        parse_outputs([text])
