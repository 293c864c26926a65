"""Every conf of every recipe, laid over those that train.sh lays it over."""

import dataclasses
import re
from pathlib import Path

import pytest
import yaml

from icefall_kd.config import to_dict
from icefall_kd.distill.terms import build_terms
from icefall_kd.training.config import parse_config

RECIPES = sorted((Path(__file__).parents[2] / "egs").glob("*/KD"))
PARTS = [path for recipe in RECIPES for path in sorted(recipe.glob("conf/kd/*.yaml"))]


def name_of(path):
    return f"{path.parents[2].parent.name}-{path.stem}"


def read(confs, tmp_path, *options):
    arguments = [word for path in confs for word in ("--config", str(path))]
    return parse_config([*arguments, "--exp-dir", str(tmp_path), *options])


def stage(recipe, variant, name):
    """The files of a stage of train.sh, without its lengths."""
    return [recipe / f"conf/{each}.yaml" for each in ("student", variant, name)]


@pytest.mark.parametrize("path", PARTS, ids=name_of)
def test_a_part_turns_its_terms_on(path, tmp_path):
    below = re.search(r"laid over (\w+)", path.read_text())
    parts = [path.with_name(f"{below[1]}.yaml")] if below else []
    confs = [*stage(path.parents[2], "unified", "finetune"), *parts, path]
    terms = read(confs, tmp_path).terms
    for name, asked in (yaml.safe_load(path.read_text()).get("terms") or {}).items():
        found = getattr(terms, name)
        if asked is None:
            assert found is None
        else:
            assert found.weight > 0
            found = to_dict(found)
            assert {key: found[key] for key in asked} == asked
    # The denominator graph is made by the recipe's scripts, and read with the term.
    build_terms(dataclasses.replace(terms, lfmmi=None))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: r.parent.name)
@pytest.mark.parametrize("variant", ["unified", "non_streaming", "streaming"])
def test_both_stages_of_a_variant_are_whole(recipe, variant, tmp_path):
    finetune = read(stage(recipe, variant, "finetune"), tmp_path)
    assert "transducer" in [term.name for _, term in build_terms(finetune.terms)]
    taught = ["--terms.embedding.teachers", '{"some": 1.0}']
    pretrain = read(stage(recipe, variant, "pretrain"), tmp_path, *taught)
    ((_, term),) = build_terms(pretrain.terms)
    assert term.fields == ("some",)
    for config in (finetune, pretrain):
        assert config.model.encoder.causal == (variant != "non_streaming")
