"""Everything that can be wrong with a run is found here, before the first batch.

The loaders of a run, for one process of it.
"""

import dataclasses
import logging
from collections.abc import Sequence
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
from icefall_kd.dataset.fields import LiveFields
from icefall_kd.dataset.loader import Loader, make_loader
from icefall_kd.dataset.stream import CutStream, open_stream
from icefall_kd.distill import build_terms
from icefall_kd.distill.term import Term, check_vocabulary
from icefall_kd.fields.codecs import Codec
from icefall_kd.fields.format import FieldInfo, load_field_info
from icefall_kd.training.checkpoint import seed_everything
from icefall_kd.training.checks import preflight
from icefall_kd.training.config import DataConfig, TrainConfig
from icefall_kd.training.student import (
    DistilledStudent,
    build_heads,
    load_initial_weights,
)
from icefall_kd.training.targets import build_live, live_infos, read_fields
from icefall_kd.transducer.checkpoint import load_checkpoint, read_info, untrained_parts
from icefall_kd.transducer.model import AsrModel, build_model


@dataclass(frozen=True)
class Setup:
    """What a run needs.

    Attributes:
      config: with the vocabulary's size filled in.
      student: model, heads and terms, on the CPU.
      tokenizer: None where no BPE model is given.
      fields: Shar fields that the terms read, each with its codec.
      live: says them where they are not read; None where they are.
      train_stream: all training sets mixed.
      dev_stream: None where there is no validation.
      untrained: heads of a student of ``init_model`` that are random there or here.
      train_seconds: s of audio in an epoch, about.
    """

    config: TrainConfig
    student: DistilledStudent
    tokenizer: Optional[Tokenizer]
    fields: dict[str, Codec]
    live: Optional[LiveFields]
    train_stream: CutStream
    dev_stream: Optional[CutStream]
    train_seconds: float
    untrained: tuple[str, ...] = ()


def load_tokenizer(config: TrainConfig) -> tuple[TrainConfig, Optional[Tokenizer]]:
    """Return the config with a vocabulary size of 0 filled in, and the tokenizer.

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


def shar_dirs(data: DataConfig, names: Sequence[str]) -> list[Path]:
    """Return the folders of the named sets.

    Raises:
      FileNotFoundError: if one is missing; the message lists those that exist.
    """
    root = as_path(data.shar_dir)
    for name in names:
        if not (root / name).is_dir():
            there = sorted(
                p.name
                for p in root.glob("*")
                if p.is_dir() and not p.name.endswith(FIELDS_SUFFIX)
            )
            message = (
                f"data.shar_dir {root}: no set '{name}'; there are {there or 'none'}"
            )
            if not root.is_dir():
                message += f" (no such folder in {Path.cwd()})"
            path = Path(name)
            if path.is_dir():
                message += (
                    f". For the folder {name} set data.shar_dir to {path.parent} and "
                    f"name the set '{path.name}'"
                )
            raise FileNotFoundError(message)
    return [root / name for name in names]


def fill_field_encoder(config: TrainConfig) -> TrainConfig:
    """Return the config with the dimensions of the field encoder's fields.

    Raises:
      ValueError: if the field encoder has no field.
      FileNotFoundError: if the first training set lacks one.
    """
    field_encoder = config.model.field_encoder
    if field_encoder is None:
        return config
    if not field_encoder.fields:
        raise ValueError("model.field_encoder.fields is empty; name its input fields")
    infos = _field_encoder_infos(config)
    dims = tuple(i.dim for i in infos)
    field_encoder = dataclasses.replace(field_encoder, dims=dims)
    model = dataclasses.replace(config.model, field_encoder=field_encoder)
    return dataclasses.replace(config, model=model)


def set_statistics(model: AsrModel, config: TrainConfig) -> None:
    """Copy the fields' statistics over the first training set to a field encoder."""
    if config.model.field_encoder is not None:
        infos = _field_encoder_infos(config)
        model.encoder.set_statistics([i.mean for i in infos], [i.std for i in infos])


def _field_encoder_infos(config: TrainConfig) -> list[FieldInfo]:
    first = shar_dirs(config.data, config.data.train[:1])[0]
    return [
        load_field_info(first, field) for field in config.model.field_encoder.fields
    ]


def _check_labelled(stream: CutStream) -> None:
    """Tell how many cuts without transcript are left out, where they are.

    Raises:
      ValueError: if nothing is left.
    """
    taken, known = stream.counts()
    if not taken:
        raise ValueError(
            f"none of {known} cuts of {[s.name for s in stream.sources]} has a "
            "transcript, which every term needs; train on sets with transcripts "
            "(bin.pseudo_label writes them), or on terms that need none"
        )
    if taken < known:
        logging.info(
            "%d of the first %d cuts have no transcript and are left out, as every "
            "term needs one",
            known - taken,
            known,
        )


def build_setup(
    config: TrainConfig, checkpoint: Optional[dict[str, Any]] = None
) -> Setup:
    """Check a run and build what it needs; ``checkpoint`` is what it goes on from.

    Raises:
      ValueError, FileNotFoundError: naming what is wrong and the remedy.
      ImportError: if a package of a term is missing.
    """
    terms: list[tuple[float, Term]] = build_terms(config.terms)
    for _, term in terms:
        require_packages(*term.packages)
    config, tokenizer = load_tokenizer(config)
    needs_text = any(term.needs_text for _, term in terms)
    config = fill_field_encoder(config)
    path = config.init_model or config.init_encoder
    start = load_checkpoint(path) if path and checkpoint is None else None
    heard = config.model.field_encoder.fields if config.model.field_encoder else ()
    fields = tuple(
        dict.fromkeys([*heard, *(f for _, term in terms for f in term.fields)])
    )
    preflight(
        config,
        tokenizer,
        needs_text,
        fields,
        terms=[term for _, term in terms],
        start=start,
        resume=checkpoint,
    )
    data = config.data
    cached = data.cache == "shar"
    live = None if cached else build_live(config, fields)
    seed_everything(config.seed)
    model = build_model(config.model)
    set_statistics(model, config)
    untrained: set[str] = set()
    if start is not None:
        option = "init_encoder" if config.init_encoder else "init_model"
        where = f"{option} {path}"
        untrained = untrained_parts(read_info(start))
        untrained.update(
            load_initial_weights(
                model, start["model"], where, bool(config.init_encoder)
            )
        )
    train_dirs = shar_dirs(data, (*data.train, *data.mix))
    dev_dirs = shar_dirs(data, [data.dev] if data.dev else [])
    read = fields if cached else ()
    infos, codecs = read_fields(train_dirs, dev_dirs, read, data.missing)
    if live is not None:
        infos = live_infos(live, train_dirs)
    for info in infos.values():
        if info.kind != "embedding":
            check_vocabulary(info, tokenizer)
    train_stream = open_stream(
        train_dirs,
        read,
        data.expect,
        shares=data.mix,
        seed=config.seed,
        shuffle=True,
        missing=data.missing,
        # Where there is a teacher, a cut without transcript has what it says.
        labelled=all(term.needs_text and not term.fields for _, term in terms),
    )
    dev_stream = None
    if dev_dirs:
        dev_stream = open_stream(dev_dirs, read, data.expect, missing=data.missing)
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
    _check_labelled(train_stream)
    return Setup(
        config=config,
        student=DistilledStudent(
            model, terms, build_heads(terms, config.model, infos, config.seed)
        ),
        tokenizer=tokenizer,
        fields=codecs,
        live=live,
        train_stream=train_stream,
        dev_stream=dev_stream,
        train_seconds=train_stream.seconds(),
        untrained=tuple(sorted(untrained)),
    )


def make_train_loader(setup: Setup, world: World) -> Loader:
    """Return this process's batches of the training sets, shuffled and augmented."""
    data = setup.config.data
    augment = None
    if data.spec_augment:
        augment = SpecAugment(time_warp=data.time_warp_factor)
    return make_loader(
        setup.train_stream,
        fields=setup.fields,
        tokenizer=setup.tokenizer,
        max_duration=data.max_duration,
        seed=setup.config.seed,
        rank=world.rank,
        world_size=world.size,
        num_workers=default_num_workers() if data.num_workers < 0 else data.num_workers,
        num_buckets=data.num_buckets,
        spec_augment=augment,
        missing=data.missing,
        live=setup.live,
        device=world.device,
    )


def make_dev_loader(setup: Setup, world: World) -> Loader:
    """Return this process's batches of the dev set, in order and unchanged."""
    data = setup.config.data
    return make_loader(
        setup.dev_stream,
        fields=setup.fields,
        tokenizer=setup.tokenizer,
        max_duration=data.max_duration,
        shuffle=False,
        seed=setup.config.seed,
        rank=world.rank,
        world_size=world.size,
        missing=data.missing,
        live=setup.live,
        device=world.device,
    )
