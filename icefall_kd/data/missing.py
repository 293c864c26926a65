"""How many utterances of an epoch had no target."""

import logging
from collections.abc import Mapping
from typing import Any

from icefall_kd.data.sampler import BucketSampler


class MissingTargets:
    """Counts the utterances without a target in the batches of an epoch."""

    def __init__(self) -> None:
        self._missing: dict[str, int] = {}
        self._utterances = 0

    def add(self, batch: Mapping[str, Any]) -> None:
        """Count a batch."""
        self._utterances += len(batch["feature_lens"])
        for name, field in batch["fields"].items():
            missing = field["lens"].count(0)
            self._missing[name] = self._missing.get(name, 0) + missing

    def log(self, sampler: BucketSampler) -> None:
        """Tell the fields that lacked targets."""
        for name, missing in self._missing.items():
            if missing:
                logging.info(
                    "epoch %d, rank %d: %d of %d utterances had no target in field "
                    "'%s'",
                    sampler.epoch + 1,
                    sampler.rank,
                    missing,
                    self._utterances,
                    name,
                )
