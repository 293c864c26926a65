"""Files that report word errors, in the form of icefall."""

import ast
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

from icefall_kd.core.files import Pathlike, as_path, write_json, write_text
from icefall_kd.recognition.options import warn_of_empty
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


def recogs_text(recognitions: Sequence[Recognition]) -> str:
    """Return the recogs file: two lines an utterance."""
    return "".join(
        f"{r.cut_id}:\tref={r.ref}\n{r.cut_id}:\thyp={r.hyp}\n" for r in recognitions
    )


def read_recogs(path: Pathlike) -> list[Recognition]:
    """Read a recogs file.

    Raises:
      ValueError: if a line is not of its form; the message names file and line.
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
                raise ValueError("another cut than that of the line before")
            parts.append((cut_id, [str(w) for w in ast.literal_eval(rest[4:])]))
        except (ValueError, SyntaxError) as e:
            raise ValueError(
                f"{path}:{number}: not a line of a recogs file ({e})"
            ) from e
    if len(parts) % 2:
        raise ValueError(f"{path}:{len(parts)}: the last cut has a ref and no hyp")
    return [
        Recognition(cut_id, ref, hyp)
        for (cut_id, ref), (_, hyp) in zip(parts[::2], parts[1::2])
    ]


def _join_errors(alignment: Alignment) -> str:
    """Write one utterance, neighbouring errors as one ``(ref->hyp)``."""
    groups: list[tuple[list[str], list[str], bool]] = []
    for ref, hyp in alignment:
        wrong = ref != hyp
        if not (wrong and groups and groups[-1][2]):
            groups.append(([], [], wrong))
        for side, word in zip(groups[-1], (ref, hyp)):
            if word != NO_WORD:
                side.append(word)
    return " ".join(
        f"({' '.join(ref) or NO_WORD}->{' '.join(hyp) or NO_WORD})" if wrong else ref[0]
        for ref, hyp, wrong in groups
    )


def errs_text(recognitions: Sequence[Recognition]) -> str:
    """Return the errs file."""
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
        lines.append(f"{r.cut_id}:\t{_join_errors(alignment)}")
    lines += _error_sections(pairs)
    return "\n".join(lines) + "\n"


def _error_sections(pairs: Mapping[tuple[str, str], int]) -> list[str]:
    """List substitutions, deletions, insertions and words, the most frequent first."""
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


def summary_text(
    suffix: str, wer: float, figures: Mapping[str, Optional[float]]
) -> str:
    """Return the wer-summary file: a header, and a line of figures."""
    told = ["-" if value is None else f"{value:g}" for value in figures.values()]
    header = "\t".join(("settings", "WER", *figures))
    return f"{header}\n" + "\t".join((suffix, f"{wer:.2f}", *told)) + "\n"


# What a result has of the errors; null in a set without transcripts.
SCORES = ("wer", "interval", "errors", "ins", "del", "sub")


def result_path(out_dir: Pathlike, set_name: str, suffix: str) -> Path:
    """Return where the JSON of a decoding lies."""
    return Path(out_dir) / f"result-{set_name}-{suffix}.json"


def write_results(
    out_dir: Pathlike,
    set_name: str,
    suffix: str,
    recognitions: Sequence[Recognition],
    info: Mapping[str, Any],
    figures: Optional[Mapping[str, Optional[float]]] = None,
) -> dict[str, Any]:
    """Score a decoding and write its files, the JSON last.

    Without reference words the hypotheses are written and every figure is None.

    Args:
      out_dir: is made when absent.
      set_name, suffix: as in the names above; the suffix says how it was decoded.
      recognitions: in any order; the files are sorted by id.
      info: goes into the JSON as it is: ``method``, ``checkpoint``, ``parameters``,
        ``rtf`` and whatever else says how the figure came about.
      figures: of the whole set, that stand in the summary beside the WER, and in the
        JSON.
    Returns:
      What the JSON holds; ``wer`` and ``interval`` are in percent, the empty rate is
      the share of utterances with an empty hypothesis.
    Raises:
      ValueError: if there are no utterances.
    """
    if not recognitions:
        raise ValueError(f"{set_name}: the set has no utterances; nothing is written")
    recognitions = sorted(recognitions, key=lambda r: r.cut_id)
    total = count_errors(recognitions)
    files = {
        kind: Path(out_dir) / f"{kind}-{set_name}-{suffix}.txt"
        for kind in ("recogs", "errs", "wer-summary", "hyps")
    }
    write_text(files["recogs"], recogs_text(recognitions))
    if total.words:
        scores = _scores(recognitions, total)
        summary = summary_text(suffix, total.wer, figures or {})
        write_text(files["errs"], errs_text(recognitions))
        write_text(files["wer-summary"], summary)
        outdated = ["hyps"]
    else:
        scores = dict.fromkeys(SCORES)
        lines = [" ".join([r.cut_id, *r.hyp]) + "\n" for r in recognitions]
        write_text(files["hyps"], "".join(lines))
        outdated = ["errs", "wer-summary"]
    for kind in outdated:  # of the set of this name when it had other transcripts
        files[kind].unlink(missing_ok=True)
    empty = sum(not r.hyp and (bool(r.ref) or not total.words) for r in recognitions)
    result = {
        "set": set_name,
        "suffix": suffix,
        **scores,
        "words": total.words,
        "utterances": len(recognitions),
        "empty_rate": sum(not r.hyp for r in recognitions) / len(recognitions),
        "recogs": files["recogs"].name,
        **(figures or {}),
        **info,
    }
    write_json(result_path(out_dir, set_name, suffix), result)
    logging.info("[%s-%s] %s, %d empty", set_name, suffix, _figure(result), empty)
    warn_of_empty(empty, len(recognitions), result.get("method"), result.get("engine"))
    return result


def _scores(recognitions: Sequence[Recognition], total: ErrorCounts) -> dict[str, Any]:
    """Return the entries :data:`SCORES` of a result."""
    counts = utterance_errors(recognitions)
    interval = wer_interval([c.errors for c in counts], [c.words for c in counts])
    values = (
        round(total.wer, 4),
        [round(x, 4) for x in interval],
        *(total.errors, total.ins, total.dels, total.sub),
    )
    return dict(zip(SCORES, values))


def _figure(result: Mapping[str, Any]) -> str:
    """Return the WER of a result with its errors and interval, for the log."""
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
