"""Depthwise convolutions whose gradients are cheap on a CPU.

The libraries behind torch compute a depthwise convolution fast but its gradients,
above all that of the weight, 10 to 50 times slower (one core, 320 x 8 x 128 frames,
kernel 31: 0.4 ms against 20 ms).  The gradient of the input is a convolution too; that
of a weight is, for each channel, sums along diagonals of a matrix product.
"""

from typing import Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from icefall_kd.zipformer.precision import autocast_dtype, widen

TORCH_2 = int(torch.__version__.split(".")[0]) >= 2
WINDOWS = 128  # multiplied at once in the gradient of an image's weight
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
    if (
        x.device.type == "cpu"
        and torch.is_grad_enabled()
        and x.requires_grad
        and not torch.jit.is_tracing()
    ):
        return _Depthwise.apply(x, weight, bias, padding)
    return _convolve(x, weight, bias, padding)


def _convolve(
    x: Tensor, weight: Tensor, bias: Optional[Tensor], padding: Tuple[int, int]
) -> Tensor:
    groups = weight.shape[0]
    if TORCH_2 and x.device.type == "cpu" and x.dtype == torch.bfloat16:
        # Its oneDNN never ends generating bfloat16 code for some shapes: 16 channels,
        # 36 frames, kernel 15 (torch 2.6).  In float32 7,000 shapes were all well.
        bias = None if bias is None else bias.float()
        y = F.conv2d(x.float(), weight.float(), bias, padding=padding, groups=groups)
        return y.to(x.dtype)
    return F.conv2d(x, weight, bias, padding=padding, groups=groups)


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, padding):
        dtype = autocast_dtype(x)
        ctx.x_dtype, ctx.padding, ctx.has_bias = x.dtype, padding, bias is not None
        x, weight = x.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
        ctx.save_for_backward(x, weight)
        with torch.autocast(x.device.type, enabled=False):
            return _convolve(x, weight, bias, padding)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        kernel = weight.shape[2:]
        grad = grad.to(x.dtype).contiguous(memory_format=torch.channels_last)
        back = (kernel[0] - 1 - ctx.padding[0], kernel[1] - 1 - ctx.padding[1])
        grad_x = _convolve(grad, weight.flip(2, 3), None, back).to(ctx.x_dtype)
        x, rows = x.permute(0, 2, 3, 1), grad.permute(0, 2, 3, 1)
        x = F.pad(x, (0, 0) + 2 * ctx.padding[1:] + 2 * ctx.padding[:1])
        if kernel[0] == 1:
            grad_weight = frames_weight_gradient(x.flatten(0, 1), rows.flatten(0, 1))
        else:
            grad_weight = image_weight_gradient(x, rows)
        grad_weight = widen(grad_weight).view(weight.shape)
        grad_bias = widen(rows.sum((0, 1, 2))) if ctx.has_bias else None
        return grad_x, grad_weight, grad_bias, None


def image_weight_gradient(x: Tensor, grad: Tensor) -> Tensor:
    """Return the gradient of the weight of a depthwise convolution of images.

    The rows of ``grad`` are multiplied with windows of KH rows of ``x``, which overlap
    in memory.  The product has the sums for every pair of columns; those that a tap
    needs lie on a diagonal.

    Args:
      x: (N, H + KH - 1, W + KW - 1, C), padded input.
      grad: (N, H, W, C), gradient of the output.
    Returns:
      (C, KH, KW).
    """
    batch, high, wide, channels = x.shape
    width = grad.shape[2]
    kernel = (high - grad.shape[1] + 1, wide - width + 1)
    # Rows of zeros, for which the windows that cross from image to image count nothing.
    grad = F.pad(grad, (0, 0, 0, 0, 0, kernel[0] - 1)).reshape(-1, width, channels)
    x = x.reshape(-1, wide, channels)
    sums = torch.zeros(
        (channels, width, kernel[0] * wide), dtype=widen(x[:0]).dtype, device=x.device
    )
    num_windows = batch * high - kernel[0] + 1
    # The product copies the windows, KH times the input: by blocks that stay in cache.
    for first in range(0, num_windows, WINDOWS):
        last = min(num_windows, first + WINDOWS)
        rows = x[first : last + kernel[0] - 1].reshape(-1, channels).t().contiguous()
        windows = rows.as_strided(
            (channels, last - first, kernel[0] * wide), (rows.stride(0), wide, 1)
        )
        part = grad[first:last].reshape(-1, channels).t().contiguous()
        sums += torch.bmm(part.view(channels, -1, width).transpose(1, 2), windows)
    sums = sums.view(channels, width, kernel[0], wide)
    taps = [sums.diagonal(tap, 1, 3)[..., :width].sum(-1) for tap in range(kernel[1])]
    return torch.stack(taps, dim=2)


def frames_weight_gradient(x: Tensor, grad: Tensor) -> Tensor:
    """Return the gradient of the weight of a depthwise convolution of frames.

    Entry (c, k) is the sum of grad[n, t, c] * x[n, t + k, c], that is of the k-th
    diagonal of grad^T x over blocks of frames.

    Args:
      x: (N, T + K - 1, C), padded input.
      grad: (N, T, C), gradient of the output.
    Returns:
      (C, K).
    """
    num_frames, channels = grad.shape[1:]
    kernel = x.shape[1] - num_frames + 1
    block = min(BLOCK, num_frames)
    more = -num_frames % block
    grad = F.pad(grad, (0, 0, 0, more)).reshape(-1, block, channels)
    x = F.pad(x, (0, 0, 0, more))
    width = block + kernel - 1
    x = x.unfold(1, width, block).reshape(-1, channels, width)  # (N * blocks, C, width)
    product = torch.bmm(grad.permute(2, 1, 0), x.transpose(0, 1)).contiguous()
    diagonals = product.as_strided(
        (channels, kernel, block), (block * width, 1, width + 1)
    )
    return diagonals.sum(-1)
