"""Audio of utterances as data URIs, so that a page can be listened to anywhere."""

import base64
import io
from collections.abc import Iterable

import numpy as np

from icefall_kd.io import Pathlike


def load_audio(shar_dir: Pathlike, ids: Iterable[str]) -> dict[str, str]:
    """Return id -> FLAC as a ``data:`` URI, 16 bits a sample.

    Args:
      shar_dir: the set that was decoded.
      ids: of the cuts wanted.
    Raises:
      FileNotFoundError: if there is no such set.
      ValueError: if a cut is not in it.
    """
    from icefall_kd.cache.reader import open_shar

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
