"""Teachers: who speaks.  One file a family, one protocol, one dict of names.

To add a teacher: write a class with the members of
:class:`~icefall_kd.teachers.protocol.Teacher` and name its builder in
:data:`TEACHERS`.  The extraction, the cache and the distillation terms need no word
about it.  A builder imports its library when it is called, not before.
"""

from pathlib import Path
from typing import Any, Callable, Dict, Union

from icefall_kd.teachers.protocol import Teacher, TeacherOutput

__all__ = ["TEACHERS", "Teacher", "TeacherOutput", "build_teacher"]


def _whisper(name: str) -> Callable[..., Teacher]:
    def build(model_dir: Union[str, Path], **options: Any) -> Teacher:
        from icefall_kd.teachers.whisper_ct2 import WhisperCt2

        return WhisperCt2(name, model_dir, **options)

    return build


TEACHERS: Dict[str, Callable[..., Teacher]] = {
    # OpenAI Whisper converted for CTranslate2; the name is also the field's name.
    "whisper_tiny_en": _whisper("whisper_tiny_en"),
    "whisper_base": _whisper("whisper_base"),
    # Any other folder of the same form (small, medium, large-v3, distilled ones).
    "whisper_ct2": _whisper("whisper_ct2"),
}


def build_teacher(name: str, model_dir: Union[str, Path], **options: Any) -> Teacher:
    """Return the teacher ``name`` with the weights of ``model_dir``.

    Args:
      name:      key of :data:`TEACHERS`.
      model_dir: folder with the model's files, see the family's module.
      options:   of the family, for example ``compute_type`` and ``num_threads``.
    Raises:
      ValueError: if the name is unknown; the message lists the known ones.
      FileNotFoundError: if the folder does not hold the model.
    """
    if name not in TEACHERS:
        raise ValueError(f"unknown teacher '{name}'; known are {sorted(TEACHERS)}")
    return TEACHERS[name](model_dir, **options)
