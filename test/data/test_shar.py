"""Writing of Shar folders, complete, interrupted and repeated."""

from pathlib import Path

import numpy as np
import pytest
from dummies import noise_cuts
from lhotse import CutSet

from icefall_kd.data.shar import fields_dir, perturb_speeds, write_shar
from icefall_kd.fields.reader import open_shar


@pytest.fixture
def cuts(tmp_path):
    return noise_cuts(tmp_path, [0.3, 0.4, 0.5, 0.6, 0.7], list("ABCDE"))


def test_audio_and_text_are_stored(cuts, tmp_path):
    write_shar(cuts, tmp_path / "train", shard_size=2)
    by_id = {cut.id: cut for cut in open_shar(tmp_path / "train")}
    assert set(by_id) == {cut.id for cut in cuts}
    for cut in cuts:
        assert by_id[cut.id].supervisions[0].text == cut.supervisions[0].text
        assert np.array_equal(by_id[cut.id].load_audio(), cut.load_audio())


def test_order_depends_only_on_the_seed(cuts, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_shar(cuts, tmp_path / name, shard_size=2, seed=seed)
    a, b, c = ([cut.id for cut in open_shar(tmp_path / name)] for name in "abc")
    assert a == b != c
    assert sorted(a) == sorted(c)


def test_lhotse_opens_the_folder(cuts, tmp_path):
    write_shar(cuts, tmp_path / "train", shard_size=2)
    assert len(list((tmp_path / "train").glob("recording.*.tar"))) == 3
    assert len(list(open_shar(tmp_path / "train"))) == 5
    assert len(list(CutSet.from_shar(in_dir=tmp_path / "train"))) == 5


def test_speeds_are_in_id_duration_and_custom_field(cuts, tmp_path):
    write_shar(perturb_speeds(cuts, [0.9, 1.0, 1.1]), tmp_path / "train")
    by_id = {cut.id: cut for cut in open_shar(tmp_path / "train")}
    assert len(by_id) == 15
    for cut in cuts:
        for speed, id in ((0.9, f"{cut.id}_sp0.9"), (1.0, cut.id)):
            found = by_id[id]
            assert found.custom["speed"] == speed
            assert found.recording.id == id
            assert found.duration == pytest.approx(cut.duration / speed, abs=1e-3)
            assert found.load_audio().shape[1] == found.num_samples


def test_failed_writing_leaves_no_folder_and_can_be_repeated(cuts, tmp_path):
    broken = list(cuts)
    broken[0].recording.sources[0].source = "/no/such/file.flac"
    with pytest.raises(Exception, match="no/such"):
        write_shar(broken, tmp_path / "train")
    assert not (tmp_path / "train").exists()
    write_shar(list(cuts)[1:], tmp_path / "train")
    assert len(list(open_shar(tmp_path / "train"))) == 4
    assert not list(tmp_path.glob(".*partial"))


def test_fields_of_a_deleted_folder_are_refused(tmp_path):
    cuts = noise_cuts(tmp_path, [0.3])
    fields_dir(tmp_path / "train").mkdir()
    with pytest.raises(ValueError, match="train.fields: describes fields of"):
        write_shar(cuts, tmp_path / "train")
    assert not (tmp_path / "train").exists()


def test_finished_shards_of_a_failed_writing_are_reused(cuts, tmp_path, caplog):
    def write(cuts):
        write_shar(cuts, tmp_path / "train", shard_size=2, num_jobs=1)

    caplog.set_level("INFO")
    write_shar(cuts, tmp_path / "complete", shard_size=2)
    last = list(open_shar(tmp_path / "complete"))[-1].id
    (audio,) = (c.recording.sources[0].source for c in cuts if c.id == last)
    Path(audio).rename(tmp_path / "away")
    with pytest.raises(Exception, match=Path(audio).name):
        write(cuts)
    partial = tmp_path / ".train.partial"
    first = partial / "recording.000000.tar"
    written = first.stat().st_mtime_ns
    (partial / ".000002").mkdir(exist_ok=True)  # an unfinished shard
    (tmp_path / "away").rename(audio)
    write(cuts)
    assert "reusing 2 of 3 shards" in caplog.text
    assert (tmp_path / "train" / first.name).stat().st_mtime_ns == written
    assert sorted(p.name for p in (tmp_path / "train").iterdir()) == sorted(
        p.name for p in (tmp_path / "complete").iterdir()
    )
    assert list(open_shar(tmp_path / "train")) == list(open_shar(tmp_path / "complete"))


def test_shards_of_other_cuts_are_not_reused(cuts, tmp_path, caplog):
    caplog.set_level("INFO")
    partial = tmp_path / ".train.partial"
    write_shar(list(cuts)[:4], tmp_path / "other", shard_size=2)
    (tmp_path / "other").rename(partial)
    (partial / "plan.sha256").write_text("of others")
    write_shar(cuts, tmp_path / "train", shard_size=2)
    assert "reusing" not in caplog.text
    assert len(list(open_shar(tmp_path / "train"))) == 5


def test_folder_does_not_depend_on_the_number_of_processes(cuts, tmp_path):
    fast = perturb_speeds(cuts, [0.9, 1.0])
    for jobs in (1, 2):
        write_shar(fast, tmp_path / f"by_{jobs}", shard_size=3, num_jobs=jobs)
    one, two = (list(open_shar(tmp_path / f"by_{jobs}")) for jobs in (1, 2))
    assert one == two and len(one) == 10
    for a, b in zip(one, two):
        assert np.array_equal(a.load_audio(), b.load_audio())
    with pytest.raises(ValueError, match="num_jobs is 0"):
        write_shar(cuts, tmp_path / "none", num_jobs=0)


def test_complete_folder_is_not_overwritten(cuts, tmp_path):
    write_shar(cuts, tmp_path / "train")
    with pytest.raises(ValueError, match="train: exists"):
        write_shar(cuts, tmp_path / "train")
    assert len(list(open_shar(tmp_path / "train"))) == 5


def test_empty_set_and_missing_folder_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no cuts"):
        write_shar([], tmp_path / "train")
    with pytest.raises(FileNotFoundError, match="train"):
        open_shar(tmp_path / "train")
