"""Everything that can be wrong with a run is found here, before the first batch."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from icefall_kd.cache.codec_file import load_codecs
from icefall_kd.cache.codecs import Codec
from icefall_kd.cache.field import FieldInfo, load_field_info
from icefall_kd.data.stream import CutStream, open_stream
from icefall_kd.data.tokens import Tokenizer
from icefall_kd.distill.term import Term
from icefall_kd.distill.terms import build_terms
from icefall_kd.io import as_path
from icefall_kd.training.checkpoint import (
    config_differences,
    load_checkpoint,
    load_encoder,
    load_weights,
)
from icefall_kd.training.config import DataConfig, TrainConfig
from icefall_kd.training.preflight import preflight
from icefall_kd.training.state import seed_everything
from icefall_kd.training.student import DistilledStudent, build_heads
from icefall_kd.transducer.build import build_model


@dataclass(frozen=True)
class Setup:
    """What a run needs.

    Attributes:
      config: with the vocabulary's size filled in.
      student: model, heads and terms, on the CPU.
      tokenizer: None where no BPE model is given.
      fields: Shar fields that the terms read, each with its codec.
      train_stream: all training sets mixed.
      dev_stream: None where there is no validation.
      train_seconds: s of audio in an epoch, about.
    """

    config: TrainConfig
    student: DistilledStudent
    tokenizer: Optional[Tokenizer]
    fields: dict[str, Codec]
    train_stream: CutStream
    dev_stream: Optional[CutStream]
    train_seconds: float


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
            there = sorted(p.name for p in root.glob("*") if p.is_dir())
            raise FileNotFoundError(
                f"{root}: no set '{name}'; there are {there or 'none'}"
            )
    return [root / name for name in names]


def read_field_infos(
    dirs: Sequence[Path], fields: Sequence[str]
) -> dict[str, FieldInfo]:
    """Return each field's description; its statistics are those of the first set.

    Raises:
      FileNotFoundError: if a set lacks a field.
      ValueError: if two sets hold a field of different teachers.
    """
    infos = {}
    for field in fields:
        infos[field] = load_field_info(dirs[0], field)
        for other in dirs[1:]:
            info = load_field_info(other, field)
            differences = config_differences(info.fingerprint, infos[field].fingerprint)
            if differences:
                raise ValueError(
                    f"field '{field}' of {other} is not from the teacher of {dirs[0]}: "
                    + "; ".join(differences)
                )
    return infos


def prepare(config: TrainConfig, checkpoint: Optional[dict[str, Any]] = None) -> Setup:
    """Check a run and build what it needs; ``checkpoint`` is what it goes on from.

    Raises:
      ValueError, FileNotFoundError: naming what is wrong and the remedy.
    """
    terms: list[tuple[float, Term]] = build_terms(config.terms)
    config, tokenizer = load_tokenizer(config)
    needs_text = any(term.needs_text for _, term in terms)
    path = config.init_model or config.init_encoder
    start = load_checkpoint(path) if path and checkpoint is None else None
    preflight(config, tokenizer, needs_text, start=start, resume=checkpoint)
    seed_everything(config.seed)
    model = build_model(config.model)
    if start is not None and config.init_model:
        load_weights(model, start["model"], str(path))
    elif start is not None:
        load_encoder(model, start["model"], str(path))
    data = config.data
    fields = tuple(dict.fromkeys(f for _, term in terms for f in term.fields))
    train_dirs = shar_dirs(data, (*data.train, *data.mix))
    dev_dirs = shar_dirs(data, [data.dev] if data.dev else [])
    infos = read_field_infos([*train_dirs, *dev_dirs], fields)
    train_stream = open_stream(
        train_dirs,
        fields,
        data.expect,
        shares=data.mix,
        seed=config.seed,
        shuffle=True,
    )
    return Setup(
        config=config,
        student=DistilledStudent(
            model, terms, build_heads(terms, config.model, infos, config.seed)
        ),
        tokenizer=tokenizer,
        fields=load_codecs(train_dirs[0], infos),
        train_stream=train_stream,
        dev_stream=open_stream(dev_dirs, fields, data.expect) if dev_dirs else None,
        train_seconds=train_stream.seconds(),
    )
