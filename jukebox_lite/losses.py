"""What a reconstruction lacks: in the waveform, and in short-time spectra of several resolutions."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from einops import rearrange
from torch import Tensor, nn

from jukebox_lite.errors import InputError


class ReconstructionLoss(nn.Module, ABC):
    """A distance between what it hears of a reconstruction and of its target."""

    @abstractmethod
    def features(self, audio: Tensor) -> list[Tensor]:
        """What it hears of audio [B, C, N]; of a target, computed once for all levels."""

    @abstractmethod
    def distance(self, found: list[Tensor], wanted: list[Tensor]) -> Tensor:
        """The features of the reconstruction and of the target -> []"""

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Audio [B, C, N] twice -> []"""
        return self.distance(self.features(prediction), self.features(target))


class WaveformL2(ReconstructionLoss):
    """Mean squared error, as a share of the target's own power (Jukebox divides by the data set's)."""

    def __init__(self, power_floor: float = 1e-4):
        super().__init__()
        self.power_floor = power_floor  # about -40 dBFS: silence is not worth more than that

    def features(self, audio: Tensor) -> list[Tensor]:
        return [audio]

    def distance(self, found: list[Tensor], wanted: list[Tensor]) -> Tensor:
        (prediction,), (target,) = found, wanted
        return (prediction - target).square().mean() / target.square().mean().clamp(min=self.power_floor)


class MultiResolutionSTFT(ReconstructionLoss):
    """Spectral convergence and log-magnitude distance at several resolutions, averaged (Yamamoto et al. 2020, 3.1).

    Jukebox sums linear magnitudes only (section 3.2); the logarithm makes quiet high partials count as well.
    """

    def __init__(self, fft_sizes: list[int], magnitude_floor: float = 1e-3):
        super().__init__()
        self.magnitude_floor = magnitude_floor
        self.windows = nn.ParameterList(
            nn.Parameter(torch.hann_window(size), requires_grad=False) for size in fft_sizes
        )

    def features(self, audio: Tensor) -> list[Tensor]:
        """Audio [B, C, N] -> magnitudes [B * C, frequencies, frames] by resolution, hop a quarter of the window."""
        audio = rearrange(audio, "b c n -> (b c) n")
        return [self.magnitude(audio, window) for window in self.windows]

    def distance(self, found: list[Tensor], wanted: list[Tensor]) -> Tensor:
        loss = found[0].new_zeros(())
        for each, target in zip(found, wanted, strict=True):
            loss = loss + (each - target).norm() / target.norm().clamp(min=self.magnitude_floor)
            loss = loss + (each.log() - target.log()).abs().mean()
        return loss / len(wanted)

    def magnitude(self, audio: Tensor, window: Tensor) -> Tensor:
        size = len(window)
        spectrum = torch.stft(audio, size, size // 4, window=window, normalized=True, return_complex=True)
        power = spectrum.real.square() + spectrum.imag.square()
        return power.clamp(min=self.magnitude_floor**2).sqrt()


class WeightedSum(nn.Module):
    """Several losses of one reconstruction, by name, each with its weight.

    A weight is one number, or one by level name: a coarse level may be spared the phase, which its few codes cannot
    hold and a prior could not predict. What weighs 0 is not computed.
    """

    def __init__(self, terms: dict[str, ReconstructionLoss], weights: dict[str, float | dict[str, float]]):
        super().__init__()
        if set(terms) != set(weights):
            raise InputError(f"loss: terms {sorted(terms)} and weights {sorted(weights)} must name the same losses")
        self.terms, self.weights = nn.ModuleDict(terms), weights

    def forward(self, predictions: Mapping[str, Tensor], target: Tensor) -> dict[str, tuple[Tensor, dict[str, Tensor]]]:
        """Each level's audio [B, C, N] and the target's -> by level, the weighted sum [] and its terms [] unweighted.

        All in full precision.
        """
        values: dict[str, dict[str, Tensor]] = {level: {} for level in predictions}
        totals = {level: target.new_zeros((), dtype=torch.float32) for level in predictions}
        with torch.autocast(target.device.type, enabled=False):
            for name, term in self.terms.items():
                weights = {level: _at(name, self.weights[name], level) for level in predictions}
                if not any(weights.values()):
                    continue
                assert isinstance(term, ReconstructionLoss)
                wanted = term.features(target.float())
                for level, weight in weights.items():
                    if weight:
                        value = term.distance(term.features(predictions[level].float()), wanted)
                        totals[level] = totals[level] + weight * value
                        values[level][name] = value
        return {level: (totals[level], values[level]) for level in predictions}


def _at(name: str, weight: float | dict[str, float], level: str) -> float:
    """A loss's weight at a level."""
    if isinstance(weight, dict) and level not in weight:
        raise InputError(f"loss.weights.{name}: the codec has a level {level}; give its weight, or one for all levels")
    return weight[level] if isinstance(weight, dict) else weight
