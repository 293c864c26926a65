import pickle
from itertools import islice

import numpy as np
import pytest
import torch
from dummies import noise_cuts
from lhotse import CutSet
from lhotse.utils import compute_num_frames

from icefall_kd import LOG_EPS
from icefall_kd.cache.codecs import make_codec
from icefall_kd.data.augment import SpecAugment
from icefall_kd.data.batches import BatchDataset, make_loader
from icefall_kd.data.fbank import compute_fbank
from icefall_kd.data.shar import write_shar
from icefall_kd.data.stream import open_stream
from icefall_kd.data.tokens import Tokenizer


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


def test_batch_is_as_documented(asterisk, prompts):
    tokenizer = Tokenizer(asterisk / "data/lang_bpe_150/bpe.model")
    loader = make_loader(prompts, tokenizer=tokenizer, max_duration=20.0)
    batch = next(iter(loader))
    x, lens = batch["features"], batch["feature_lens"]
    assert x.dtype == torch.float32 and lens.dtype == torch.int64
    assert x.shape == (len(lens), int(lens.max()), 80)
    for i, cut in enumerate(batch["cuts"]):
        assert lens[i] == (cut.num_samples + 80) // 160
        assert (x[i, lens[i] :] == LOG_EPS).all()
        assert batch["text"][i] == cut.supervisions[0].text
        assert batch["tokens"][i] == tokenizer.encode(batch["text"][i])


def test_features_are_those_of_each_cut_alone(prompts):
    batch = next(iter(make_loader(prompts, max_duration=20.0)))
    by_id = {cut.id: cut for cut in prompts}
    for i, cut in enumerate(batch["cuts"]):
        wave = torch.from_numpy(by_id[cut.id].load_audio()[0])
        (alone,) = compute_fbank([wave])
        assert torch.equal(batch["features"][i, : alone.size(0)], alone)


def test_every_cut_is_in_every_epoch_once(prompts):
    everything = sorted(cut.id for cut in prompts)
    loader = make_loader(prompts, max_duration=50.0)
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        assert sorted(sum(ids(loader), [])) == everything


def test_batches_keep_to_the_duration(prompts):
    durations = {cut.id: cut.duration for cut in prompts}
    for batch in ids(make_loader(prompts, max_duration=50.0)):
        longest = max(durations[id] for id in batch)
        assert longest * (len(batch) - 1) <= 50.0


def test_seed_and_epoch_fix_the_batches(shar):
    def batches(**options):
        return ids(make_loader(shar, max_duration=3.0, **options))

    assert batches(seed=1, epoch=2) == batches(seed=1, epoch=2)
    assert batches(seed=1, epoch=2) != batches(seed=1, epoch=3)
    assert batches(seed=1, epoch=2) != batches(seed=2, epoch=2)


def test_order_is_kept_without_shuffling(shar):
    loader = make_loader(shar, max_duration=3.0, shuffle=False)
    assert sum(ids(loader), []) == [cut.id for cut in shar]


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("shuffle", [True, False])
def test_ranks_share_no_cut_and_have_equally_many_batches(shar, world_size, shuffle):
    ranks = [
        ids(
            make_loader(
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


def test_rank_outside_of_the_world_is_refused(shar):
    with pytest.raises(ValueError, match="rank 2"):
        make_loader(shar, rank=2, world_size=2)


def same(a, b):
    return (
        torch.equal(a["features"], b["features"])
        and torch.equal(a["feature_lens"], b["feature_lens"])
        and a["text"] == b["text"]
    )


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_change_nothing(shar, num_workers):
    def batches(num_workers):
        loader = make_loader(
            shar,
            max_duration=3.0,
            spec_augment=SpecAugment(p=1.0),
            num_workers=num_workers,
        )
        loader.sampler.set_epoch(1)
        return list(loader)

    assert all(same(a, b) for a, b in zip(batches(0), batches(num_workers)))


def test_dataset_can_be_sent_to_a_spawned_worker(asterisk, shar):
    tokenizer = Tokenizer(asterisk / "data/lang_bpe_150/bpe.model")
    dataset = BatchDataset(tokenizer=tokenizer, spec_augment=SpecAugment())
    copy = pickle.loads(pickle.dumps(dataset))
    cuts = CutSet.from_cuts(islice(shar, 3))
    assert same(dataset[cuts], copy[cuts])


def test_masks_depend_on_the_epoch(shar):
    loader = make_loader(
        shar, max_duration=3.0, shuffle=False, spec_augment=SpecAugment(p=1.0)
    )
    first = next(iter(loader))
    assert same(first, next(iter(loader)))
    loader.sampler.set_epoch(1)
    assert not same(first, next(iter(loader)))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_epoch_goes_on_exactly_where_its_state_was_taken(shar, num_workers):
    def loader():
        return make_loader(
            shar,
            max_duration=3.0,
            spec_augment=SpecAugment(p=1.0),
            num_workers=num_workers,
            buffer_size=20,  # so that a part of the cuts is not read yet
        )

    whole = list(loader())
    broken, resumed = loader(), loader()
    for _ in islice(broken, 4):  # the workers are further by then
        pass
    resumed.load_state_dict(broken.state_dict())
    rest = list(resumed)
    assert len(rest) == len(whole) - 4
    assert all(same(a, b) for a, b in zip(whole[4:], rest))
    assert len(list(resumed)) == len(whole)  # iterated again, the epoch is complete


def test_fields_are_padded_with_zeros_and_told_by_length(tmp_path):
    cuts = noise_cuts(tmp_path, [0.5, 0.9, 0.7])
    for cut in cuts:
        frames = compute_num_frames(cut.duration, 0.02, 16000)
        array = np.full((frames, 4), float(cut.duration), np.float16)
        cut.teacher = _temporal(cut, array, tmp_path)
    dataset = BatchDataset(fields={"teacher": make_codec("fp16")})
    field = dataset[cuts]["fields"]["teacher"]
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


def test_missing_field_names_cut_and_field(shar):
    cuts = CutSet.from_cuts(islice(shar, 2))
    with pytest.raises(ValueError, match="noise-.*teacher"):
        BatchDataset(fields={"teacher": make_codec("fp16")})[cuts]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_flipped_bit_in_the_audio_names_the_cut(tmp_path, num_workers):
    write_shar(noise_cuts(tmp_path, [0.5, 0.6]), tmp_path / "shar")
    path = tmp_path / "shar/recording.000000.tar"
    content = bytearray(path.read_bytes())
    content[content.index(b"noise-1.flac") + 5000] ^= 0x01
    path.write_bytes(content)
    loader = make_loader(open_stream([tmp_path / "shar"]), num_workers=num_workers)
    with pytest.raises(ValueError, match="cut 'noise-1': its audio is damaged"):
        list(loader)


def test_unlabelled_cuts_have_empty_text(tmp_path):
    batch = BatchDataset()[noise_cuts(tmp_path, [0.5, 0.6])]
    assert batch["text"] == ["", ""] and "tokens" not in batch
