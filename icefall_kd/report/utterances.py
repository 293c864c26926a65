"""What each system made of each utterance, word by word, for the page's script.

Audio of utterances as data URIs, so that a page can be listened to anywhere.
"""

import base64
import io
from collections.abc import Iterable, Sequence
from typing import Any, Union

import numpy as np

from icefall_kd.core.files import Pathlike
from icefall_kd.recognition.scoring import NO_WORD, Recognition, align_words
from icefall_kd.report.results import Result

Word = Union[str, tuple[str, str]]


def aligned(recognition: Recognition) -> list[Word]:
    """Return the words of an utterance: one that is right as itself, others as pairs.

    >>> aligned(Recognition("a", ["PRESS", "ONE", "NOW"], ["PRESS", "NINE"]))
    ['PRESS', ('ONE', 'NINE'), ('NOW', '')]
    """
    return [
        ref if ref == hyp else (_word(ref), _word(hyp))
        for ref, hyp in align_words(recognition.ref, recognition.hyp)
    ]


def _word(word: str) -> str:
    return "" if word == NO_WORD else word


def label(result: Result) -> str:
    """Name a result among all of them."""
    return f"{result.system}: {result.decoding}, {result.engine}"


def utterances(results: Sequence[Result]) -> dict[str, Any]:
    """Return the alignments of all results.

    Returns:
      ``sets``: of each set the ids, sorted; ``results``: for each its set, label,
      setting, system and, in the order of the ids, its aligned utterances.
    """
    sets: dict[str, list[str]] = {}
    told = []
    for r in results:
        by_id = {x.cut_id: x for x in r.recognitions}
        ids = sets.setdefault(r.facts["set"], sorted(by_id))
        told.append(
            {
                "set": r.facts["set"],
                "suffix": r.facts["suffix"],
                "system": r.system,
                "label": label(r),
                "words": [aligned(by_id[i]) for i in ids],
            }
        )
    return {"sets": sets, "results": told}


def hardest(results: Sequence[Result], set_name: str, count: int) -> list[str]:
    """Return the ids of the utterances with the most errors over all systems."""
    errors: dict[str, int] = {}
    for r in results:
        if r.facts["set"] == set_name:
            for x in r.recognitions:
                wrong = sum(ref != hyp for ref, hyp in align_words(x.ref, x.hyp))
                errors[x.cut_id] = errors.get(x.cut_id, 0) + wrong
    return sorted(errors, key=lambda i: (-errors[i], i))[:count]


def load_audio(shar_dir: Pathlike, ids: Iterable[str]) -> dict[str, str]:
    """Return id -> FLAC as a ``data:`` URI, 16 bits a sample.

    Args:
      shar_dir: the set that was decoded.
      ids: of the cuts wanted.
    Raises:
      FileNotFoundError: if there is no such set.
      ValueError: if a cut is not in it.
    """
    from icefall_kd.fields.reader import open_shar

    wanted = set(ids)
    found: dict[str, str] = {}
    for cut in open_shar(shar_dir):
        if len(found) == len(wanted):
            break
        if cut.id in wanted:
            found[cut.id] = flac_uri(cut)
    absent = sorted(wanted - found.keys())
    if absent:
        raise ValueError(
            f"{shar_dir} lacks {len(absent)} utterances of the results, for example "
            f"{absent[:5]}; give the folder that was decoded"
        )
    return found


def flac_uri(cut) -> str:
    """Return a cut's audio as a ``data:`` URI."""
    import soundfile

    buffer = io.BytesIO()
    samples = np.rint(cut.load_audio().T * 32768)  # (C, S) -> (S, C), 16 bits
    samples = samples.clip(-32768, 32767).astype(np.int16)
    soundfile.write(buffer, samples, cut.sampling_rate, format="FLAC")
    encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f"data:audio/flac;base64,{encoded}"
