"""Options of a training run, and their way from YAML and the command line."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Optional

import yaml

from icefall_kd.core.arguments import as_lists, check_arguments, check_keys, explain
from icefall_kd.core.config import ModelConfig, ZipformerConfig, rename_options
from icefall_kd.core.files import read_yaml
from icefall_kd.data.tokens import MAX_UNKNOWN
from icefall_kd.distill import TermsConfig
from icefall_kd.fields.reader import MISSING

AMP_DTYPES = ("none", "bf16", "fp16")
CACHES = ("shar", "none")


@dataclass(frozen=True)
class DataConfig:
    """What is read, and how it becomes batches.

    Attributes:
      shar_dir: folder of the Shar sets.
      train: names of the sets trained on, mixed when there are several; sets
        without transcripts serve the terms that need none.
      mix: further sets, such as the data of an earlier training, and the share of
        the cuts trained on that comes from each.  An epoch has every cut of
        ``train`` once, and so many of these between them, begun again if need be.
      dev: name of the set for validation; null for none.
      bpe_model: sentencepiece model; null where no term needs text.
      expect: field -> part of the teacher's fingerprint that the field must have.
      missing: what to do about cuts without a target: "error" refuses the run, "skip"
        trains them without the terms concerned.
      cache: "shar" reads what teachers said from the fields of the sets; "none" lets
        the teachers below speak while training runs.
      teachers: name -> its family, model_dir and options, as bin.extract has them;
        for ``cache: none``.
      max_unknown: share of the tokens of a set that may be ``<unk>``.
      max_duration: s of audio in a batch, padding included.
      num_buckets: groups of similar duration that batches are drawn from.
      num_workers: processes that load data; 0 loads in the training process, -1 takes
        the CPUs that this process has beside its own, at most 4.
      spec_augment: mask stretches of time and frequency (student only).
      time_warp_factor: of SpecAugment, fbank frames; 0 is off.  Refused where the
        targets of a term are frames of the audio.
    """

    shar_dir: str = "data/shar"
    train: tuple[str, ...] = ("train",)
    mix: dict[str, float] = field(default_factory=dict)
    dev: Optional[str] = "dev"
    bpe_model: Optional[str] = None
    expect: dict[str, dict[str, Any]] = field(default_factory=dict)
    missing: str = "error"
    cache: str = "shar"
    teachers: dict[str, dict[str, Any]] = field(default_factory=dict)
    max_unknown: float = MAX_UNKNOWN
    max_duration: float = 200.0
    num_buckets: int = 10
    num_workers: int = 0
    spec_augment: bool = True
    time_warp_factor: int = 0


@dataclass(frozen=True)
class OptimConfig:
    """ScaledAdam and its schedule Eden.

    Attributes:
      base_lr: learning rate before the schedule; 0.045 was found for batches of
        about 4000 s, smaller batches want less.
      lr_batches: updates after which the rate begins to fall.
      lr_epochs: epochs after which the rate begins to fall.
      warmup_batches: updates over which the rate rises from half of base_lr.
      clipping_scale: gradients above so many times the recent median are scaled
        down to it.
      max_grad_norm: upper limit of the gradients' 2-norm per frame; 0 is none.
      frozen_batches: updates in which an encoder of ``init_encoder`` stays as it is,
        while the layers behind it learn to read it.  ScaledAdam moves a parameter by
        a share of its size however small the gradient, so random layers behind a
        trained encoder would undo its training.
      encoder_lr_scale: factor on the learning rate of an encoder of
        ``init_encoder``.
    """

    base_lr: float = 0.045
    lr_batches: float = 7500.0
    lr_epochs: float = 3.5
    warmup_batches: float = 500.0
    clipping_scale: float = 2.0
    max_grad_norm: float = 0.0
    frozen_batches: int = 0
    encoder_lr_scale: float = 1.0


@dataclass(frozen=True)
class TrainConfig:
    """A training run.

    Attributes:
      exp_dir: folder for checkpoints, metrics and log/log-train-<date>; a run that
        was stopped there goes on, and config.<update>.yaml is what it had before where
        its options are changed.
      model: shape of the student.
      data: what is read.
      terms: parts of the loss.
      optim: how the loss is brought down.
      num_epochs: passes over the data.
      init_encoder: file of bin.average, or a checkpoint, whose encoder the student
        starts from; null for none.
      init_model: the same for the whole student, whose shape and tokens must be
        those of this run: for fine-tuning.  A part that the file lacks, such as the
        CTC head of icefall's transducers, is initialised anew.
      init_same_tokens: confirms, for a file of ``init_model`` that carries no BPE
        model, that it was trained with ``data.bpe_model``.
      seed: of weights, order of data and regularisers.
      device: "auto", "cpu" or "cuda".
      amp: autocast in "none", "bf16" or "fp16"; on a CPU the encoder's stacks stay in
        float32, which is faster there.
      num_threads: of torch on the CPU; 0 takes this process's share of the CPUs.
      average_period: updates between two samples of the averaged model.
      save_every_minutes: between two checkpoints within an epoch; 0 for none.
      save_every_n: updates between two further ones, at steps that do not depend on
        the machine's speed; 0 for none.
      keep_optimizer: newest epochs whose checkpoint can be resumed from; older
        ones keep the model alone.
      log_interval: updates between two lines of progress.
      stall_steps: updates after which a term that learns from a teacher, and has fallen
        by less than 5 %, is told with what may be the reason; 0 for never.
      max_bad_batches: consecutive batches with a loss or gradient that is not
        finite, after which the run stops.
      memory_probe: before the first update, go forward and backward on the longest
        cuts of the data once, to run out of memory now or never.
      tensorboard: write event files to exp_dir/tensorboard.
    """

    exp_dir: str
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    terms: TermsConfig = field(default_factory=TermsConfig)  # type: ignore
    optim: OptimConfig = field(default_factory=OptimConfig)
    num_epochs: int = 30
    init_encoder: Optional[str] = None
    init_model: Optional[str] = None
    init_same_tokens: bool = False
    seed: int = 42
    device: str = "auto"
    amp: str = "none"
    num_threads: int = 0
    average_period: int = 100
    save_every_minutes: float = 10.0
    save_every_n: int = 0
    keep_optimizer: int = 2
    log_interval: int = 50
    stall_steps: int = 1000
    max_bad_batches: int = 10
    memory_probe: bool = True
    tensorboard: bool = True

    def __post_init__(self) -> None:
        for option, value, known in (
            ("amp", self.amp, AMP_DTYPES),
            ("data.cache", self.data.cache, CACHES),
            ("data.missing", self.data.missing, MISSING),
        ):
            if value not in known:
                raise ValueError(f"{option} is '{value}'; it can be one of {known}")
        for name in (
            "num_epochs",
            "average_period",
            "keep_optimizer",
            "log_interval",
            "max_bad_batches",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, must be at least 1")
        if self.init_encoder is not None and self.init_model is not None:
            raise ValueError(
                "init_encoder and init_model are both set; init_model has the encoder "
                "too, leave one of them out"
            )
        mix = self.data.mix
        if any(share <= 0 for share in mix.values()) or sum(mix.values()) >= 1:
            raise ValueError(
                f"data.mix is {mix}; each share must be above 0 and their sum below 1, "
                "since the rest is the share of data.train"
            )
        twice = sorted(set(self.data.train) & set(mix))
        if twice:
            raise ValueError(f"data.train and data.mix both name {twice}; choose one")


def parse_config(arguments: Sequence[str]) -> TrainConfig:
    """Read ``--config file.yaml`` and overrides such as ``--optim.base_lr 0.03``.

    Several ``--config`` are laid one over the other; ``-`` in an option's name
    reads as ``_``, and a single value serves an option of several.

    Raises:
      ValueError: if a key is unknown or a value of the wrong type.
    """
    from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser

    parser = ArgumentParser(
        prog="python -m icefall_kd.bin.train",
        description="Train a student: a weighted sum of terms, one loop for all.",
        exit_on_error=False,
    )
    parser.add_argument("--config", action=ActionConfigFile, help="YAML, repeatable")
    parser.add_class_arguments(TrainConfig)
    # The raw defaults: those of an instance are widened to its number of stacks.
    parser.set_defaults(
        {f"model.encoder.{f.name}": f.default for f in fields(ZipformerConfig)}
    )
    arguments = check_arguments(TrainConfig, arguments)
    arguments, files = _read_files(arguments)
    try:
        namespace = parser.parse_args(arguments)
        make = getattr(parser, "instantiate", None) or parser.instantiate_classes
        values = vars(make(namespace))
    except ArgumentError as e:
        raise ValueError(explain(e, arguments, files)) from e
    values.pop("config")
    return TrainConfig(**values)


def _read_files(arguments: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Return the arguments with files replaced by their content, and the files.

    Raises:
      ValueError: if a file is missing, or not a mapping of options.
    """
    found: list[str] = []
    files: dict[str, Any] = {}
    for argument in arguments:
        option, equals, path = argument.partition("=")
        if found and found[-1] == "--config":
            option, equals, path = "", "", argument
        elif option != "--config" or not equals:
            found.append(argument)
            continue
        try:
            values = read_yaml(path)
        except FileNotFoundError as e:
            raise ValueError(f"--config {path}: no such file") from e
        if not isinstance(values, (Mapping, type(None))):
            raise ValueError(f"{path}: not a mapping of options to values")
        values = rename_options(values or {})
        check_keys(TrainConfig, values, path)
        files[path] = as_lists(TrainConfig, values)
        plain = yaml.safe_dump(files[path], sort_keys=False)
        found.append(f"{option}{equals}{plain}")
    return found, files
