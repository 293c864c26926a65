"""Several teachers as one: the average of corresponding outputs.

Outputs correspond if their names differ only in the member's name: ``a`` and ``b``,
``a_layer2`` and ``b_layer2``, ``a_ctc`` and ``b_ctc``.  They are averaged if every
member has one, and if they agree in kind and frame shift:

- embeddings of one dimension: the weighted mean of the values.  They are not
  normalised, so a member with larger values dominates;
- CTC distributions over one vocabulary: the weighted mean of the probabilities.  A
  member stores its k best tokens and the probability of all others, the tail; each of
  the others gets an equal share of the tail.

The average is one field, named after the ensemble: ``<ensemble>``,
``<ensemble>_layer2``, ``<ensemble>_ctc``.  All other outputs remain fields of the
members, for example CTC distributions over different vocabularies, where one id means
different tokens.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor

from icefall_kd.core.frames import average_topk, make_pad_mask
from icefall_kd.teachers.base import Output, Teacher, TeacherOutput, run_teacher
from icefall_kd.teachers.build import build_teachers


class _Part(NamedTuple):
    """Output of a member that goes into an average."""

    field: str
    output: Output
    weight: float  # the weights of an average sum to 1


class Ensemble(Teacher):
    """The average of several teachers.

    Args:
      name:    of the ensemble and its averaged fields.
      members: two or more teachers, see
               :func:`icefall_kd.teachers.build.build_teachers`.
      weights: member -> positive weight, normalised to a sum of 1; None weights all
               members equally.
      topk:    tokens in a frame of an averaged "ctc"; None is the members' maximum.
      defaults: options for all members; a member's description overrides them.
    Raises:
      ValueError: if there are fewer than two members, the weights do not match the
        members, weights are given but no outputs can be averaged, or two fields have
        one name.
    """

    def __init__(
        self,
        name: str,
        members: Mapping[str, Mapping[str, Any]],
        weights: Optional[Mapping[str, float]] = None,
        topk: Optional[int] = None,
        **defaults: Any,
    ) -> None:
        if len(members) < 2:
            raise ValueError(
                f"members: {len(members)} given, but an ensemble needs two or more. "
                "Add a member, or use it without the ensemble"
            )
        self.name = name
        self._members = build_teachers(
            {n: {**defaults, **m} for n, m in members.items()}
        )
        self.needs_text = any(m.needs_text for m in self._members)
        self._topk = topk
        self._averages: dict[str, list[_Part]] = {}
        self.outputs: dict[str, Output] = {}
        shares = normalise_weights(list(members), weights)
        for suffix, parts in _group_outputs(self._members, shares).items():
            outputs = [part.output for part in parts]
            if len(parts) == len(members) and can_average(outputs):
                self._averages[name + suffix] = parts
                self._add(name + suffix, self._describe_average(parts))
            else:
                for part in parts:
                    self._add(part.field, part.output)
        if weights is not None and not self._averages:
            raise ValueError(
                "weights: no outputs can be averaged: "
                + "; ".join(f"{f} is {_signature(o)}" for f, o in self.outputs.items())
                + ". Leave the option out"
            )
        logging.info(
            "ensemble %s: averages %s, all fields %s",
            name,
            sorted(self._averages),
            sorted(self.outputs),
        )

    def _add(self, field: str, output: Output) -> None:
        if field in self.outputs:
            raise ValueError(f"two fields are called '{field}'. Rename a member")
        self.outputs[field] = output

    def _describe_average(self, parts: Sequence[_Part]) -> Output:
        first = parts[0].output
        fingerprint: dict[str, Any] = {
            "teacher": self.name,
            "family": "ensemble",
            "members": {
                p.field: {"weight": p.weight, **p.output.fingerprint} for p in parts
            },
        }
        if first.kind != "ctc":
            return Output(first.kind, first.dim, first.frame_shift, fingerprint)
        vocab_size = first.fingerprint["vocab_size"]
        topk = self._topk or max(p.output.dim // 2 for p in parts)
        if topk > vocab_size:
            raise ValueError(
                f"topk: {topk} exceeds the vocabulary of {vocab_size} tokens. Reduce it"
            )
        fingerprint["topk"] = topk
        for key in ("vocab_sha256", "vocab_size"):
            fingerprint[key] = first.fingerprint[key]
        return Output(first.kind, 2 * topk + 1, first.frame_shift, fingerprint)

    @torch.no_grad()
    def forward(
        self, waves: Tensor, wave_lens: Tensor, texts: Sequence[str] = ()
    ) -> dict[str, TeacherOutput]:
        """Return all outputs; see :meth:`Teacher.forward`.

        Raises:
          ValueError: if averaged members differ by more than one frame in the length of
            an utterance, or if a member raises it.
        """
        results: dict[str, TeacherOutput] = {}
        for member in self._members:
            results.update(run_teacher(member, waves, wave_lens, texts))
        for field, parts in self._averages.items():
            outputs = [results[part.field] for part in parts]
            results[field] = self._average(field, parts, outputs)
        return {field: results[field] for field in self.outputs}

    def _average(
        self, field: str, parts: Sequence[_Part], outputs: Sequence[TeacherOutput]
    ) -> TeacherOutput:
        lens = shortest_lens([p.field for p in parts], [o.lens for o in outputs])
        device, num_frames = outputs[0].x.device, int(lens.max())
        frames = [o.x[:, :num_frames].to(device) for o in outputs]
        weights = [p.weight for p in parts]
        output = self.outputs[field]
        if output.kind == "ctc":
            vocab_size = output.fingerprint["vocab_size"]
            x = average_topk(frames, weights, vocab_size, output.dim // 2)
        else:
            x = torch.stack([w * f for w, f in zip(weights, frames)]).sum(dim=0)
        lens = lens.to(device)
        mask = make_pad_mask(lens, num_frames).unsqueeze(-1)
        return TeacherOutput(x.masked_fill(mask, 0.0), lens)


def normalise_weights(
    names: Sequence[str], weights: Optional[Mapping[str, float]]
) -> list[float]:
    """Return the weights in the order of the members, with sum 1.

    Args:
      names:   of the members.
      weights: member -> weight; None weights all members equally.
    Raises:
      ValueError: if the weights are not for these members, or one is not positive and
        finite.
    """
    if weights is None:
        return [1.0 / len(names)] * len(names)
    if set(weights) != set(names):
        raise ValueError(
            f"weights: {sorted(weights)} given for the members {sorted(names)}. Give "
            "one weight for each member"
        )
    if not all(w > 0 and math.isfinite(w) for w in weights.values()):
        raise ValueError(
            f"weights: {dict(weights)} is invalid. Weights must be positive and finite"
        )
    total = sum(weights.values())
    return [weights[name] / total for name in names]


def can_average(outputs: Sequence[Output]) -> bool:
    """Return whether corresponding outputs can be averaged, see the module's docstring.

    Args:
      outputs: one of each member.
    """
    first = outputs[0]
    if first.kind == "ctc" and "vocab_sha256" not in first.fingerprint:
        return False  # the vocabulary is unknown
    if first.kind not in ("ctc", "embedding"):
        return False
    return all(_signature(o) == _signature(first) for o in outputs[1:])


def _signature(output: Output) -> tuple[Any, ...]:
    """Return the properties in which averaged outputs must agree."""
    # CTC distributions agree in their vocabulary; the number of stored tokens, and with
    # it ``dim``, may differ.
    is_ctc = output.kind == "ctc"
    dim = output.fingerprint.get("vocab_sha256") if is_ctc else output.dim
    return output.kind, dim, output.frame_shift


def _group_outputs(
    members: Sequence[Teacher], shares: Sequence[float]
) -> dict[str, list[_Part]]:
    """Return field name without the member's name -> corresponding outputs."""
    groups: dict[str, list[_Part]] = {}
    for member, share in zip(members, shares):
        for field, output in member.outputs.items():
            has_prefix = field.startswith(member.name)
            suffix = field[len(member.name) :] if has_prefix else field
            groups.setdefault(suffix, []).append(_Part(field, output, share))
    return groups


def shortest_lens(fields: Sequence[str], lens: Sequence[Tensor]) -> Tensor:
    """Return the minimum number of frames of each utterance, (N,) int64 on the CPU.

    Args:
      fields: names of the averaged outputs, for the message.
      lens:   (N,) int64 of each output, valid frames.
    Raises:
      ValueError: if outputs differ by more than one frame.
    """
    table = torch.stack([n.cpu() for n in lens])  # (members, N)
    apart = table.amax(dim=0) - table.amin(dim=0)
    if len(apart) and int(apart.max()) > 1:
        n = int(apart.argmax())
        longest, shortest = int(table[:, n].argmax()), int(table[:, n].argmin())
        raise ValueError(
            f"utterance {n} of the batch has {table[longest, n]} frames in "
            f"'{fields[longest]}' and {table[shortest, n]} in '{fields[shortest]}'. "
            "Averaged outputs may differ by one frame. Remove a member"
        )
    return table.amin(dim=0)
