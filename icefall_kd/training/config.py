"""Options of a training run."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Optional

from icefall_kd.core.arguments import parse_dataclass
from icefall_kd.core.config import ModelConfig, ZipformerConfig
from icefall_kd.data.tokens import MAX_UNKNOWN
from icefall_kd.distill import TermsConfig


@dataclass(frozen=True)
class DataConfig:
    """Shar sets and batches.

    Attributes:
      shar_dir: folder of the Shar sets.
      train: names of the training sets, whose cuts are mixed.  Unlabelled sets train
        the terms that need no transcript.
      mix: name of a further set -> its share of all training cuts, for example the
        data of an earlier training.  An epoch has every cut of ``train`` once; sets in
        ``mix`` are repeated as needed.
      dev: name of the validation set; null for none.
      bpe_model: sentencepiece model; null if no term needs text.
      expect: field -> entries that the fingerprint of its teacher must have.
      missing: "error" stops before training if a cut lacks a target; "skip" trains on
        that cut with the other terms.
      cache: "shar" reads the teachers' outputs from the fields of the sets; "none" runs
        ``teachers`` during training.
      teachers: name -> family, model_dir and options, as in the file of ``bin.extract
        --teachers``; for ``cache: none``.
      max_unknown: maximum share of ``<unk>`` in the tokens of a set.
      max_duration: maximum audio in a batch in seconds, padding included.
      num_buckets: number of duration buckets.
      num_workers: data loading processes; 0 loads in the training process, -1 uses all
        CPUs of this process but one, at most 4.
      spec_augment: apply SpecAugment to the student's input.
      time_warp_factor: SpecAugment's time warp in fbank frames; 0 is off.  It must be 0
        if the targets of a term are frames.
    """

    shar_dir: str = "data/shar"
    train: tuple[str, ...] = ("train",)
    mix: dict[str, float] = field(default_factory=dict)
    dev: Optional[str] = "dev"
    bpe_model: Optional[str] = None
    expect: dict[str, dict[str, Any]] = field(default_factory=dict)
    missing: Literal["error", "skip"] = "error"
    cache: Literal["shar", "none"] = "shar"
    teachers: dict[str, dict[str, Any]] = field(default_factory=dict)
    max_unknown: float = MAX_UNKNOWN
    max_duration: float = 200.0
    num_buckets: int = 30
    num_workers: int = 0
    spec_augment: bool = True
    time_warp_factor: int = 0


@dataclass(frozen=True)
class OptimConfig:
    """ScaledAdam and the Eden schedule.

    Attributes:
      base_lr: learning rate before the schedule; 0.045 suits updates of about 4000 s
        (``data.max_duration`` x processes x ``accumulate``), less audio needs less.
      lr_batches: updates after which the learning rate falls.
      lr_epochs: epochs after which the learning rate falls.
      warmup_batches: updates over which the rate rises from half of base_lr.
      clipping_scale: gradients above this multiple of the recent median norm are
        scaled down to it.
      max_grad_norm: maximum 2-norm of the gradients per frame; 0 is no maximum.
      frozen_batches: updates with a frozen encoder after ``init_encoder``.  ScaledAdam
        moves a parameter relative to its size however small the gradient, so random
        layers after a trained encoder would undo its training.
      encoder_lr_scale: factor on the learning rate of the encoder after
        ``init_encoder``.
      accumulate: batches of each process for one update.  The update equals one with
        the cuts of all of them in one batch: every term is a sum over frames.
    """

    base_lr: float = 0.045
    lr_batches: float = 7500.0
    lr_epochs: float = 3.5
    warmup_batches: float = 500.0
    clipping_scale: float = 2.0
    max_grad_norm: float = 0.0
    frozen_batches: int = 0
    encoder_lr_scale: float = 1.0
    accumulate: int = 1


@dataclass(frozen=True)
class TrainConfig:
    """A training run.

    Attributes:
      exp_dir: folder for checkpoints, metrics and logs.  A stopped run resumes from it;
        config.<update>.yaml is the configuration used up to that update.
      model: shape of the student.
      data: Shar sets and batches.
      terms: terms of the loss.
      optim: optimiser and learning rate.
      num_epochs: passes over the data.
      init_encoder: checkpoint, or file of bin.average, that initialises the encoder.
      init_model: checkpoint, or file of bin.average, that initialises all parts of the
        student, for fine-tuning; its shape and tokens must match.  Parts that the file
        lacks, such as the CTC head of icefall's transducers, start with random weights.
      init_same_tokens: confirms that a file of ``init_model`` without a BPE model was
        trained with ``data.bpe_model``.
      seed: seed of the initial weights, the order of the data and the regularisers.
      device: "auto", "cpu" or "cuda".
      amp: autocast in "none", "bf16", "fp16", or in the fastest of them on the device
        ("auto").  On a CPU the encoder's stacks stay in float32, which is faster there.
      num_threads: torch threads on the CPU; 0 is this process's share of the CPUs.
      average_period: updates between two samples of the averaged model.
      save_every_minutes: minutes between two checkpoints within an epoch; 0 is never.
      save_every_n: updates between two more checkpoints within an epoch; 0 is never.
      keep_optimizer: number of newest epoch checkpoints that can be resumed from;
        older ones keep only the model.
      log_interval: updates between two progress lines.
      stall_steps: update at which a warning names the terms with a teacher whose loss
        has fallen by less than 5 %; 0 is never.
      max_bad_batches: consecutive updates with a non-finite loss or gradient that stop
        the run.
      memory_probe: run forward and backward on the longest cuts before the first
        update, to find a lack of memory.
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
    amp: Literal["none", "auto", "bf16", "fp16"] = "none"
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
        for name in (
            "num_epochs",
            "average_period",
            "keep_optimizer",
            "log_interval",
            "max_bad_batches",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, must be at least 1")
        if self.optim.accumulate < 1:
            raise ValueError(
                f"optim.accumulate is {self.optim.accumulate}, must be at least 1"
            )
        if self.init_encoder is not None and self.init_model is not None:
            raise ValueError(
                "init_encoder and init_model are both set; remove init_encoder, which "
                "init_model includes"
            )
        mix = self.data.mix
        if any(share <= 0 for share in mix.values()) or sum(mix.values()) >= 1:
            raise ValueError(
                f"data.mix is {mix}; each share must be above 0 and their sum below 1, "
                "because data.train is the rest"
            )
        both = sorted(set(self.data.train) & set(mix))
        if both:
            raise ValueError(f"data.train and data.mix both name {both}; choose one")


def parse_config(arguments: Sequence[str]) -> TrainConfig:
    """Return the configuration from YAML files and the command line.

    Raises:
      ValueError: see :func:`icefall_kd.core.arguments.parse_dataclass`.
    """
    # Defaults of the class: those of an instance are repeated for every stack.
    encoder = {f"model.encoder.{f.name}": f.default for f in fields(ZipformerConfig)}
    return parse_dataclass(
        TrainConfig,
        arguments,
        prog="python -m icefall_kd.bin.train",
        description="Train a student on a weighted sum of terms.",
        defaults=encoder,
    )
