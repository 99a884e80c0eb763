"""Strided convolutions and dilated residual stacks between a waveform and a level's latent (Jukebox, appendix B.1).

Inside, a sequence [B, D, T] is an image of height 1 (nn/convolution.py). Residual stacks, which are nearly all of the
work, go through time in pieces on a CPU (nn/residual.py).
"""

from collections.abc import Sequence
from functools import partial
from math import prod

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from jukebox_lite.errors import InputError
from jukebox_lite.nn.convolution import Conv, convolution, image, rows
from jukebox_lite.nn.device import is_plain
from jukebox_lite.nn.residual import residuals

_LITTLE = 1 << 20  # numbers that a cache holds anyway: to cut them in pieces takes up to twice the time


class StridedConv(nn.Conv2d):
    """Kernel 2 * stride and padding stride / 2, the stride even. [B, D, 1, T] -> [B, D', 1, T / stride].

    A stride's steps lie side by side in memory: taken as one step of as many times the features, the kernel is 2 and
    the stride 1, of which the gradients are found in two thirds of the time.
    """

    def __init__(self, dim: int, out_dim: int, stride: int):
        super().__init__(dim, out_dim, (1, 2 * stride), (1, stride), (0, stride // 2))

    def forward(self, x: Tensor) -> Tensor:
        step = self.stride[-1]
        padded = F.pad(rows(x), (0, 0, step // 2, step // 2 - x.shape[-1] % step))
        weight = rearrange(self.weight, "o d 1 (k s) -> o (s d) 1 k", s=step).contiguous()
        return convolution(image(rearrange(padded, "b (t s) d -> b t (s d)", s=step)), weight, self.bias)


class TransposedConv(nn.ConvTranspose2d):
    """The way back from a StridedConv. [B, D, 1, T] -> [B, D', 1, T * stride].

    Likewise: a convolution of kernel 2 gives all features of a stride's steps at once, and these are laid out in time.
    """

    def __init__(self, dim: int, out_dim: int, stride: int):
        super().__init__(dim, out_dim, (1, 2 * stride), (1, stride), (0, stride // 2))

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]  its output_size
        step = self.stride[-1]
        weight = rearrange(self.weight, "d o 1 (k s) -> (s o) d 1 k", s=step).flip(-1)
        bias = None if self.bias is None else self.bias.repeat(step)
        steps = rearrange(rows(convolution(x, weight, bias, padding=1)), "b t (s o) -> b (t s) o", s=step)
        return image(steps[:, step // 2 : step // 2 + step * x.shape[-1]])


class Snake(nn.Module):
    """x + sin(alpha x)^2 / alpha: what repeats in x it can go on with, a rectifier cannot (Ziyin et al. 2020).

    alpha, the frequency, is learnt for every feature, from 1 (DAC, Kumar et al. 2023, section 3.1).
    """

    def __init__(self, dim: int):
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(dim, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, 1, T] -> [B, D, 1, T]"""
        return x + (self.alpha * x).sin().square() / self.alpha.clamp(min=1e-4)


def activation(name: str, dim: int) -> nn.Module:
    """The function between convolutions, by its name."""
    kinds = {"relu": nn.ReLU, "snake": partial(Snake, dim)}
    if name not in kinds:
        raise InputError(f"codec.activation={name}: give one of {', '.join(kinds)}")
    return kinds[name]()


class ResidualConv(nn.Module):
    """x + scale * conv1(f(conv3(f(x)))), the inner one dilated; f the activation. [B, D, 1, T] -> [B, D, 1, T]."""

    def __init__(self, dim: int, inner_dim: int, dilation: int, function: str, scale: float):
        super().__init__()
        self.scale = scale
        self.before, self.between = activation(function, dim), activation(function, inner_dim)
        self.dilated = Conv(dim, inner_dim, 3, padding=dilation, dilation=dilation)
        self.pointwise = Conv(inner_dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(x, self.pointwise(self.between(self.dilated(self.before(x)))), alpha=self.scale)


class ResidualStack(nn.Sequential):
    """Residual convolutions of these dilations, one after the other. [B, D, 1, T] -> [B, D, 1, T]."""

    def __init__(self, dim: int, inner_dim: int, dilations: Sequence[int], function: str = "relu", scale: float = 1.0):
        super().__init__(*(ResidualConv(dim, inner_dim, dilation, function, scale) for dilation in dilations))
        self.rectifies, self.scale = function == "relu", scale

    def forward(self, x: Tensor) -> Tensor:
        """The same numbers in pieces where they are faster: many, rectified, on a CPU, in full precision and eager."""
        if x.numel() <= _LITTLE or not self.rectifies or not is_plain(x) or torch.compiler.is_compiling():
            return super().forward(x)
        parameters = list(self.parameters())
        if self.scale != 1:  # of the pointwise weight and bias, which come after the dilated ones
            parameters = [each * self.scale if i % 4 > 1 else each for i, each in enumerate(parameters)]
        return image(residuals(rows(x), parameters, self.dilations))

    @property
    def dilations(self) -> list[int]:
        """Of each convolution, in order."""
        return [
            conv.dilation[-1] for conv in self.modules() if isinstance(conv, nn.Conv2d) and conv.kernel_size[-1] > 1
        ]


class ConvStack(nn.Sequential):
    """Stages that are convolutions along time. [B, D, T] -> [B, D', T']."""

    def forward(self, x: Tensor) -> Tensor:
        x = image(rearrange(x, "b d t -> b t d"))
        for stage in self:
            x = stage(x)
        return rearrange(x, "b d 1 t -> b d t")


class Encoder(ConvStack):
    """Audio [B, C, N] -> latent [B, D, N / hop]; one group of strides per level passed, from the finest on.

    Strides are even: with kernel 2 * stride and padding stride / 2 they divide the length exactly.
    """

    def __init__(
        self,
        channels: int,
        latent_dim: int,
        dim: int,
        inner_dim: int,
        dilations: Sequence[int],
        strides: Sequence[Sequence[int]],
        function: str = "relu",
    ):
        super().__init__()
        self.halo = 0  # samples to either side of its own hop that a latent depends on
        hop, width = 1, channels
        for group in strides:
            for stride in group:
                self.append(StridedConv(width, dim, stride))
                self.append(ResidualStack(dim, inner_dim, dilations, function))
                self.halo += stride // 2 * hop
                hop, width = hop * stride, dim
                self.halo += sum(dilations) * hop
            self.append(Conv(dim, latent_dim, 3, padding=1))
            self.halo, width = self.halo + hop, latent_dim


class Decoder(ConvStack):
    """Latent [B, D, T] -> audio [B, C, T * hop], the encoder's mirror: `dilations` are gone through backwards."""

    def __init__(
        self,
        channels: int,
        latent_dim: int,
        dim: int,
        inner_dim: int,
        dilations: Sequence[int],
        strides: Sequence[Sequence[int]],
        function: str = "relu",
    ):
        super().__init__()
        self.halo = 1  # samples to either side from which a stretch of audio takes latents
        hop = prod(stride for group in strides for stride in group)
        for group in reversed(strides):
            self.append(Conv(latent_dim, dim, 3, padding=1))
            self.halo += hop
            for index, stride in reversed(list(enumerate(group))):
                self.append(ResidualStack(dim, inner_dim, dilations[::-1], function))
                self.append(TransposedConv(dim, dim if index else latent_dim, stride))
                self.halo += sum(dilations) * hop + 3 * hop // 2 - hop // stride
                hop //= stride
        self.append(Conv(latent_dim, channels, 3, padding=1))
