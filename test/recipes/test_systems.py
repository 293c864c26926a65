"""Parse names of systems, and read the profiles of the recipes."""

from pathlib import Path

import pytest

from icefall_kd.core.files import read_yaml
from icefall_kd.recipes.systems import Schedule, System, load_profile, parse_system

EGS = Path(__file__).resolve().parents[2] / "egs"


@pytest.mark.parametrize(
    "name, system",
    [
        ("baseline", System("baseline", "baseline")),
        ("base", System("base", "base")),
        (
            "both_random_unlabelled",
            System("both_random_unlabelled", "both", True, True),
        ),
        (
            "both_unlabelled+pseudo+one_best@43",
            System(
                "both_unlabelled+pseudo+one_best@43",
                "both",
                has_unlabelled=True,
                parts=("pseudo", "one_best"),
                seed=43,
            ),
        ),
        (
            "student+hidden@7",
            System("student+hidden@7", "student", parts=("hidden",), seed=7),
        ),
    ],
)
def test_a_name_is_parsed(name, system):
    assert parse_system(name) == system


@pytest.mark.parametrize(
    "name",
    ["baseline@x", "both@", "", "both+", "+pseudo", "_random", "both_unlabelled_x"],
)
def test_an_invalid_name_is_reported(name):
    with pytest.raises(ValueError, match=f"system '{name}'".replace("+", r"\+")):
        parse_system(name)


@pytest.mark.parametrize(
    "old, new",
    [
        ("both_pool", "both_unlabelled"),
        ("both_random_pool+pseudo@43", "both_random_unlabelled+pseudo@43"),
        (
            "baseline+inter_ctc+inter_ctc_untaught",
            "baseline+inter_ctc+inter_ctc_no_teacher",
        ),
    ],
)
def test_the_new_name_of_a_former_system_is_reported(old, new):
    with pytest.raises(ValueError) as error:
        parse_system(old)
    assert f"'{old}'" in str(error.value) and f"'{new}'" in str(error.value)
    parse_system(new)


def test_systems_that_differ_in_parts_share_a_pre_training_of_their_seed():
    system = parse_system("both_unlabelled+pseudo+one_best@43")
    assert system.pretraining == "both_unlabelled@43"
    assert parse_system("both+pseudo").pretraining == "both"
    starts = ("baseline", "student+hidden", "both")
    assert [parse_system(s).is_pretrained for s in starts] == [False, False, True]


@pytest.mark.parametrize(
    "name, epochs",
    [
        ("student", 4),
        ("student+hidden", 4),
        ("student+hidden+pseudo@43", 3),
        ("both_unlabelled+pseudo", 6),
        ("baseline+one_best", 12),
    ],
)
def test_the_first_entry_that_applies_gives_the_epochs(name, epochs):
    profile = load_profile("full", EGS / "asterisk/KD/conf/profiles.yaml")
    assert parse_system(name).select(profile.finetune.epochs) == epochs


def test_a_table_without_an_entry_for_a_system_is_reported():
    with pytest.raises(ValueError, match="system 'baseline'"):
        parse_system("baseline").select({"student": 3})


@pytest.mark.parametrize("corpus", [p.parent.name for p in EGS.glob("*/KD")])
def test_every_profile_has_valid_systems(corpus):
    path = EGS / corpus / "KD/conf/profiles.yaml"
    for name in read_yaml(path):
        profile = load_profile(name, path)
        assert profile.name == name
        for system in map(parse_system, profile.systems):
            assert system.select(profile.finetune.epochs) > 0
            assert system.select(profile.pretrain.epochs) > 0
            assert sum(profile.teacher_weights(system).values()) == pytest.approx(
                1, abs=0.01
            )


def test_an_unknown_profile_or_key_is_reported(tmp_path):
    path = tmp_path / "profiles.yaml"
    path.write_text("small: {variants: [unified], sytems: [baseline]}\n")
    with pytest.raises(ValueError, match="'large'.*small"):
        load_profile("large", path)
    with pytest.raises(ValueError, match=r"small.*sytems.*systems"):
        load_profile("small", path)
    path.write_text("small: {variants: [unified], systems: [baseline]}\n")
    with pytest.raises(ValueError, match="small.*pretrain"):
        load_profile("", path)


def test_a_recipe_with_profiles_of_an_earlier_version_is_reported(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="egs/<corpus>/KD"):
        load_profile()
    Path("local").mkdir()
    Path("local/profiles.sh").touch()
    with pytest.raises(FileNotFoundError, match=r"local/profiles\.sh.*profiles\.yaml"):
        load_profile()


def test_a_schedule_averages_as_many_epochs_as_its_table_has():
    schedule = Schedule({"pseudo": 1, "default": 3}, epochs={"default": 9})
    assert schedule.select_avg(parse_system("both_unlabelled+pseudo")) == 1
    assert schedule.select_avg(parse_system("baseline@43")) == 3
    assert Schedule(2, epochs={}).select_avg(parse_system("baseline")) == 2
