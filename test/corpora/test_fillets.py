import numpy as np
import pytest
import soundfile

from icefall_kd.corpora.fillets import prepare_fillets


def test_lines_are_found_by_language(tmp_path):
    noise = np.random.default_rng(0).standard_normal(16000) * 0.05
    for name in ("sound/cave/cs/a.ogg", "sound/cave/nl/a.ogg", "sound/cave/en/x.ogg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, noise, 16000)
    cuts = prepare_fillets(tmp_path, tmp_path / "audio")
    assert sorted(c.id for c in cuts) == ["fillets-cs-cave-a", "fillets-nl-cave-a"]
    cuts = prepare_fillets(tmp_path, tmp_path / "audio", languages=["nl"])
    assert [c.id for c in cuts] == ["fillets-nl-cave-a"]


def test_folder_without_dialogues_names_the_package(tmp_path):
    with pytest.raises(FileNotFoundError, match="fillets-ng-data-cs"):
        prepare_fillets(tmp_path, tmp_path / "audio")
