"""Parse the names of systems, and read the profiles of a recipe.

A system is one row of a recipe's results.  Its name is::

    START[_random][_unlabelled][+PART...][@SEED]

- ``START``: ``baseline`` (random weights), ``student`` (a trained student), or a name
  of teachers whose embeddings pre-train the encoder.
- ``_random``: each update draws one teacher for each utterance.
- ``_unlabelled``: pre-training also reads the unlabelled sets.
- ``PART``: a file of ``conf/kd`` for fine-tuning.  With the part ``pseudo``,
  fine-tuning also reads the unlabelled sets with pseudo-labels.
- ``SEED``: seed of this run.  Runs that differ only in the seed are one system.

For example ``both_unlabelled+pseudo+one_best@43``.

A profile is one size of a recipe (``quick`` or ``full``): its sets, its default systems
and the lengths of the two training stages.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional, Union

from icefall_kd.core.config import from_dict
from icefall_kd.core.files import Pathlike, as_path, read_yaml

PROFILES = Path("conf/profiles.yaml")
OLD_PROFILES = Path("local/profiles.sh")  # of earlier versions
PSEUDO = "pseudo"
# Former endings of START and former parts -> the present ones.
RENAMED = {
    "_pool": "_unlabelled",
    "+inter_ctc_untaught": "+inter_ctc_no_teacher",
}


@dataclass(frozen=True)
class System:
    """A parsed system name.

    Attributes:
      name: the complete name.
      start: ``baseline``, ``student`` or a name of teachers.
      is_random: whether each update draws one teacher for each utterance.
      has_unlabelled: whether pre-training also reads the unlabelled sets.
      parts: files of ``conf/kd``, without ``.yaml``, in their order.
      seed: seed of this run; None: that of the option ``--seed``.
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
        """Name without parts; systems with the same one share a pre-training."""
        start, at, seed = self.name.partition("@")
        return start.partition("+")[0] + at + seed

    def select(self, table: Mapping[str, float]) -> float:
        """Return the value of the first entry whose words all occur in this system.

        Args:
          table: words joined by ``+`` -> value.  A word is the start, a part,
            ``random`` or ``unlabelled``; ``default`` applies to every system.
        Raises:
          ValueError: if no entry applies.
        """
        words = {"default", self.start, *self.parts}
        words |= {"random"} if self.is_random else set()
        words |= {"unlabelled"} if self.has_unlabelled else set()
        for key, value in table.items():
            if set(key.split("+")) <= words:
                return value
        raise ValueError(
            f"{PROFILES}: no entry of {dict(table)} applies to system '{self.name}'. "
            "Add an entry 'default'"
        )


def parse_system(name: str) -> System:
    """Return a parsed system name.

    Raises:
      ValueError: if the seed is not a whole number, a part is empty, or the name is one
        of an earlier version.
    """
    unseeded, at, seed = name.partition("@")
    if at and not seed.isdecimal():
        raise ValueError(
            f"system '{name}': the seed '{seed}' is not a whole number. Write for "
            f"example {unseeded}@43"
        )
    new_name = _rename(name, RENAMED)
    if new_name != name:
        raise ValueError(
            f"system '{name}': this name is now '{new_name}'. Write the new name in "
            "--systems"
        )
    start, *parts = unseeded.split("+")
    if not all((start, *parts)):
        raise ValueError(f"system '{name}': empty part. Write for example baseline+kd")
    stem, _, ending = start.partition("_unlabelled")
    teachers = stem[: -len("_random")] if stem.endswith("_random") else stem
    if ending or not teachers:
        raise ValueError(
            f"system '{name}': '{start}' has an unknown form. Write "
            "TEACHERS[_random][_unlabelled]"
        )
    return System(
        name,
        teachers,
        is_random=teachers != stem,
        has_unlabelled=stem != start,
        parts=tuple(parts),
        seed=int(seed) if at else None,
    )


def check_run_folder(runs: Path, name: str) -> None:
    """Check that an earlier version did not name the folder of a system differently.

    Args:
      runs: folder of the systems, ``exp/<profile>/<variant>``.
      name: name of the system.
    Raises:
      ValueError: if only the folder with the former name exists.
    """
    former_name = _rename(name, {new: old for old, new in RENAMED.items()})
    old, new = runs / former_name, runs / name
    if old.exists() and not new.exists():
        raise ValueError(f"{old}: this folder is now {new}. Run: mv {old} {new}")


def _rename(name: str, endings: Mapping[str, str]) -> str:
    """Replace endings of START and parts; both end before ``+``, ``@`` or the end."""
    for old, new in endings.items():
        name = re.sub(f"{re.escape(old)}(?=[+@]|$)", new, name)
    return name


@dataclass(frozen=True)
class Schedule:
    """Lengths of one training stage.

    Attributes:
      avg: number of last epochs whose weights are averaged, or a table of it.
      epochs: table of the number of epochs, see :meth:`System.select`.
      lr_epochs: table of ``optim.lr_epochs``, only for pre-training; empty: the value
        of the conf.
    """

    avg: Union[int, Mapping[str, int]]
    epochs: Mapping[str, float]
    lr_epochs: Mapping[str, float] = field(default_factory=dict)

    def select_avg(self, system: System) -> int:
        """Return ``avg`` of a system."""
        return self.avg if isinstance(self.avg, int) else int(system.select(self.avg))


@dataclass(frozen=True)
class Profile:
    """One profile of ``conf/profiles.yaml``.

    Attributes:
      name: key of the profile; its folders are ``conf/<name>`` and ``exp/<name>``.
      variants: default of ``--variants``.
      systems: default of ``--systems``.
      labelled: sets of data/shar with transcripts.
      unlabelled: sets without transcripts.
      pseudo_suffix: ending of the copy of an unlabelled set that has pseudo-labels.
      dev_set: set that validates training.
      test_sets: sets to decode.
      check_sets: sets on which ``export.sh`` compares PyTorch with the exported model.
      head: default of ``--head``, the head to decode, export and report.
      pretrain, finetune: lengths of the two stages.
      hlg: options of bin.compile_hlg, with ``_`` for ``-``: ``bpe_model`` and weights.
        If given, the CTC head is decoded with a graph of the words of the labelled and
        pseudo-labelled sets, in place of a beam search.
      teachers: name of teachers in a system -> their fields -> weights.
      teacher_field: field of any other START; ``{}`` is replaced by START.
      jobs: number of systems trained at once; None: 1 on a GPU, else one per CPU.
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
    head: str = "transducer"
    hlg: Mapping[str, Union[float, str]] = field(default_factory=dict)
    teachers: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    teacher_field: str = "{}"
    jobs: Optional[int] = None

    @property
    def pseudo_labelled(self) -> tuple[str, ...]:
        """Copies of the unlabelled sets that have pseudo-labels."""
        return tuple(name + self.pseudo_suffix for name in self.unlabelled)

    def teacher_weights(self, system: System) -> dict[str, float]:
        """Return field -> weight, of the teachers that pre-train a system."""
        default = {self.teacher_field.format(system.start): 1.0}
        return dict(self.teachers.get(system.start, default))

    def pretrain_sets(self, system: System) -> tuple[str, ...]:
        """Return the training sets of pre-training."""
        more = self.unlabelled if system.has_unlabelled else ()
        return (*self.labelled, *more)

    def finetune_sets(self, system: System) -> tuple[str, ...]:
        """Return the training sets of fine-tuning."""
        more = self.pseudo_labelled if PSEUDO in system.parts else ()
        return (*self.labelled, *more)

    def check_system(self, system: System) -> None:
        """Check that the profile and the files of the recipe suffice for a system.

        Raises:
          ValueError: if the profile has no unlabelled set, or a conf or a checkpoint is
            missing.
          FileNotFoundError: if a teacher's field is missing.
        """
        where = f"system '{system.name}'"
        stages = {"finetune": self.finetune}
        sets = [*self.finetune_sets(system), self.dev_set]
        if system.is_pretrained:
            stages["pretrain"] = self.pretrain
            sets += self.pretrain_sets(system)
        for stage, schedule in stages.items():
            epochs = system.select(schedule.epochs)
            avg = schedule.select_avg(system)
            if avg > epochs:
                raise ValueError(
                    f"{where}: {stage}.avg is {avg} in the profile "
                    f"{self.name}, but {stage}.epochs is {epochs}. Lower avg"
                )
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
        for name in sets:
            if not Path("data/shar", name).is_dir():
                raise FileNotFoundError(
                    f"{where}: no set data/shar/{name}, which the profile {self.name} "
                    "names. Run prepare.sh, or teachers.sh for pseudo-labels"
                )
        checkpoint = Path("exp/student/pretrained.pt")
        if system.start == "student" and not checkpoint.is_file():
            raise ValueError(
                f"{where}: no {checkpoint}. Run the stage of teachers.sh that writes "
                "it (see teachers.sh --help)"
            )
        if not system.is_pretrained:
            return
        folder, labelled = Path("data/shar"), self.labelled[0]
        for name in self.teacher_weights(system):
            path = folder / f"{labelled}.fields" / name / f"{name}.json"
            # Earlier versions wrote fields into the folder of the set.
            if not path.is_file() and not (folder / labelled / path.name).is_file():
                raise FileNotFoundError(
                    f"{where}: no field {name} in {folder}/{labelled}.fields. Run "
                    "teachers.sh to write it, or name other teachers. Available: "
                    f"{', '.join(self.teachers) or 'none'}"
                )


def load_profile(name: str = "", path: Pathlike = PROFILES) -> Profile:
    """Read a profile of a recipe.

    Args:
      name: name of the profile; empty: the first one of the file.
      path: YAML file, name of a profile -> attributes of :class:`Profile`.
    Raises:
      FileNotFoundError: if the file is missing.
      ValueError: if the file lacks the profile, or a key is unknown or missing.
    """
    path = as_path(path)
    if not path.is_file():
        if OLD_PROFILES.is_file():
            raise FileNotFoundError(
                f"{OLD_PROFILES} is no longer read. Write its values to {path}, as "
                "egs/asterisk/KD/conf/profiles.yaml does"
            )
        raise FileNotFoundError(
            f"{path}: no recipe in {Path.cwd()}. Run the script of the same name in "
            "egs/<corpus>/KD, which changes to its own folder"
        )
    profiles = read_yaml(path)
    name = name or next(iter(profiles))
    if name not in profiles:
        known = ", ".join(profiles)
        raise ValueError(f"--profile: no '{name}' in {path}. Available: {known}")
    try:
        return from_dict(Profile, {**profiles[name], "name": name})
    except ValueError as e:  # a missing or an unknown key
        problem = str(e).rstrip(".")
        raise ValueError(
            f"{path}, profile {name}: {problem}. The class Profile in "
            "icefall_kd/recipes/systems.py describes the keys"
        ) from e
