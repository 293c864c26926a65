"""Parse the names of systems, and read the profiles of a recipe.

A system is one row of a recipe's results.  Its name is::

    START[_random][_unlabelled][+PART...][@SEED]

- ``START``: ``baseline`` (random weights), ``student`` (a trained student), or the
  teachers whose embeddings the encoder is pre-trained on.
- ``_random``: each update draws one teacher for each utterance.
- ``_unlabelled``: pre-training also reads the unlabelled sets.
- ``PART``: a file of ``conf/kd`` for fine-tuning.  The part ``pseudo`` adds the
  unlabelled sets with pseudo-labels to fine-tuning.
- ``SEED``: seed of this run.  Runs that differ only in the seed are one system.

For example ``both_unlabelled+pseudo+one_best@43``.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Optional

from icefall_kd.core.files import Pathlike, as_path, read_yaml

PROFILES = Path("conf/profiles.yaml")
OLD_PROFILES = Path("local/profiles.sh")
PSEUDO = "pseudo"
# Former endings of a system's name or of its parts -> the present ones.
RENAMED = {
    "_pool": "_unlabelled",
    "+inter_ctc_untaught": "+inter_ctc_no_teacher",
}


@dataclass(frozen=True)
class System:
    """A parsed system name.

    Attributes:
      name: the whole name.
      start: ``baseline``, ``student`` or the name of the teachers.
      is_random: each update draws one teacher for each utterance.
      has_unlabelled: pre-training also reads the unlabelled sets.
      parts: files of ``conf/kd``, without ``.yaml``, in their order.
      seed: seed of this run; None: the seed of the call.
    """

    name: str
    start: str
    is_random: bool = False
    has_unlabelled: bool = False
    parts: tuple[str, ...] = ()
    seed: Optional[int] = None

    @property
    def is_pretrained(self) -> bool:
        """Whether the encoder is pre-trained on teachers' embeddings."""
        return self.start not in ("baseline", "student")

    @property
    def pretraining(self) -> str:
        """Name of the system whose pre-trained encoder this one starts from."""
        start, at, seed = self.name.partition("@")
        return start.partition("+")[0] + at + seed

    def select(self, table: Mapping[str, float]) -> float:
        """Return the value of the first entry that applies, see :class:`Schedule`.

        Raises:
          ValueError: if no entry applies.
        """
        words = {self.start, *self.parts}
        words |= {"random"} if self.is_random else set()
        words |= {"unlabelled"} if self.has_unlabelled else set()
        for key, value in table.items():
            if key == "default" or set(key.split("+")) <= words:
                return value
        raise ValueError(
            f"{PROFILES}: no entry of {dict(table)} applies to system '{self.name}'. "
            "Add an entry 'default'"
        )


def _rename(name: str, names: Mapping[str, str]) -> str:
    """Replace the endings ``names`` of a system's name and of its parts."""
    for old, new in names.items():
        name = re.sub(f"{re.escape(old)}(?=[+@]|$)", new, name)
    return name


def former_name(name: str) -> str:
    """Return the name that an earlier version gave to a system."""
    return _rename(name, {new: old for old, new in RENAMED.items()})


def parse_system(name: str) -> System:
    """Return a parsed system name.

    Raises:
      ValueError: if the seed is no whole number, a part is empty, or the name is of an
        earlier version.
    """
    stem, at, seed = name.partition("@")
    if at and not seed.isdecimal():
        raise ValueError(
            f"system '{name}': '{seed}' after @ is no seed. Write a whole number, for "
            f"example {stem}@43"
        )
    start, *parts = stem.split("+")
    new_name = _rename(name, RENAMED)
    if new_name != name:
        raise ValueError(
            f"system '{name}': this name is now '{new_name}'. Write the new name in "
            "--systems"
        )
    if not all((start, *parts)):
        raise ValueError(f"system '{name}': empty part. Write for example baseline+kd")
    teachers, _, ending = start.partition("_unlabelled")
    base = teachers[: -len("_random")] if teachers.endswith("_random") else teachers
    if ending or not base:
        raise ValueError(
            f"system '{name}': '{start}' has an unknown form. Write "
            "TEACHERS[_random][_unlabelled]"
        )
    return System(
        name,
        base,
        is_random=base != teachers,
        has_unlabelled=start != teachers,
        parts=tuple(parts),
        seed=int(seed) if at else None,
    )


@dataclass(frozen=True)
class Schedule:
    """Lengths of one training stage.

    Attributes:
      avg: number of last epochs whose weights are averaged.
      epochs: words of a system, joined by ``+``, -> epochs.  The first entry applies
        whose words all occur in the system; ``default`` applies to every system.
      lr_epochs: the same for ``optim.lr_epochs``; empty: as in the conf.
    """

    avg: int
    epochs: Mapping[str, float]
    lr_epochs: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Profile:
    """One profile of ``conf/profiles.yaml``.

    Attributes:
      name: name of the profile, and of its folders ``conf/<name>`` and ``exp/<name>``.
      variants: default of ``--variants``.
      systems: default of ``--systems``.
      labelled: sets of data/shar with transcripts.
      unlabelled: sets without transcripts.
      pseudo_suffix: ending of the copy of an unlabelled set that has pseudo-labels.
      dev_set: set that validates training.
      test_sets: sets to decode.
      check_sets: sets on which ``export.sh`` compares PyTorch with the exported model.
      pretrain, finetune: lengths of the two stages.
      teachers: teachers' name in a system -> fields and their weights.
      teacher_field: field of any other name; ``{}`` stands for the name.
      jobs: systems that are trained at the same time; None: one a CPU, or one on a GPU.
    """

    name: str
    variants: tuple[str, ...]
    systems: tuple[str, ...]
    labelled: tuple[str, ...]
    pretrain: Schedule
    finetune: Schedule
    unlabelled: tuple[str, ...] = ()
    pseudo_suffix: str = ""
    dev_set: str = "dev"
    test_sets: tuple[str, ...] = ("test",)
    check_sets: tuple[str, ...] = ("dev", "test")
    teachers: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    teacher_field: str = "{}"
    jobs: Optional[int] = None

    @property
    def pseudo_labelled(self) -> tuple[str, ...]:
        """The unlabelled sets with pseudo-labels."""
        return tuple(name + self.pseudo_suffix for name in self.unlabelled)

    def teacher_weights(self, system: System) -> dict[str, float]:
        """Return the fields that pre-training reads, with their weights."""
        default = {self.teacher_field.format(system.start): 1.0}
        return dict(self.teachers.get(system.start, default))

    def pretrain_sets(self, system: System) -> tuple[str, ...]:
        """Return the sets that pre-training reads."""
        more = self.unlabelled if system.has_unlabelled else ()
        return (*self.labelled, *more)

    def finetune_sets(self, system: System) -> tuple[str, ...]:
        """Return the sets that fine-tuning reads."""
        more = self.pseudo_labelled if PSEUDO in system.parts else ()
        return (*self.labelled, *more)

    def check_system(self, system: System) -> None:
        """Check that the recipe has what a system needs.

        Raises:
          ValueError: if an unlabelled set, a conf or a checkpoint is missing.
          FileNotFoundError: if a teacher's field is missing.
        """
        where = f"system '{system.name}'"
        if (system.has_unlabelled or PSEUDO in system.parts) and not self.unlabelled:
            raise ValueError(
                f"{where}: the profile {self.name} has no unlabelled set. Leave out "
                "_unlabelled and +pseudo, or use another --profile"
            )
        for part in system.parts:
            path = Path("conf/kd", f"{part}.yaml")
            if not path.is_file():
                known = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml")))
                raise ValueError(f"{where}: no {path}. Available parts: {known}")
        checkpoint = Path("exp/student/pretrained.pt")
        if system.start == "student" and not checkpoint.is_file():
            raise ValueError(
                f"{where}: no {checkpoint}. teachers.sh writes it (see its --help)"
            )
        if not system.is_pretrained:
            return
        folder, labelled = Path("data/shar"), self.labelled[0]
        for name in self.teacher_weights(system):
            path = folder / f"{labelled}.fields" / name / f"{name}.json"
            # Earlier versions wrote the second path; reading the field moves it.
            if not path.is_file() and not (folder / labelled / path.name).is_file():
                raise FileNotFoundError(
                    f"{where}: no field {name} in {folder}/{labelled}.fields. Run "
                    "teachers.sh to write it or name other teachers (known: "
                    f"{', '.join(self.teachers)})"
                )


def load_profile(name: str = "", path: Pathlike = PROFILES) -> Profile:
    """Read a profile of a recipe.

    Args:
      name: name of the profile; empty: the first one of the file.
      path: YAML file, profile -> its values.
    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if the file has no such profile, or a key is unknown or missing.
    """
    path = as_path(path)
    if not path.is_file():
        if OLD_PROFILES.is_file():
            raise FileNotFoundError(
                f"{OLD_PROFILES} is no longer read. Write its values to {path}, as "
                "egs/asterisk/KD/conf/profiles.yaml does"
            )
        raise FileNotFoundError(
            f"{path}: no recipe in {Path.cwd()}. Run the script of this name in "
            "egs/<corpus>/KD"
        )
    profiles = read_yaml(path)
    name = name or next(iter(profiles))
    if name not in profiles:
        known = ", ".join(profiles)
        raise ValueError(f"--profile: no '{name}' in {path}. Available: {known}")
    values = {key: _tuple(value) for key, value in profiles[name].items()}
    known = {f.name for f in fields(Profile)} - {"name"}
    if unknown := values.keys() - known:
        raise ValueError(
            f"{path}: profile {name} has unknown keys {sorted(unknown)}. Known: "
            f"{sorted(known)}"
        )
    try:
        for stage in ("pretrain", "finetune"):
            values[stage] = Schedule(**values[stage])
        return Profile(name=name, **values)
    except (KeyError, TypeError) as e:
        raise ValueError(f"{path}: profile {name} is incomplete: {e}") from e


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
