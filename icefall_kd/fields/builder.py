"""Build a field: skip finished shards, remove stale files, write the description."""

import logging
import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from icefall_kd.core.files import Pathlike, remove_stale_temporaries
from icefall_kd.fields.codecs import Codec
from icefall_kd.fields.format import (
    FieldInfo,
    check_field_name,
    field_dir,
    fingerprint_differences,
    info_path,
    publish_tars,
    save,
    shard_ids,
    staged_path,
    state_path,
    tar_path,
)
from icefall_kd.fields.integrity import find_complete_shards, load_complete_state
from icefall_kd.fields.writer import (
    Sums,
    content_sha256,
    mean_and_mean_square,
    sums_of_state,
)
from icefall_kd.teachers.base import Output, Teacher

VERSION = 1  # part of the fingerprint; raise it when the stored numbers change


def collect_outputs(teachers: Sequence[Teacher]) -> dict[str, Output]:
    """Return the outputs of all teachers, by field.

    Raises:
      ValueError: if two teachers write the same field, or a field name is invalid.
    """
    outputs: dict[str, Output] = {}
    for teacher in teachers:
        for name, output in teacher.outputs.items():
            check_field_name(name)
            if name in outputs:
                raise ValueError(
                    f"two teachers write the field '{name}'; give one another field "
                    "name"
                )
            outputs[name] = output
    return outputs


def check_foreign_arrays(shar_dir: Pathlike, fields: Iterable[str]) -> None:
    """Check that no other program wrote arrays under the names of the fields.

    Raises:
      ValueError: if a field has arrays in the Shar folder, but no other files.
    """
    for field in fields:
        folder = field_dir(shar_dir, field)
        if folder.is_dir():
            continue
        if any(tar_path(shar_dir, field, s).is_file() for s in shard_ids(shar_dir)):
            raise ValueError(
                f"{shar_dir}: field '{field}' has arrays but no description in "
                f"{folder}: another program wrote them, or the folder was not copied. "
                "Copy the folder, give another --field, or give --overwrite to replace "
                "the arrays"
            )


class FieldBuilder:
    """State of a field during an extraction.

    Attributes:
      name: name of the field.
      output: teacher's output that the field stores.
      codec: codec that compresses the arrays.
      fingerprint: identity of output and codec; shards of two fingerprints do not mix.
      finished: complete shards of this process, which the extraction skips.
    """

    def __init__(
        self, shar_dir: Pathlike, name: str, output: Output, codec: Codec
    ) -> None:
        """Compute the fingerprint, without access to any file.

        Raises:
          ValueError: if the codec cannot store the output.
        """
        if output.kind not in codec.kinds:
            raise ValueError(
                f"field '{name}': codec '{codec.spec}' cannot store kind "
                f"'{output.kind}', only {', '.join(codec.kinds)}"
            )
        self.name, self.output, self.codec = name, output, codec
        self.finished: set[str] = set()
        self.fingerprint: dict[str, Any] = {
            **output.fingerprint,
            "codec": codec.spec,
            "extraction": VERSION,
        }
        self._shar_dir = shar_dir
        self._codec_sha256 = codec.sha256()
        if self._codec_sha256 is not None:
            self.fingerprint["codec_sha256"] = self._codec_sha256

    def skip_finished(
        self, shards: Sequence[str], full: bool, num_threads: int, overwrite: bool
    ) -> None:
        """Verify existing shards, and mark the complete ones as finished.

        Args:
          shards: shards of this process.
          full: check the SHA-256 of the arrays; False checks only their size.
          num_threads: number of threads that compute the SHA-256.
          overwrite: extract shards of another fingerprint again.
        Raises:
          ValueError: if a shard has another fingerprint and ``overwrite`` is False.
        """
        sizes: list[int] = []
        start = time.perf_counter()
        for shard, state in find_complete_shards(
            self._shar_dir, self.name, shards, full=full, num_threads=num_threads
        ):
            sizes.append(state.bytes)
            if state.fingerprint == self.fingerprint:
                self.finished.add(shard)
            elif not overwrite:
                differences = fingerprint_differences(
                    self.fingerprint, state.fingerprint
                )
                raise ValueError(
                    f"{self._shar_dir}: field '{self.name}' has another fingerprint: "
                    f"{'; '.join(differences)}. Give another --field, or give "
                    "--overwrite to replace it"
                )
        if sizes:
            megabytes, elapsed = sum(sizes) / 1e6, time.perf_counter() - start
            logging.info(
                "%s: %d shards of field '%s' are complete (%.1f MB, %s, %.0f MB/s)",
                self._shar_dir,
                len(sizes),
                self.name,
                megabytes,
                "SHA-256 verified" if full else "size verified",
                megabytes / elapsed,
            )

    def remove_stale_files(self, shards: Sequence[str]) -> None:
        """Remove the description, and the states and staged arrays of ``shards``.

        Other shards keep their files, since other processes may be writing them.  The
        Shar folder keeps its arrays until all new ones are complete, since Lhotse may
        be reading them.
        """
        folder = field_dir(self._shar_dir, self.name)
        info_path(self._shar_dir, self.name).unlink(missing_ok=True)
        remove_stale_temporaries(folder, f"{self.name}.json")
        remove_stale_temporaries(folder, f"{self.name}.codec.npz")
        for shard in shards:
            for path in (state_path, staged_path):
                file = path(self._shar_dir, self.name, shard)
                file.unlink(missing_ok=True)
                remove_stale_temporaries(folder, file.name)

    def finish(self, shards: Sequence[str]) -> int:
        """Publish the field and write its description if all shards are complete.

        Checks shards by size, not by checksum.  The description depends only on the
        shards, not on the process that writes it.

        Args:
          shards: all shards of the Shar folder.
        Returns:
          number of missing shards; 0 if the field is finished.
        """
        folder = field_dir(self._shar_dir, self.name)
        files = {p.name for p in folder.glob(f"{self.name}.*.json")}
        names = [state_path(self._shar_dir, self.name, shard).name for shard in shards]
        if not files.issuperset(names):  # the states need not be read
            return sum(name not in files for name in names)
        # Together, the states are too large for the memory.
        entries: list[dict[str, Any]] = []
        foreign: list[str] = []
        sums = 0, np.zeros(()), np.zeros(())
        for shard in shards:
            state = load_complete_state(self._shar_dir, self.name, shard, full=False)
            if state is not None and state.fingerprint != self.fingerprint:
                foreign.append(shard)
            elif state is not None:
                entries.append(
                    {
                        "name": state.tar,
                        "sha256": state.sha256,
                        "num_cuts": state.num_cuts,
                        "bytes": state.bytes,
                        "cuts_sha256": state.cuts_sha256,
                    }
                )
                # The order of the shards affects the last digits.
                sums = tuple(a + b for a, b in zip(sums, sums_of_state(state)))
        if foreign:
            logging.warning(
                "%s: %d shards of field '%s' have another fingerprint (%s): a job with "
                "other options wrote them. Give --overwrite to extract them again",
                self._shar_dir,
                len(foreign),
                self.name,
                ", ".join(foreign[:5]),
            )
        if len(entries) == len(shards):
            publish_tars(self._shar_dir, self.name, shards)
            save(self._describe(entries, sums), info_path(self._shar_dir, self.name))
        return len(shards) - len(entries)

    def _describe(self, entries: list[dict[str, Any]], sums: Sums) -> FieldInfo:
        """Return the description of the field.

        Args:
          entries: one per shard, see ``shards`` of :class:`FieldInfo`.
          sums: sums over all frames of the field.
        """
        mean, mean_square = mean_and_mean_square([sums])
        return FieldInfo(
            name=self.name,
            kind=self.output.kind,
            dim=self.output.dim,
            frame_shift=self.output.frame_shift,
            codec=self.codec.spec,
            fingerprint=self.fingerprint,
            mean=mean.tolist(),
            std=np.sqrt(np.maximum(mean_square - mean**2, 0.0)).tolist(),
            num_cuts=sum(entry["num_cuts"] for entry in entries),
            num_frames=sums[0],
            content_sha256=content_sha256([entry["sha256"] for entry in entries]),
            shards=entries,
            codec_sha256=self._codec_sha256,
        )
