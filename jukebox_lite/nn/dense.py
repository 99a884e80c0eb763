"""Linear maps on a CPU, in the form that is fastest there: of many vectors, or of a few in a compiled graph."""

from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import register_flop_formula

from jukebox_lite.nn.device import MULTIPLIES_WIDE, is_plain

_ONEDNN = torch.backends.mkldnn.is_available()
_FASTER = _ONEDNN and MULTIPLIES_WIDE
_FEW = 8  # vectors that a compiled loop multiplies a weight with faster than a library does
_LEAST = 1 << 13  # numbers of x below which preparing oneDNN's product takes longer than it saves


class Linear(nn.Linear):
    """[..., D] -> [..., D'], with torch's parameters and numbers, but for rounding."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., D] by weight [D', D], with bias [D'] -> [..., D'].

    torch multiplies matrices on a CPU with MKL; oneDNN, which it has too, takes half the time on AMD's CPUs that have
    AVX-512, and more on those that have not. A compiler's own loop is faster than either for a few vectors.
    """
    if are_few_compiled_vectors(x):
        y = compiled_product(x, weight)
        return y if bias is None else y + bias
    if not _FASTER or x.numel() < _LEAST or not is_plain(x):
        return F.linear(x, weight, bias)
    return _Linear.apply(x.reshape(-1, x.shape[-1]), weight, bias).reshape(*x.shape[:-1], -1)


class _Linear(torch.autograd.Function):
    """x [N, D] by weight [D', D], with bias [D'] -> [N, D'], and its gradients: all three products by oneDNN."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous()  # with gaps, as that of a slice, oneDNN takes hundreds of times longer
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            _product(gradient, weight.T) if of_x else None,
            _weight_gradient(x, gradient) if of_weight else None,
            gradient.sum(0) if of_bias else None,
        )


def _weight_gradient(x: Tensor, gradient: Tensor) -> Tensor:
    """x [N, D] and the gradient [N, D'] of its product with a weight -> that of the weight, [D', D].

    What comes first in a product is copied, where it is a transpose: best the narrower of the two.
    """
    if x.shape[1] < gradient.shape[1]:
        return _product(x.T, gradient.T).T
    return _product(gradient.T, x.T)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [N, D] by weight [D', D], with bias [D'] -> [N, D'], by oneDNN."""
    if torch.compiler.is_compiling():
        return _opaque(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@torch.library.custom_op("jukebox_lite::product", mutates_args=())
def _opaque(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The same as a compiler calls it, which would take it only with weights that never change."""
    return _product(x, weight, bias)


@_opaque.register_fake
def _(x: Tensor, weight: Tensor, *_: Any) -> Tensor:
    return x.new_empty(len(x), len(weight))


def _flop(x_shape: tuple[int, ...], weight_shape: tuple[int, ...], *_: Any, **__: Any) -> int:
    """Of `_product`, for torch's counter, which does not know it."""
    return 2 * prod(x_shape) * weight_shape[0]


if _ONEDNN:
    register_flop_formula([torch.ops.mkldnn._linear_pointwise, torch.ops.jukebox_lite.product])(_flop)


def are_few_compiled_vectors(x: Tensor) -> bool:
    """Whether a product of x [..., D] with a weight is best left to the compiler: `compiled_product`."""
    return torch.compiler.is_compiling() and x.device.type == "cpu" and 0 < x.numel() <= _FEW * x.shape[-1]


def compiled_product(x: Tensor, weight: Tensor) -> Tensor:
    """x [..., D] by weight [D', D] -> [..., D'], as sums that a compiler makes one loop of, which reads it once."""
    return torch.stack([(row * weight).sum(-1) for row in x.reshape(-1, x.shape[-1])]).reshape(*x.shape[:-1], -1)
