"""Find the results of decoding, and check that they can be compared.

The name of a system may end in ``@SEED``: ``baseline`` and ``baseline@43`` are two runs
of the system ``baseline``.
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

REQUIRED_KEYS = (
    *("set", "suffix", "wer", "interval", "errors", "utterances", "recogs"),
    *("engine", "method", "streaming", "parameters", "rtf"),
)
MS_PER_FRAME = 20  # of chunk_size and left_context
DEFAULT_LEFT_CONTEXT = 128  # frames; labels name only other left contexts
MAX_EXAMPLES = 5  # ids in an error message
METHOD_LABELS = {  # searches of a head from the fastest to the most thorough one
    "greedy_search": "greedy",
    "fast_beam_search": "fast beam",
    "modified_beam_search": "beam",
    "ctc_greedy_search": "CTC greedy",
    "ctc_prefix_beam_search": "CTC prefix beam",
    "ctc_hlg": "CTC HLG",
}
DELAYS = ("emission_delay_mean_ms", "emission_delay_p90_ms")
DELAYS += ("latency_mean_ms", "latency_p90_ms")


@dataclass(frozen=True)
class Result:
    """One result of a system: a set decoded in one way.

    Attributes:
      system: name of the system.
      path: the result JSON.
      facts: its content.
      recognitions: reference and hypothesis of each utterance.
      runs: results of single runs, if this result is their mean; then ``path`` and
        ``recognitions`` are those of the first run.
    """

    system: str
    path: Path
    facts: Mapping[str, Any]
    recognitions: tuple[Recognition, ...]
    runs: tuple["Result", ...] = ()

    @property
    def decodings(self) -> list[tuple[Recognition, ...]]:
        """Recognitions of each run."""
        return [r.recognitions for r in self.runs or (self,)]

    @property
    def group(self) -> tuple[str, str]:
        """Set and suffix; only results of the same group are compared."""
        return self.facts["set"], self.facts["suffix"]

    @property
    def head(self) -> str:
        """Head of the student that was decoded: ``transducer`` or ``ctc``."""
        return "ctc" if self.facts["method"].startswith("ctc_") else "transducer"

    @property
    def is_sherpa(self) -> bool:
        """Whether sherpa-onnx decoded with an exported model."""
        return self.facts["engine"].startswith("sherpa-onnx")

    @property
    def decoding(self) -> str:
        """Label of the decoding options."""
        return f"{self.context}, {self.search}"

    @property
    def search(self) -> str:
        """Label of the search and its options."""
        facts = self.facts
        label = METHOD_LABELS.get(facts["method"], facts["method"])
        if facts.get("beam"):
            label += f" {facts['beam']}"
        if facts.get("blank_penalty"):
            label += f", blank penalty {facts['blank_penalty']:g}"
        if facts.get("hotwords"):
            bonus, name = facts["hotwords_score"], Path(facts["hotwords"]).name
            label += f", hotwords of {name} {bonus:g}"
        return label

    @property
    def context(self) -> str:
        """Label of the chunks, or ``full context``."""
        facts = self.facts
        if not facts["streaming"]:
            return "full context"
        left = facts.get("left_context") or DEFAULT_LEFT_CONTEXT
        context = ""
        if left != DEFAULT_LEFT_CONTEXT:
            context = f", left context {MS_PER_FRAME * left} ms"
        return f"streaming {MS_PER_FRAME * facts['chunk_size']} ms{context}"

    @property
    def engine(self) -> str:
        """Label of the engine, with the precision unless it is float32."""
        return self.facts["engine"] + (" int8" if self.facts.get("int8") else "")


def load_result(system: str, path: Pathlike) -> Result:
    """Read a result JSON and its recogs file.

    Raises:
      FileNotFoundError: if the recogs file is missing.
      ValueError: if a key is missing, or the numbers of errors or utterances differ.
    """
    path = as_path(path)
    facts = read_json(path)
    keys = facts if isinstance(facts, dict) else {}
    missing = [key for key in REQUIRED_KEYS if key not in keys]
    if missing:
        raise ValueError(
            f"{path}: no {', '.join(missing)}. Run bin.decode --force to write it again"
        )
    recogs = path.parent / facts["recogs"]
    if not recogs.is_file():
        raise FileNotFoundError(
            f"{recogs} is missing, but {path} refers to it. Run bin.decode --force"
        )
    found = read_recogs(recogs)
    errors, ids = count_errors(found).errors, {r.cut_id for r in found}
    if facts["wer"] is None:  # no transcripts
        errors = None
    if errors != facts["errors"] or len(ids) != facts["utterances"]:
        raise ValueError(
            f"{recogs} has {errors} errors in {len(ids)} utterances, but {path} has "
            f"{facts['errors']} in {facts['utterances']}. Run bin.decode --force to "
            "write both again"
        )
    return Result(system, path, facts, tuple(found))


def find_results(system: str, path: Pathlike) -> list[Result]:
    """Return the results of a system.

    Args:
      system: its name.
      path: a result JSON, the folder of several, or the parent of such folders.
    Raises:
      FileNotFoundError: if no result is found.
      ValueError: if one cannot be read, see :func:`load_result`.
    """
    path = as_path(path)
    paths = [path] if path.is_file() else sorted(path.glob("result-*.json"))
    paths = paths or sorted(path.glob("*/result-*.json"))
    if not paths:
        raise FileNotFoundError(
            f"{path}: no result-*.json of system {system}. Run bin.decode or "
            "bin.transcribe to write them"
        )
    return [load_result(system, p) for p in paths]


def find_systems(exp_dir: Pathlike) -> dict[str, Path]:
    """Return the folder of each system below ``exp_dir``.

    A system is a folder whose subfolders (``decode``, ``sherpa``) have results.  Its
    name is its path relative to ``exp_dir``.

    Raises:
      FileNotFoundError: if no result is found.
    """
    exp_dir = as_path(exp_dir)
    systems = {}
    for path in sorted(exp_dir.glob("**/result-*.json")):
        folder = exp_dir if path.parent == exp_dir else path.parent.parent
        systems[folder.relative_to(exp_dir).as_posix()] = folder
    if not systems:
        raise FileNotFoundError(
            f"{exp_dir}: no result-*.json below this folder. Run bin.decode or "
            "bin.transcribe to write them"
        )
    if "." in systems:
        systems[exp_dir.resolve().name] = systems.pop(".")
    return systems


def check_comparable(results: Sequence[Result]) -> None:
    """Check that all results of a set have the same utterances and references.

    Raises:
      ValueError: if they differ, or two results have the same system, set and suffix.
    """
    seen: dict[tuple[str, str, str], Result] = {}
    first: dict[str, Result] = {}
    for r in results:
        other = seen.setdefault((r.system, *r.group), r)
        if other is not r:
            raise ValueError(
                f"{other.path} and {r.path} are both {' '.join(r.group)} of system "
                f"{r.system}. Give only one of them, or two names (--system NAME=PATH)"
            )
        _check_same_set(first.setdefault(r.facts["set"], r), r)


def _check_same_set(a: Result, b: Result) -> None:
    refs_a, refs_b = ({r.cut_id: r.ref for r in x.recognitions} for x in (a, b))
    common = refs_a.keys() & refs_b.keys()
    problems = [
        f"{len(ids)} {what}: {', '.join(sorted(ids)[:MAX_EXAMPLES])}"
        for what, ids in (
            (f"only in {a.path}", refs_a.keys() - refs_b.keys()),
            (f"only in {b.path}", refs_b.keys() - refs_a.keys()),
            ("with other references", {i for i in common if refs_a[i] != refs_b[i]}),
        )
        if ids
    ]
    if problems:
        raise ValueError(
            f"{a.system} and {b.system} differ in the utterances of set "
            f"{a.facts['set']} ({'; '.join(problems)}). Decode both on the same set, "
            "or leave one out"
        )


def strip_seed(name: str) -> str:
    """Return the name of a system without ``@SEED``.

    >>> strip_seed("both+pseudo@43")
    'both+pseudo'
    """
    system, at, seed = name.rpartition("@")
    return system if at and seed.isdigit() else name


def average_over_seeds(results: Sequence[Result]) -> list[Result]:
    """Return the mean over the runs of each system, set and suffix.

    Returns:
      one result for each system, set and suffix, also for single runs, in the order of
      the first runs; an empty list if no system has several runs.
    Raises:
      ValueError: if the runs of a system were not decoded on the same utterances.
    """
    groups: dict[tuple[str, ...], list[Result]] = {}
    for r in results:
        groups.setdefault((strip_seed(r.system), *r.group), []).append(r)
    if all(len(runs) == 1 for runs in groups.values()):
        return []
    return [_average(system, runs) for (system, *_), runs in groups.items()]


def _average(system: str, runs: Sequence[Result]) -> Result:
    first = runs[0]
    errors, words = errors_per_run([r.recognitions for r in runs])
    facts: dict[str, Any] = {
        **first.facts,
        "wer": statistics.mean(r.facts["wer"] for r in runs),
        "interval": wer_interval(errors, words),
        "rtf": statistics.mean(r.facts["rtf"] for r in runs),
    }
    for key in DELAYS:
        values = [r.facts.get(key) for r in runs]
        facts[key] = None if None in values else statistics.mean(values)
    return Result(system, first.path, facts, first.recognitions, tuple(runs))
