"""Teachers: models that compute targets from audio.

To add a teacher, write a subclass of :class:`~icefall_kd.teachers.protocol.Teacher` and
add it to :data:`TEACHERS`.  Extraction, fields and terms need no change.  Import
optional packages in the constructor.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Callable, Optional, Union

from icefall_kd.core.distributed import check_device
from icefall_kd.core.files import Pathlike
from icefall_kd.teachers.ensemble import Ensemble
from icefall_kd.teachers.hugging_face import HuggingFace
from icefall_kd.teachers.protocol import KINDS, Output, Teacher, TeacherOutput
from icefall_kd.teachers.vocab_teacher import VocabularyTeacher
from icefall_kd.teachers.whisper_ct2 import WhisperCt2
from icefall_kd.teachers.zipformer import ZipformerTeacher

__all__ = [
    "KINDS",
    "TEACHERS",
    "Output",
    "Teacher",
    "TeacherOutput",
    "build_teacher",
    "build_teachers",
]

# Family -> class, or a function that returns a teacher.
TEACHERS: dict[str, Callable[..., Teacher]] = {
    # OpenAI Whisper for CTranslate2: the two models of bin.fetch_teacher, and a folder
    # of any other size.
    "whisper_tiny_en": WhisperCt2,
    "whisper_base": WhisperCt2,
    "whisper_ct2": WhisperCt2,
    # Encoders of wav2vec 2.0, HuBERT, WavLM, data2vec-audio and Whisper.
    "hugging_face": HuggingFace,
    # A Zipformer of this project or of icefall.
    "zipformer": ZipformerTeacher,
    # A recogniser over other teachers' embeddings, in the student's tokens.
    "vocab_teacher": VocabularyTeacher,
    # The average of several teachers.
    "ensemble": Ensemble,
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
    if model_dir is not None:
        options["model_dir"] = model_dir
    try:
        inspect.signature(TEACHERS[family]).bind(name, **options)
    except TypeError as e:
        raise ValueError(f"family '{family}': {e}") from e
    return TEACHERS[family](name, **options)


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
