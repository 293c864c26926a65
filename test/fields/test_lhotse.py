"""lhotse's reader opens Shar folders with fields."""

import re
import shutil
import subprocess

import numpy as np
import pytest
from dummies import FakeTranscriber
from lhotse import CutSet
from loudness import Loudness
from shar_files import copy_shar, digest
from torch.utils.data import DataLoader, IterableDataset

from icefall_kd.data.shar import fields_dir
from icefall_kd.fields import load_decoder
from icefall_kd.fields.codecs import CODECS
from icefall_kd.fields.codecs.storage import load_codec
from icefall_kd.fields.extract import extract
from icefall_kd.fields.format import (
    field_dir,
    list_fields,
    load_field_info,
)
from icefall_kd.fields.integrity import find_fields
from icefall_kd.fields.manage import copy_field
from icefall_kd.fields.reader import load_field, open_shar
from icefall_kd.pseudo.pseudo_label import pseudo_label

FIELD = "whisper_tiny_en"
SPECS = [f"{n}2" if c.sized else n for n, c in CODECS.items() if n != "topk"]
FEW = {"mvq2": {"iterations": 5}}  # shortens the training


def fields_of(folder, *names):
    """Return the shards of cuts and some fields, as arguments of lhotse."""
    endings = {"cuts": "jsonl.gz"}
    return {
        name: sorted(folder.glob(f"{name}.*.{endings.get(name, 'tar')}"))
        for name in ("cuts", *names)
    }


def check_values(cuts, folder, *names):
    """Compare the decoded frames that lhotse and this package read."""
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
            assert 0 <= len(found) - len(expected) <= 1  # a partial last frame
    return [cut.id for cut in cuts]


class Frames(IterableDataset):
    """The id of each cut, and the number of frames that lhotse reads."""

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


def test_lhotse_opens_a_folder_during_extraction(extracted, tmp_path):
    before = list_fields(extracted)
    extract(extracted, [Loudness()], shards="0:2", codec="fp16")
    assert find_fields(extracted)["loudness"].info is None
    check_values(CutSet.from_shar(in_dir=extracted), extracted, FIELD)
    extract(extracted, [Loudness()], codec="fp16")
    extract(extracted, [Loudness(version=2)], shards="1", codec="fp16", overwrite=True)
    assert list_fields(extracted) == before  # the new field is unfinished
    cut = next(iter(CutSet.from_shar(in_dir=extracted)))
    assert cut.load_loudness().dtype == np.float16
    extract(extracted, [Loudness(version=2)], codec="fp16", overwrite=True)
    check_values(CutSet.from_shar(in_dir=extracted), extracted, FIELD, "loudness")
    target = copy_shar(extracted, tmp_path / "target")
    copy_field(extracted, target, "loudness", overwrite=True)
    check_values(CutSet.from_shar(in_dir=target), target, FIELD, "loudness")


def test_lhotse_opens_pseudo_labels_with_the_fields_of_their_input(extracted, tmp_path):
    extract(extracted, [Loudness()], shards="0")  # an unfinished field is not linked
    output = tmp_path / "labelled"
    pseudo_label(extracted, output, FakeTranscriber())
    check_values(CutSet.from_shar(in_dir=output), output, FIELD)
    assert {c.supervisions[0].text for c in CutSet.from_shar(in_dir=output)} == {"YES"}
    assert sorted(find_fields(output)) == [FIELD]


def test_error_names_the_command_that_updates_an_old_folder(shar):
    extract(shar, [Loudness()], codec="int8")
    before = digest(shar)
    for path in fields_dir(shar).glob("loudness/*"):  # the layout of an earlier version
        path.rename(shar / path.name)
    field_dir(shar, "loudness").rmdir()
    assert len(list(open_shar(shar))) == 18
    with pytest.raises(FileNotFoundError, match="layout of an earlier version") as e:
        open_shar(shar, ["loudness"])
    command = re.search("Run '(mkdir .*?)'", str(e.value)).group(1)
    subprocess.run(command, shell=True, check=True)
    assert digest(shar) == before
    check_values(CutSet.from_shar(in_dir=shar), shar, "loudness", "loud_ctc")


def test_folder_copied_without_descriptions_is_refused(extracted, tmp_path):
    copy = shutil.copytree(extracted, tmp_path / "copy")
    with pytest.raises(FileNotFoundError, match=f"Copy {field_dir(copy, FIELD)}"):
        open_shar(copy, [FIELD])
    shutil.copytree(fields_dir(extracted), fields_dir(copy))
    check_values(CutSet.from_shar(in_dir=copy), copy, FIELD)


def test_links_and_relative_paths_find_the_same_fields(
    extracted, tmp_path, monkeypatch
):
    (tmp_path / "links").mkdir()
    link = tmp_path / "links/shar"
    link.symlink_to(extracted)
    assert list_fields(link) == [FIELD]
    monkeypatch.chdir(extracted)
    assert fields_dir(".") == fields_dir(extracted) == fields_dir(f"{extracted}/")
    with pytest.raises(ValueError, match="cannot be the root"):
        fields_dir("/")
