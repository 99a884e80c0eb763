"""Stacks of residual convolutions on a CPU, in pieces of time that stay in a core's cache.

Over a whole sequence each step of such a stack fetches and stores megabytes; piece by piece, the activations beside the
convolutions, it runs at nearly the speed of the convolutions alone, and between two of them only one sequence is kept.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from jukebox_lite.nn.convolution import convolve, weight_gradient

_PIECE = 1 << 19  # numbers of a sequence that are worked on at once: 2 MB
_PIECE_BACK = 1 << 18  # of a gradient: to find a weight's takes up to twice the time where its sequences are far
_KINDS = 4  # parameters of a residual convolution: weight and bias, dilated and pointwise
_unrectified = torch.ops.aten.threshold_backward.grad_input  # a gradient where a rectifier let through, elsewhere 0


@dataclass
class _Conv:
    """One residual convolution of a sequence of a certain length."""

    weight: Tensor  # [H, D, 1, 3], or [H, D, 1, 1] where the outer taps see only what lies outside of the sequence
    bias: Tensor  # [H]
    out_weight: Tensor  # [D, H, 1, 1]
    out_bias: Tensor  # [D]
    reach: int  # steps to either side that it sees

    def dilated(self, x: Tensor) -> Tensor:
        """x [T + 2 reach, D] -> [T, H]"""
        return convolve(x, self.weight, self.bias, self.reach)

    def pointwise(self, x: Tensor) -> Tensor:
        """x [T, H] -> [T, D]"""
        return convolve(x, self.out_weight, self.out_bias)


def residuals(x: Tensor, parameters: Sequence[Tensor], dilations: Sequence[int]) -> Tensor:
    """x + pointwise(relu(dilated(relu(x)))), once for every dilation, in float32 on a CPU. [B, T, D] -> [B, T, D].

    `parameters` are weight [H, D, 1, 3], bias [H], weight [D, H, 1, 1] and bias [D] for each.
    """
    if torch.is_grad_enabled():
        return _Residuals.apply(x, dilations, *parameters)
    x = x.clone(memory_format=torch.contiguous_format)
    length, dim = x.shape[1:]
    convs = _convs(parameters, dilations, length)
    pad = max(conv.reach for conv in convs)
    seen = x.new_zeros(length + 2 * pad, dim)
    for each in x:
        for conv in convs:
            _forward(each, seen, None, conv)
    return x


class _Residuals(torch.autograd.Function):
    """`residuals` with gradients; keeps both activations of each convolution."""

    @staticmethod
    def forward(ctx, x: Tensor, dilations: Sequence[int], *parameters: Tensor) -> Tensor:
        x = x.clone(memory_format=torch.contiguous_format)
        (batch, length, dim), kept = x.shape, []
        for conv in _convs(parameters, dilations, length):
            seen = x.new_empty(batch, length + 2 * conv.reach, dim)
            seen[:, : conv.reach], seen[:, length + conv.reach :] = 0, 0
            hidden = x.new_empty(batch, length, len(conv.bias))
            for i in range(batch):
                _forward(x[i], seen[i], hidden[i], conv)
            kept += [seen, hidden]
        ctx.save_for_backward(*kept, *parameters)
        ctx.dilations = dilations
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        count = 2 * len(ctx.dilations)
        kept, parameters = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        length, found = gradient.shape[1], []
        for index, conv in reversed(list(enumerate(_convs(parameters, ctx.dilations, length)))):
            sums = [torch.zeros_like(each) for each in parameters[_KINDS * index : _KINDS * (index + 1)]]
            inner = gradient.new_zeros(length + 2 * conv.reach, len(conv.bias))
            for i, each in enumerate(gradient):
                _backward(each, kept[2 * index][i], kept[2 * index + 1][i], inner, conv, sums)
            found = [*sums, *found]
        return gradient, None, *found


def _forward(x: Tensor, seen: Tensor, hidden: Tensor | None, conv: _Conv) -> None:
    """Adds to x [T, D] its residual; fills `seen` [T + 2 pad, D] with relu(x), but for its ends, which are zero.

    `hidden` [T, H], if given, is filled with what lies between the two convolutions.
    """
    pad = (len(seen) - len(x)) // 2
    torch.clamp(x, min=0, out=seen[pad : pad + len(x)])
    for start, stop in _pieces(x, _PIECE):
        inner = conv.dilated(seen[pad + start - conv.reach : pad + stop + conv.reach])
        inner = torch.clamp(inner, min=0, out=inner if hidden is None else hidden[start:stop])
        x[start:stop].add_(conv.pointwise(inner))


def _backward(
    gradient: Tensor, seen: Tensor, hidden: Tensor, inner: Tensor, conv: _Conv, sums: Sequence[Tensor]
) -> None:
    """Turns the gradient [T, D] of what `_forward` made into that of its input; adds the parameters' to `sums`.

    `inner` [T + 2 reach, H], zero at its ends, is filled with the gradient between the two convolutions.
    """
    weight, bias, out_weight, out_bias = sums
    reach, back, out_back = conv.reach, conv.weight.flip(3).transpose(0, 1), conv.out_weight.transpose(0, 1)
    taps = weight if reach else weight[..., 1:2]
    for start, stop in _pieces(gradient, _PIECE_BACK):
        outside, held, within = gradient[start:stop], hidden[start:stop], inner[reach + start : reach + stop]
        _unrectified(convolve(outside, out_back, None), held, 0, grad_input=within)
        bias.add_(within.sum(0))
        out_bias.add_(outside.sum(0))
        out_weight.add_(weight_gradient(held, outside, out_weight, 0))
    for start, stop in _pieces(gradient, _PIECE_BACK):
        around, within = slice(start, stop + 2 * reach), slice(reach + start, reach + stop)
        before = convolve(inner[around], back, None, reach)
        gradient[start:stop].add_(_unrectified(before, seen[within], 0, grad_input=before))
        taps.add_(weight_gradient(seen[around], inner[within], taps, reach))


def _convs(parameters: Sequence[Tensor], dilations: Sequence[int], length: int) -> list[_Conv]:
    convs = []
    for index, dilation in enumerate(dilations):
        weight, bias, out_weight, out_bias = parameters[_KINDS * index : _KINDS * (index + 1)]
        reach = dilation if dilation < length else 0
        convs.append(_Conv(weight if reach else weight[..., 1:2], bias, out_weight, out_bias, reach))
    return convs


def _pieces(x: Tensor, numbers: int) -> Iterator[tuple[int, int]]:
    """Start and stop of pieces of x [T, D] of so many numbers."""
    length, dim = x.shape
    step = max(1, numbers // dim)
    for start in range(0, length, step):
        yield start, min(start + step, length)
