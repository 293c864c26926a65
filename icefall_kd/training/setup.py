"""Everything that can be wrong with a run is found here, before the first batch."""

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from icefall_kd.cache.field import FieldInfo, load_field_info
from icefall_kd.config import to_dict
from icefall_kd.data.stream import CutStream, open_stream
from icefall_kd.data.tokens import Tokenizer
from icefall_kd.distill.term import Term
from icefall_kd.distill.terms import build_terms
from icefall_kd.training.checkpoint import config_differences, load_encoder
from icefall_kd.training.config import DataConfig, TrainConfig
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
      fields: names of the Shar fields that the terms read.
      train_stream: all training sets mixed.
      dev_stream: None where there is no validation.
      train_seconds: s of audio in an epoch, about.
    """

    config: TrainConfig
    student: DistilledStudent
    tokenizer: Optional[Tokenizer]
    fields: tuple[str, ...]
    train_stream: CutStream
    dev_stream: Optional[CutStream]
    train_seconds: float


def load_tokenizer(
    config: TrainConfig, needs_text: bool
) -> tuple[TrainConfig, Optional[Tokenizer]]:
    """Return the config with its vocabulary's size settled, and the tokenizer.

    Raises:
      ValueError: if a BPE model is needed and not given, or has another size than
        ``model.vocab_size``.
    """
    if config.data.bpe_model is None:
        if needs_text:
            raise ValueError(
                "a term needs text, but data.bpe_model is not set; give it the "
                "bpe.model that 'python -m icefall_kd.bin.train_bpe' wrote"
            )
        if config.model.vocab_size == 0:
            raise ValueError(
                "model.vocab_size is 0, that is as large as data.bpe_model, which is "
                "not set; set one of the two"
            )
        return config, None
    tokenizer = Tokenizer(config.data.bpe_model)
    if config.model.vocab_size == 0:
        model = dataclasses.replace(config.model, vocab_size=tokenizer.vocab_size)
        config = dataclasses.replace(config, model=model)
    if tokenizer.vocab_size != config.model.vocab_size:
        raise ValueError(
            f"{config.data.bpe_model} has {tokenizer.vocab_size} tokens, but "
            f"model.vocab_size is {config.model.vocab_size}; give the BPE model of "
            "this student, or set model.vocab_size to 0 to take its size"
        )
    return config, tokenizer


def shar_dirs(data: DataConfig, names: Sequence[str]) -> list[Path]:
    """Return the folders of the named sets.

    Raises:
      FileNotFoundError: if one is missing; the message lists those that exist.
    """
    root = Path(data.shar_dir)
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


def check_same_run(config: TrainConfig, checkpoint: dict[str, Any]) -> None:
    """Refuse to go on from a checkpoint of another student or other terms.

    Other differences, such as a new learning rate, are only told.

    Raises:
      ValueError: naming every difference that matters, and the remedy.
    """
    differences = config_differences(to_dict(config), checkpoint["config"])
    differences = [d for d in differences if not d.startswith("exp_dir:")]
    fatal = [d for d in differences if d.startswith("model.")]
    here = {k for k, v in to_dict(config)["terms"].items() if v and v["weight"]}
    there = {k for k, v in checkpoint["config"]["terms"].items() if v and v["weight"]}
    if here != there:
        fatal.append(f"terms: {sorted(there)} -> {sorted(here)}")
    if fatal:
        raise ValueError(
            f"{config.exp_dir} holds checkpoints of another configuration: "
            + "; ".join(fatal)
            + ". Choose another exp_dir, or the configuration of that run"
        )
    for difference in differences:
        logging.warning("going on with another value than before: %s", difference)


def prepare(config: TrainConfig, checkpoint: Optional[dict[str, Any]] = None) -> Setup:
    """Check a run and build what it needs; ``checkpoint`` is what it goes on from.

    Raises:
      ValueError, FileNotFoundError: naming what is wrong and the remedy.
    """
    terms: list[tuple[float, Term]] = build_terms(config.terms)
    needs_text = any(term.needs_text for _, term in terms)
    config, tokenizer = load_tokenizer(config, needs_text)
    if checkpoint is not None:
        check_same_run(config, checkpoint)
    seed_everything(config.seed)
    model = build_model(config.model)
    if config.init_encoder is not None and checkpoint is None:
        load_encoder(model, config.init_encoder)
    data = config.data
    fields = tuple(dict.fromkeys(f for _, term in terms for f in term.fields))
    train_dirs = shar_dirs(data, data.train)
    dev_dirs = shar_dirs(data, [data.dev] if data.dev else [])
    infos = read_field_infos([*train_dirs, *dev_dirs], fields)
    train_stream = open_stream(
        train_dirs, fields, data.expect, seed=config.seed, shuffle=True
    )
    return Setup(
        config=config,
        student=DistilledStudent(
            model, terms, build_heads(terms, config.model, infos, config.seed)
        ),
        tokenizer=tokenizer,
        fields=fields,
        train_stream=train_stream,
        dev_stream=open_stream(dev_dirs, fields, data.expect) if dev_dirs else None,
        train_seconds=train_stream.seconds(),
    )
