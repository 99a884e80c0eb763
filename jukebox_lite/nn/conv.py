"""Strided convolutions and dilated residual stacks between a waveform and a level's latent (Jukebox, appendix B.1)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ResidualConv(nn.Module):
    """x + conv1(relu(conv3(relu(x)))), the inner convolution dilated. [B, D, T] -> [B, D, T]."""

    def __init__(self, dim: int, dilation: int):
        super().__init__()
        self.dilated = nn.Conv1d(dim, dim, 3, padding=dilation, dilation=dilation)
        self.pointwise = nn.Conv1d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.pointwise(torch.relu(self.dilated(torch.relu(x))))


def residual_stack(dim: int, depth: int, dilation_growth: int, widest_first: bool = False) -> nn.Sequential:
    """`depth` residual convolutions, dilations 1, growth, growth^2, ... or the other way round."""
    dilations = [dilation_growth**i for i in range(depth)]
    return nn.Sequential(*(ResidualConv(dim, d) for d in (reversed(dilations) if widest_first else dilations)))


class Encoder(nn.Sequential):
    """Audio [B, C, N] -> latent [B, D, N / hop]; one group of strides per level passed, from the finest on.

    Strides are even: with kernel 2 * stride and padding stride / 2 they divide the length exactly.
    """

    def __init__(
        self,
        channels: int,
        latent_dim: int,
        dim: int,
        depth: int,
        dilation_growth: int,
        strides: Sequence[Sequence[int]],
    ):
        super().__init__()
        self.halo = 0  # samples to either side of its own hop that a latent depends on
        hop, width = 1, channels
        for group in strides:
            for stride in group:
                self.append(nn.Conv1d(width, dim, 2 * stride, stride, stride // 2))
                self.append(residual_stack(dim, depth, dilation_growth))
                self.halo += stride // 2 * hop
                hop, width = hop * stride, dim
                self.halo += sum(dilation_growth**i for i in range(depth)) * hop
            self.append(nn.Conv1d(dim, latent_dim, 3, padding=1))
            self.halo, width = self.halo + hop, latent_dim


class Decoder(nn.Sequential):
    """Latent [B, D, T] -> audio [B, C, T * hop], the encoder's mirror."""

    def __init__(
        self,
        channels: int,
        latent_dim: int,
        dim: int,
        depth: int,
        dilation_growth: int,
        strides: Sequence[Sequence[int]],
    ):
        super().__init__()
        for group in reversed(strides):
            self.append(nn.Conv1d(latent_dim, dim, 3, padding=1))
            for index, stride in reversed(list(enumerate(group))):
                self.append(residual_stack(dim, depth, dilation_growth, widest_first=True))
                self.append(nn.ConvTranspose1d(dim, dim if index else latent_dim, 2 * stride, stride, stride // 2))
        self.append(nn.Conv1d(latent_dim, channels, 3, padding=1))
