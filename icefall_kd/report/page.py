"""Render the report page: one HTML file that refers to no other file.

``page.html`` is the jinja2 template, ``page.css`` and ``page.js`` are embedded in it.
"""

import base64
import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Optional, Union

import jinja2
import numpy as np
import soundfile

from icefall_kd.core.files import Pathlike, read_text
from icefall_kd.fields.reader import open_shar
from icefall_kd.recognition.scoring import NO_WORD, Recognition, align_words
from icefall_kd.report import charts as charts_module
from icefall_kd.report.charts import Chart, layout
from icefall_kd.report.results import Result
from icefall_kd.report.runs import Run, stage_names
from icefall_kd.report.table import Table

HERE = Path(__file__).parent
NUM_COLOURS = 8  # colours c0 to c7 of page.css
BAR_WIDTH, BAR_HEIGHT, BAR_MARGIN = 120, 10, 4  # SVG of a WER with its interval

Word = Union[str, tuple[str, str]]  # a correct word, or (reference, hypothesis)
Audio = Mapping[str, Mapping[str, str]]  # set -> id -> data URI


def render(
    table: Table,
    runs: Mapping[str, Run],
    charts: Sequence[Chart] = (),
    audio: Optional[Audio] = None,
    means: Optional[Table] = None,
) -> str:
    """Return the HTML of the page.

    Args:
      table: table of all results.
      runs: system -> its training; the order gives the colours.
      charts: charts of the training metrics.
      audio: set -> id of an utterance -> its audio, see :func:`load_audio`.
      means: table of the means over seeds; None: not shown.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    systems = list(runs)
    results = [row.result for row in table.rows]
    max_wer = max((r.facts["interval"][1] for r in results), default=0.0)
    style, script = (read_text(HERE / f"page.{x}").strip() for x in ("css", "js"))
    return environment.get_template("page.html").render(
        style=style,
        script=script,
        policy=_content_policy(style, script),
        systems=systems,
        colours={s: f"c{i % NUM_COLOURS}" for i, s in enumerate(systems)},
        sets=_count_utterances(results),
        table=table,
        bars=[_place_bar(row.result, max_wer) for row in table.rows],
        bar_size=(BAR_WIDTH, BAR_HEIGHT),
        means=means,
        trainings=_describe_trainings(runs),
        has_training=any(run.stages for run in runs.values()),
        charts=charts,
        last_columns=[f"{chart.stage}: {chart.metric}" for chart in charts],
        drawings=[layout(chart, systems) for chart in charts],
        frame=charts_module,
        num_audio=sum(len(ids) for ids in (audio or {}).values()),
        data={
            **list_utterances(results),
            "audio": dict(audio or {}),
            "baseline": table.baseline,
        },
    )


def _content_policy(style: str, script: str) -> str:
    """Return a Content-Security-Policy for this style and script, and for audio."""
    hashes = [
        base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
        for text in (style, script)
    ]
    return (
        f"default-src 'none'; media-src data:; style-src 'sha256-{hashes[0]}'; "
        f"script-src 'sha256-{hashes[1]}'"
    )


def _count_utterances(results: Sequence[Result]) -> dict[str, tuple[int, int]]:
    """Return set -> (number of utterances, number of reference words)."""
    by_set = {r.facts["set"]: r.recognitions for r in results}
    return {
        name: (len(found), sum(len(x.ref) for x in found))
        for name, found in by_set.items()
    }


def _describe_trainings(runs: Mapping[str, Run]) -> list[list[str]]:
    """Return the cells of the table of trainings, the header first."""
    names = stage_names(runs.values())
    rows = [["system", *names, "seed", "commit"]]
    for system, run in runs.items():
        texts = {s.name: s.describe() for s in run.stages}
        commits = dict.fromkeys(s.environment.get("commit") or "" for s in run.stages)
        seeds = ", ".join(map(str, run.seeds))
        row = [system, *(texts.get(name, "none") for name in names)]
        rows.append([*row, seeds, ", ".join(commits)])
    return rows


def _place_bar(result: Result, max_wer: float) -> tuple[str, str, str]:
    """Return x of the interval's ends and of the WER, on a scale to ``max_wer``."""
    scale = (BAR_WIDTH - 2 * BAR_MARGIN) / max(max_wer, 1e-9)
    low, high = result.facts["interval"]
    values = (low, high, result.facts["wer"])
    return tuple(f"{BAR_MARGIN + x * scale:.1f}" for x in values)


def list_utterances(results: Sequence[Result]) -> dict[str, Any]:
    """Return the alignments of all results for the script of the page.

    Returns:
      ``sets``: set -> its sorted ids.  ``results``: for each result its set, suffix,
      system, label and, in the order of the ids, its aligned utterances.
    """
    sets: dict[str, list[str]] = {}
    found = []
    for r in results:
        by_id = {x.cut_id: x for x in r.recognitions}
        ids = sets.setdefault(r.facts["set"], sorted(by_id))
        found.append(
            {
                "set": r.facts["set"],
                "suffix": r.facts["suffix"],
                "system": r.system,
                "label": f"{r.system}: {r.decoding}, {r.engine}",
                "words": [align_utterance(by_id[i]) for i in ids],
            }
        )
    return {"sets": sets, "results": found}


def align_utterance(recognition: Recognition) -> list[Word]:
    """Return the words of an utterance; a wrong one is (reference, hypothesis).

    >>> align_utterance(Recognition("a", ["PRESS", "ONE", "NOW"], ["PRESS", "NINE"]))
    ['PRESS', ('ONE', 'NINE'), ('NOW', '')]
    """
    return [
        ref if ref == hyp else tuple("" if w == NO_WORD else w for w in (ref, hyp))
        for ref, hyp in align_words(recognition.ref, recognition.hyp)
    ]


def find_hardest_utterances(
    results: Sequence[Result], set_name: str, count: int
) -> list[str]:
    """Return the ids of ``count`` utterances with the most errors over all results."""
    errors: dict[str, int] = {}
    for r in results:
        if r.facts["set"] == set_name:
            for x in r.recognitions:
                wrong = sum(ref != hyp for ref, hyp in align_words(x.ref, x.hyp))
                errors[x.cut_id] = errors.get(x.cut_id, 0) + wrong
    return sorted(errors, key=lambda i: (-errors[i], i))[:count]


def load_audio(shar_dir: Pathlike, ids: Iterable[str]) -> dict[str, str]:
    """Return the audio of cuts.

    Args:
      shar_dir: folder of the set.
      ids: ids of the cuts.
    Returns:
      id -> ``data:`` URI of 16-bit FLAC.
    Raises:
      FileNotFoundError: if the set is missing.
      ValueError: if the set lacks a cut.
    """
    wanted = set(ids)
    found: dict[str, str] = {}
    for cut in open_shar(shar_dir):
        if len(found) == len(wanted):
            break
        if cut.id in wanted:
            found[cut.id] = encode_flac(cut)
    missing = sorted(wanted - found.keys())
    if missing:
        raise ValueError(
            f"--shar-dir {shar_dir}: {len(missing)} utterances of the results are "
            f"missing, for example {missing[:5]}. Give the folder of the decoded set"
        )
    return found


def encode_flac(cut) -> str:
    """Return a cut's audio as a ``data:`` URI of 16-bit FLAC."""
    buffer = io.BytesIO()
    samples = np.rint(cut.load_audio().T * 32768)  # (C, S) -> (S, C)
    samples = samples.clip(-32768, 32767).astype(np.int16)
    soundfile.write(buffer, samples, cut.sampling_rate, format="FLAC")
    encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f"data:audio/flac;base64,{encoded}"
