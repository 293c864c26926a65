"""Check the configuration of a run against its tokens, terms and checkpoints."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

from icefall_kd.core.config import config_differences, rename_options, to_dict
from icefall_kd.core.files import read_text
from icefall_kd.data.tokens import Tokenizer
from icefall_kd.distill.term import Term
from icefall_kd.training.config import TrainConfig
from icefall_kd.transducer.checkpoint import unpack_bytes
from icefall_kd.transducer.icefall import infer_icefall_config

# Options of the encoder that fine-tuning may change: no weight depends on them.
FREE_OPTIONS = ("chunk_size", "left_context_frames", "dropout", "warmup_hours")
MAX_TOKENS = 5  # differing tokens in a message

Checkpoint = Mapping[str, Any]


def check_run(
    config: TrainConfig,
    tokenizer: Optional[Tokenizer],
    terms: Sequence[Term],
    fields: Sequence[str],
    *,
    start: Optional[Checkpoint] = None,
    resume: Optional[Checkpoint] = None,
) -> None:
    """Raise one error with all problems of a run, before its data is read.

    Args:
      config: configuration; ``load_tokenizer`` has set its ``model.vocab_size``.
      tokenizer: of ``data.bpe_model``, if any.
      terms: terms of the loss.
      fields: Shar fields that the run reads.
      start: checkpoint of ``init_encoder`` or ``init_model``.
      resume: checkpoint that the run resumes from.
    Raises:
      ValueError: with every problem and its remedy.
    """
    problems = [
        *_vocabulary_problems(config, tokenizer, terms),
        *_field_problems(config, fields),
        *_time_problems(config, terms),
    ]
    if start is not None:
        problems += _start_problems(config, tokenizer, start)
    if resume is not None:
        problems += _resume_problems(config, tokenizer, resume)
    if len(problems) == 1:
        raise ValueError(problems[0])
    if problems:
        lines = "\n".join(f"  {n}. {p}" for n, p in enumerate(problems, 1))
        raise ValueError(f"{len(problems)} problems with the configuration:\n{lines}")


def _vocabulary_problems(
    config: TrainConfig, tokenizer: Optional[Tokenizer], terms: Sequence[Term]
) -> list[str]:
    """Check the BPE model, its tokens.txt and the vocabulary size."""
    path, size = config.data.bpe_model, config.model.vocab_size
    if tokenizer is None:
        names = [f"terms.{term.name}" for term in terms if term.needs_text]
        if names:
            return [
                f"{', '.join(names)}: needs text, but data.bpe_model is not set; set "
                "it to the bpe.model that icefall_kd.bin.train_bpe wrote"
            ]
        if size == 0:
            return [
                "model.vocab_size is 0, the size of data.bpe_model, which is not set; "
                "set one of the two"
            ]
        return []
    problems = []
    if tokenizer.vocab_size != size:
        problems.append(
            f"{path} has {tokenizer.vocab_size} tokens, but model.vocab_size is "
            f"{size}; set data.bpe_model to that of this student, or model.vocab_size "
            "to 0"
        )
    tokens = Path(path).with_name("tokens.txt")
    if tokens.is_file():
        differences = _token_differences(_read_tokens(tokens), _tokens(tokenizer))
        if differences:
            problems.append(
                f"{tokens} differs from the bpe.model next to it: {differences} "
                "(tokens.txt -> bpe.model); write both with icefall_kd.bin.train_bpe"
            )
    return problems


def _field_problems(config: TrainConfig, fields: Sequence[str]) -> list[str]:
    """Check the source of the fields; ``build_live_teachers`` checks the teachers."""
    problems, data = [], config.data
    if data.cache == "none" and fields and not data.teachers:
        problems.append(
            f"data.cache is none, but data.teachers is empty, and the fields "
            f"{list(fields)} need a teacher; describe it as for bin.extract "
            "--teachers, or set data.cache to shar"
        )
    if config.model.field_encoder is not None and data.missing != "error":
        problems.append(
            f"data.missing is {data.missing}, which trains a cut without the terms "
            "whose targets it lacks, but model.field_encoder needs its fields for "
            "every cut; set data.missing to error"
        )
    return problems


def _time_problems(config: TrainConfig, terms: Sequence[Term]) -> list[str]:
    """Check options that shift the student's frames relative to the targets."""
    problems = []
    warp = config.data.time_warp_factor
    names = [f"terms.{term.name}" for term in terms if term.frame_targets]
    if warp > 0 and names:
        problems.append(
            f"data.time_warp_factor is {warp}, which shifts the student's frames, but "
            f"the targets of {', '.join(names)} are frames of the unwarped audio; set "
            "data.time_warp_factor to 0"
        )
    encoder = config.model.encoder
    has_chunks = encoder.causal and max(encoder.chunk_size) > 0
    if has_chunks and config.model.field_encoder is None:
        return problems
    for term in terms:
        if term.delay:
            problems.append(
                f"terms.{term.name} has a delay or shift of {term.delay} frames, but "
                "the student always has full context and is not delayed; set it to 0, "
                "or train with chunks (model.encoder.causal and chunk_size)"
            )
    return problems


def _start_problems(
    config: TrainConfig, tokenizer: Optional[Tokenizer], start: Checkpoint
) -> list[str]:
    """Check the checkpoint of ``init_encoder`` or ``init_model``."""
    option = "init_model" if config.init_model else "init_encoder"
    where = f"{option} {config.init_model or config.init_encoder}"
    here = to_dict(config.model)
    if "model_config" in start:
        there = rename_options(start["model_config"], "model.")
    else:
        try:
            there = infer_icefall_config(start, here["encoder"])
        except ValueError as e:
            return [f"{where}: {e}"]
    if option == "init_encoder":
        here, there = ({"encoder": c.get("encoder", {})} for c in (here, there))
    here, there = _common_options(here, there), _common_options(there, here)
    problems = []
    differences = [
        line
        for line in config_differences(here, there, "model")
        if line.split(":")[0].split(".")[-1] not in FREE_OPTIONS
    ]
    if differences:
        problems.append(
            f"{where} has another shape: {'; '.join(differences)} (checkpoint -> "
            "configuration); set model to the shape of that checkpoint, or choose "
            "another"
        )
    if option == "init_encoder" or tokenizer is None:
        return problems
    model = unpack_bytes(start.get("bpe_model"))
    if model is not None:
        problems += _bpe_problems(where, config, tokenizer, model)
    elif not config.init_same_tokens:
        problems.append(
            f"{where} has no BPE model, so its tokens cannot be compared with "
            f"data.bpe_model {config.data.bpe_model}; set init_same_tokens: true if it "
            "was trained with that file, or use init_encoder"
        )
    return problems


def _resume_problems(
    config: TrainConfig, tokenizer: Optional[Tokenizer], resume: Checkpoint
) -> list[str]:
    """Check the checkpoint to resume from; log options that may change."""
    here, there = to_dict(config), rename_options(resume["config"])
    differences = config_differences(here, there)
    differences = [d for d in differences if not d.startswith("exp_dir:")]
    # Checkpoints of an older version lack warmup_hours.
    free = "model.encoder.warmup_hours:"
    fatal = [d for d in differences if d.startswith("model.") and free not in d]
    before, now = (
        sorted(k for k, v in c["terms"].items() if v and v["weight"])
        for c in (there, here)
    )
    if before != now:
        fatal.append(f"terms: {before} -> {now}")
    problems = []
    if fatal:
        problems.append(
            f"exp_dir {config.exp_dir} has checkpoints of another configuration: "
            f"{'; '.join(fatal)} (checkpoint -> configuration); choose another "
            "exp_dir, or the configuration of that run"
        )
    else:
        for difference in differences:
            logging.warning("resuming with a changed option: %s", difference)
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
        f"{where} has other tokens than {config.data.bpe_model}: {differences} "
        "(checkpoint -> data.bpe_model); set data.bpe_model to the file that it was "
        "trained with"
    ]


def _token_differences(old: list[str], new: list[str]) -> str:
    """Return the first tokens that differ, "" if the lists are equal."""
    lines = config_differences(dict(enumerate(new)), dict(enumerate(old)))
    more = [f"{len(lines) - MAX_TOKENS} more"] if len(lines) > MAX_TOKENS else []
    return "; ".join(lines[:MAX_TOKENS] + more)


def _tokens(tokenizer: Tokenizer) -> list[str]:
    return [tokenizer.piece(i) for i in range(tokenizer.vocab_size)]


def _read_tokens(path: Path) -> list[str]:
    lines = read_text(path).split("\n")
    pairs = [line.rsplit(maxsplit=1) for line in lines if line.strip()]
    return [p[0] for p in sorted(pairs, key=lambda p: int(p[-1]))]


def _common_options(values: Any, other: Any) -> Any:
    """Return ``values`` without the keys that ``other``, of another version, lacks."""
    if not isinstance(values, Mapping) or not isinstance(other, Mapping):
        return values
    return {k: _common_options(v, other[k]) for k, v in values.items() if k in other}
