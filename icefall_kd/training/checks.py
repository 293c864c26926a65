"""What does not fit together in a run, told at once and before data is read."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

from icefall_kd.core.config import config_differences, to_dict
from icefall_kd.core.files import read_text
from icefall_kd.data.tokens import Tokenizer
from icefall_kd.distill.term import Term
from icefall_kd.training.config import TrainConfig
from icefall_kd.transducer.checkpoint import unpack_bytes
from icefall_kd.transducer.icefall import infer_icefall_config

# Options of the encoder that no weight depends on: fine-tuning may have others.
FREE = ("chunk_size", "left_context_frames", "dropout", "warmup_batches")
EXAMPLES = 5

Checkpoint = Mapping[str, Any]


def preflight(
    config: TrainConfig,
    tokenizer: Optional[Tokenizer],
    needs_text: bool,
    fields: Sequence[str] = (),
    *,
    terms: Sequence[Term] = (),
    start: Optional[Checkpoint] = None,
    resume: Optional[Checkpoint] = None,
) -> None:
    """Refuse a run whose parts do not fit together.

    Args:
      config: with ``model.vocab_size`` settled where it was 0.
      tokenizer: of ``data.bpe_model``; None if that is not set.
      needs_text: a term needs transcripts.
      fields: that the terms need.
      terms: parts of the loss.
      start: content of ``init_encoder`` or ``init_model``.
      resume: checkpoint that the run goes on from.
    Raises:
      ValueError: naming every problem and its remedy.
    """
    problems = vocabulary_problems(config, tokenizer, needs_text)
    problems += teacher_problems(config, fields)
    problems += field_encoder_problems(config)
    problems += time_problems(config, terms)
    if start is not None:
        problems += start_problems(config, tokenizer, start)
    if resume is not None:
        problems += resume_problems(config, tokenizer, resume)
    if len(problems) == 1:
        raise ValueError(problems[0])
    if problems:
        raise ValueError(
            f"{len(problems)} things do not fit together:\n"
            + "\n".join(f"  {n}. {p}" for n, p in enumerate(problems, 1))
        )


def vocabulary_problems(
    config: TrainConfig, tokenizer: Optional[Tokenizer], needs_text: bool
) -> list[str]:
    """Return what is wrong with the BPE model, its tokens.txt and the vocabulary."""
    path, size = config.data.bpe_model, config.model.vocab_size
    if tokenizer is None:
        if needs_text:
            return [
                "a term needs text, but data.bpe_model is not set; give it the "
                "bpe.model that 'python -m icefall_kd.bin.train_bpe' wrote"
            ]
        if size == 0:
            return [
                "model.vocab_size is 0, that is as large as data.bpe_model, which is "
                "not set; set one of the two"
            ]
        return []
    problems = []
    if tokenizer.vocab_size != size:
        problems.append(
            f"{path} has {tokenizer.vocab_size} tokens, but model.vocab_size is "
            f"{size}; give the BPE model of this student, or set model.vocab_size to 0 "
            "to take its size"
        )
    tokens = Path(path).with_name("tokens.txt")
    if tokens.is_file():
        differences = _token_differences(_read_tokens(tokens), _tokens(tokenizer))
        if differences:
            problems.append(
                f"{tokens} is not of the bpe.model beside it: {differences} (there -> "
                "bpe.model); write both again with icefall_kd.bin.train_bpe"
            )
    return problems


def teacher_problems(config: TrainConfig, fields: Sequence[str]) -> list[str]:
    """Return what is wrong with the teachers that are to speak while training runs.

    Whether they can be built is found out next, see ``training.targets``.
    """
    data = config.data
    if data.cache != "none" or not fields or data.teachers:
        return []
    return [
        f"data.cache is none, so teachers have to say {list(fields)} while training "
        "runs, but data.teachers names none; give it what bin.extract has in "
        "--teachers, or set data.cache to shar"
    ]


def field_encoder_problems(config: TrainConfig) -> list[str]:
    """Return options that do not work with a field encoder."""
    if config.model.field_encoder is None or config.data.missing == "error":
        return []
    return [
        f"data.missing is {config.data.missing}, which trains a cut without the terms "
        "whose targets it lacks, but model.field_encoder needs its fields for every "
        "cut; set data.missing to error"
    ]


def time_problems(config: TrainConfig, terms: Sequence[Term]) -> list[str]:
    """Return what moves the student's frames against those of the targets.

    Also a delay that never applies, since the student always has full context.
    """
    problems = []
    warp = config.data.time_warp_factor
    framed = [f"terms.{term.name}" for term in terms if term.frame_targets]
    if warp > 0 and framed:
        problems.append(
            f"data.time_warp_factor is {warp}, which moves the student's frames, but "
            f"the targets of {', '.join(framed)} are frames of the audio as it was; "
            "set data.time_warp_factor to 0"
        )
    encoder = config.model.encoder
    if (
        encoder.causal
        and max(encoder.chunk_size) > 0
        and not config.model.field_encoder
    ):
        return problems
    for term in terms:
        for option in ("delay", "shift"):
            value = getattr(getattr(config.terms, term.name), option, 0)
            if value:
                problems.append(
                    f"terms.{term.name}.{option} is {value}, but the student always "
                    "has full context and never lags behind a teacher; set it to 0, "
                    "or train with chunks (model.encoder.causal and chunk_size)"
                )
    return problems


def start_problems(
    config: TrainConfig, tokenizer: Optional[Tokenizer], start: Checkpoint
) -> list[str]:
    """Return what keeps the student from starting with the weights of ``start``."""
    option = "init_model" if config.init_model else "init_encoder"
    path = config.init_model or config.init_encoder
    here, there = to_dict(config.model), start.get("model_config")
    if there is None:
        try:
            there = infer_icefall_config(start, here["encoder"])
        except ValueError as e:
            return [f"{option} {path}: {e}"]
    if option == "init_encoder":
        here, there = ({"encoder": c.get("encoder", {})} for c in (here, there))
    problems = []
    differences = [
        d
        for d in config_differences(_known(here, there), _known(there, here), "model")
        if d.split(":")[0].split(".")[-1] not in FREE
    ]
    if differences:
        problems.append(
            f"{option} {path} is of another shape: {'; '.join(differences)} (there -> "
            "here); give this run the shape of that checkpoint, or choose another"
        )
    model = unpack_bytes(start.get("bpe_model"))
    if option == "init_encoder" or tokenizer is None:
        return problems
    if model is not None:
        problems += _bpe_problems(f"{option} {path}", config, tokenizer, model)
    elif not config.init_same_tokens:
        problems.append(
            f"{option} {path} carries no BPE model, so nothing shows that its tokens "
            f"are those of data.bpe_model {config.data.bpe_model}; set "
            "init_same_tokens: true if it was trained with that file, or start from "
            "its encoder alone with init_encoder"
        )
    return problems


def resume_problems(
    config: TrainConfig, tokenizer: Optional[Tokenizer], resume: Checkpoint
) -> list[str]:
    """Return what makes this another run than that of the checkpoint.

    Other differences, such as a new learning rate, are only told.
    """
    here, there = to_dict(config), resume["config"]
    differences = config_differences(here, there)
    differences = [d for d in differences if not d.startswith("exp_dir:")]
    fatal = [d for d in differences if d.startswith("model.")]
    terms = [
        sorted(k for k, v in c["terms"].items() if v and v["weight"])
        for c in (there, here)
    ]
    if terms[0] != terms[1]:
        fatal.append(f"terms: {terms[0]} -> {terms[1]}")
    problems = []
    if fatal:
        problems.append(
            f"{config.exp_dir} holds checkpoints of another configuration: "
            + "; ".join(fatal)
            + ". Choose another exp_dir, or the configuration of that run"
        )
    else:
        for difference in differences:
            logging.warning("going on with another value than before: %s", difference)
    model = unpack_bytes(resume["bpe_model"])
    if model is not None and tokenizer is not None:
        problems += _bpe_problems(config.exp_dir, config, tokenizer, model)
    return problems


def _bpe_problems(
    where: str, config: TrainConfig, tokenizer: Tokenizer, model: bytes
) -> list[str]:
    differences = _token_differences(
        _tokens(Tokenizer.from_bytes(model)), _tokens(tokenizer)
    )
    if not differences:
        return []
    return [
        f"{where} has other tokens than {config.data.bpe_model}: {differences} (there "
        "-> here); set data.bpe_model to the file that it was trained with"
    ]


def _token_differences(there: list[str], here: list[str]) -> str:
    """Return the number of tokens and the first that differ, "" if none does."""
    if there == here:
        return ""
    cases = [f"{i}: {a} -> {b}" for i, (a, b) in enumerate(zip(there, here)) if a != b]
    sizes = [f"{len(there)} tokens -> {len(here)}"] if len(there) != len(here) else []
    more = [f"{len(cases) - EXAMPLES} more"] if len(cases) > EXAMPLES else []
    return "; ".join(sizes + cases[:EXAMPLES] + more)


def _tokens(tokenizer: Tokenizer) -> list[str]:
    return [tokenizer.piece(i) for i in range(tokenizer.vocab_size)]


def _read_tokens(path: Path) -> list[str]:
    lines = read_text(path).split("\n")
    pairs = [line.rsplit(maxsplit=1) for line in lines if line.strip()]
    return [p[0] for p in sorted(pairs, key=lambda p: int(p[-1]))]


def _known(values: Any, other: Any) -> Any:
    """Return ``values`` without the keys that ``other``, of another version, lacks."""
    if not isinstance(values, Mapping) or not isinstance(other, Mapping):
        return values
    return {k: _known(v, other[k]) for k, v in values.items() if k in other}
