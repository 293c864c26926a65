"""Plots of a cut: all panels share one time axis, and frames are at their times."""

import dataclasses
import gzip
import json
import struct
import sys

import numpy as np
import pytest
import soundfile
from lhotse import CutSet, Recording, SupervisionSegment
from loudness import LOUD, Loudness

from icefall_kd import SAMPLE_RATE
from icefall_kd.data.shar import write_shar
from icefall_kd.fields.codecs import make_codec
from icefall_kd.fields.extract import extract
from icefall_kd.fields.format import load_field_info
from icefall_kd.fields.plot import (
    best_tokens,
    blank_probability,
    draw,
    project,
    read_cut,
    save_figure,
)
from icefall_kd.fields.reader import open_shar

pytest.importorskip("matplotlib")
FIELD = "whisper_tiny_en"
DURATION, CLICK = 1.8965, 1.234  # s; neither is a multiple of a frame


@pytest.fixture(scope="module")
def clicked(tmp_path_factory):
    """A Shar of one cut, faint noise with a click of 1 ms, with loudness fields."""
    folder = tmp_path_factory.mktemp("click")
    wave = 1e-3 * np.random.default_rng(0).standard_normal(round(DURATION * 16000))
    first = round(CLICK * SAMPLE_RATE)
    wave[first : first + 16] = 0.9
    soundfile.write(folder / "click.flac", wave.astype(np.float32), SAMPLE_RATE)
    cut = Recording.from_file(folder / "click.flac").to_cut()
    cut.id = "click"
    cut.supervisions = [
        SupervisionSegment("click", "click", 0.0, DURATION, text="A CLICK")
    ]
    write_shar(CutSet.from_cuts([cut]), folder / "shar")
    extract(folder / "shar", [Loudness()])
    return folder / "shar"


@pytest.fixture(scope="module")
def figure(clicked):
    """Panels: spectrogram; loudness: norm, projection; loud_ctc: blank, tokens."""
    return draw(read_cut(clicked, "click", ["loudness", "loud_ctc"]))


def span(panel):
    """Return start and end of the only image of a panel, in seconds."""
    left, right, _, _ = panel.images[0].get_extent()
    return left, right


def test_all_panels_share_one_time_axis(figure):
    assert len(figure.axes) == 5
    figure.canvas.draw()
    for panel in figure.axes:
        assert panel.get_xlim() == (0.0, pytest.approx(DURATION, abs=1e-6))
        box, first = panel.get_window_extent(), figure.axes[0].get_window_extent()
        assert (box.x0, box.x1) == pytest.approx((first.x0, first.x1), abs=0.5)


def test_click_is_at_its_time_in_every_panel(figure):
    fbank, norm, colours, blank, tokens = figure.axes
    image = fbank.images[0].get_array()  # (F, T)
    left, right = span(fbank)
    assert (left, right) == (0.0, pytest.approx(image.shape[1] * 0.01))
    frame = int(np.asarray(image).mean(axis=0).argmax())
    # The click is in all 25 ms windows around it.
    assert abs((frame + 0.5) * 0.01 - CLICK) < 0.0125 + 0.005
    for panel, pick in ((norm, np.argmax), (blank, np.argmin)):
        steps = panel.patches[0].get_data()
        k = int(pick(steps.values))
        assert steps.edges[k] <= CLICK < steps.edges[k + 1]
        assert np.diff(steps.edges) == pytest.approx(0.02)
    shown = np.asarray(colours.images[0].get_array())[0]  # (T, 3)
    assert span(colours) == (0.0, pytest.approx(len(shown) * 0.02))
    # The click dominates the first component, clipped at 2 of 100 frames.
    extreme = shown[:, 0] == round(float(shown[int(CLICK / 0.02), 0]))
    assert extreme[int(CLICK / 0.02)] and extreme.sum() <= 3
    (label,) = tokens.texts
    assert label.get_text() == str(LOUD)
    assert abs(label.get_position()[0] - CLICK) <= 0.01
    (left, _), (right, _) = tokens.patches[0].get_extents().get_points()
    left, right = tokens.transData.inverted().transform([(left, 0), (right, 0)])[:, 0]
    assert left - 1e-6 <= CLICK < right + 1e-6


def test_title_is_the_text_and_tokens_have_labels(clicked):
    read = read_cut(clicked, "click", ["loud_ctc"])
    figure = draw(read, lambda token: f"<{token}>")
    assert figure.get_suptitle() == "click\nA CLICK"
    assert figure.axes[2].texts[0].get_text() == f"<{LOUD}>"
    read.cut.supervisions = []
    assert draw(read).get_suptitle() == "click"


def test_kind_that_cannot_be_drawn_is_refused(clicked):
    read = read_cut(clicked, "click", ["loudness"])
    info, x = read.frames["loudness"]
    read.frames["loudness"] = (dataclasses.replace(info, kind="text"), x)
    with pytest.raises(ValueError, match="'loudness' is of kind 'text'.*ctc"):
        draw(read)


def test_drawn_frames_are_those_of_the_field(extracted):
    cut = list(open_shar(extracted, [FIELD]))[7]
    stored = make_codec("fp16").decode(getattr(cut, FIELD).load())
    read = read_cut(extracted, cut.id, [FIELD])
    np.testing.assert_array_equal(read.frames[FIELD][1], stored)
    assert (read.cut.load_audio() == cut.load_audio()).all()
    fbank, norm, colours = draw(read).axes
    steps = norm.patches[0].get_data()
    np.testing.assert_allclose(steps.values, np.linalg.norm(stored, axis=1), rtol=1e-6)
    np.testing.assert_allclose(steps.edges, 0.02 * np.arange(len(stored) + 1))
    std = np.array(load_field_info(extracted, FIELD).std)
    shown = np.asarray(colours.images[0].get_array())
    np.testing.assert_allclose(shown[0], project(stored, std), atol=1e-6)
    assert abs(span(fbank)[1] - span(colours)[1]) < 0.02 + 1e-9


def test_projection_has_the_principal_components():
    rng = np.random.default_rng(0)
    std = np.array([100.0, 1, 1, 1, 1])
    directions = np.linalg.qr(rng.normal(size=(5, 3)))[0].T
    scores = rng.normal(size=(200, 3)) * (9.0, 5.0, 2.0)
    x = ((scores @ directions) * std + 7).astype(np.float32)
    found = project(x, std)
    assert found.shape == (200, 3) and found.min() == 0 and found.max() == 1
    inside = (found > 0) & (found < 1)  # others were clipped
    for n in range(3):
        some = inside[:, n]
        assert abs(np.corrcoef(found[some, n], scores[some, n])[0, 1]) > 0.95
    np.testing.assert_allclose(project(x, std), project(x + 5, std), atol=1e-3)


@pytest.mark.parametrize("frames", [1, 2])
def test_projection_of_few_frames_has_three_colours(frames):
    found = project(np.ones((frames, 4), np.float32), np.ones(4))
    assert found.shape == (frames, 3) and (found == 0.5).all()


def test_runs_of_best_tokens_exclude_the_blank():
    def frame(*ids):
        values = np.log([0.7, 0.2])
        return [*ids, *values, 0.1]

    x = [frame(0, 3), frame(3, 0), frame(3, 5), frame(5, 3), frame(0, 5), frame(5, 0)]
    x = np.array(x, dtype=np.float32)
    assert best_tokens(x) == [(3, 1, 2), (5, 3, 1), (5, 5, 1)]
    expected = [0.7, 0.2, 0.0, 0.0, 0.7, 0.2]
    np.testing.assert_allclose(blank_probability(x), expected, rtol=1e-6)


def test_figure_is_written_as_png(figure, tmp_path):
    path = tmp_path / "deep" / "cut.png"
    save_figure(figure, path)
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and data[-8:-4] == b"IEND"
    width, height = struct.unpack(">II", data[16:24])
    inches = figure.get_size_inches()
    assert (width, height) == pytest.approx((120 * inches[0], 120 * inches[1]), abs=1)
    assert [p.name for p in path.parent.iterdir()] == ["cut.png"]
    with pytest.raises(ValueError, match="cut.jpg: not a .png file"):
        save_figure(figure, tmp_path / "cut.jpg")


def test_error_for_an_unknown_cut_lists_similar_ids(extracted):
    cuts = [cut.id for cut in open_shar(extracted)]
    with pytest.raises(FileNotFoundError, match=f"no cut '{cuts[3]}x'.*{cuts[3]}"):
        read_cut(extracted, cuts[3] + "x", [])
    with pytest.raises(FileNotFoundError, match="Similar ids: none"):
        read_cut(extracted, "%%%", [])


def test_field_that_does_not_join_is_not_drawn(extracted):
    cuts = extracted / "cuts.000000.jsonl.gz"
    text = gzip.decompress(cuts.read_bytes()).decode()
    cut = json.loads(text.splitlines()[2])["id"]
    text = text.replace(f'{{"id": "{cut}", "start"', '{"id": "stranger", "start"')
    cuts.write_bytes(gzip.compress(text.encode()))
    with pytest.raises(ValueError, match="(?s)does not join.*renamed: 1.*stranger"):
        read_cut(extracted, "stranger", [FIELD])


def test_error_without_matplotlib_names_the_package(clicked, monkeypatch):
    read = read_cut(clicked, "click", ["loudness"])
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ValueError, match="pip install matplotlib"):
        draw(read)
