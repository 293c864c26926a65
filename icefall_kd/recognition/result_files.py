"""Result files of a decoding, in icefall's formats.

recogs-<set>-<suffix>.txt       reference and hypothesis of each utterance
errs-<set>-<suffix>.txt         errors of each utterance and of each word
wer-summary-<set>-<suffix>.txt  WER of the set
result-<set>-<suffix>.json      WER with a bootstrap interval, and the options
hyps-<set>-<suffix>.txt         id and hypothesis of each utterance, as Kaldi's text

A labelled set gets the first four files.  A set without transcripts gets recogs, hyps
and result, whose WER is null.
"""

import ast
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

from icefall_kd.core.files import Pathlike, as_path, write_json, write_text
from icefall_kd.recognition.scoring import (
    NO_WORD,
    Alignment,
    ErrorCounts,
    Recognition,
    align_words,
    count_errors,
    utterance_errors,
    wer_interval,
)

SCORES = ("wer", "interval", "errors", "ins", "del", "sub")  # null without transcripts
MANY_EMPTY = 0.1  # share of empty hypotheses from which on a warning is logged


def result_path(out_dir: Pathlike, set_name: str, suffix: str) -> Path:
    """Return the path of a result JSON."""
    return Path(out_dir) / f"result-{set_name}-{suffix}.json"


def write_results(
    out_dir: Pathlike,
    set_name: str,
    suffix: str,
    recognitions: Sequence[Recognition],
    info: Mapping[str, Any],
    metrics: Optional[Mapping[str, Optional[float]]] = None,
) -> dict[str, Any]:
    """Score a decoding and write its files, the JSON last.

    Args:
      out_dir: output folder; created if missing.
      set_name, suffix: set and options of the decoding, for the file names.
      recognitions: in any order; the files are sorted by cut id.
      info: further entries of the JSON, for example ``method`` and ``checkpoint``.
      metrics: further metrics of the set, for the JSON and the summary.
    Returns:
      The contents of the JSON.  ``wer`` and ``interval`` are in percent; ``empty_rate``
      is the share of utterances with an empty hypothesis.
    Raises:
      ValueError: if there are no utterances.
    """
    if not recognitions:
        raise ValueError(f"{set_name}: the set has no utterances; choose another set")
    recognitions = sorted(recognitions, key=lambda r: r.cut_id)
    total = count_errors(recognitions)
    metrics = metrics or {}
    paths = {
        kind: Path(out_dir) / f"{kind}-{set_name}-{suffix}.txt"
        for kind in ("recogs", "errs", "wer-summary", "hyps")
    }
    write_text(paths["recogs"], format_recogs(recognitions))
    if total.words:
        scores = _compute_scores(recognitions, total)
        summary = format_summary(suffix, total.wer, metrics)
        write_text(paths["errs"], format_errs(recognitions))
        write_text(paths["wer-summary"], summary)
        outdated = ["hyps"]
    else:
        scores = dict.fromkeys(SCORES)
        lines = [" ".join([r.cut_id, *r.hyp]) + "\n" for r in recognitions]
        write_text(paths["hyps"], "".join(lines))
        outdated = ["errs", "wer-summary"]
    for kind in outdated:  # written when the set had other transcripts
        paths[kind].unlink(missing_ok=True)
    result = {
        "set": set_name,
        "suffix": suffix,
        **scores,
        "words": total.words,
        "utterances": len(recognitions),
        "empty_rate": sum(not r.hyp for r in recognitions) / len(recognitions),
        "recogs": paths["recogs"].name,
        **metrics,
        **info,
    }
    write_json(result_path(out_dir, set_name, suffix), result)
    empty = sum(not r.hyp and (bool(r.ref) or not total.words) for r in recognitions)
    logging.info("[%s-%s] %s, %d empty", set_name, suffix, _describe(result), empty)
    warn_about_empty(
        empty, len(recognitions), result.get("method"), result.get("engine")
    )
    return result


def _compute_scores(
    recognitions: Sequence[Recognition], total: ErrorCounts
) -> dict[str, Any]:
    """Return the entries :data:`SCORES` of a result."""
    counts = utterance_errors(recognitions)
    interval = wer_interval([c.errors for c in counts], [c.words for c in counts])
    values = (
        round(total.wer, 4),
        [round(x, 4) for x in interval],
        *(total.errors, total.ins, total.dels, total.sub),
    )
    return dict(zip(SCORES, values))


def _describe(result: Mapping[str, Any]) -> str:
    """Return WER, errors and interval of a result in one line."""
    if result["wer"] is None:
        return f"no transcripts, so no WER: {result['utterances']} hypotheses"
    low, high = result["interval"]
    return (
        f"%WER {result['wer']:.2f} [{result['errors']} / {result['words']}, "
        f"{result['ins']} ins, {result['del']} del, {result['sub']} sub], 95 % "
        f"interval {low:.2f} to {high:.2f}"
    )


def result_line(result: Mapping[str, Any]) -> str:
    """Return the line that a command prints for a result."""
    name = f"{result['set']} {result['suffix']}"
    if result["wer"] is None:
        return f"{name}: no transcripts, hypotheses in {result['recogs']}"
    return f"{name}: WER {result['wer']:.2f} %"


def warn_about_empty(
    empty: int, total: int, method: Optional[str], engine: Optional[str] = None
) -> None:
    """Log a warning with remedies if many hypotheses are empty.

    Args:
      empty, total: number of empty hypotheses, and of all.
      method: search method.
      engine: "engine" of the result JSON; None for PyTorch.
    """
    if empty == 0 or empty < MANY_EMPTY * total:
        return
    is_ctc = (method or "").startswith("ctc")
    remedies = ["train it longer"]
    if not (is_ctc and (engine or "").startswith("sherpa")):  # no penalty for CTC there
        remedies.append("set --blank-penalty to 1 to 3, a value chosen on a dev set")
    if not is_ctc:
        remedies.append(
            "decode with --method ctc_greedy_search if terms.ctc trained the CTC head, "
            "which converges sooner"
        )
    logging.warning(
        "%d of %d hypotheses are empty: the blank has the best score in each frame. "
        "Remedies: %s",
        empty,
        total,
        "; ".join(remedies),
    )


def format_recogs(recognitions: Sequence[Recognition]) -> str:
    """Return the text of a recogs file: two lines for each utterance."""
    return "".join(
        f"{r.cut_id}:\tref={r.ref}\n{r.cut_id}:\thyp={r.hyp}\n" for r in recognitions
    )


def read_recogs(path: Pathlike) -> list[Recognition]:
    """Read a recogs file.

    Raises:
      ValueError: if a line is malformed; the message names file and line.
    """
    lines = as_path(path).read_text(encoding="utf-8").splitlines()
    parts: list[tuple[str, list[str]]] = []
    for number, line in enumerate(lines, 1):
        key = "ref=" if number % 2 else "hyp="
        cut_id, _, rest = line.partition(":\t")
        try:
            if not rest.startswith(key):
                raise ValueError(f"no {key}")
            if number % 2 == 0 and cut_id != parts[-1][0]:
                raise ValueError("the cut differs from the line before")
            parts.append((cut_id, [str(w) for w in ast.literal_eval(rest[4:])]))
        except (ValueError, SyntaxError) as e:
            raise ValueError(
                f"{path}:{number}: invalid line of a recogs file ({e}); decode again"
            ) from e
    if len(parts) % 2:
        raise ValueError(
            f"{path}:{len(parts)}: the last cut has ref= but no hyp=; decode again"
        )
    return [
        Recognition(cut_id, ref, hyp)
        for (cut_id, ref), (_, hyp) in zip(parts[::2], parts[1::2])
    ]


def format_summary(
    suffix: str, wer: float, metrics: Mapping[str, Optional[float]]
) -> str:
    """Return the text of a wer-summary file: a header line and a line of values."""
    values = ["-" if value is None else f"{value:g}" for value in metrics.values()]
    header = "\t".join(("settings", "WER", *metrics))
    return f"{header}\n" + "\t".join((suffix, f"{wer:.2f}", *values)) + "\n"


def format_errs(recognitions: Sequence[Recognition]) -> str:
    """Return the text of an errs file."""
    alignments = [align_words(r.ref, r.hyp) for r in recognitions]
    total = ErrorCounts()
    pairs: Counter = Counter()
    for alignment in alignments:
        total.add(alignment)
        pairs.update(alignment)
    lines = [
        f"%WER = {total.wer:.2f}",
        f"Errors: {total.ins} insertions, {total.dels} deletions, {total.sub} "
        f"substitutions, over {total.words} reference words ({total.correct} correct)",
        "Search below for sections starting with PER-UTT DETAILS:, SUBSTITUTIONS:, "
        "DELETIONS:, INSERTIONS:, PER-WORD STATS:",
        "",
        "PER-UTT DETAILS: corr or (ref->hyp)  ",
    ]
    for r, alignment in zip(recognitions, alignments):
        lines.append(f"{r.cut_id}:\t{_mark_errors(alignment)}")
    lines += _error_sections(pairs)
    return "\n".join(lines) + "\n"


def _mark_errors(alignment: Alignment) -> str:
    """Return an utterance as text, with consecutive errors in one pair of brackets."""
    groups: list[tuple[list[str], list[str], bool]] = []
    for ref, hyp in alignment:
        wrong = ref != hyp
        if not wrong or not groups or not groups[-1][2]:
            groups.append(([], [], wrong))
        for side, word in zip(groups[-1], (ref, hyp)):
            if word != NO_WORD:
                side.append(word)
    return " ".join(
        f"({' '.join(ref) or NO_WORD}->{' '.join(hyp) or NO_WORD})" if wrong else ref[0]
        for ref, hyp, wrong in groups
    )


def _error_sections(pairs: Mapping[tuple[str, str], int]) -> list[str]:
    """Return the sections of an errs file, the most frequent errors first."""
    ranked = sorted(((n, pair) for pair, n in pairs.items()), reverse=True)
    subs = [
        f"{n}   {ref} -> {hyp}"
        for n, (ref, hyp) in ranked
        if ref != hyp and NO_WORD not in (ref, hyp)
    ]
    dels = [f"{n}   {ref}" for n, (ref, hyp) in ranked if hyp == NO_WORD]
    ins = [f"{n}   {hyp}" for n, (ref, hyp) in ranked if ref == NO_WORD]
    words: dict[str, list[int]] = {}  # correct, errors, in ref, in hyp
    for (ref, hyp), n in pairs.items():
        for word, column in ((ref, 2), (hyp, 3)):
            if word != NO_WORD:
                row = words.setdefault(word, [0, 0, 0, 0])
                row[column] += n
                row[1] += n * (ref != hyp)
                row[0] += n * (ref == hyp and column == 2)
    stats = sorted(words.items(), key=lambda w: (w[1][1], w[0]), reverse=True)
    return [
        *("", "SUBSTITUTIONS: count ref -> hyp", *subs),
        *("", "DELETIONS: count ref", *dels),
        *("", "INSERTIONS: count hyp", *ins),
        *("", "PER-WORD STATS: word  corr tot_errs count_in_ref count_in_hyp"),
        *(f"{word}   {' '.join(map(str, row))}" for word, row in stats),
    ]
