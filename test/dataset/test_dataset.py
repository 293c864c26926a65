import os
import pickle
import random
import shutil
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from dummies import noise_cuts
from lhotse import CutSet
from lhotse.utils import compute_num_frames
from shar_files import copy_shar

from icefall_kd import LOG_EPS
from icefall_kd.data.features import SpecAugment, compute_fbank
from icefall_kd.data.shar import fields_dir, write_shar
from icefall_kd.data.tokens import Tokenizer
from icefall_kd.dataset.dataset import BatchDataset, Loader, load_batch
from icefall_kd.dataset.fields import LiveTeachers
from icefall_kd.dataset.stream import open_stream
from icefall_kd.fields.codecs import make_codec
from icefall_kd.fields.codecs.storage import load_codec
from icefall_kd.fields.extract import extract
from icefall_kd.fields.format import load_field_info
from icefall_kd.fields.reader import load_field


@pytest.fixture(scope="module")
def prompts(asterisk):
    return open_stream([asterisk / "data/shar/train"])


@pytest.fixture(scope="module")
def shar(tmp_path_factory):
    """60 short cuts of noise."""
    folder = tmp_path_factory.mktemp("shar")
    durations = 0.2 + 0.6 * np.random.default_rng(1).random(60)
    texts = [f"TEXT {'A' * i}" for i in range(60)]
    write_shar(noise_cuts(folder, durations, texts), folder / "noise", shard_size=20)
    return open_stream([folder / "noise"])


def ids(loader):
    return [[cut.id for cut in batch] for batch in loader.sampler]


def test_batch_has_the_documented_shapes(asterisk, prompts):
    tokenizer = Tokenizer(asterisk / "data/lang_bpe_150/bpe.model")
    loader = Loader(prompts, tokenizer=tokenizer, max_duration=20.0)
    batch = next(iter(loader))
    x, lens = batch["features"], batch["feature_lens"]
    assert x.dtype == torch.float32 and lens.dtype == torch.int64
    assert x.shape == (len(lens), int(lens.max()), 80)
    for i, cut in enumerate(batch["cuts"]):
        assert lens[i] == (cut.num_samples + 80) // 160
        assert (x[i, lens[i] :] == LOG_EPS).all()
        assert batch["text"][i] == cut.supervisions[0].text
        assert batch["tokens"][i] == tokenizer.encode(batch["text"][i])


def test_features_equal_those_of_single_cuts(prompts):
    batch = next(iter(Loader(prompts, max_duration=20.0)))
    by_id = {cut.id: cut for cut in prompts}
    for i, cut in enumerate(batch["cuts"]):
        wave = torch.from_numpy(by_id[cut.id].load_audio()[0])
        (alone,) = compute_fbank([wave])
        assert torch.equal(batch["features"][i, : alone.size(0)], alone)


def test_each_epoch_has_each_cut_once(prompts):
    everything = sorted(cut.id for cut in prompts)
    loader = Loader(prompts, max_duration=50.0)
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        assert sorted(sum(ids(loader), [])) == everything


def test_batches_do_not_exceed_the_duration(prompts):
    durations = {cut.id: cut.duration for cut in prompts}
    for batch in ids(Loader(prompts, max_duration=50.0)):
        longest = max(durations[id] for id in batch)
        assert longest * (len(batch) - 1) <= 50.0


def test_seed_and_epoch_determine_the_batches(shar):
    def batches(**options):
        return ids(Loader(shar, max_duration=3.0, **options))

    assert batches(seed=1, epoch=2) == batches(seed=1, epoch=2)
    assert batches(seed=1, epoch=2) != batches(seed=1, epoch=3)
    assert batches(seed=1, epoch=2) != batches(seed=2, epoch=2)


def test_order_is_kept_without_shuffling(shar):
    loader = Loader(shar, max_duration=3.0, shuffle=False)
    assert sum(ids(loader), []) == [cut.id for cut in shar]


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("shuffle", [True, False])
def test_ranks_have_equal_numbers_of_batches_and_no_common_cut(
    shar, world_size, shuffle
):
    ranks = [
        ids(
            Loader(
                shar,
                max_duration=3.0,
                shuffle=shuffle,
                rank=rank,
                world_size=world_size,
            )
        )
        for rank in range(world_size)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    together = [id for batches in ranks for batch in batches for id in batch]
    assert len(together) == len(set(together)) > 60 - world_size
    assert set(together) <= {cut.id for cut in shar}


def test_rank_above_the_world_size_is_refused(shar):
    with pytest.raises(ValueError, match="rank 2"):
        Loader(shar, rank=2, world_size=2)


def same(a, b):
    return (
        torch.equal(a["features"], b["features"])
        and torch.equal(a["feature_lens"], b["feature_lens"])
        and a["text"] == b["text"]
    )


@pytest.fixture(scope="module")
def extracted(asterisk, tiny, tmp_path_factory):
    """Real prompts in shards of 5, with the field of tiny.en in fp16 and in int8."""
    prompts = open_stream([asterisk / "data/shar/test"])
    cuts = CutSet.from_cuts(c for c in prompts if c.duration < 2.0)
    folder = tmp_path_factory.mktemp("extracted") / "shar"
    write_shar(cuts.subset(first=24), folder, shard_size=5)
    extract(folder, [tiny])
    eight = SimpleNamespace(
        name="eight",
        needs_text=False,
        outputs={"eight": tiny.outputs[tiny.name]},
        forward=lambda *audio: {"eight": tiny.forward(*audio)[tiny.name]},
    )
    extract(folder, [eight], codec="int8")
    return folder


def batches_of(folder, **options):
    """Return the batches of the second epoch, with both fields."""
    fields = ["whisper_tiny_en", "eight"]
    codecs = {f: load_codec(folder, load_field_info(folder, f)) for f in fields}
    loader = Loader(
        open_stream([folder], fields, shuffle=True),
        codecs=codecs,
        max_duration=8.0,
        num_buckets=2,
        spec_augment=SpecAugment(p=1.0),
        epoch=1,
        **options,
    )
    return list(loader)


def assert_same_batches(some, others):
    assert len(some) == len(others) > 3
    for a, b in zip(some, others):
        assert same(a, b) and [c.id for c in a["cuts"]] == [c.id for c in b["cuts"]]
        for name in ("whisper_tiny_en", "eight"):
            x, y = a["fields"][name], b["fields"][name]
            assert torch.equal(x["x"], y["x"]) and torch.equal(x["lens"], y["lens"])
            assert x["frame_shift"] == y["frame_shift"] == 0.02


@pytest.mark.parametrize(
    "num_workers, start_method",
    [
        (2, "fork"),
        (8, "fork"),
        (2, "spawn"),
        pytest.param(8, "spawn", marks=pytest.mark.slow),
    ],
)
def test_workers_change_nothing(extracted, num_workers, start_method):
    torch.set_num_threads(2)  # workers use one
    alone = batches_of(extracted)
    assert max(float(b["fields"]["eight"]["x"].abs().max()) for b in alone) > 1
    options = {"num_workers": num_workers, "start_method": start_method}
    assert_same_batches(alone, batches_of(extracted, **options))


def test_fields_are_not_sent_to_workers(extracted, monkeypatch):
    seen, compute = [], BatchDataset.__getitem__

    def spy(self, cuts):
        seen.extend(cuts)
        return compute(self, cuts)

    monkeypatch.setattr(BatchDataset, "__getitem__", spy)
    batches = batches_of(extracted)
    returned = [cut for batch in batches for cut in batch["cuts"]]
    assert len(seen) == len(returned) == 24
    for cut in seen + returned:
        assert not {"whisper_tiny_en", "eight"} & set(cut.custom or ())
    assert all(len(pickle.dumps(cut)) < 2000 for cut in returned)


def test_loading_a_batch_does_not_change_its_cuts(extracted):
    fields = ["whisper_tiny_en", "eight"]
    codecs = {f: load_codec(extracted, load_field_info(extracted, f)) for f in fields}
    cuts = CutSet.from_cuts(open_stream([extracted], fields)).subset(first=3)
    first, again = load_batch(cuts, codecs), load_batch(cuts, codecs)
    assert same(first, again)
    for name in fields:
        x, n = first["fields"][name]["x"], first["fields"][name]["lens"]
        assert torch.equal(x, again["fields"][name]["x"])
        for row, length, cut in zip(x, n, first["cuts"]):
            stored = load_field(cuts[cut.id], name, codecs[name])
            assert torch.equal(row[:length], torch.from_numpy(stored))
            assert not row[length:].any()


def test_order_of_the_directory_changes_nothing(extracted, tmp_path, monkeypatch):
    names = sorted(p.name for p in extracted.iterdir())
    random.Random(0).shuffle(names)
    (tmp_path / "shar").mkdir()
    for name in names:
        shutil.copy(extracted / name, tmp_path / "shar")
    shutil.copytree(fields_dir(extracted), fields_dir(tmp_path / "shar"))
    before = batches_of(extracted)
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: sorted(listdir(path))[::-1])
    assert_same_batches(before, batches_of(tmp_path / "shar"))


def test_dataset_can_be_pickled(asterisk, shar):
    tokenizer = Tokenizer(asterisk / "data/lang_bpe_150/bpe.model")
    dataset = BatchDataset(tokenizer=tokenizer, spec_augment=SpecAugment())
    copy = pickle.loads(pickle.dumps(dataset))
    cuts = CutSet.from_cuts(islice(shar, 3))
    assert same(dataset[cuts], copy[cuts])


def test_masks_depend_on_the_epoch(shar):
    loader = Loader(
        shar, max_duration=3.0, shuffle=False, spec_augment=SpecAugment(p=1.0)
    )
    first = next(iter(loader))
    assert same(first, next(iter(loader)))
    loader.sampler.set_epoch(1)
    assert not same(first, next(iter(loader)))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_epoch_resumes_exactly_from_its_state(shar, num_workers):
    def loader():
        return Loader(
            shar,
            max_duration=3.0,
            spec_augment=SpecAugment(p=1.0),
            num_workers=num_workers,
            buffer_size=20,  # some cuts are not read yet
        )

    complete = list(loader())
    broken, resumed = loader(), loader()
    for _ in islice(broken, 4):  # the workers are ahead
        pass
    resumed.load_state_dict(broken.state_dict())
    rest = list(resumed)
    assert len(rest) == len(complete) - 4
    assert all(same(a, b) for a, b in zip(complete[4:], rest))
    assert len(list(resumed)) == len(complete)  # the next iteration is complete


def test_fields_are_zero_padded(tmp_path):
    cuts = noise_cuts(tmp_path, [0.5, 0.9, 0.7])
    for cut in cuts:
        frames = compute_num_frames(cut.duration, 0.02, 16000)
        array = np.full((frames, 4), float(cut.duration), np.float16)
        cut.teacher = _temporal(cut, array, tmp_path)
    field = load_batch(cuts, {"teacher": make_codec("fp16")})["fields"]["teacher"]
    assert field["frame_shift"] == 0.02
    assert field["lens"].tolist() == [45, 35, 25]
    assert field["x"].shape == (3, 45, 4) and field["x"].dtype == torch.float32
    assert (field["x"][2, 25:] == 0).all() and (field["x"][2, :25] != 0).all()


def _temporal(cut, array, folder):
    from lhotse.features.io import NumpyFilesWriter

    with NumpyFilesWriter(folder) as writer:
        return writer.store_array(
            cut.id, array, frame_shift=0.02, temporal_dim=0, start=0.0
        )


@pytest.mark.parametrize("num_workers", [0, 2])
def test_cuts_without_a_target_have_length_zero(
    extracted, tmp_path, caplog, num_workers
):
    folder = tmp_path / "shar"
    copy_shar(extracted, folder)
    (folder / "eight.000001.tar").unlink()
    for n in range(1, 5):
        (folder / f"whisper_tiny_en.{n:06d}.tar").unlink()
    fields = ["whisper_tiny_en", "eight"]
    codecs = {f: load_codec(folder, load_field_info(folder, f)) for f in fields}
    stream = open_stream([folder], fields, missing="skip")
    have = {cut.id: [cut.has_custom(f) for f in fields] for cut in stream}
    assert [sum(h) for h in zip(*have.values())] == [5, 19]
    caplog.set_level("INFO")
    options = {"shuffle": False, "missing": "skip", "num_workers": num_workers}
    batches = list(Loader(stream, codecs=codecs, max_duration=8.0, **options))
    for batch in batches:
        for f, name in enumerate(fields):
            field, ids = batch["fields"][name], [cut.id for cut in batch["cuts"]]
            assert (field["lens"] > 0).tolist() == [have[i][f] for i in ids]
            none = (field["lens"] == 0).all()
            assert field["x"].shape[2] == (0 if none else 384)
            assert (field["x"][field["lens"] == 0] == 0).all()
    assert any((b["fields"]["whisper_tiny_en"]["lens"] == 0).all() for b in batches)
    assert "rank 0: 19 of 24 utterances had no target in field 'whisper" in caplog.text
    assert "rank 0: 5 of 24 utterances had no target in field 'eight'" in caplog.text
    with pytest.raises(ValueError, match="has no field"):
        list(Loader(stream, codecs=codecs, shuffle=False))


def test_live_teachers_compute_the_stored_fields(extracted, tiny):
    live = LiveTeachers([tiny], [tiny.name])
    options = {"max_duration": 80.0, "shuffle": False}
    computed = list(Loader(open_stream([extracted]), live=live, **options))
    codecs = {tiny.name: make_codec("fp16")}
    stream = open_stream([extracted], [tiny.name])
    stored = list(Loader(stream, codecs=codecs, **options))
    assert len(computed) == len(stored) == 1
    for a, b in zip(computed, stored):
        assert same(a, b) and a.keys() == b.keys()
        x, y = a["fields"][tiny.name], b["fields"][tiny.name]
        assert torch.equal(x["lens"], y["lens"]) and x["frame_shift"] == 0.02
        assert x["x"].dtype == y["x"].dtype == torch.float32
        torch.testing.assert_close(x["x"], y["x"], atol=2e-2, rtol=2e-3)


def test_error_for_a_missing_field_names_cut_and_field(shar):
    cuts = CutSet.from_cuts(islice(shar, 2))
    with pytest.raises(ValueError, match="noise-.*teacher"):
        load_batch(cuts, {"teacher": make_codec("fp16")})


@pytest.mark.parametrize("num_workers", [0, 1])
def test_error_for_a_flipped_bit_in_the_audio_names_the_cut(tmp_path, num_workers):
    write_shar(noise_cuts(tmp_path, [0.5, 0.6]), tmp_path / "shar")
    path = tmp_path / "shar/recording.000000.tar"
    content = bytearray(path.read_bytes())
    content[content.index(b"noise-1.flac") + 5000] ^= 0x01
    path.write_bytes(content)
    loader = Loader(open_stream([tmp_path / "shar"]), num_workers=num_workers)
    with pytest.raises(ValueError, match="cut 'noise-1': its audio is damaged"):
        list(loader)


def test_unlabelled_cuts_have_empty_text(tmp_path):
    batch = BatchDataset()[noise_cuts(tmp_path, [0.5, 0.6])]
    assert batch["text"] == ["", ""] and "tokens" not in batch
