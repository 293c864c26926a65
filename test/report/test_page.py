"""The report page: content, safety, and independence of other files."""

import base64
import hashlib
import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile
from dummies import noise_cuts
from report_files import Page, write_result

from icefall_kd.data.shar import write_shar
from icefall_kd.fields.reader import open_shar
from icefall_kd.recognition.result_files import write_results
from icefall_kd.recognition.scoring import Recognition
from icefall_kd.report import page as page_module
from icefall_kd.report.charts import make_charts
from icefall_kd.report.page import encode_flac, load_audio, render
from icefall_kd.report.results import find_results
from icefall_kd.report.runs import find_run
from icefall_kd.report.table import make_table

HERE = Path(page_module.__file__).parent
HOSTILE = "<script>alert(1)</script>"


def write(systems, baseline=None, audio=None):
    """Return the source of a page, the parsed page, and its table.

    Args:
      systems: name of a system -> folder of its results.
      baseline, audio: of :func:`make_table` and :func:`render`.
    """
    results = [r for name, path in systems.items() for r in find_results(name, path)]
    runs = {r.system: find_run(r.path, r.facts["checkpoint"]) for r in results}
    table = make_table(results, baseline, runs)
    source = render(table, runs, make_charts(runs), audio)
    return source, Page(source), table


@pytest.fixture
def written(exp):
    return write({name: exp / name for name in ("baseline", "kd")}, "baseline")


def data_of(page):
    return json.loads(page.scripts[0])


def test_the_table_has_the_values_of_the_json(written):
    _, page, table = written
    rows = page.rows(0)
    assert len(rows) == len(table.rows) == 5
    for shown, row in zip(rows, table.rows):
        facts = json.loads(row.result.path.read_text())
        number = {name: attrs.get("data-value") for name, (_, attrs) in shown.items()}
        assert shown["system"][0] == row.result.system
        assert float(number["WER % [95 %]"]) == facts["wer"]
        assert int(number["params"]) == facts["parameters"]
        assert float(number["RTF"]) == facts["rtf"]
        low, high = facts["interval"]
        assert shown["WER % [95 %]"][0] == f"{facts['wer']:.2f} [{low:.1f}, {high:.1f}]"
    gains = {
        (r["system"][0], r["decoding"][0], r["engine"][0]): r["WERR"][1].get(
            "data-value"
        )
        for r in rows
    }
    assert float(gains["kd", "full context, greedy", "pytorch"]) == pytest.approx(50)
    assert gains["kd", "full context, greedy", "sherpa-onnx 2.0.1 int8"] is None


def test_the_last_value_of_each_curve_is_in_a_table(written, exp):
    _, page, _ = written
    last = {row["system"][0]: row for row in page.rows(2)}
    for name in ("baseline", "kd"):
        lines = (exp / name / "finetune/metrics.jsonl").read_text().splitlines()
        for metric in ("loss", "ctc", "transducer"):
            _, attrs = last[name][f"finetune: {metric}"]
            assert float(attrs["data-value"]) == json.loads(lines[-1])[metric]
    assert last["baseline"]["pretrain: loss"] == ("", {"class": "number"})


def test_the_training_of_each_system_is_described(written):
    rows = {row["system"][0]: row for row in written[1].rows(1)}
    assert rows["baseline"]["pretrain"][0] == "none"
    assert rows["kd"]["pretrain"][0].startswith("2 epochs, 200 updates")
    assert rows["kd"]["seed"][0] == "7, 42"
    assert rows["kd"]["commit"][0] == "abcdef123456"


def test_each_utterance_of_each_result_is_aligned(written):
    _, page, table = written
    data = data_of(page)
    ids = data["sets"]["test"]
    assert len(ids) == 40
    for result, row in zip(data["results"], table.rows):
        assert result["system"] == row.result.system
        wrong = sum(not isinstance(w, str) for words in result["words"] for w in words)
        assert wrong == row.result.facts["errors"]
        for i, words in zip(ids, result["words"]):
            (recognition,) = [r for r in row.result.recognitions if r.cut_id == i]
            pairs = [(w, w) if isinstance(w, str) else w for w in words]
            assert [ref for ref, _ in pairs if ref] == recognition.ref
            assert [hyp for _, hyp in pairs if hyp] == recognition.hyp


def test_the_page_has_the_note_on_a_missing_gain(written, exp):
    _, page, table = written
    assert table.notes[0].startswith("No gain: baseline")
    assert table.notes[0] in page.text
    links = [a["href"] for tag, a in page.tags if tag == "a"]
    ids = {a["id"] for _, a in page.tags if "id" in a}
    assert "#note-1" in links
    assert {link[1:] for link in links} <= ids
    source, alone, _ = write({"kd": exp / "kd"})
    assert "WERR" not in [text for text, _ in alone.tables[0][0]]


def test_the_page_refers_to_no_other_file(written):
    source, page, _ = written
    assert "://" not in source
    for tag, attrs in page.tags:
        assert tag not in ("link", "img", "iframe", "object", "embed")
        assert "src" not in attrs
        assert not any(name.startswith("on") for name in attrs)
        assert attrs.get("href", "#").startswith("#")
    assert not re.search(r"url\(|@import", "".join(page.styles))


def test_the_policy_allows_only_the_script_and_style_of_the_page(written):
    _, page, _ = written
    (policy,) = [
        a["content"]
        for tag, a in page.tags
        if a.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy.startswith("default-src 'none'; media-src data:;")
    for kind, text in (("script", page.scripts[1]), ("style", page.styles[0])):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy


def test_markup_in_names_and_words_is_shown_as_text(tmp_path):
    name, cut = f"a{HOSTILE}", f'"><img src=x onerror=alert(1)>{HOSTILE}'
    words = [HOSTILE, "</script>", "&amp;", "<!--", "']]>"]
    found = [Recognition(cut, ["FINE", *words], words)]
    folder = write_result(tmp_path, 1)
    facts = json.loads(next(folder.glob("result-*.json")).read_text())
    for old in folder.iterdir():
        old.unlink()
    facts.update(engine=HOSTILE, recogs="recogs-test-x.txt", method=HOSTILE)
    for key in ("set", "suffix", "wer", "interval", "errors", "words", "utterances"):
        facts.pop(key)
    write_results(folder, "test", "x", found, facts)
    source, page, _ = write({name: folder})
    assert len(page.scripts) == 2
    assert "img" not in [tag for tag, _ in page.tags]
    assert source.count("<script") == source.count("</script") == 2
    assert page.rows(0)[0]["system"][0] == name
    assert HOSTILE in page.rows(0)[0]["engine"][0]
    data = data_of(page)
    assert data["sets"]["test"] == [cut]
    assert data["results"][0]["words"] == [[["FINE", ""], *words]]


def test_audio_is_embedded_by_set_and_id(exp):
    audio = {"test": {"u3": "data:audio/flac;base64,AAAA"}}
    _, page, _ = write({"kd": exp / "kd"}, audio=audio)
    assert data_of(page)["audio"] == audio
    assert "Audio of the 1 utterances" in page.text


def test_tables_have_headers_and_pictures_have_names(written):
    _, page, _ = written
    for table in page.tables:
        assert all(attrs.get("scope") == "col" for _, attrs in table[0])
        assert all(row[0][1].get("scope") == "row" for row in table[1:])
    pictures = [attrs for tag, attrs in page.tags if tag == "svg"]
    assert all(a.get("aria-label") or a.get("aria-hidden") for a in pictures)
    assert ("html", {"lang": "en"}) in page.tags
    assert sum(tag == "caption" for tag, _ in page.tags) == len(page.tables)


def luminance(colour):
    """Relative luminance of #rrggbb. Source: W3C, WCAG 2.1, 2018."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    parts = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), parts))


def test_colours_have_enough_contrast_in_light_and_dark_mode():
    style = (HERE / "page.css").read_text()
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
        for block in re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    )
    assert set(light) == set(dark)
    for colours in (light, dark):
        for ground in ("page", "panel"):
            for name in set(colours) - {"page", "panel", "rule"}:
                a, b = (luminance(colours[n]) for n in (name, ground))
                contrast = (max(a, b) + 0.05) / (min(a, b) + 0.05)
                least = 3.0 if re.fullmatch(r"c\d", name) else 4.5
                assert contrast >= least, (name, ground)


def test_the_script_refers_to_elements_of_the_template():
    script, template = ((HERE / f"page.{x}").read_text() for x in ("js", "html"))
    wanted = set(re.findall(r'get\("([\w-]+)"\)', script)) - {"data"}
    assert wanted <= set(re.findall(r'id="([\w-]+)"', template))
    options = set(re.findall(r'<option value="(\w+)"', template))
    assert options == set(re.findall(r"^      (\w+): \(", script, re.MULTILINE))


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_the_script_parses():
    subprocess.run(["node", "--check", str(HERE / "page.js")], check=True)


def samples_of(uri):
    """Return (samples as int16, rate) of a data URI."""
    kind, _, encoded = uri.partition(",")
    assert kind == "data:audio/flac;base64"
    return soundfile.read(io.BytesIO(base64.b64decode(encoded)), dtype="int16")


def test_embedded_audio_has_the_samples_of_the_set(asterisk):
    shar_dir = asterisk / "data/shar/test"
    cuts = {cut.id: cut for cut in open_shar(shar_dir)}
    ids = sorted(cuts)[:3]
    found = load_audio(shar_dir, ids)
    assert sorted(found) == ids
    for i in ids:
        samples, rate = samples_of(found[i])
        assert rate == cuts[i].sampling_rate
        assert np.array_equal(samples / 32768, cuts[i].load_audio()[0])


def test_embedded_audio_of_a_cut_starts_at_its_offset(tmp_path):
    (cut,) = noise_cuts(tmp_path, [1.0])
    part = cut.truncate(offset=0.25, duration=0.5)
    samples, _ = samples_of(encode_flac(part))
    assert np.array_equal(samples / 32768, part.load_audio()[0])
    assert len(samples) == 8000


def test_utterances_missing_in_the_set_are_reported(tmp_path):
    write_shar(noise_cuts(tmp_path, [0.3, 0.3]), tmp_path / "test")
    with pytest.raises(ValueError, match=r"1 utterances.*\['u7'\]"):
        load_audio(tmp_path / "test", ["noise-0", "u7"])
    with pytest.raises(FileNotFoundError, match="none"):
        load_audio(tmp_path / "none", ["noise-0"])
