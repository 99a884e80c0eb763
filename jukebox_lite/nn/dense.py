"""Linear maps on a CPU, in the form that is fastest there: of many vectors, or of one in a compiled graph."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_weight

from jukebox_lite.nn.residual import LEAST, POINTWISE, convolve, image


class Linear(nn.Linear):
    """[..., D] -> [..., D'], with torch's parameters and numbers, but for rounding."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., D] by weight [D', D], with bias [D'] -> [..., D'].

    torch multiplies matrices on a CPU with MKL, and convolves with oneDNN, which takes half the time on AMD's CPUs. Of
    one vector MKL reads the weight at half the speed that the compiler's own loop does.
    """
    if is_a_compiled_vector(x):
        y = (x.reshape(-1) * weight).sum(-1)
        return (y if bias is None else y + bias).reshape(*x.shape[:-1], -1)
    plain = x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    if x.numel() <= LEAST or x.device.type != "cpu" or not plain or torch.compiler.is_compiling():
        return F.linear(x, weight, bias)
    return _Linear.apply(x.reshape(-1, x.shape[-1]), weight, bias).reshape(*x.shape[:-1], -1)


class _Linear(torch.autograd.Function):
    """x [N, D] by weight [D', D], with bias [D'] -> [N, D']: this product and those of its gradients by oneDNN."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return convolve(x, weight[:, :, None, None], bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            convolve(gradient, weight.T[:, :, None, None], None) if of_x else None,
            _of_weight(x, gradient) if of_weight else None,
            gradient.sum(0) if of_bias else None,
        )


def _of_weight(x: Tensor, gradient: Tensor) -> Tensor:
    """x [N, D] and the gradient [N, D'] of its product with a weight -> that of the weight [D', D]."""
    shape, dilation = (gradient.shape[1], x.shape[1], 1, 1), cast(Any, POINTWISE)  # torch's own hint says int
    return conv2d_weight(image(x[None]), shape, image(gradient[None]), dilation=dilation)[:, :, 0, 0]


def is_a_compiled_vector(x: Tensor) -> bool:
    """Whether a product of x [..., D] with a weight is best left to the compiler, as a loop over the weight's rows."""
    return torch.compiler.is_compiling() and x.device.type == "cpu" and x.numel() == x.shape[-1]
