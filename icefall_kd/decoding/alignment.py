"""The alignment that a decoding of a set is held against, where there is one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Optional

from icefall_kd.decoding.ctm import alignment_facts, load_word_times
from icefall_kd.decoding.delay import delay_figures, measure_delays
from icefall_kd.decoding.forced_alignment import WordTimes
from icefall_kd.decoding.scoring import Recognition
from icefall_kd.decoding.setting import Chunking
from icefall_kd.io import Pathlike


@dataclass(frozen=True)
class SetAlignment:
    """When each word of a set was said; without times nothing is measured.

    Attributes:
      times: of the words of each cut.
      facts: what a result JSON says of the file.
    """

    times: Optional[WordTimes] = None
    facts: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Optional[Pathlike], shar_dir: Pathlike) -> "SetAlignment":
        """Read a file of bin.align; None gives an alignment without times.

        Raises:
          FileNotFoundError, ValueError: as
            :func:`icefall_kd.decoding.ctm.load_word_times`.
        """
        if path is None:
            return cls()
        return cls(load_word_times(path, shar_dir), alignment_facts(path))

    @property
    def sha256(self) -> Optional[str]:
        """Return the file's hash."""
        return self.facts.get("alignment_sha256")

    def figures(
        self, recognitions: Sequence[Recognition], chunking: Optional[Chunking]
    ) -> dict[str, Optional[float]]:
        """Return how late words were recognised, as a result JSON says it."""
        if self.times is None:
            return {}
        chunk_size = chunking.chunk_size if chunking else None
        return delay_figures(measure_delays(recognitions, self.times, chunk_size))
