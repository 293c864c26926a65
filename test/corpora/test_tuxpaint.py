import numpy as np
import pytest
import soundfile

from icefall_kd.corpora.tuxpaint import prepare_tuxpaint


@pytest.fixture
def stamps(tmp_path):
    noise = np.random.default_rng(0).standard_normal(16000) * 0.05
    for name in (
        "stamps/animals/cat_desc.ogg",
        "stamps/animals/cat_desc_fr.ogg",
        "stamps/toys/cat_desc_fr.ogg",
        "stamps/toys/cat.ogg",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, noise, 16000)
    return tmp_path


def test_descriptions_of_all_languages_are_cuts_without_text(stamps, tmp_path):
    cuts = prepare_tuxpaint(stamps, tmp_path / "audio")
    assert sorted(cut.id for cut in cuts) == [
        "tuxpaint-en-animals-cat",
        "tuxpaint-fr-animals-cat",
        "tuxpaint-fr-toys-cat",
    ]
    assert not any(cut.supervisions for cut in cuts)


def test_languages_can_be_chosen(stamps, tmp_path):
    cuts = prepare_tuxpaint(stamps, tmp_path / "audio", languages=["en"])
    assert [cut.custom["language"] for cut in cuts] == ["en"]


def test_folder_without_stamps_names_the_package(tmp_path):
    with pytest.raises(FileNotFoundError, match="tuxpaint-stamps-default"):
        prepare_tuxpaint(tmp_path, tmp_path / "audio")
