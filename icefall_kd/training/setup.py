"""Build the parts of a training run: student, tokenizer, fields, data and loaders."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from icefall_kd.core.cli import require_packages
from icefall_kd.core.cpu import default_num_workers
from icefall_kd.core.distributed import World
from icefall_kd.core.files import as_path
from icefall_kd.data.cuts import check_cuts
from icefall_kd.data.features import SpecAugment
from icefall_kd.data.shar import FIELDS_SUFFIX
from icefall_kd.data.tokens import Tokenizer
from icefall_kd.dataset.dataset import Loader
from icefall_kd.dataset.fields import (
    LiveTeachers,
    build_live_teachers,
    open_fields,
)
from icefall_kd.dataset.stream import CutStream, open_stream
from icefall_kd.distill import build_terms
from icefall_kd.distill.term import Term, check_vocabulary
from icefall_kd.fields.codecs import Codec
from icefall_kd.fields.format import FieldInfo, load_field_info
from icefall_kd.training.checkpoint import seed_everything
from icefall_kd.training.checks import check_run
from icefall_kd.training.config import DataConfig, TrainConfig
from icefall_kd.training.student import (
    DistilledStudent,
    build_heads,
    load_initial_weights,
)
from icefall_kd.transducer.checkpoint import load_checkpoint, read_info, untrained_parts
from icefall_kd.transducer.model import AsrModel, build_model


@dataclass(frozen=True)
class Setup:
    """Everything that a training run needs.

    Attributes:
      config: configuration with the actual vocabulary size and the field encoder's
        dimensions.
      student: model, heads and terms, on the CPU.
      tokenizer: None without ``data.bpe_model``.
      codecs: field -> its codec, for the Shar fields in a batch.
      live: teachers that run during training; None with ``data.cache: shar``.
      train_stream: cuts of all training sets, mixed.
      dev_stream: None without a dev set.
      train_seconds: approximate audio in an epoch, in seconds; 0 if unknown.
      untrained: parts of the student that the checkpoint of ``init_model`` or
        ``init_encoder`` lacks, or that are random in it.
    """

    config: TrainConfig
    student: DistilledStudent
    tokenizer: Optional[Tokenizer]
    codecs: dict[str, Codec]
    live: Optional[LiveTeachers]
    train_stream: CutStream
    dev_stream: Optional[CutStream]
    train_seconds: float
    untrained: tuple[str, ...] = ()


def build_setup(config: TrainConfig, resume: Optional[dict[str, Any]] = None) -> Setup:
    """Check the configuration and the data of a run, and build its parts.

    Args:
      resume: checkpoint that the run resumes from, if any.
    Raises:
      ValueError, FileNotFoundError: if an option, a set, a field or a checkpoint is
        wrong.
      ImportError: if a package of a term is missing.
    """
    weighted_terms = build_terms(config.terms)
    terms = [term for _, term in weighted_terms]
    for term in terms:
        require_packages(*term.packages)
    config, tokenizer = load_tokenizer(config)
    config = fill_field_encoder(config)
    encoder = config.model.field_encoder
    inputs = encoder.fields if encoder is not None else ()
    fields = tuple(dict.fromkeys([*inputs, *(f for t in terms for f in t.fields)]))
    path = config.init_model or config.init_encoder
    start = load_checkpoint(path) if path and resume is None else None
    check_run(config, tokenizer, terms, fields, start=start, resume=resume)
    data = config.data
    is_cached = data.cache == "shar"
    live = None
    if not is_cached and fields:
        live = build_live_teachers(
            data.teachers,
            fields,
            expect=data.expect,
            device=config.device,
            num_threads=config.num_threads,
        )
    seed_everything(config.seed)
    model, untrained = build_initial_model(config, start)
    train_dirs = [*find_sets(data, "train"), *find_sets(data, "mix")]
    dev_dirs = find_sets(data, "dev")
    cached = fields if is_cached else ()
    infos, codecs = open_fields(train_dirs, dev_dirs, cached, data.missing)
    if live is not None:
        infos = live.describe_fields(train_dirs)
    for info in infos.values():
        if info.kind != "embedding":
            check_vocabulary(info, tokenizer)
    train_stream, dev_stream = open_streams(
        config, terms, tokenizer, cached, train_dirs, dev_dirs
    )
    heads = build_heads(weighted_terms, config.model, infos, config.seed)
    return Setup(
        config=config,
        student=DistilledStudent(model, weighted_terms, heads),
        tokenizer=tokenizer,
        codecs=codecs,
        live=live,
        train_stream=train_stream,
        dev_stream=dev_stream,
        train_seconds=train_stream.seconds(),
        untrained=tuple(sorted(untrained)),
    )


def open_streams(
    config: TrainConfig,
    terms: Sequence[Term],
    tokenizer: Optional[Tokenizer],
    fields: Sequence[str],
    train_dirs: Sequence[Path],
    dev_dirs: Sequence[Path],
) -> tuple[CutStream, Optional[CutStream]]:
    """Return the checked cuts for training and validation.

    Args:
      fields: Shar fields that the cuts carry.
    Raises:
      ValueError: if a cut cannot be trained on, or no cut is left.
    """
    data = config.data
    train_stream = open_stream(
        train_dirs,
        fields,
        data.expect,
        shares=data.mix,
        seed=config.seed,
        shuffle=True,
        missing=data.missing,
        # A term with a teacher, or without text, also trains on unlabelled cuts.
        labelled=all(term.needs_text and not term.fields for term in terms),
    )
    dev_stream = None
    if dev_dirs:
        dev_stream = open_stream(dev_dirs, fields, data.expect, missing=data.missing)
    needs_text = any(term.needs_text for term in terms)
    for stream in filter(None, (train_stream, dev_stream)):
        for source in stream.sources:
            check_cuts(
                source.shards,
                f"{data.shar_dir}/{source.name}",
                labelled=needs_text,
                trained=True,
                tokenizer=tokenizer if needs_text else None,
                max_unknown=data.max_unknown,
            )
    check_not_empty(train_stream)
    return train_stream, dev_stream


def load_tokenizer(config: TrainConfig) -> tuple[TrainConfig, Optional[Tokenizer]]:
    """Return the config with its vocabulary size, and the tokenizer.

    ``model.vocab_size: 0`` is replaced by the size of ``data.bpe_model``.

    Raises:
      FileNotFoundError, ValueError: if ``data.bpe_model`` cannot be read.
    """
    if config.data.bpe_model is None:
        return config, None
    tokenizer = Tokenizer(config.data.bpe_model)
    if config.model.vocab_size == 0:
        model = dataclasses.replace(config.model, vocab_size=tokenizer.vocab_size)
        config = dataclasses.replace(config, model=model)
    return config, tokenizer


def fill_field_encoder(config: TrainConfig) -> TrainConfig:
    """Return the config with the dimensions of the field encoder's fields.

    Raises:
      ValueError: if the field encoder has no field.
      FileNotFoundError: if the first training set lacks one.
    """
    encoder = config.model.field_encoder
    if encoder is None:
        return config
    if not encoder.fields:
        raise ValueError("model.field_encoder.fields is empty; name its input fields")
    dims = tuple(info.dim for info in _field_encoder_infos(config))
    encoder = dataclasses.replace(encoder, dims=dims)
    model = dataclasses.replace(config.model, field_encoder=encoder)
    return dataclasses.replace(config, model=model)


def _field_encoder_infos(config: TrainConfig) -> list[FieldInfo]:
    first = find_sets(config.data, "train")[0]
    return [load_field_info(first, name) for name in config.model.field_encoder.fields]


def find_sets(data: DataConfig, option: str) -> list[Path]:
    """Return the folders of the sets that an option names.

    Args:
      option: "train", "mix" or "dev".
    Raises:
      FileNotFoundError: if a set is missing; the message lists the available sets.
    """
    root, value = as_path(data.shar_dir), getattr(data, option)
    names = [value] if isinstance(value, str) else list(value or ())
    for name in names:
        if (root / name).is_dir():
            continue
        message = f"data.{option}: no set '{name}' in {root}"
        if not root.is_dir():
            raise FileNotFoundError(
                f"{message}, and no such folder in {Path.cwd()}. Set data.shar_dir."
            )
        sets = (p.name for p in root.glob("*") if p.is_dir())
        available = ", ".join(sorted(s for s in sets if not s.endswith(FIELDS_SUFFIX)))
        message += f". Available: {available or 'none'}."
        path = Path(name)
        if path.is_dir():
            message += (
                f" '{name}' is a folder: set data.shar_dir to {path.parent} and name "
                f"the set '{path.name}'."
            )
        raise FileNotFoundError(message)
    return [root / name for name in names]


def build_initial_model(
    config: TrainConfig, start: Optional[Mapping[str, Any]]
) -> tuple[AsrModel, set[str]]:
    """Return the student with its initial weights, and its untrained parts.

    Args:
      start: checkpoint of ``init_encoder`` or ``init_model``; None initialises all
        parts at random.
    """
    model = build_model(config.model)
    if config.model.field_encoder is not None:
        infos = _field_encoder_infos(config)
        model.encoder.set_statistics([i.mean for i in infos], [i.std for i in infos])
    if start is None:
        return model, set()
    option = "init_encoder" if config.init_encoder else "init_model"
    new = load_initial_weights(
        model,
        start["model"],
        where=f"{option} {config.init_encoder or config.init_model}",
        encoder_only=bool(config.init_encoder),
    )
    return model, {*untrained_parts(read_info(start)), *new}


def check_not_empty(stream: CutStream) -> None:
    """Log the number of unlabelled cuts that the stream leaves out.

    Raises:
      ValueError: if no cut is left.
    """
    taken, known = stream.counts()
    if not taken:
        raise ValueError(
            f"data.train {[s.name for s in stream.sources]}: none of {known} cuts has "
            "a transcript, and every term needs one. Add a labelled set, write "
            "pseudo-labels with bin.pseudo_label, or use terms without transcripts."
        )
    if taken < known:
        logging.info(
            "left out %d of the first %d cuts: they have no transcript, and every term "
            "needs one",
            known - taken,
            known,
        )


def make_train_loader(setup: Setup, world: World) -> Loader:
    """Return this process's training batches, shuffled and augmented."""
    data = setup.config.data
    augment = None
    if data.spec_augment:
        augment = SpecAugment(time_warp=data.time_warp_factor)
    return _make_loader(
        setup,
        world,
        setup.train_stream,
        num_workers=default_num_workers() if data.num_workers < 0 else data.num_workers,
        num_buckets=data.num_buckets,
        spec_augment=augment,
    )


def make_dev_loader(setup: Setup, world: World) -> Loader:
    """Return this process's dev batches, in order and without augmentation."""
    return _make_loader(setup, world, setup.dev_stream, shuffle=False)


def _make_loader(
    setup: Setup, world: World, stream: CutStream, **options: Any
) -> Loader:
    data = setup.config.data
    return Loader(
        stream,
        codecs=setup.codecs,
        tokenizer=setup.tokenizer,
        max_duration=data.max_duration,
        seed=setup.config.seed,
        rank=world.rank,
        world_size=world.size,
        missing=data.missing,
        live=setup.live,
        device=world.device,
        **options,
    )
