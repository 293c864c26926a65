"""The adventure recipe's scripts: texts, audio and splits."""

import sys
from collections import Counter

import pytest
from lhotse import CutSet, MonoCut, SupervisionSegment
from recipe import ROOT, load_script

from icefall_kd.corpora import sky
from icefall_kd.corpora.manifests import read_id_lists
from icefall_kd.data.normalise import NORMALISED, normalise_english

RECIPE = ROOT / "egs/adventure/KD"
make_splits = load_script("make_splits", "adventure")
split_manifests = load_script("split_manifests", "adventure")
prepare_queen = load_script("prepare_queen", "adventure")
prepare_sky = load_script("prepare_sky", "adventure")


@pytest.fixture(scope="module")
def clips(adventure_packages):
    """Id -> clip of queen."""
    return {clip.id: clip for clip in prepare_queen.find_clips(adventure_packages)}


@pytest.fixture(scope="module")
def texts(adventure_packages, clips):
    """Id -> words, of both games."""
    codes = prepare_sky.read_json(prepare_sky.CODES)
    lines = sky.read_texts(sky.read_files(adventure_packages), codes)
    words = {f"sky-{number}": normalise_english(t) for number, t in lines.items()}
    return {**{id: clip.text for id, clip in clips.items()}, **words}


@pytest.mark.parametrize(
    "text, words",
    [
        ("(sigh)", ""),
        ("<gulp> ", ""),
        ("Super Soldier Treatment^_.", "SUPER SOLDIER TREATMENT"),
        ("@@ She's beautiful! @@", "SHE'S BEAUTIFUL"),
        ("&#($!!, he got away!", "HE GOT AWAY"),
        ("This is the 1940's.", "THIS IS THE NINETEEN FORTIES"),
        ("... at 19:00 Hours", "AT NINETEEN HUNDRED HOURS"),
    ],
)
def test_line_of_queen_is_normalised(text, words):
    assert prepare_queen.normalise_line(text) == words


def test_every_clip_has_words_and_a_speaker(clips, texts):
    assert len(clips) == prepare_queen.NUM_TEXTS - 14
    assert len(texts) == len(clips) + prepare_sky.NUM_TEXTS
    assert all(words and NORMALISED.match(words) for words in texts.values())
    assert clips["queen-020006J1"].speaker == "queen-joe"
    assert clips["queen-C63K_081"].speaker == "queen-cut"


def test_data_file_of_another_release_is_reported(adventure_packages, tmp_path):
    (source,) = adventure_packages.rglob("queen.1c")
    data = bytearray(source.read_bytes())
    position = data.index(b"Birth marks don't count!")
    data[position] = ord("M")
    (tmp_path / "queen.1c").write_bytes(data)
    with pytest.raises(ValueError, match="6587.*flight-of-the-amazon-queen 1.0.0-9"):
        prepare_queen.find_clips(tmp_path)


def test_damaged_speech_file_is_named(adventure_packages, tmp_path):
    for name in (sky.INDEX_FILE, sky.DATA_FILE):
        (source,) = adventure_packages.rglob(name)
        (tmp_path / name).write_bytes(source.read_bytes())
    files = sky.read_files(tmp_path)
    data = bytearray((tmp_path / sky.DATA_FILE).read_bytes())
    position = data.index(bytes(files[50007]))
    data[position + 500] ^= 1
    (tmp_path / sky.DATA_FILE).write_bytes(data)
    with pytest.raises(ValueError, match="file 50007.*CRC"):
        prepare_sky.find_clips(tmp_path)


def get_held_out(sets):
    return [id for name in make_splits.HELD_OUT for id in sets[name]]


def test_every_clip_is_in_one_set(texts):
    sets = read_id_lists(RECIPE / "splits", split_manifests.SETS)
    assert sorted(id for ids in sets.values() for id in ids) == sorted(texts)
    for name, game in {"train": "queen", "test_queen": "queen", "dev": "queen"}.items():
        assert {make_splits.get_game(id) for id in sets[name]} == {game}
    assert {make_splits.get_game(id) for id in sets["test_sky"]} == {"sky"}


def test_no_text_of_dev_or_test_occurs_again(texts):
    sets = read_id_lists(RECIPE / "splits", split_manifests.SETS)
    count = Counter(texts.values())
    assert all(count[texts[id]] == 1 for id in get_held_out(sets))


def make_cuts(num_cuts, num_repeated):
    """Return cuts of 6 s of each game; the first ones of each game have one text."""
    cuts = []
    for game in ("queen", "sky"):
        for i in range(num_cuts):
            id = f"{game}-{i}"
            text = "HELLO" if i < num_repeated else f"{game} {i}"
            segment = SupervisionSegment(id, id, 0.0, 6.0, text=text)
            cuts.append(MonoCut(id, 0.0, 6.0, 0, supervisions=[segment]))
    return cuts


def test_splits_have_their_minutes_and_depend_on_the_ids_only():
    cuts = make_cuts(1000, num_repeated=100)
    sets = make_splits.draw_sets(cuts)
    minutes = {name: len(ids) / 10 for name, ids in sets.items()}
    assert minutes == {
        "test_queen": 25,
        "dev": 15,
        "test_sky": 25,
        "train": 45,
        "rest_queen": 15,
        "rest_sky": 75,
    }
    assert not any(int(id.split("-")[1]) < 100 for id in get_held_out(sets))
    assert make_splits.draw_sets(cuts[::-1]) == sets


def test_too_few_texts_that_occur_once_are_refused():
    with pytest.raises(ValueError, match="fewer than 25 minutes"):
        make_splits.draw_sets(make_cuts(1000, num_repeated=800))


@pytest.fixture
def run_main(monkeypatch):
    """Run the command of a script with options."""

    def run(script, *options):
        monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, options)])
        script.main()

    return run


def test_unlabelled_sets_have_the_cuts_of_the_rest_without_text(run_main, tmp_path):
    cuts = make_cuts(1000, num_repeated=0)
    CutSet.from_cuts(cuts).to_file(tmp_path / "all.jsonl.gz")
    manifests = ("--manifests", tmp_path / "all.jsonl.gz")
    run_main(make_splits, *manifests, "--output", tmp_path / "splits")
    options = ("--splits", tmp_path / "splits", "--output", tmp_path / "m")
    run_main(split_manifests, *manifests, *options)
    for game in ("queen", "sky"):
        rest = list(CutSet.from_file(tmp_path / f"m/rest_{game}.jsonl.gz"))
        unlabelled = list(CutSet.from_file(tmp_path / f"m/unlabelled_{game}.jsonl.gz"))
        assert [cut.id for cut in unlabelled] == [cut.id for cut in rest] != []
        assert all(cut.supervisions for cut in rest)
        assert not any(cut.supervisions for cut in unlabelled)


@pytest.mark.slow
def test_make_splits_draws_the_lists_of_the_recipe(adventure, run_main, tmp_path):
    folder = adventure / "data/manifests"
    manifests = [folder / f"{game}.jsonl.gz" for game in ("queen", "sky")]
    run_main(make_splits, "--manifests", *manifests, "--output", tmp_path)
    assert len(list(tmp_path.iterdir())) == len(split_manifests.SETS)
    for path in tmp_path.iterdir():
        assert path.read_text() == (RECIPE / "splits" / path.name).read_text()


@pytest.mark.parametrize(
    "profile, labelled, unlabelled",
    [
        ("45min", {"train"}, {"unlabelled_queen", "unlabelled_sky"}),
        ("6h", {"train", "rest_queen", "rest_sky"}, set()),
    ],
)
def test_only_labelled_sets_have_tokens_and_speeds(
    run_adventure, tmp_path, profile, labelled, unlabelled
):
    options = ("--profile", profile, "--corpus-dir", str(tmp_path))
    done, commands = run_adventure("prepare.sh", *options)
    assert done.returncode == 0, done.stderr
    shar = {
        command.split(" --output data/shar/")[1].split()[0]: command
        for command in commands
        if ".make_shar " in command
    }
    evaluated = {"dev", "test_queen", "test_sky"}
    assert shar.keys() == labelled | unlabelled | evaluated
    assert {name for name in shar if "--speeds" in shar[name]} == labelled
    assert {name for name in shar if "--bpe-model" not in shar[name]} == unlabelled


def test_all_fields_of_embeddings_share_the_codecs_of_train(run_adventure):
    done, commands = run_adventure("teachers.sh", "--stop-stage", "5")
    assert done.returncode == 0, done.stderr
    extractions = [c for c in commands if "--teachers conf/teachers.yaml" in c]
    assert len(extractions) == 2  # training and dev, test
    assert all("--codec-from data/shar/train" in command for command in extractions)
    (training,) = [c for c in commands if ".bin.train " in c]
    assert "--data.train [train]" in training  # not on pseudo-labels
