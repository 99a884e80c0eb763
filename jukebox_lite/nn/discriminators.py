"""Networks that tell music from reconstructions: by periods, and by bands of the spectrum (DAC, Kumar et al. 2023)."""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from jukebox_lite.errors import InputError

Verdicts = list[list[Tensor]]  # by discriminator: its features [B, D, ...], layer by layer, and its scores [B, 1, ...]
_SLOPE = 0.1  # of the leaky rectifiers
_PEAK = 0.8  # to which a clip is scaled: it is not to be told by its loudness


class Discriminators(nn.Module):
    """One discriminator per period, and one per window of a complex spectrum.

    `bands` are the edges of the parts of a spectrum that have weights of their own, as shares of it from 0 to 1.
    """

    def __init__(self, channels: int, periods: list[int], fft_sizes: list[int], bands: list[float], dim: int):
        super().__init__()
        if bands != sorted(set(bands)) or (bands[0], bands[-1]) != (0, 1):
            raise InputError(f"discriminator.bands={bands}: give rising edges from 0.0 to 1.0")
        self.least_samples = max(fft_sizes)
        self.periods = nn.ModuleList(PeriodDiscriminator(channels, period, dim) for period in periods)
        self.spectra = nn.ModuleList(SpectrumDiscriminator(channels, size, bands, dim) for size in fft_sizes)

    def forward(self, audio: Tensor) -> Verdicts:
        """Audio [B, C, N], at least `least_samples` long -> what each sees in it"""
        audio = audio.float() - audio.float().mean((1, 2), keepdim=True)
        audio = _PEAK * audio / audio.abs().amax((1, 2), keepdim=True).clamp(min=1e-5)
        return [each(audio) for each in [*self.periods, *self.spectra]]


class PeriodDiscriminator(nn.Module):
    """Sees every `period`-th sample side by side, as an image that many wide (HiFi-GAN, Kong et al. 2020, 2.3)."""

    def __init__(self, channels: int, period: int, dim: int):
        super().__init__()
        self.period, widths = period, [channels, dim, 4 * dim, 16 * dim, 32 * dim, 32 * dim]
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv2d(width, out, (5, 1), (stride, 1), (2, 0)))
            for (width, out), stride in zip(pairwise(widths), [3, 3, 3, 3, 1], strict=True)
        )
        self.score = weight_norm(nn.Conv2d(widths[-1], 1, (3, 1), padding=(1, 0)))

    def forward(self, audio: Tensor) -> list[Tensor]:
        """Audio [B, C, N] -> features and scores [B, D, N', period]"""
        padded = F.pad(audio, (0, -audio.shape[-1] % self.period), mode="reflect")
        return _through(self.layers, self.score, rearrange(padded, "b c (n p) -> b c n p", p=self.period))


class SpectrumDiscriminator(nn.Module):
    """Sees a complex spectrum, real and imaginary parts side by side, each band with weights of its own."""

    window: Tensor  # [fft_size]

    def __init__(self, channels: int, fft_size: int, bands: Sequence[float], dim: int):
        super().__init__()
        self.register_buffer("window", torch.hann_window(fft_size), persistent=False)
        edges = [round(edge * (fft_size // 2 + 1)) for edge in bands]
        self.sizes = [stop - start for start, stop in pairwise(edges)]
        if 0 in self.sizes:
            raise InputError(f"discriminator: a band of {list(bands)} is empty in a spectrum of {fft_size} samples")
        self.bands = nn.ModuleList(_band(2 * channels, dim) for _ in self.sizes)
        self.score = weight_norm(nn.Conv2d(dim, 1, (3, 3), padding=(1, 1)))

    def forward(self, audio: Tensor) -> list[Tensor]:
        """Audio [B, C, N] -> features and scores [B, D, frames, frequencies]; each layer's bands side by side"""
        parts = self.spectrum(audio).split(self.sizes, dim=-1)
        seen = [
            _layers(layers, part)
            for layers, part in zip(self.bands, parts, strict=True)
            if isinstance(layers, nn.ModuleList)
        ]
        features = [torch.cat(each, dim=-1) for each in zip(*seen, strict=True)]
        return [*features, self.score(features[-1])]

    def spectrum(self, audio: Tensor) -> Tensor:
        """Audio [B, C, N] -> [B, 2 C, frames, frequencies], hop a quarter of the window."""
        size, batch = len(self.window), len(audio)
        with torch.autocast(audio.device.type, enabled=False):
            flat = rearrange(audio.float(), "b c n -> (b c) n")
            spectrum = torch.stft(flat, size, size // 4, window=self.window, normalized=True, return_complex=True)
        return rearrange(torch.view_as_real(spectrum), "(b c) f t i -> b (c i) t f", b=batch)


def _band(width: int, dim: int) -> nn.ModuleList:
    """Convolutions over frames and frequencies: wide in frequency, which three of them halve."""
    shapes = [(width, (3, 9), 1), *[(dim, (3, 9), 2)] * 3, (dim, (3, 3), 1)]
    return nn.ModuleList(
        weight_norm(nn.Conv2d(each, dim, kernel, (1, stride), (kernel[0] // 2, kernel[1] // 2)))
        for each, kernel, stride in shapes
    )


def _layers(layers: nn.ModuleList, x: Tensor) -> list[Tensor]:
    """Every layer's output, rectified."""
    features = []
    for layer in layers:
        x = F.leaky_relu(layer(x), _SLOPE)
        features.append(x)
    return features


def _through(layers: nn.ModuleList, score: nn.Module, x: Tensor) -> list[Tensor]:
    features = _layers(layers, x)
    return [*features, score(features[-1])]
