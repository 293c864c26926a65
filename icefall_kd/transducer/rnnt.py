"""Pruned RNN-T in PyTorch, for machines without k2.

The functions have the names, arguments and results of k2's, so that
:func:`load_backend` returns either this module or k2.  They compute in float64: sums of
hundreds of log-probabilities in float32 change the occupancies by 2e-3.  No function
waits for the accelerator.

Source: Kuang et al., Pruned RNN-T for fast, memory-efficient ASR training, 2022,
arXiv:2206.13236.
"""

import functools
import sys
from types import ModuleType
from typing import Any, Literal, Optional

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

Backend = Literal["auto", "k2", "torch"]
LOG_ZERO = -1e30  # finite: the gradient of a log-sum of infinite scores is NaN


def load_backend(name: Backend, device: torch.device) -> ModuleType:
    """Return the module that computes the losses, k2 or this one.

    Args:
      name: "k2", "torch", or "auto": k2 if it is installed and supports the device.
      device: of the losses.
    Raises:
      ImportError: if the name is "k2" and k2 cannot be imported.
    """
    k2 = None if name == "torch" else _import_k2(is_required=name == "k2")
    is_unable = name == "auto" and device.type == "cuda" and k2 and not k2.with_cuda
    return sys.modules[__name__] if k2 is None or is_unable else k2


@functools.lru_cache(maxsize=None)
def _import_k2(is_required: bool) -> Optional[ModuleType]:
    try:
        import k2
    except ImportError:
        if is_required:
            raise
        return None
    return k2


def mutual_information_recursion(
    px: Tensor, py: Tensor, boundary: Tensor, return_grad: bool = True
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Return the log-sum over all alignments, and the occupancies of their arcs.

    Args:
      px: (N, U, T + 1) float, log-probabilities of the next label at node (u, t).
      py: (N, U + 1, T) float, log-probabilities of the blank at node (u, t).
      boundary: (N, 4) int64, each row (0, 0, labels, frames).
      return_grad: as in k2; the occupancies are always computed.
    Returns:
      scores (N,) in nats, with gradient; and without gradient, the probabilities that
      an alignment has an arc, in the shapes of px and py.
    """
    scores, px_grad, py_grad = _MutualInformation.apply(px, py, boundary)
    return scores, (px_grad, py_grad)


class _MutualInformation(torch.autograd.Function):
    """Forward and backward scores, from which gradients follow in closed form."""

    @staticmethod
    def forward(
        ctx: Any, px: Tensor, py: Tensor, boundary: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        batch, num_labels, num_frames = len(px), px.shape[1], py.shape[2]
        labels, frames = boundary[:, 2], boundary[:, 3]
        u = torch.arange(num_labels + 1, device=px.device)
        t = torch.arange(num_frames + 1, device=px.device)
        has_label = u[:-1, None] < labels.view(-1, 1, 1)
        has_blank = u[:, None] <= labels.view(-1, 1, 1)
        in_frame = t < frames.view(-1, 1, 1)
        px = px.masked_fill(~(has_label & in_frame), float("-inf"))
        py = py.masked_fill(~(has_blank & in_frame[:, :, :-1]), float("-inf"))
        # The second half of the batch is reversed, and starts at its last nodes.
        size = (num_labels + num_frames + 1, 2 * batch, num_labels + 1)
        x, y = px.new_full((2, *size), float("-inf"), dtype=torch.float64)
        for arcs, to, p in ((x, (1, 0), px), (y, (0, 1), py)):
            nodes = _nodes(arcs)[:, to[0] :, to[1] :]  # to which the arcs lead
            nodes[:batch].copy_(p)
            nodes[batch:].copy_(p.flip(1, 2))
        column = torch.cat([torch.zeros_like(labels), num_labels - labels])
        row = column + torch.cat([torch.zeros_like(frames), num_frames - frames])
        scores = _sum_paths(x, y, row, column)
        alpha, beta = scores[:-1, :batch], scores[:, batch:, 1:].flip(0, 2)
        total = beta[0, :, 0].clone()
        beta = beta[1:] - total.unsqueeze(1)
        grads = []
        for arcs, before in ((x, alpha[:, :, :-1]), (y, alpha[:, :, 1:])):
            grad = F.pad((before + arcs[1:, :batch] + beta).exp_(), (0, 0, 0, 0, 1, 0))
            grads.append(_nodes(grad.to(px.dtype)))
        px_grad, py_grad = grads[0][:, 1:].contiguous(), grads[1][:, :, 1:].contiguous()
        ctx.save_for_backward(px_grad, py_grad)
        ctx.mark_non_differentiable(px_grad, py_grad)
        return total.to(px.dtype), px_grad, py_grad

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Optional[Tensor], ...]:
        px_grad, py_grad = ctx.saved_tensors
        grad = grad.view(-1, 1, 1)
        return grad * px_grad, grad * py_grad, None


def _sum_paths(x: Tensor, y: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Return the log-sum of the paths to each node, diagonal after diagonal.

    Args:
      x, y: (T + U + 1, N, U + 1) float64, log-probabilities of the arcs that lead to
        each node, by diagonal; see :func:`_nodes`.
      row, column: (N,) int64, the first node of each lattice.
    Returns:
      (T + U + 1, N, U + 2) float64; column u + 1 is node u.
    """
    scores = F.pad(torch.full_like(x, float("-inf")), (1, 0), value=float("-inf"))
    scores[row, torch.arange(len(row), device=row.device), column + 1] = 0.0
    # Views of all diagonals at once: a slice in the loop costs as much as its sums.
    nodes, left = scores[:, :, 1:].unbind(), scores[:, :, :-1].unbind()
    x, y = x.unbind(), y.unbind()
    for d in range(1, len(nodes)):
        sums = torch.logaddexp(left[d - 1] + x[d], nodes[d - 1] + y[d])
        torch.maximum(sums, nodes[d], out=nodes[d])  # keeps the first node
    return scores


def _nodes(diagonals: Tensor) -> Tensor:
    """Return a view of diagonals, in which [n, u, t] is [u + t, n, u].

    Args:
      diagonals: (T + U + 1, N, U + 1), contiguous.
    Returns:
      (N, U + 1, T + 1).
    """
    length, batch, width = diagonals.shape
    step = batch * width
    size = (batch, width, length - width + 1)
    return diagonals.as_strided(size, (width, step + 1, step))


def get_rnnt_prune_ranges(
    px_grad: Tensor, py_grad: Tensor, boundary: Tensor, s_range: int
) -> Tensor:
    """Return the labels to score at each frame: those that alignments visit most.

    Args:
      px_grad, py_grad: occupancies, see :func:`mutual_information_recursion`.
      boundary: (N, 4) int64, each row (0, 0, labels, frames).
      s_range: labels scored at each frame, at least 2.
    Returns:
      (N, T, R) int64, R = min(s_range, U + 1) consecutive numbers of labels for each
      frame.  They begin at 0 in the first frame and end at the last label in the last
      frame; from frame to frame the first rises by 0 to R - 1.
    """
    num_states, num_frames = py_grad.shape[1:]
    size = min(s_range, num_states)
    # The probability of the frame's blank within the window, less that of reaching the
    # window from below in the same frame.
    visits = py_grad.unfold(1, size, 1).sum(-1)  # (N, U + 2 - R, T)
    entries = F.pad(px_grad, (0, 0, 1, 0))[:, : num_states - size + 1, :num_frames]
    first = (visits - entries).argmax(1)
    t = torch.arange(num_frames, device=first.device)
    last = (boundary[:, 2:3] + 1 - size).clamp(min=0)
    first = torch.where(t < boundary[:, 3:4] - 1, first, last)
    first = first.flip(1).cummin(1).values.flip(1)  # rises
    steps = (size - 1) * t  # the largest possible rise
    first = (first - steps).flip(1).cummax(1).values.flip(1).clamp(max=0) + steps
    return first.unsqueeze(2) + torch.arange(size, device=first.device)


def rnnt_loss_pruned(
    logits: Tensor,
    symbols: Tensor,
    ranges: Tensor,
    termination_symbol: int,
    boundary: Tensor,
    reduction: str = "sum",
) -> Tensor:
    """Return the transducer loss over the labels of ``ranges``.

    A frame is a matrix of R x R log-probabilities, of moves from each label at
    its begin to each label at the begin of the next frame.  A tree multiplies them.

    Args:
      logits: (N, T, R, V) float, of the joiner.
      symbols: (N, U) int64, labels.
      ranges: (N, T, R) int64, from :func:`get_rnnt_prune_ranges`.
      termination_symbol: id of the blank.
      boundary: (N, 4) int64, each row (0, 0, labels, frames).
      reduction: "sum" over the batch or "none".
    Returns:
      scalar, or (N,) if ``reduction`` is "none", in nats.
    """
    num_frames, size = ranges.shape[1:]
    labels, frames = boundary[:, 2:3], boundary[:, 3:4]
    following = F.pad(symbols, (0, 1), value=termination_symbol)
    following = following.gather(1, ranges.flatten(1)).view_as(ranges)
    label, blank = _NodeLogProbs.apply(logits, following, termination_symbol)
    label, blank = label.double(), blank.double()

    t = torch.arange(num_frames, device=logits.device)
    rows = torch.arange(size, device=logits.device)
    first = ranges[:, :, 0]
    shift = F.pad(first.diff(dim=1), (0, 1)) * (t < frames - 1)
    # The label at which the frame ends, as an index into its own range.
    end = rows + shift.unsqueeze(2)  # (N, T, R)
    is_valid = (end < size) & (end <= (labels - first).unsqueeze(2))
    end = end.clamp(max=size - 1)
    reached = F.pad(label.cumsum(2)[:, :, :-1], (1, 0))
    moves = (reached + blank).gather(2, end).unsqueeze(2) - reached.unsqueeze(3)
    is_valid = is_valid.unsqueeze(2) & (end.unsqueeze(2) >= rows.view(-1, 1))
    moves = moves.masked_fill(~is_valid, LOG_ZERO)
    identity = torch.full_like(moves[0, 0], LOG_ZERO).fill_diagonal_(0.0)
    moves = torch.where((t >= frames).view(-1, num_frames, 1, 1), identity, moves)
    while moves.size(1) > 1:
        if moves.size(1) % 2:
            padding = identity.expand(len(moves), 1, size, size)
            moves = torch.cat([moves, padding], dim=1)
        left, right = moves[:, ::2], moves[:, 1::2]
        moves = (left.unsqueeze(4) + right.unsqueeze(2)).logsumexp(3)
    last = labels - first.gather(1, frames - 1)
    loss = -moves[:, 0, 0].gather(1, last).squeeze(1).to(logits.dtype)
    return loss.sum() if reduction == "sum" else loss


class _NodeLogProbs(torch.autograd.Function):
    """Log-probabilities of one label and of the blank at each node.

    The gradient is one tensor of the size of the logits; autograd would add three.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, labels: Tensor, blank_id: int
    ) -> tuple[Tensor, Tensor]:
        norm = logits.logsumexp(3)
        ctx.save_for_backward(logits, labels, norm)
        ctx.blank_id = blank_id
        label = logits.gather(3, labels.unsqueeze(3)).squeeze(3)
        return label - norm, logits[..., blank_id] - norm

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, label_grad: Tensor, blank_grad: Tensor
    ) -> tuple[Optional[Tensor], ...]:
        logits, labels, norm = ctx.saved_tensors
        grad = (logits - norm.unsqueeze(3)).exp_()
        grad.mul_(-(label_grad + blank_grad).unsqueeze(3))
        grad.scatter_add_(3, labels.unsqueeze(3), label_grad.unsqueeze(3))
        grad[..., ctx.blank_id] += blank_grad
        return grad, None, None
