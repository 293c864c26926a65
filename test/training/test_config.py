"""Options from YAML and the command line, and the recipes' configurations."""

import itertools
from pathlib import Path

import pytest

from icefall_kd.core.config import to_dict
from icefall_kd.core.files import read_yaml
from icefall_kd.training.config import TrainConfig, parse_config
from icefall_kd.transducer.model import build_model

RECIPES = sorted(Path(__file__).resolve().parents[2].glob("egs/*/KD/conf"))
VARIANTS = ("unified", "streaming", "non_streaming")
STAGES = ("pretrain", "finetune")


def write(tmp_path, text, name="a.yaml"):
    path = tmp_path / name
    path.write_text(text)
    return str(path)


def test_the_command_line_overrides_yaml_and_yaml_overrides_defaults(tmp_path):
    first = write(tmp_path, "optim: {base_lr: 0.01}\nterms: {ctc: {weight: 0.5}}\n")
    second = write(tmp_path, "optim: {lr_epochs: 7}\nseed: 3\n", "b.yaml")
    config = parse_config(
        ["--config", first, "--config", second, "--exp-dir", "x", "--seed=4"]
        + ["--terms.transducer.warm-steps", "5", "--terms.embedding.teachers"]
        + ['{"teacher_a": 0.5}', "--data.train", "[a, b]"]
    )
    assert config.optim.base_lr == 0.01 and config.optim.lr_epochs == 7
    assert config.seed == 4 and config.optim.clipping_scale == 2.0
    assert config.terms.ctc.weight == 0.5 and config.terms.transducer.warm_steps == 5
    assert config.terms.embedding.teachers == {"teacher_a": 0.5}
    assert config.data.train == ("a", "b")


@pytest.mark.parametrize("source", ["command line", "YAML"])
def test_unnamed_and_null_terms_are_off(tmp_path, source):
    path = write(tmp_path, "terms: {ctc: {}, transducer: {}}\n")
    later = write(tmp_path, "terms: {transducer: null}\n", "b.yaml")
    null = ["--config", later]
    if source == "command line":
        null = ["--terms.transducer", "null"]
    config = parse_config(["--exp-dir", "x", "--config", path, *null])
    assert config.terms.embedding is None and config.terms.transducer is None
    assert config.terms.ctc.weight == 0.2


@pytest.mark.parametrize(
    "text, name",
    [
        ("optim: {bas_lr: 1}\n", "bas_lr"),
        ("terms: {ctcc: {}}\n", "ctcc"),
        ("terms: {ctc: {wait: 1}}\n", "wait"),
        ("model: {encoder: {dims: [1]}}\n", "dims"),
        ("nonsense: {}\n", "nonsense"),
        ("optim: {base_lr: fast}\n", "base_lr"),
    ],
)
def test_unknown_keys_and_wrong_types_are_named(tmp_path, text, name):
    with pytest.raises(ValueError, match=name):
        parse_config(["--exp-dir", "x", "--config", write(tmp_path, text)])


@pytest.mark.parametrize(
    "text, message",
    [
        ("base_rl: 1\n", "unknown option base_rl; did you mean optim.base_lr?"),
        ("optim: {base_rl: 1}\n", "option optim.base_rl; did you mean optim.base_lr?"),
        ("terms: {ctcc: {}}\n", "option terms.ctcc; did you mean terms.ctc?"),
        ("terms: {ctc: {wait: 1}}\n", "terms.ctc.wait; did you mean terms.ctc.weight?"),
        (
            "data: {xyzzy: 1}\n",
            "data.xyzzy; known: data.shar_dir, data.train, data.mix",
        ),
        ("optim: {base_lr: fast}\n", 'optim.base_lr: expected a number, got "fast"'),
        ("terms: {ctc: {weight: x}}\n", "terms.ctc.weight: expected a number, got"),
        ("data: {mix: 3}\n", "data.mix: expected a mapping such as"),
        (
            "terms: {ctc: 0.3}\n",
            "terms.ctc: expected a mapping, for example {weight: 0.2}",
        ),
        ("terms: 0.3\n", "terms: expected a mapping"),
        ("model: {encoder: [1]}\n", "model.encoder: expected a mapping"),
        ("- a\n", "not a mapping of options to values"),
    ],
)
def test_a_typo_in_yaml_names_the_file_and_the_nearest_option(tmp_path, text, message):
    good = write(tmp_path, "optim: {base_lr: 0.01}\n", "good.yaml")
    bad = write(tmp_path, text, "bad.yaml")
    with pytest.raises(ValueError) as e:
        parse_config(["--exp-dir", "x", "--config", good, "--config", bad])
    assert str(e.value).startswith(f"{bad}: ") and message in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["--base-rl", "1"],
            "--base_rl: unknown option; did you mean --optim.base_lr?",
        ),
        (
            ["--optim.base_rl=1"],
            "--optim.base_rl: unknown option; did you mean --optim.b",
        ),
        (["--terms.ctc.wait", "1"], "did you mean --terms.ctc.weight?"),
        (["--terms.ctc.weight", "x"], '--terms.ctc.weight: expected a number, got "x"'),
        (["--num-epoch", "3"], "did you mean --num_epochs?"),
        (["--terms.esence.weight", "1"], "did you mean --terms.essence.weight?"),
        (["--terms.xyzzy.weight", "1"], "known: --terms.embedding, --terms.hidden,"),
        (["--model.encdoer.num_heads", "4"], "mean --model.encoder.num_heads?"),
        (
            ["--terms.ctc", "{wait: 1}"],
            "--terms.ctc: unknown option terms.ctc.wait; did",
        ),
        (
            ["--terms", "{ctc: {wait: 1}}"],
            "--terms: unknown option terms.ctc.wait; did",
        ),
        (
            ["--terms.ctc", "0.3"],
            "--terms.ctc: expected a mapping, for example {weight:",
        ),
        (["--optim", "null"], "--optim: expected a mapping, for example {base_lr:"),
        (["--terms.ctc", "{"], "--terms.ctc: '{' is not YAML"),
    ],
)
def test_a_typo_on_the_command_line_names_the_nearest_option(arguments, message):
    with pytest.raises(ValueError) as e:
        parse_config(["--exp-dir", "x", *arguments])
    assert message in str(e.value)


def test_a_group_is_a_mapping_on_the_command_line_or_a_file(tmp_path):
    path = write(tmp_path, "base_lr: 0.5\n")
    hidden = ["--terms.hidden", "{stacks: {0: a, -1: b}, losses: {l1: 1}}"]
    config = parse_config(["--exp-dir", "x", *hidden, "--optim", path])
    assert config.terms.hidden.stacks == {0: "a", -1: "b"}
    assert config.optim.base_lr == 0.5


def test_a_single_value_is_a_list_of_one(tmp_path):
    path = write(tmp_path, "data: {train: own}\nmodel: {encoder: {num_heads: 4}}\n")
    config = parse_config(["--exp-dir", "x", "--config", path])
    assert config.data.train == ("own",)
    assert config.model.encoder.num_heads == (4,) * 6
    for given, train in (
        (["--data.train", "own-2"], ("own-2",)),
        (["--data.train=a"], ("a",)),
        (["--data.train", "a,b"], ("a", "b")),
        (["--data.train", "[a, b]"], ("a", "b")),
    ):
        more = ["--terms.essence.teachers", "big_ctc", *given]
        config = parse_config(["--exp-dir", "x", *more])
        assert config.data.train == train
        assert config.terms.essence.teachers == ("big_ctc",)


@pytest.mark.parametrize(
    "arguments, match",
    [
        (["--optim.bas_lr", "1"], "bas_lr"),
        (["--amp", "int8"], "none.*bf16.*fp16"),
        (["--log-interval", "0"], "log_interval"),
        (["--optim.accumulate", "0"], "optim.accumulate is 0"),
        (["--config", "absent.yaml"], "absent.yaml"),
        (["--model.encoder.num_heads", "[1,2]"], "num_heads"),
    ],
)
def test_wrong_options_are_named(arguments, match):
    with pytest.raises(ValueError, match=match):
        parse_config(["--exp-dir", "x", *arguments])


def test_the_saved_configuration_loads_unchanged(tmp_path):
    import yaml

    arguments = ["--exp-dir", "x", "--terms.ctc", "{}", "--seed", "9"]
    config = parse_config([*arguments, "--terms.hidden.stacks", "{0: a, -1: b}"])
    assert config.terms.hidden.stacks == {0: "a", -1: "b"}
    path = write(tmp_path, yaml.safe_dump(to_dict(config)))
    assert parse_config(["--config", path]) == config


def config_stacks():
    """Yield each list of files that a recipe passes to ``--config``."""
    for conf in RECIPES:
        folders = sorted(f.name for f in conf.iterdir() if f.is_dir())
        profiles = [name for name in folders if name != "kd"]
        for variant, profile, stage in itertools.product(VARIANTS, profiles, STAGES):
            names = ("student", variant, stage, f"{profile}/{stage}")
            yield [conf / f"{name}.yaml" for name in names]
        stack = ["student", "unified", "finetune", f"{profiles[0]}/finetune"]
        for kd in sorted((conf / "kd").glob("*.yaml")):
            yield [*(conf / f"{name}.yaml" for name in stack), kd]
        for student in conf.glob("student_?.yaml"):  # of other sizes
            yield [student, *(conf / f"{name}.yaml" for name in stack[1:])]
        if (conf / "vocab_teacher.yaml").exists():
            yield [conf / "vocab_teacher.yaml"]
        if (conf / "from_student.yaml").exists():
            stack = ["student", "streaming", *stack[2:], "kd/hidden", "from_student"]
            yield [conf / f"{name}.yaml" for name in stack]


def test_every_conf_of_every_recipe_builds():
    used, built = set(), {}
    for stack in config_stacks():
        used.update(stack)
        config = parse_config(
            ["--exp-dir", "x"] + [a for f in stack for a in ("--config", str(f))]
        )
        if config.model not in built:
            built[config.model] = build_model(config.model)
        assert to_dict(config)["terms"]
    options = TrainConfig.__dataclass_fields__
    files = {f for conf in RECIPES for f in conf.rglob("*.yaml")}
    assert used == {f for f in files if options.keys() >= read_yaml(f).keys()}


@pytest.mark.parametrize(
    "student, variant, millions",
    [
        ("student", "non_streaming", 23.3),
        ("student_m", "non_streaming", 65.5),
        ("student_m", "streaming", 66.1),
    ],
)
def test_the_students_of_librispeech_have_icefalls_size(student, variant, millions):
    (conf,) = (conf for conf in RECIPES if "librispeech" in conf.parts)
    files = [conf / f"{name}.yaml" for name in (student, variant, "finetune")]
    config = parse_config(
        ["--exp-dir", "x"] + [a for f in files for a in ("--config", str(f))]
    )
    model = build_model(config.model)
    model.ctc_output = None  # icefall counts the transducer alone
    parameters = sum(p.numel() for p in model.parameters())
    assert round(parameters / 1e6, 1) == millions
