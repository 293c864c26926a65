"""Fixtures of real prompts and a small student."""

from students import (  # noqa: F401, fixtures
    checkpoint,
    cuts,
    parts,
    pristine_student,
    student,
    tokenizer,
    waves,
)
