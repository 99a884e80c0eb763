"""What a reconstruction lacks: in the waveform, and in short-time spectra of several resolutions."""

import torch
from einops import rearrange
from torch import Tensor, nn

from jukebox_lite.errors import InputError


class WaveformL2(nn.Module):
    """Mean squared error, as a share of the target's own power (Jukebox divides by the data set's)."""

    def __init__(self, power_floor: float = 1e-4):
        super().__init__()
        self.power_floor = power_floor  # about -40 dBFS: silence is not worth more than that

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Audio [B, C, N] twice -> []"""
        return (prediction - target).square().mean() / target.square().mean().clamp(min=self.power_floor)


class MultiResolutionSTFT(nn.Module):
    """Spectral convergence and log-magnitude distance at several resolutions, averaged (Yamamoto et al. 2020, 3.1).

    Jukebox sums linear magnitudes only (section 3.2); the logarithm makes quiet high partials count as well.
    """

    def __init__(self, fft_sizes: list[int], magnitude_floor: float = 1e-3):
        super().__init__()
        self.magnitude_floor = magnitude_floor
        self.windows = nn.ParameterList(
            nn.Parameter(torch.hann_window(size), requires_grad=False) for size in fft_sizes
        )

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Audio [B, C, N] twice -> []"""
        loss = prediction.new_zeros(())
        for window in self.windows:
            found, wanted = self.magnitude(prediction, window), self.magnitude(target, window)
            loss = loss + (found - wanted).norm() / wanted.norm().clamp(min=self.magnitude_floor)
            loss = loss + (found.log() - wanted.log()).abs().mean()
        return loss / len(self.windows)

    def magnitude(self, audio: Tensor, window: Tensor) -> Tensor:
        """Audio [B, C, N] -> [B * C, frequencies, frames], hop a quarter of the window."""
        audio = rearrange(audio, "b c n -> (b c) n")
        size = len(window)
        spectrum = torch.stft(audio, size, size // 4, window=window, normalized=True, return_complex=True)
        power = spectrum.real.square() + spectrum.imag.square()
        return power.clamp(min=self.magnitude_floor**2).sqrt()


class WeightedSum(nn.Module):
    """Several losses of one reconstruction, by name, each with its weight.

    A weight is one number, or one by level name: a coarse level may be spared the phase, which its few codes cannot
    hold and a prior could not predict. What weighs 0 is not computed.
    """

    def __init__(self, terms: dict[str, nn.Module], weights: dict[str, float | dict[str, float]]):
        super().__init__()
        if set(terms) != set(weights):
            raise InputError(f"loss: terms {sorted(terms)} and weights {sorted(weights)} must name the same losses")
        self.terms, self.weights = nn.ModuleDict(terms), weights

    def forward(self, prediction: Tensor, target: Tensor, level: str) -> tuple[Tensor, dict[str, Tensor]]:
        """Audio [B, C, N] twice -> the level's weighted sum [] and its terms [] unweighted, in full precision."""
        weights = {name: _at(name, weight, level) for name, weight in self.weights.items()}
        with torch.autocast(target.device.type, enabled=False):
            prediction, target = prediction.float(), target.float()
            values = {name: term(prediction, target) for name, term in self.terms.items() if weights[name]}
        return torch.stack([weights[name] * value for name, value in values.items()]).sum(), values


def _at(name: str, weight: float | dict[str, float], level: str) -> float:
    """A loss's weight at a level."""
    if isinstance(weight, dict) and level not in weight:
        raise InputError(f"loss.weights.{name}: the codec has a level {level}; give its weight, or one for all levels")
    return weight[level] if isinstance(weight, dict) else weight
