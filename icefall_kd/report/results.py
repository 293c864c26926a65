"""Results of decoding: finding them, and proving that they can be compared.

Runs of one system from several seeds, counted together.

A run's name may end in ``@SEED``, as ``train.sh`` names them: ``baseline`` and
``baseline@43`` are two runs of ``baseline``.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from icefall_kd.core.files import Pathlike, as_path, read_json
from icefall_kd.recognition.result_files import read_recogs
from icefall_kd.recognition.scoring import (
    Recognition,
    count_errors,
    errors_per_run,
    wer_interval,
)

NEEDED = (
    *("set", "suffix", "wer", "interval", "errors", "utterances", "recogs"),
    *("engine", "method", "streaming", "parameters", "rtf"),
)
FRAME_SECONDS = 0.02  # of the frames in which a chunk is counted
LEFT_CONTEXT = 128  # first of the recipes' confs, in these frames; others are named
SHOWN = 5  # examples in a message
METHODS = {
    "greedy_search": "greedy",
    "modified_beam_search": "beam",
    "fast_beam_search": "fast beam",
    "ctc_greedy_search": "CTC greedy",
    "ctc_prefix_beam_search": "CTC prefix beam",
}


@dataclass(frozen=True)
class Result:
    """A result JSON, what it says, and the recognitions that it counts.

    Attributes:
      runs: the results that this one is the mean of, see
        :mod:`icefall_kd.report.results`; path and recognitions are the first one's.
        Empty for a result of its own.
    """

    system: str
    path: Path
    facts: Mapping
    recognitions: tuple[Recognition, ...]
    runs: tuple["Result", ...] = ()

    @property
    def decodings(self) -> list[tuple[Recognition, ...]]:
        """The recognitions of every run."""
        return [r.recognitions for r in self.runs or (self,)]

    @property
    def setting(self) -> tuple[str, str]:
        """Set and way of decoding; results are compared within one."""
        return self.facts["set"], self.facts["suffix"]

    @property
    def decoding(self) -> str:
        """How it was decoded, for people."""
        facts = self.facts
        label = METHODS.get(facts["method"], facts["method"])
        if facts.get("beam"):
            label += f" {facts['beam']}"
        if facts.get("blank_penalty"):
            label += f", blank penalty {facts['blank_penalty']:g}"
        if facts.get("hotwords"):
            bonus, name = facts["hotwords_score"], Path(facts["hotwords"]).name
            label += f", hotwords of {name} {bonus:g}"
        if not facts["streaming"]:
            return f"full context, {label}"
        left, told = facts.get("left_context") or LEFT_CONTEXT, ""
        if left != LEFT_CONTEXT:
            told = f" behind {1000 * FRAME_SECONDS * left:.0f}"
        chunk = 1000 * FRAME_SECONDS * facts["chunk_size"]
        return f"streaming {chunk:.0f} ms{told}, {label}"

    @property
    def engine(self) -> str:
        """What decoded it, with the precision where that is not float32."""
        return self.facts["engine"] + (" int8" if self.facts.get("int8") else "")


def load_result(system: str, path: Pathlike) -> Result:
    """Read a result JSON and the recogs file beside it.

    Raises:
      FileNotFoundError: if the recogs file is not there.
      ValueError: if a key is missing, or the two files are not of one decoding.
    """
    path = as_path(path)
    facts = read_json(path)
    absent = [key for key in NEEDED if not isinstance(facts, dict) or key not in facts]
    if absent:
        raise ValueError(
            f"{path}: lacks {', '.join(absent)}; bin.decode --force writes it again"
        )
    recogs = path.parent / facts["recogs"]
    if not recogs.is_file():
        raise FileNotFoundError(f"{recogs}: not there, but {path} counts its errors")
    found = read_recogs(recogs)
    errors, ids = count_errors(found).errors, {r.cut_id for r in found}
    if facts["wer"] is None:  # no transcripts
        errors = None
    if errors != facts["errors"] or len(ids) != facts["utterances"]:
        raise ValueError(
            f"{recogs} holds {errors} errors in {len(ids)} utterances, {path} tells of "
            f"{facts['errors']} in {facts['utterances']}: not of one decoding; "
            "bin.decode --force writes both"
        )
    return Result(system, path, facts, tuple(found))


def find_results(system: str, path: Pathlike) -> list[Result]:
    """Return the results of a system.

    Args:
      system: its name.
      path: a result JSON, a folder of them, or a folder of such folders.
    Raises:
      FileNotFoundError: if there is none.
      ValueError: if one cannot be read, see :func:`load_result`.
    """
    path = as_path(path)
    paths = [path] if path.is_file() else sorted(path.glob("result-*.json"))
    paths = paths or sorted(path.glob("*/result-*.json"))
    if not paths:
        raise FileNotFoundError(
            f"{path}: no result-*.json for {system}; bin.decode and bin.transcribe "
            "write them"
        )
    return [load_result(system, p) for p in paths]


def find_systems(exp_dir: Pathlike) -> dict[str, Path]:
    """Return the folder of each system below ``exp_dir``.

    A system is a folder whose subfolders (``decode``, ``sherpa``) hold results; its
    name is its path below ``exp_dir``.

    Raises:
      FileNotFoundError: if there is none.
    """
    exp_dir = as_path(exp_dir)
    systems = {}
    for path in sorted(exp_dir.glob("**/result-*.json")):
        folder = exp_dir if path.parent == exp_dir else path.parent.parent
        systems[folder.relative_to(exp_dir).as_posix()] = folder
    if not systems:
        raise FileNotFoundError(
            f"{exp_dir}: no result-*.json below it; bin.decode and bin.transcribe "
            "write them"
        )
    if "." in systems:
        systems[exp_dir.resolve().name] = systems.pop(".")
    return systems


def check_comparable(results: Sequence[Result]) -> None:
    """Prove that all results of a set are of the same utterances and references.

    Raises:
      ValueError: naming the files and the utterances, or two results of one system,
        set and decoding.
    """
    seen: dict[tuple[str, str, str], Result] = {}
    first: dict[str, Result] = {}
    for r in results:
        other = seen.setdefault((r.system, *r.setting), r)
        if other is not r:
            raise ValueError(
                f"{other.path} and {r.path} are both {' '.join(r.setting)} of "
                f"{r.system}; name one of the two, or give them two names"
            )
        _check_same_set(first.setdefault(r.facts["set"], r), r)


def _check_same_set(a: Result, b: Result) -> None:
    ours, theirs = ({r.cut_id: r.ref for r in x.recognitions} for x in (a, b))
    problems = [
        f"{len(ids)} {what}: {', '.join(sorted(ids)[:SHOWN])}"
        for what, ids in (
            (f"only in {a.path}", ours.keys() - theirs.keys()),
            (f"only in {b.path}", theirs.keys() - ours.keys()),
            (
                "with other references",
                {i for i in ours.keys() & theirs.keys() if ours[i] != theirs[i]},
            ),
        )
        if ids
    ]
    if problems:
        raise ValueError(
            f"{a.system} and {b.system} were not decoded on the same {a.facts['set']} "
            f"set ({'; '.join(problems)}): decode both on one set, or leave one out"
        )


_DELAYS = ("emission_delay", "latency")


def system_of(run: str) -> str:
    """Return the name of a system from that of one of its runs.

    >>> system_of("both_pool+pseudo@43")
    'both_pool+pseudo'
    """
    name, at, seed = run.rpartition("@")
    return name if at and seed.isdigit() else run


def over_seeds(results: Sequence[Result]) -> list[Result]:
    """Return the mean over the runs of each system, set and way of decoding.

    Args:
      results: of all runs.
    Returns:
      one result for each that was decoded so, those of a single run as well, in the
      order of the first of each; none where no system has several runs.
    Raises:
      ValueError: if the runs of a system were not decoded on the same utterances.
    """
    groups: dict[tuple[str, ...], list[Result]] = {}
    for r in results:
        groups.setdefault((system_of(r.system), *r.setting), []).append(r)
    if all(len(runs) == 1 for runs in groups.values()):
        return []
    return [_mean(system, runs) for (system, *_), runs in groups.items()]


def _mean(system: str, runs: Sequence[Result]) -> Result:
    first = runs[0]
    errors, words = errors_per_run([r.recognitions for r in runs])
    facts: dict[str, Any] = {
        **first.facts,
        "wer": statistics.mean(r.facts["wer"] for r in runs),
        "interval": wer_interval(errors, words),
        "rtf": statistics.mean(r.facts["rtf"] for r in runs),
        **_delays([r.facts for r in runs]),
    }
    return Result(system, first.path, facts, first.recognitions, tuple(runs))


def _delays(facts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the means of the delays; None of one that a run does not tell."""
    keys = [f"{name}_{what}_ms" for name in _DELAYS for what in ("mean", "p90")]
    told = {key: [f.get(key) for f in facts] for key in keys}
    return {
        key: None if None in values else statistics.mean(values)
        for key, values in told.items()
    }
