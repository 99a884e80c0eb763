"""Convolutions along time on a CPU, in the forms that are fastest there.

A sequence [B, D, T] is an image of height 1, [B, D, 1, T], its features side by side in memory (channels last): so it
takes less time than by torch's Conv1d, down to a quarter at the narrow widths. oneDNN, which torch hands such images
to, is near the processor's peak, but for the gradients of weights where there is no AVX-512: there a matrix product for
each tap takes a half to a tenth of its time.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_weight

from jukebox_lite.nn.device import MULTIPLIES_WIDE, is_plain

_FASTER = MULTIPLIES_WIDE  # oneDNN, of a weight's gradient
# Of a kernel of 1 a dilation means nothing, but torch hands only dilated ones to oneDNN, which is twice as fast.
_POINTWISE = (1, 2)
_LEAST = 20480  # numbers up to which torch keeps a convolution from oneDNN, in favour of one that is much slower


def image(x: Tensor) -> Tensor:
    """Sequences [B, T, D] as images of height 1, channels last: [B, D, 1, T], of which torch can tell that they are."""
    return x.contiguous()[:, None].permute(0, 3, 1, 2)


def rows(x: Tensor) -> Tensor:
    """The way back: [B, D, 1, T] -> [B, T, D]."""
    return x.squeeze(2).mT


class Conv(nn.Conv2d):
    """A convolution along the last axis. [B, D, 1, T] -> [B, D', 1, T']."""

    def __init__(self, dim: int, out_dim: int, kernel: int, padding: int = 0, dilation: int = 1):
        super().__init__(dim, out_dim, (1, kernel), 1, (0, padding), (1, dilation))

    def forward(self, x: Tensor) -> Tensor:
        return convolution(x, self.weight, self.bias, int(self.padding[1]), self.dilation[1])


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int = 0, dilation: int = 1) -> Tensor:
    """x [B, D, 1, T] by weight [H, D, 1, K], with bias [H] and zeros at both ends -> [B, H, 1, T']."""
    if is_plain(x) and torch.is_grad_enabled() and not (_FASTER or torch.compiler.is_compiling()):
        return _Convolution.apply(x, weight, bias, padding, dilation)
    return F.conv2d(x, weight, bias, padding=(0, padding), dilation=(1, dilation))


class _Convolution(torch.autograd.Function):
    """`convolution`, the gradient of its weight found by matrix products."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, padding: int, dilation: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.padding, ctx.dilation = padding, dilation
        return F.conv2d(x, weight, bias, padding=(0, padding), dilation=(1, dilation))

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias, _, _ = ctx.needs_input_grad
        found: list[Tensor | None] = [None, None, None]
        if of_x:
            strides = (1, 1), (0, ctx.padding), (1, ctx.dilation), False, (0, 0), 1
            found[0] = torch.ops.aten.convolution_backward(gradient, x, weight, None, *strides, (True, False, False))[0]
        if of_weight:
            taps = [index * ctx.dilation - ctx.padding for index in range(weight.shape[-1])]
            found[1] = torch.stack([_tap_gradient(rows(x), rows(gradient), tap) for tap in taps], -1)[:, :, None]
        if of_bias:
            found[2] = gradient.sum((0, 2, 3))
        return *found, None, None


def _tap_gradient(x: Tensor, gradient: Tensor, tap: int) -> Tensor:
    """x [B, T, D] and the gradient [B, T', H] of its convolution -> that of the weight of one tap, [H, D].

    The tap meets at each step what is `tap` steps after it, and zeros beyond the ends.
    """
    start, stop = max(0, -tap), max(0, -tap, min(gradient.shape[1], x.shape[1] - tap))
    return torch.bmm(gradient[:, start:stop].mT, x[:, start + tap : stop + tap]).sum(0)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, reach: int = 0) -> Tensor:
    """x [T + 2 reach, D] by weight [H, D, 1, 3 or 1] -> [T, H], without gradients."""
    if x.numel() > _LEAST:
        return rows(F.conv2d(image(x[None]), weight, bias, dilation=(1, reach) if reach else _POINTWISE))[0]
    products = [each @ tap.T for each, tap in zip(_shifted(x, reach), weight[:, :, 0].unbind(-1), strict=True)]
    total = products[0] if len(products) == 1 else products[0].add_(products[1]).add_(products[2])
    return total if bias is None else total.add_(bias)


def weight_gradient(x: Tensor, gradient: Tensor, weight: Tensor, reach: int) -> Tensor:
    """x [T + 2 reach, D] and the gradient [T, H] of its `convolve` -> that of the weight [H, D, 1, 3 or 1]."""
    if x.numel() > _LEAST and _FASTER:
        dilation: Any = (1, reach) if reach else _POINTWISE  # torch's own hint says int
        return conv2d_weight(image(x[None]), weight.shape, image(gradient[None]), dilation=dilation)
    return torch.stack([gradient.T @ each for each in _shifted(x, reach)], -1)[:, :, None]


def _shifted(x: Tensor, reach: int) -> list[Tensor]:
    """x [T + 2 reach, D] as each tap sees it: [T, D] three times, or once where nothing is out of reach."""
    length = len(x) - 2 * reach
    return [x[start : start + length] for start in ((0, reach, 2 * reach) if reach else (0,))]
