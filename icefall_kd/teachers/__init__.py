"""Teachers: who speaks.  One file a family, one protocol, one dict of names.

To add a teacher: write a class with the members of
:class:`~icefall_kd.teachers.protocol.Teacher` and name its builder in
:data:`TEACHERS`.  The extraction, the cache and the distillation terms need no word
about it.  A builder imports its library when it is called, not before.
"""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Callable, Optional, Union

from icefall_kd.core.distributed import check_device
from icefall_kd.teachers.protocol import KINDS, Output, Teacher, TeacherOutput

__all__ = [
    "KINDS",
    "TEACHERS",
    "Output",
    "Teacher",
    "TeacherOutput",
    "build_teacher",
    "build_teachers",
]


def _whisper_ct2(name: str, model_dir: Union[str, Path], **options: Any) -> Teacher:
    from icefall_kd.teachers.whisper_ct2 import WhisperCt2

    return WhisperCt2(name, model_dir, **options)


def _vocab_teacher(
    name: str, model_dir: Union[str, Path, Sequence[Union[str, Path]]], **options: Any
) -> Teacher:
    from icefall_kd.teachers.vocab_teacher import VocabularyTeacher

    return VocabularyTeacher(name, model_dir, **options)


def _zipformer(name: str, model_dir: Union[str, Path], **options: Any) -> Teacher:
    from icefall_kd.teachers.zipformer import ZipformerTeacher

    return ZipformerTeacher(name, model_dir, **options)


def _ensemble(
    name: str,
    members: Mapping[str, Mapping[str, Any]],
    weights: Optional[Mapping[str, float]] = None,
    topk: Optional[int] = None,
    **common: Any,
) -> Teacher:
    """Build the members; ``common`` serves those that do not say otherwise."""
    from icefall_kd.teachers.ensemble import Ensemble

    teachers = build_teachers({n: {**common, **given} for n, given in members.items()})
    return Ensemble(name, teachers, weights, topk)


def _hugging_face(name: str, model_dir: Union[str, Path], **options: Any) -> Teacher:
    from icefall_kd.teachers.hugging_face import HuggingFace

    return HuggingFace(name, model_dir, **options)


TEACHERS: dict[str, Callable[..., Teacher]] = {
    # OpenAI Whisper converted for CTranslate2: the two that bin.fetch_teacher knows,
    # and any other folder of the same form (small, medium, large-v3, distilled ones).
    "whisper_tiny_en": _whisper_ct2,
    "whisper_base": _whisper_ct2,
    "whisper_ct2": _whisper_ct2,
    # A recogniser over other teachers' embeddings, in the student's tokens.
    "vocab_teacher": _vocab_teacher,
    # A Zipformer of this project or of icefall.
    "zipformer": _zipformer,
    # Several teachers, averaged where they agree; has members in place of a model_dir.
    "ensemble": _ensemble,
    # wav2vec 2.0, HuBERT, WavLM, data2vec-audio and Whisper's encoder, by transformers.
    "hugging_face": _hugging_face,
}


# Former name of a family -> its name.
RENAMED_FAMILIES = {"adapter": "vocab_teacher"}


def build_teacher(
    family: str,
    model_dir: Optional[Union[str, Path, Sequence[Union[str, Path]]]] = None,
    name: Optional[str] = None,
    **options: Any,
) -> Teacher:
    """Return a teacher of ``family``.

    Args:
      family:    key of :data:`TEACHERS`.
      model_dir: folder with the model's files, see the family's module, for some
                 families a list; None for a family that has none.
      name:      of the teacher and its fields; the family's when None.
      options:   of the family, for example ``compute_type`` and ``num_threads``.
    Raises:
      ValueError: if the family is unknown, or lacks an option that it needs; the
        message lists the known families.  Or if this machine lacks its device.
      FileNotFoundError: if the folder does not hold the model.
    """
    name = name or family
    family = RENAMED_FAMILIES.get(family, family)
    if family not in TEACHERS:
        raise ValueError(f"unknown teacher '{family}'; known are {sorted(TEACHERS)}")
    check_device(str(options.get("device", "cpu")))
    builder = TEACHERS[family]
    if model_dir is not None:
        options["model_dir"] = model_dir
    try:
        inspect.signature(builder).bind(name, **options)
    except TypeError as e:
        raise ValueError(f"family '{family}': {e}") from e
    return builder(name, **options)


def build_teachers(described: Mapping[str, Mapping[str, Any]]) -> list[Teacher]:
    """Return several teachers, each as a mapping describes it.

    Args:
      described: name -> {"family": key of :data:`TEACHERS`, the name itself when
        absent; "model_dir": its folder, or what the family has instead; and options
        of the family}.
    Raises:
      ValueError, FileNotFoundError: as :func:`build_teacher`, naming the teacher.
    """
    for given in described.values():  # before any of them is loaded
        check_device(str(given.get("device", "cpu")))
    teachers = []
    for name, given in described.items():
        options = dict(given)
        family = options.pop("family", name)
        try:
            teachers.append(build_teacher(family, name=name, **options))
        except (ValueError, TypeError) as e:
            raise ValueError(f"teacher '{name}': {e}") from e
    return teachers
