"""Depthwise convolutions with fast gradients on a CPU.

torch computes the gradients of a depthwise convolution 10 to 50 times slower than its
output (one core, 320 x 8 x 128 frames, kernel 31: 20 ms against 0.4 ms).  This module
computes

- the gradient of the input as a convolution;
- the gradient of the weight, for images, as a convolution whose kernel is the gradient
  of the output;
- the gradient of the weight, for frames, as sums along the diagonals of a matrix
  product for each channel.
"""

from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from icefall_kd.zipformer.cpu.blocks import get_product_dtype, widen

TORCH_2 = int(torch.__version__.split(".")[0]) >= 2
IMAGE_ROWS = 64  # rows of an image in one step of the gradient of its weight
FRAMES = 32  # frames in a block; its matrix product is FRAMES x (FRAMES + K - 1)


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
    # An image of height 1 is channels last without a copy.
    image = x.transpose(1, 2).unsqueeze(2)
    y = depthwise_image(image, weight.unsqueeze(2), bias, (0, padding))
    return y.squeeze(2).transpose(1, 2)


def depthwise_image(
    x: Tensor, weight: Tensor, bias: Optional[Tensor], padding: tuple[int, int]
) -> Tensor:
    """Convolve each channel of an image.

    Args:
      x: (N, C, H, W), fastest in channels-last format.
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
    x: Tensor, weight: Tensor, bias: Optional[Tensor], padding: tuple[int, int]
) -> Tensor:
    groups = weight.shape[0]
    if weight.shape[2] == 1 and x.device.type == "cpu":
        # oneDNN pads frames 10 to 30 times slower than this copy (AVX2; 98 x 8 x 128
        # frames, kernel 31, padding 15: 10.7 ms against 0.4 ms).
        x = F.pad(x.permute(0, 2, 3, 1), (0, 0, padding[1], padding[1]))
        x, padding = x.permute(0, 3, 1, 2), (0, 0)
    if TORCH_2 and x.device.type == "cpu" and x.dtype == torch.bfloat16:
        # oneDNN hangs when it generates bfloat16 code for some shapes, for example 16
        # channels, 36 frames, kernel 15 (torch 2.6).  7,000 tested float32 shapes work.
        bias = None if bias is None else bias.float()
        y = F.conv2d(x.float(), weight.float(), bias, padding=padding, groups=groups)
        return y.to(x.dtype)
    return F.conv2d(x, weight, bias, padding=padding, groups=groups)


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, padding):
        dtype = get_product_dtype(x)
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
        rows = grad.permute(0, 2, 3, 1)
        if kernel[0] == 1:
            grad_weight = compute_frames_weight_grad(
                x.squeeze(2), grad.squeeze(2), ctx.padding[1]
            )
        else:
            grad_weight = compute_image_weight_grad(x, grad, ctx.padding)
        grad_weight = widen(grad_weight).view(weight.shape)
        grad_bias = widen(rows.sum((0, 1, 2))) if ctx.has_bias else None
        return grad_x, grad_weight, grad_bias, None


def compute_image_weight_grad(
    x: Tensor, grad: Tensor, padding: tuple[int, int]
) -> Tensor:
    """Return the gradient of the weight of a depthwise convolution of images.

    Entry (c, k, l) is the sum of grad[n, c, h, w] * x[n, c, h + k, w + l]: a
    convolution of each image with its own kernel, as large as the image.

    Args:
      x: (N, C, H, W).
      grad: (N, C, H', W'), gradient of the output.
      padding: zeros at either side of H and of W of ``x``.
    Returns:
      (C, KH, KW), float32 at least.
    """
    pad_height, pad_width = padding
    kernel_height = x.shape[2] + 2 * pad_height - grad.shape[2] + 1
    kernel_width = x.shape[3] + 2 * pad_width - grad.shape[3] + 1
    sums = widen(x.new_zeros(x.shape[1], kernel_height, kernel_width))
    for image, image_grad in zip(x.split(1), grad):
        image = F.pad(image, (0, 0, pad_height, pad_height))
        for first in range(0, image_grad.shape[1], IMAGE_ROWS):
            rows = image[:, :, first : first + IMAGE_ROWS + kernel_height - 1]
            part = image_grad[:, first : first + IMAGE_ROWS].unsqueeze(1)
            sums += _convolve(rows, part, None, (0, pad_width))[0]
    return sums


def compute_frames_weight_grad(x: Tensor, grad: Tensor, padding: int) -> Tensor:
    """Return the gradient of the weight of a depthwise convolution of frames.

    Entry (c, k) is the sum of grad[n, c, t] * x[n, c, t + k]: the k-th diagonal of
    grad^T x, over blocks of frames.

    Args:
      x: (N, C, T).
      grad: (N, C, T'), gradient of the output.
      padding: zero frames on either side of ``x``.
    Returns:
      (C, K).
    """
    channels, num_frames = grad.shape[1:]
    kernel = x.shape[2] + 2 * padding - num_frames + 1
    block = min(FRAMES, num_frames)
    width = block + kernel - 1
    extra = -num_frames % block
    # For tensors that are not contiguous, bmm copies and multiplies channel by channel.
    grad = F.pad(grad.transpose(0, 1).contiguous(), (0, extra))
    grad = grad.view(channels, -1, block)
    x = F.pad(x.transpose(0, 1).contiguous(), (padding, padding + extra))
    x = x.unfold(2, width, block).reshape(channels, -1, width)
    product = torch.bmm(grad.transpose(1, 2), x)
    diagonals = product.as_strided(
        (channels, kernel, block), (block * width, 1, width + 1)
    )
    return diagonals.sum(-1)
