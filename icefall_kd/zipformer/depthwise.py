"""Depthwise convolutions whose gradients are cheap on a CPU.

The libraries behind torch compute a depthwise convolution fast but its gradients,
above all that of the weight, 10 to 50 times slower (one core, 320 x 8 x 128 frames,
kernel 31: 0.4 ms against 20 ms).  The gradient of the input is a convolution too; that
of a weight over frames is, for each channel, the diagonals of a matrix product.
"""

from typing import Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 32  # frames; the matrices of the weight's gradient are BLOCK x BLOCK + K - 1


def depthwise_frames(
    x: Tensor, weight: Tensor, bias: Optional[Tensor], padding: int
) -> Tensor:
    """Convolve the frames of each channel.

    Args:
      x: (N, T, C).
      weight: (C, 1, K).
      bias: (C,) or None.
      padding: zero frames on either side.
    Returns:
      (N, T + 2 * padding - K + 1, C).
    """
    # As an image of height 1 the frames lie channels last without a copy.
    image = x.transpose(1, 2).unsqueeze(2)
    y = depthwise_image(image, weight.unsqueeze(2), bias, (0, padding))
    return y.squeeze(2).transpose(1, 2)


def depthwise_image(
    x: Tensor, weight: Tensor, bias: Optional[Tensor], padding: Tuple[int, int]
) -> Tensor:
    """Convolve each channel of an image.

    Args:
      x: (N, C, H, W), best channels last.
      weight: (C, 1, KH, KW).
      bias: (C,) or None.
      padding: zeros at either side of H and of W, at most KH - 1 and KW - 1.
    Returns:
      (N, C, H + 2 * padding[0] - KH + 1, W + 2 * padding[1] - KW + 1).
    """
    if x.device.type == "cpu" and torch.is_grad_enabled() and x.requires_grad:
        return _Depthwise.apply(x, weight, bias, padding)
    return F.conv2d(x, weight, bias, padding=padding, groups=weight.shape[0])


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, padding):  # noqa: D102
        ctx.save_for_backward(x, weight)
        ctx.padding, ctx.has_bias = padding, bias is not None
        return F.conv2d(x, weight, bias, padding=padding, groups=weight.shape[0])

    @staticmethod
    def backward(ctx, grad):  # noqa: D102
        x, weight = ctx.saved_tensors
        kernel = weight.shape[2:]
        back = [k - 1 - p for k, p in zip(kernel, ctx.padding)]
        flipped = weight.flip(2, 3).to(grad.dtype)
        x_grad = F.conv2d(grad, flipped, padding=back, groups=weight.shape[0])
        # Sums over all frames: in single precision under autocast too.
        x, grad = x.to(weight.dtype), grad.to(weight.dtype)
        if kernel[0] == 1 and x.shape[2] == 1:
            weight_grad = _frames_weight_grad(x, grad, kernel[1], ctx.padding[1])
        else:
            weight_grad = _image_weight_grad(x, grad, weight, ctx.padding)
        bias_grad = grad.sum((0, 2, 3)) if ctx.has_bias else None
        return x_grad.to(x.dtype), weight_grad, bias_grad, None


def _image_weight_grad(
    x: Tensor, grad: Tensor, weight: Tensor, padding: Tuple[int, int]
) -> Tensor:
    return torch.ops.aten.convolution_backward(
        grad,
        x,
        weight,
        [0],
        [1, 1],
        padding,
        [1, 1],
        False,
        [0, 0],
        weight.shape[0],
        [False, True, False],
    )[1]


def _frames_weight_grad(x: Tensor, grad: Tensor, kernel: int, padding: int) -> Tensor:
    """Return (C, 1, 1, K) of images (N, C, 1, T) of height 1.

    Entry (c, k) is the sum of grad[n, c, t] * x[n, c, t + k - padding], that is of the
    k-th diagonal of  grad^T x  over blocks of frames.
    """
    grad = grad.squeeze(2).transpose(1, 2)  # (N, T', C)
    x = x.squeeze(2).transpose(1, 2)
    batch, num_frames, channels = grad.shape
    block = min(BLOCK, num_frames)
    more = -num_frames % block
    grad = F.pad(grad, (0, 0, 0, more)).reshape(-1, block, channels)
    x = F.pad(x, (0, 0, padding, padding + more))
    width = block + kernel - 1
    x = x.unfold(1, width, block).reshape(-1, channels, width)  # (N * blocks, C, width)
    product = torch.bmm(grad.permute(2, 1, 0), x.transpose(0, 1)).contiguous()
    diagonals = product.as_strided(
        (channels, kernel, block), (block * width, 1, width + 1)
    )
    return diagonals.sum(-1)[:, None, None]
