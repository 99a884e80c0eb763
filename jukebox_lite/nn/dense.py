"""Linear maps on a CPU, in the form that is fastest there: of many vectors, or of one in a compiled graph."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jukebox_lite.nn.residual import LEAST, POINTWISE, image, rows


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
    y = F.conv2d(image(x.reshape(1, -1, x.shape[-1])), weight[:, :, None, None], bias, dilation=POINTWISE)
    return rows(y).reshape(*x.shape[:-1], -1)


def is_a_compiled_vector(x: Tensor) -> bool:
    """Whether a product of x [..., D] with a weight is best left to the compiler, as a loop over the weight's rows."""
    return torch.compiler.is_compiling() and x.device.type == "cpu" and x.numel() == x.shape[-1]
