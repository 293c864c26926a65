"""Build teachers by the name of their family.

This module imports no teacher, because ensembles and vocabulary teachers import it to
build their members.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Callable, Optional, Union

from icefall_kd.core.distributed import check_device
from icefall_kd.core.files import Pathlike
from icefall_kd.teachers.base import Teacher

# Family -> class; filled by icefall_kd/teachers/__init__.py.
TEACHERS: dict[str, Callable[..., Teacher]] = {}

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
      model_dir: folder of the model; for some families a file or a list of files; None
                 for ensembles, which have no model.
      name:      of the teacher and its fields; None is ``family``.
      options:   arguments of the family's class, for example ``num_threads``.
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
    """Return the teachers of a YAML file, or the members of a teacher.

    Args:
      descriptions: name -> arguments of :func:`build_teacher`; ``family`` defaults to
        the name.
    Raises:
      ValueError, FileNotFoundError: as :func:`build_teacher`; the message of a
        ValueError contains the teacher's name.
    """
    for description in descriptions.values():  # all of them, before a model is loaded
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
