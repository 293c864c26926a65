"""Shar folders with fields are what lhotse's own reader opens."""

import io
import logging
import multiprocessing
import os
import shutil
import tempfile

import numpy as np
import pytest
from dummies import FakeTranscriber, serve
from lhotse import CutSet
from loudness import Loudness
from shar_files import copy_shar, shar_files
from torch.utils.data import DataLoader, IterableDataset

from icefall_kd.bin import fields as command
from icefall_kd.data.shar import fields_dir
from icefall_kd.fields import load_decoder
from icefall_kd.fields.codecs import CODECS
from icefall_kd.fields.codecs.storage import load_codec
from icefall_kd.fields.extract import extract
from icefall_kd.fields.format import (
    field_dir,
    info_path,
    list_fields,
    load_field_info,
    shard_ids,
)
from icefall_kd.fields.manage import copy_field
from icefall_kd.fields.reader import check_field, load_field, open_shar
from icefall_kd.fields.survey import find_fields
from icefall_kd.pseudo.pseudo_label import pseudo_label

FIELD = "whisper_tiny_en"
SPECS = [f"{n}2" if c.sized else n for n, c in CODECS.items() if n != "topk"]
FEW = {"mvq2": {"iterations": 60}}  # options that make the training short


def fields_of(folder, *names):
    """Return the shards of cuts and some fields, as lhotse takes them."""
    endings = {"cuts": "jsonl.gz"}
    return {
        name: sorted(folder.glob(f"{name}.*.{endings.get(name, 'tar')}"))
        for name in ("cuts", *names)
    }


def check_values(cuts, folder, *names):
    """Compare what lhotse reads, decoded, with what this package reads."""
    ours = {cut.id: cut for cut in open_shar(folder, names)}
    cuts = list(cuts)
    assert sorted(cut.id for cut in cuts) == sorted(ours)
    for name in names:
        codec = load_codec(folder, load_field_info(folder, name))
        decode = load_decoder(folder, name)
        for cut in cuts:
            found = decode(getattr(cut, f"load_{name}")())
            expected = load_field(ours[cut.id], name, codec)
            assert found.dtype == np.float32
            np.testing.assert_array_equal(found[: len(expected)], expected)
            assert 0 <= len(found) - len(expected) <= 1  # the part of a last frame
    return [cut.id for cut in cuts]


class Frames(IterableDataset):
    """The id of each cut, and how many frames lhotse reads of it."""

    def __init__(self, cuts):
        self.cuts = cuts

    def __iter__(self):
        return ((cut.id, len(cut.load_loudness())) for cut in self.cuts)


@pytest.mark.parametrize("spec", SPECS)
def test_lhotse_opens_a_folder_with_fields_of_every_codec(shar, spec):
    extract(shar, [Loudness()], codec=spec, codec_options=FEW.get(spec))
    names = ("loudness", "loud_ctc")
    order = check_values(CutSet.from_shar(in_dir=shar), shar, *names)
    one = CutSet.from_shar(fields_of(shar, "recording", "loudness"))
    assert check_values(one, shar, "loudness") == order
    shuffled = CutSet.from_shar(in_dir=shar, shuffle_shards=True, seed=3)
    assert check_values(shuffled, shar, *names) != order
    part = next(iter(CutSet.from_shar(in_dir=shar))).truncate(offset=0.5, duration=0.4)
    found = load_decoder(shar, "loudness")(part.load_loudness())
    ours = next(iter(open_shar(shar, ["loudness"])))
    codec = load_codec(shar, load_field_info(shar, "loudness"))
    expected = load_field(ours.truncate(offset=0.5, duration=0.4), "loudness", codec)
    np.testing.assert_array_equal(found, expected)


def test_workers_of_lhotse_share_the_shards(shar):
    extract(shar, [Loudness()])
    cuts = CutSet.from_shar(in_dir=shar, split_for_dataloading=True)
    seen = list(DataLoader(Frames(cuts), batch_size=None, num_workers=2))
    assert sorted(i for i, _ in seen) == sorted(cut.id for cut in open_shar(shar))
    assert all(frames > 10 for _, frames in seen)


def test_lhotse_opens_a_folder_while_a_field_is_being_made(taught, tmp_path):
    """And after a kill, whatever it left."""
    before = list_fields(taught)
    extract(taught, [Loudness()], shards="0:2", codec="fp16")
    assert find_fields(taught)["loudness"].info is None
    check_values(CutSet.from_shar(in_dir=taught), taught, FIELD)
    extract(taught, [Loudness()], codec="fp16")
    extract(taught, [Loudness(version=2)], shards="1", codec="fp16", overwrite=True)
    assert list_fields(taught) == before  # the new one is unfinished
    cut = next(iter(CutSet.from_shar(in_dir=taught)))
    assert cut.load_loudness().dtype == np.float16
    extract(taught, [Loudness(version=2)], codec="fp16", overwrite=True)
    check_values(CutSet.from_shar(in_dir=taught), taught, FIELD, "loudness")
    target = copy_shar(taught, tmp_path / "target")
    copy_field(taught, target, "loudness", overwrite=True)
    check_values(CutSet.from_shar(in_dir=target), target, FIELD, "loudness")


def test_lhotse_opens_pseudo_labels_with_the_fields_of_their_input(taught, tmp_path):
    extract(taught, [Loudness()], shards="0")  # unfinished: it is not linked
    output = tmp_path / "labelled"
    pseudo_label(taught, output, FakeTranscriber())
    check_values(CutSet.from_shar(in_dir=output), output, FIELD)
    assert {c.supervisions[0].text for c in CutSet.from_shar(in_dir=output)} == {"YES"}
    assert sorted(find_fields(output)) == [FIELD]


def as_before(folder):
    """Put the files of fields between the shards, as earlier versions wrote them."""
    for path in fields_dir(folder).glob("**/*"):
        if path.is_symlink():
            target = path.parent / os.readlink(path)
            old = folder.parent / target.parent.parent.name[: -len(".fields")]
            link = folder / path.name
            link.symlink_to(os.path.relpath(old / target.name, folder))
        elif path.is_file():
            path.rename(folder / path.name)
    shutil.rmtree(fields_dir(folder))
    return folder


@pytest.fixture
def old(shar, tiny):
    """A Shar of an earlier version: a field with a codec, and one unfinished."""
    extract(shar, [tiny], codec="int8")
    extract(shar, [Loudness()], shards="0:2")
    return as_before(shar)


def test_folders_of_earlier_versions_are_changed_once(old, tiny, caplog):
    caplog.set_level("INFO")
    (old / "report.json").write_text('{"of": "another program"}')
    (old / ".1.partial.whisper_tiny_en.000001.tar").touch()
    os.utime(old / ".1.partial.whisper_tiny_en.000001.tar", (0, 0))
    before = {p.name: p.read_bytes() for p in old.iterdir() if p.name[0] != "."}
    info = load_field_info(old, FIELD)
    assert f"{old}: moved 14 files to {fields_dir(old)}" in caplog.text
    caplog.clear()
    inside = {p.name for p in old.iterdir()}
    tars = {f"{FIELD}.{shard}.tar" for shard in shard_ids(old)}
    about = {n for n in inside if not n.startswith(("cuts.", "recording."))}
    assert about == tars | {"report.json"}
    (old / "report.json").unlink()
    del before["report.json"]
    assert {p.name: p.read_bytes() for p in shar_files(old)} == before
    check_values(CutSet.from_shar(in_dir=old), old, FIELD)
    assert load_codec(old, info).spec == "int8"
    _, report = extract(old, [Loudness()])
    assert (report.shards_kept, report.shards_done) == (4, 4)  # of two fields
    check_values(CutSet.from_shar(in_dir=old), old, FIELD, "loudness", "loud_ctc")
    assert "moved" not in caplog.text


def test_links_of_earlier_pseudo_labels_are_changed_with_their_input(
    taught, tmp_path, capsys
):
    output = tmp_path / "labelled"
    report = pseudo_label(taught, output, FakeTranscriber())
    for folder in (output, taught):  # either may be opened first
        as_before(folder)
    assert (output / "pseudo_labels.json").is_file()
    assert command.main(["verify", str(output)]) == 0, capsys.readouterr().out
    check_field(taught, FIELD)
    check_values(CutSet.from_shar(in_dir=output), output, FIELD)
    assert info_path(output, FIELD).is_symlink()
    again = FakeTranscriber()
    assert pseudo_label(taught, output, again) == report and again.num_waves == 0


def test_a_folder_that_cannot_be_changed_is_read_without_its_fields(old, caplog):
    """A web server's is one."""
    pytest.importorskip("aiohttp", reason="fsspec reads http through aiohttp")
    before = {p.name: p.read_bytes() for p in old.iterdir()}
    with serve(old.parent) as url:
        shar = f"{url}/{old.name}"
        assert len(list(open_shar(shar))) == 18
        with pytest.raises(FileNotFoundError, match="in the Shar folder itself; move"):
            load_field_info(shar, FIELD)
    (text,) = {r.getMessage() for r in caplog.records if r.levelname == "WARNING"}
    assert "14 files are to be moved to http" in text and "fields ls http" in text
    assert {p.name: p.read_bytes() for p in old.iterdir()} == before


def open_as_nobody(folder, pipe):
    """Send what a user who may not write there gets: number of cuts, error, log."""
    os.setuid(65534)
    log = io.StringIO()
    logging.basicConfig(stream=log, force=True)
    count = len(list(open_shar(folder)))
    try:
        pipe.send((count, load_field_info(folder, FIELD), log.getvalue()))
    except FileNotFoundError as e:
        pipe.send((count, str(e), log.getvalue()))


@pytest.mark.skipif(os.getuid() != 0, reason="only root becomes another user")
def test_a_folder_of_another_user_is_read_without_its_fields(old):
    with tempfile.TemporaryDirectory() as folder:  # pytest's own is root's alone
        os.chmod(folder, 0o755)
        shar = copy_shar(old, f"{folder}/shar")
        ours, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("fork")
        process = context.Process(target=open_as_nobody, args=(shar, theirs))
        process.start()
        assert ours.poll(60)
        count, error, log = ours.recv()
        process.join()
        assert count == 18
        assert f"description in the Shar folder itself; move it to {shar}.f" in error
        assert log.count("14 files are to be moved") == 1
        assert f"fields ls {shar}' once as a user who may write there" in log
        assert command.main(["ls", str(shar)]) == 0
        assert load_field_info(shar, FIELD).name == FIELD


def test_several_processes_change_a_folder_together(old, taught):
    with multiprocessing.get_context("fork").Pool(4) as pool:
        infos = pool.starmap(load_field_info, [(old, FIELD)] * 8)
    assert all(info == infos[0] for info in infos)
    check_values(CutSet.from_shar(in_dir=old), old, FIELD)


def test_a_folder_copied_without_its_descriptions_is_refused(taught, tmp_path):
    copy = shutil.copytree(taught, tmp_path / "copy")
    with pytest.raises(FileNotFoundError, match=f"copy {field_dir(copy, FIELD)} from"):
        open_shar(copy, [FIELD])
    shutil.copytree(fields_dir(taught), fields_dir(copy))
    check_values(CutSet.from_shar(in_dir=copy), copy, FIELD)


def test_a_folder_is_one_by_whatever_path(taught, tmp_path, monkeypatch):
    (tmp_path / "links").mkdir()
    link = tmp_path / "links/shar"
    link.symlink_to(taught)
    assert list_fields(link) == [FIELD]
    monkeypatch.chdir(taught)
    assert fields_dir(".") == fields_dir(taught) == fields_dir(f"{taught}/")
    with pytest.raises(ValueError, match="cannot be the root"):
        fields_dir("/")
