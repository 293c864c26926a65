"""Build a field: skip finished shards, remove stale files, describe the result."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from icefall_kd.core.files import Pathlike, remove_stale_temporaries
from icefall_kd.fields.codecs import Codec
from icefall_kd.fields.codecs.storage import codec_sha256
from icefall_kd.fields.format import (
    FieldInfo,
    ShardState,
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
from icefall_kd.fields.integrity import load_complete_state
from icefall_kd.fields.writer import content_sha256
from icefall_kd.teachers.protocol import Output, Teacher

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
    """Check that the arrays of the fields, if any, were written by this package.

    Raises:
      ValueError: if a field has arrays but no folder with its description.
    """
    for field in fields:
        folder = field_dir(shar_dir, field)
        if folder.is_dir():
            continue
        if any(tar_path(shar_dir, field, s).is_file() for s in shard_ids(shar_dir)):
            raise ValueError(
                f"{shar_dir}: field '{field}' has arrays but no description in "
                f"{folder}: another program wrote them, or the folder was not copied. "
                "Copy it, give another --field, or --overwrite to replace the arrays"
            )


class FieldBuilder:
    """State of a field during an extraction.

    Attributes:
      name: of the field.
      output: of the teacher that it stores.
      codec: of its arrays.
      fingerprint: of the output and the codec.
      finished: shards of this process that are complete.
    """

    def __init__(
        self, shar_dir: Pathlike, name: str, output: Output, codec: Codec
    ) -> None:
        """Compute the fingerprint; read and write nothing.

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
        self._codec_sha256 = codec_sha256(codec)
        if self._codec_sha256 is not None:
            self.fingerprint["codec_sha256"] = self._codec_sha256

    def skip_finished(
        self, fingerprints: Mapping[str, dict[str, Any]], overwrite: bool
    ) -> None:
        """Mark the complete shards of this fingerprint as finished.

        Args:
          fingerprints: of the complete shards, by shard.
          overwrite: replace shards of another fingerprint.
        Raises:
          ValueError: if a shard has another fingerprint, unless ``overwrite``.
        """
        for shard, fingerprint in fingerprints.items():
            if fingerprint == self.fingerprint:
                self.finished.add(shard)
            elif not overwrite:
                differences = fingerprint_differences(self.fingerprint, fingerprint)
                raise ValueError(
                    f"{self._shar_dir}: field '{self.name}' has another fingerprint: "
                    f"{'; '.join(differences)}. Give another --field, or --overwrite "
                    "to replace it"
                )

    def remove_stale_files(self, shards: Sequence[str]) -> None:
        """Remove the description, and the states and staged arrays of ``shards``.

        The files of other shards remain, since other processes may be writing them.
        Arrays in the Shar folder remain until all new ones are complete, since Lhotse
        may be reading them.
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
        """Publish and describe the field if all its shards are complete.

        The shards of other processes are checked by size, not by checksum.  The
        description depends only on the shards, not on the process that writes it.

        Args:
          shards: all shards of the Shar folder.
        Returns:
          the number of missing shards.
        """
        folder = field_dir(self._shar_dir, self.name)
        files = {p.name for p in folder.glob(f"{self.name}.*.json")}
        names = [state_path(self._shar_dir, self.name, shard).name for shard in shards]
        if not files.issuperset(names):  # saves reading the states
            return sum(name not in files for name in names)
        totals, foreign = _Totals(), []
        for shard in shards:
            state = load_complete_state(self._shar_dir, self.name, shard, full=False)
            if state is not None and state.fingerprint != self.fingerprint:
                foreign.append(shard)
            elif state is not None:
                totals.add(state)
        if foreign:
            logging.warning(
                "%s: %d shards of field '%s' have another fingerprint (%s): a job with "
                "other options wrote them; give --overwrite to extract them again",
                self._shar_dir,
                len(foreign),
                self.name,
                ", ".join(foreign[:5]),
            )
        if len(totals.shards) == len(shards):
            publish_tars(self._shar_dir, self.name, shards)
            save(self._describe(totals), info_path(self._shar_dir, self.name))
        return len(shards) - len(totals.shards)

    def _describe(self, totals: "_Totals") -> FieldInfo:
        mean = totals.sum / totals.num_frames
        variance = totals.sum_squares / totals.num_frames - mean**2
        return FieldInfo(
            name=self.name,
            kind=self.output.kind,
            dim=self.output.dim,
            frame_shift=self.output.frame_shift,
            codec=self.codec.spec,
            fingerprint=self.fingerprint,
            mean=mean.tolist(),
            std=np.sqrt(np.maximum(variance, 0.0)).tolist(),
            num_cuts=totals.num_cuts,
            num_frames=totals.num_frames,
            content_sha256=content_sha256([s["sha256"] for s in totals.shards]),
            shards=totals.shards,
            codec_sha256=self._codec_sha256,
        )


class _Totals:
    """Running sums over shard states, which are too large to keep in memory."""

    def __init__(self) -> None:
        self.shards: list[dict[str, Any]] = []
        self.num_cuts = self.num_frames = 0
        self.sum = self.sum_squares = np.zeros(())

    def add(self, state: ShardState) -> None:
        """Add one shard; the order of the shards affects the last digits."""
        self.num_cuts += state.num_cuts
        self.num_frames += state.num_frames
        self.sum = self.sum + np.array(state.sum)
        self.sum_squares = self.sum_squares + np.array(state.sum_squares)
        self.shards.append(
            {
                "name": state.tar,
                "sha256": state.sha256,
                "num_cuts": state.num_cuts,
                "bytes": state.bytes,
                "cuts_sha256": state.cuts_sha256,
            }
        )
