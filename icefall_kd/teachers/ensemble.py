"""Several teachers as one: the average of what agrees, side by side what does not.

Outputs of all members that are called alike, but for the members' names (``a`` and
``b``, ``a_layer2`` and ``b_layer2``, ``a_ctc`` and ``b_ctc``), are averaged into one
field, called so after the ensemble, if they have one kind and frame shift and

- embeddings have one dimension: the plain weighted mean of the values as they are,
  nothing is normalised before (a member of larger values has more to say);
- CTC outputs have one vocabulary: the weighted mean of the probabilities.  A member
  tells k of them and the mass of all others, its tail; each token that it does not tell
  gets an equal share of the tail, which is the mean of what these tokens had.  So a
  mean is a distribution, over the union of the members' tokens it has what they told,
  and its best tokens are of the union.

Other outputs stay the members' own fields.  A field of CTC distributions averages
models of one vocabulary alone: token 7 of one is not token 7 of another.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor

from icefall_kd.core.frames import average_topk, make_pad_mask
from icefall_kd.teachers.protocol import Output, Teacher, TeacherOutput


class _Part(NamedTuple):
    """What one member puts into a mean."""

    field: str
    output: Output
    weight: float


class Ensemble:
    """Teachers that all hear a batch.

    Args:
      name:    the ensemble's name, and that of the mean of fields called as their
               teachers.
      members: two or more, of different names.
      weights: name of each member -> its weight, positive; their sum does not matter.
      topk:    tokens that a frame of a mean of "ctc" keeps; as many as the members'
               largest when None.
    Raises:
      ValueError: if there are too few members, the weights are of others or have
        nothing to weigh, or two fields have one name.
    """

    def __init__(
        self,
        name: str,
        members: Sequence[Teacher],
        weights: Optional[Mapping[str, float]] = None,
        topk: Optional[int] = None,
    ) -> None:
        if len(members) < 2:
            raise ValueError(f"{len(members)} members: an ensemble has two or more")
        self.name = name
        self._members = list(members)
        self.needs_text = any(getattr(m, "needs_text", False) for m in members)
        self._topk = topk
        shares = normalised([m.name for m in members], weights)
        self._means: dict[str, list[_Part]] = {}
        self.outputs: dict[str, Output] = {}
        for suffix, parts in _called_alike(members, shares).items():
            if len(parts) == len(members) and agree([p.output for p in parts]):
                self._means[name + suffix] = parts
                self._add(name + suffix, self._mean_output(parts))
                continue
            for part in parts:
                self._add(part.field, part.output)
        if weights is not None and not self._means:
            raise ValueError(
                "weights have nothing to weigh, the outputs differ: "
                + "; ".join(f"{f} is {_form(o)}" for f, o in self.outputs.items())
            )
        logging.info(
            "ensemble %s: means %s, all fields %s",
            name,
            sorted(self._means),
            sorted(self.outputs),
        )

    def _add(self, field: str, output: Output) -> None:
        if field in self.outputs:
            raise ValueError(f"two fields are called '{field}'; rename a member")
        self.outputs[field] = output

    def _mean_output(self, parts: Sequence[_Part]) -> Output:
        """Describe the mean of ``parts``."""
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
        topk = self._topk or max(p.output.dim // 2 for p in parts)
        fingerprint["topk"] = topk
        for key in ("vocab_sha256", "vocab_size"):
            fingerprint[key] = first.fingerprint[key]
        if topk > first.fingerprint["vocab_size"]:
            raise ValueError(f"topk is {topk} of {fingerprint['vocab_size']} tokens")
        return Output(first.kind, 2 * topk + 1, first.frame_shift, fingerprint)

    @torch.no_grad()
    def forward(
        self, waves: Tensor, wave_lens: Tensor, texts: Sequence[str] = ()
    ) -> dict[str, TeacherOutput]:
        """Return all outputs of a batch.

        Args:
          waves:     (N, S) float32, 16 kHz, in [-1, 1].
          wave_lens: (N,) int64, valid samples.
          texts:     N transcripts, where a member needs them.
        Raises:
          ValueError: if members differ in an utterance's frames by more than one, or
            as a member does.
        """
        said: dict[str, TeacherOutput] = {}
        for member in self._members:
            given = (texts,) if getattr(member, "needs_text", False) else ()
            said.update(member.forward(waves, wave_lens, *given))
        for field, parts in self._means.items():
            said[field] = self._mean(field, parts, [said[p.field] for p in parts])
        return {field: said[field] for field in self.outputs}

    def _mean(
        self, field: str, parts: Sequence[_Part], heard: Sequence[TeacherOutput]
    ) -> TeacherOutput:
        lens = shortest([p.field for p in parts], [h.lens for h in heard])
        device, num_frames = heard[0].x.device, int(lens.max())
        frames = [h.x[:, :num_frames].to(device) for h in heard]
        weights = [p.weight for p in parts]
        output = self.outputs[field]
        if output.kind == "ctc":
            vocab_size = output.fingerprint["vocab_size"]
            x = average_topk(frames, weights, vocab_size, output.dim // 2)
        else:
            x = torch.stack([w * f for w, f in zip(weights, frames)]).sum(dim=0)
        lens = lens.to(device)
        padding = make_pad_mask(lens, num_frames).unsqueeze(-1)
        return TeacherOutput(x.masked_fill(padding, 0.0), lens)


def normalised(
    names: Sequence[str], weights: Optional[Mapping[str, float]]
) -> list[float]:
    """Return the weights of the members in their order, of sum 1.

    Raises:
      ValueError: if they are of others, or one is not a positive number.
    """
    if weights is None:
        return [1.0 / len(names)] * len(names)
    if set(weights) != set(names):
        raise ValueError(f"weights of {sorted(weights)}, members are {sorted(names)}")
    if not all(w > 0 and math.isfinite(w) for w in weights.values()):
        raise ValueError(f"weights must be positive: {dict(weights)}")
    total = sum(weights.values())
    return [weights[name] / total for name in names]


def agree(outputs: Sequence[Output]) -> bool:
    """Return whether outputs can be averaged."""
    first = outputs[0]
    if first.kind == "ctc":
        known = "vocab_sha256" in first.fingerprint  # else nobody knows the tokens
    else:
        known = first.kind == "embedding"  # of no other kind is there a mean
    if not known:
        return False
    return all(_form(o) == _form(first) for o in outputs[1:])


def _form(output: Output) -> tuple[Any, ...]:
    """Return what must be the same in outputs that are averaged."""
    vocabulary = output.fingerprint.get("vocab_sha256")
    # Distributions may keep different numbers of tokens.
    dim = output.dim if output.kind != "ctc" else vocabulary
    return output.kind, dim, output.frame_shift


def _called_alike(
    members: Sequence[Teacher], shares: Sequence[float]
) -> dict[str, list[_Part]]:
    """Return the outputs by what their names are without the members' names."""
    found: dict[str, list[_Part]] = {}
    for member, share in zip(members, shares):
        for field, output in member.outputs.items():
            own = field.startswith(member.name)
            suffix = field[len(member.name) :] if own else field
            found.setdefault(suffix, []).append(_Part(field, output, share))
    return found


def shortest(fields: Sequence[str], lens: Sequence[Tensor]) -> Tensor:
    """Return the least number of frames of each utterance, (N,) int64 on the CPU.

    Raises:
      ValueError: if members differ by more than one frame; the message names both.
    """
    table = torch.stack([n.cpu() for n in lens])  # members by utterances
    apart = table.amax(dim=0) - table.amin(dim=0)
    if len(apart) and int(apart.max()) > 1:
        n = int(apart.argmax())
        longest, least = int(table[:, n].argmax()), int(table[:, n].argmin())
        raise ValueError(
            f"utterance {n} of the batch has {table[longest, n]} frames in "
            f"'{fields[longest]}' and {table[least, n]} in '{fields[least]}'; members "
            "that are averaged may differ by one"
        )
    return table.amin(dim=0)
