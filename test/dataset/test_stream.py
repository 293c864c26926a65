"""Shar sets in one order, from any position in it."""

from itertools import islice

import pytest
from dummies import noise_cuts

from icefall_kd.data.shar import write_shar
from icefall_kd.dataset.stream import open_stream


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Sets new, more and old with 18, 9 and 30 cuts, in shards of 4."""
    root = tmp_path_factory.mktemp("sets")
    for name, count in (("new", 18), ("more", 9), ("old", 30)):
        (root / f"audio-{name}").mkdir()
        durations = [0.1 + 0.01 * i for i in range(count)]
        cuts = noise_cuts(root / f"audio-{name}", durations, ["A"] * count)
        cuts = cuts.modify_ids(lambda i, name=name: f"{name}-{i}")
        write_shar(cuts, root / name, shard_size=4)
    return root


def stream(folders, *names, **options):
    return open_stream([folders / name for name in names], **options)


def ids(reader):
    return [cut.id for _, cut in reader]


def test_sets_are_mixed_evenly_and_read_once(folders):
    order = ids(stream(folders, "new", "more").read(0))
    assert len(order) == len(set(order)) == 27
    for end in range(3, 27, 3):  # a third comes from the set of 9
        assert abs(sum(id.startswith("more") for id in order[:end]) - end / 3) <= 2


@pytest.mark.parametrize("shuffle", [True, False])
def test_epochs_differ_in_order_only_when_shuffled(folders, shuffle):
    cuts = stream(folders, "new", shuffle=shuffle, seed=1)
    assert ids(cuts.read(3)) == ids(cuts.read(3))
    assert (ids(cuts.read(3)) != ids(cuts.read(4))) == shuffle
    assert sorted(ids(cuts.read(3))) == sorted(ids(cuts.read(4)))


@pytest.mark.parametrize("share", [0.25, 0.6])
def test_mixed_in_set_has_its_share(folders, share):
    cuts = stream(folders, "new", "old", shares={"old": share}, shuffle=True)
    order = ids(cuts.read(0))
    new = [id for id in order if id.startswith("new")]
    assert len(new) == len(set(new)) == 18  # each new cut once
    old = len(order) - len(new)
    assert abs(old - share * len(order)) <= 1
    for end in range(1, len(order)):  # at any position, not only at the end
        here = sum(id.startswith("old") for id in order[:end])
        assert abs(here - share * end) <= 1.5


def test_mixed_in_set_is_read_completely_and_restarts(folders):
    cuts = stream(folders, "new", "old", shares={"old": 0.25}, shuffle=True)
    seen = [{i for i in ids(cuts.read(e)) if i[:3] == "old"} for e in range(30)]
    assert len(seen[0]) == 6 and len(set.union(*seen)) == 30
    small = stream(folders, "new", "more", shares={"more": 0.5}, shuffle=True)
    again = [id for id in ids(small.read(0)) if id.startswith("more")]
    assert len(again) >= 17 and set(again) == {f"more-noise-{i}" for i in range(9)}


@pytest.mark.parametrize("shares", [{}, {"old": 0.4}])
def test_reader_resumes_from_any_position(folders, shares):
    cuts = stream(folders, "new", "old", shares=shares, shuffle=True)
    complete = ids(cuts.read(1))
    for end in range(len(complete) + 1):
        reader = cuts.read(1)
        list(islice(reader, end))
        assert ids(cuts.read(1, reader.position())) == complete[end:]


def test_single_cuts_are_fetched_with_audio(folders):
    cuts = stream(folders, "new", "old", shuffle=True)
    items = list(cuts.read(0))
    some = [items[i] for i in (40, 3, 17, 3)]
    found = cuts.fetch([key for key, _ in some])
    for (_, stored), cut in zip(some, found):
        wanted = stored.load()
        assert cut.id == wanted.id and cut.duration == wanted.duration
        assert (cut.load_audio() == wanted.load_audio()).all()
    with pytest.raises(ValueError, match="1 cuts of the checkpoint.*delete checkpoint"):
        cuts.fetch([items[0][0], (0, 0, 99)])


def test_durations_of_the_epoch_and_the_longest_cuts(folders):
    new = sum(0.1 + 0.01 * i for i in range(18))
    assert stream(folders, "new").seconds() == pytest.approx(new, abs=0.01)
    mixed = stream(folders, "new", "old", shares={"old": 0.5})
    assert mixed.seconds() == pytest.approx(2 * new, abs=0.01)
    longest = mixed.longest(3)
    assert [round(d, 2) for d, _ in longest] == [0.39, 0.38, 0.37]
    names = [cut.id for cut in mixed.fetch([key for _, key in longest])]
    assert names == ["old-noise-29", "old-noise-28", "old-noise-27"]


def test_shares_without_a_rest_are_refused(folders):
    with pytest.raises(ValueError, match="no Shar set"):
        open_stream([])
    with pytest.raises(ValueError, match="no Shar set"):
        stream(folders, "old", shares={"old": 0.5})
    for share in (-0.1, 1.0):
        with pytest.raises(ValueError, match=r"shares.*'old'.*sum below 1"):
            stream(folders, "new", "old", shares={"old": share})
