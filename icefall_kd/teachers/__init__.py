"""Teachers: models that compute targets from audio.

To add a teacher, write a subclass of :class:`~icefall_kd.teachers.protocol.Teacher` and
add a builder to :data:`TEACHERS`.  Extraction, fields and terms need no change.  A
builder imports its libraries when it is called.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Callable, Optional, Union

from icefall_kd.core.distributed import check_device
from icefall_kd.core.files import Pathlike
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


def _build_whisper_ct2(name: str, model_dir: Pathlike, **options: Any) -> Teacher:
    from icefall_kd.teachers.whisper_ct2 import WhisperCt2

    return WhisperCt2(name, model_dir, **options)


def _build_hugging_face(name: str, model_dir: Pathlike, **options: Any) -> Teacher:
    from icefall_kd.teachers.hugging_face import HuggingFace

    return HuggingFace(name, model_dir, **options)


def _build_zipformer(name: str, model_dir: Pathlike, **options: Any) -> Teacher:
    from icefall_kd.teachers.zipformer import ZipformerTeacher

    return ZipformerTeacher(name, model_dir, **options)


def _build_vocab_teacher(
    name: str, model_dir: Union[Pathlike, Sequence[Pathlike]], **options: Any
) -> Teacher:
    from icefall_kd.teachers.vocab_teacher import VocabularyTeacher

    return VocabularyTeacher(name, model_dir, **options)


def _build_ensemble(
    name: str,
    members: Mapping[str, Mapping[str, Any]],
    weights: Optional[Mapping[str, float]] = None,
    topk: Optional[int] = None,
    **defaults: Any,
) -> Teacher:
    from icefall_kd.teachers.ensemble import Ensemble

    teachers = build_teachers({n: {**defaults, **m} for n, m in members.items()})
    return Ensemble(name, teachers, weights, topk)


TEACHERS: dict[str, Callable[..., Teacher]] = {
    # OpenAI Whisper for CTranslate2: the two models of bin.fetch_teacher, and a folder
    # of any other size.
    "whisper_tiny_en": _build_whisper_ct2,
    "whisper_base": _build_whisper_ct2,
    "whisper_ct2": _build_whisper_ct2,
    # Encoders of wav2vec 2.0, HuBERT, WavLM, data2vec-audio and Whisper.
    "hugging_face": _build_hugging_face,
    # A Zipformer of this project or of icefall.
    "zipformer": _build_zipformer,
    # A recogniser over other teachers' embeddings, in the student's tokens.
    "vocab_teacher": _build_vocab_teacher,
    # The average of several teachers.
    "ensemble": _build_ensemble,
}

# Former name of a family -> its name.
RENAMED_FAMILIES = {"adapter": "vocab_teacher"}


def build_teacher(
    family: str,
    model_dir: Optional[Union[Pathlike, Sequence[Pathlike]]] = None,
    name: Optional[str] = None,
    **options: Any,
) -> Teacher:
    """Return a teacher.

    Args:
      family:    key of :data:`TEACHERS`.
      model_dir: folder of the model, for some families a file or a list; None for
                 families without a model of their own.
      name:      of the teacher and its fields; the family's when None.
      options:   of the family, for example ``compute_type`` and ``num_threads``.
    Raises:
      ValueError: if the family is unknown, an option is missing or invalid, or the
        device does not exist.
      FileNotFoundError: if the folder does not contain the model.
    """
    name = name or family
    family = RENAMED_FAMILIES.get(family, family)
    if family not in TEACHERS:
        raise ValueError(
            f"family: unknown teacher '{family}'. Available: "
            f"{', '.join(sorted(TEACHERS))}"
        )
    check_device(str(options.get("device", "cpu")))
    builder = TEACHERS[family]
    if model_dir is not None:
        options["model_dir"] = model_dir
    try:
        inspect.signature(builder).bind(name, **options)
    except TypeError as e:
        raise ValueError(f"family '{family}': {e}") from e
    return builder(name, **options)


def build_teachers(descriptions: Mapping[str, Mapping[str, Any]]) -> list[Teacher]:
    """Return several teachers.

    Args:
      descriptions: name -> arguments of :func:`build_teacher`; ``family`` defaults to
        the name.
    Raises:
      ValueError, FileNotFoundError: as :func:`build_teacher`; a ValueError names the
        teacher.
    """
    for description in descriptions.values():  # before a model is loaded
        check_device(str(description.get("device", "cpu")))
    teachers = []
    for name, description in descriptions.items():
        options = dict(description)
        family = options.pop("family", name)
        try:
            teachers.append(build_teacher(family, name=name, **options))
        except (ValueError, TypeError) as e:
            raise ValueError(f"teacher '{name}': {e}") from e
    return teachers
