"""The configuration files of the recipes."""

import dataclasses
import re
from pathlib import Path

import pytest
import yaml

from icefall_kd.core.config import to_dict
from icefall_kd.distill import build_terms
from icefall_kd.training.config import parse_config

RECIPES = sorted((Path(__file__).parents[2] / "egs").glob("*/KD"))
PARTS = [path for recipe in RECIPES for path in sorted(recipe.glob("conf/kd/*.yaml"))]


def name_of(path):
    return f"{path.parents[2].parent.name}-{path.stem}"


@pytest.mark.parametrize("path", PARTS, ids=name_of)
def test_a_part_enables_its_terms(path):
    base = re.search(r"(?:added to \+|laid over )(\w+)", path.read_text())
    parts = [path.with_name(f"{base[1]}.yaml")] if base else []
    confs = [path.parents[1] / f"{name}.yaml" for name in ("student", "finetune")]
    arguments = [w for conf in (*confs, *parts, path) for w in ("--config", str(conf))]
    terms = parse_config([*arguments, "--exp-dir", "x"]).terms
    for name, values in (yaml.safe_load(path.read_text()).get("terms") or {}).items():
        found = getattr(terms, name)
        if values is None:
            assert found is None
        else:
            assert found.weight > 0
            found = to_dict(found)
            assert {key: found[key] for key in values} == values
    # prepare.sh writes the bigram that lfmmi reads.
    build_terms(dataclasses.replace(terms, lfmmi=None))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.parent.name)
def test_the_configuration_of_every_profile_is_valid(recipe):
    confs = sorted(recipe.glob("conf/*/*train.yaml")) + sorted(
        recipe.glob("conf/*/finetune.yaml")
    )
    assert len(confs) == 4
    arguments = [w for conf in confs for w in ("--config", str(conf))]
    assert parse_config([*arguments, "--exp-dir", "x"]).save_every_minutes > 0
