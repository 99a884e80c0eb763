"""What a reconstruction lacks: in the waveform, and in short-time spectra of several resolutions."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torchaudio.functional import melscale_fbanks

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
    """Mean squared error, as a share of the target's own power, or of `power`: Jukebox takes the data set's."""

    def __init__(self, power: float | None = None, power_floor: float = 1e-4):
        super().__init__()
        self.power = power
        self.power_floor = power_floor  # about -40 dBFS: silence is not worth more than that

    def features(self, audio: Tensor) -> list[Tensor]:
        return [audio]

    def distance(self, found: list[Tensor], wanted: list[Tensor]) -> Tensor:
        (prediction,), (target,) = found, wanted
        return (prediction - target).square().mean() / (self.power or _power(target, self.power_floor))


class WaveformL1(ReconstructionLoss):
    """Mean absolute error, as a share of the target's own mean, or of `mean`: Jukebox takes the data set's."""

    def __init__(self, mean: float | None = None, mean_floor: float = 1e-2):
        super().__init__()
        self.mean, self.mean_floor = mean, mean_floor

    def features(self, audio: Tensor) -> list[Tensor]:
        return [audio]

    def distance(self, found: list[Tensor], wanted: list[Tensor]) -> Tensor:
        (prediction,), (target,) = found, wanted
        return (prediction - target).abs().mean() / (self.mean or target.abs().mean().clamp(min=self.mean_floor))


class WaveformTopK(WaveformL2):
    """The squared error of the `count` worst samples of each clip, so that transients count (Jukebox, linf of lmix)."""

    def __init__(self, count: int = 2048, power: float | None = None, power_floor: float = 1e-4):
        super().__init__(power, power_floor)
        self.count = count

    def distance(self, found: list[Tensor], wanted: list[Tensor]) -> Tensor:
        (prediction,), (target,) = found, wanted
        errors = (prediction - target).square().flatten(1)
        worst = errors.topk(min(self.count, errors.shape[1]), sorted=False).values
        return worst.mean() / (self.power or _power(target, self.power_floor))


class MagnitudeDistance(ReconstructionLoss):
    """The norm of a clip's difference in linear magnitudes of the mono mix, averaged over resolutions (Jukebox, 3.2).

    A resolution is [fft_size, hop, window]. The norm is a share of the clip's own, nothing where that is under 2e-3
    (the spectral convergence), or of `norm`: Jukebox takes the data set's mean at [2048, 256, 1536], which grows with
    the clips' length.
    """

    def __init__(self, resolutions: list[list[int]], norm: float | None = None):
        super().__init__()
        self.resolutions, self.norm = [tuple(each) for each in resolutions], norm

    def features(self, audio: Tensor) -> list[Tensor]:
        """Audio [B, C, N] -> magnitudes [B, frequencies, frames] by resolution."""
        mono, spectra = audio.mean(1), []
        for fft_size, hop, size in self.resolutions:
            window = torch.hann_window(size, device=audio.device)
            spectra.append(torch.stft(mono, fft_size, hop, size, window, return_complex=True).abs())
        return spectra

    def distance(self, found: list[Tensor], wanted: list[Tensor]) -> Tensor:
        loss = found[0].new_zeros(())
        for each, target in zip(found, wanted, strict=True):
            difference = torch.linalg.vector_norm(each - target, dim=(1, 2))
            own = torch.linalg.vector_norm(target, dim=(1, 2))
            share = difference / self.norm if self.norm else difference * (own > 2e-3) / own.clamp(min=2e-3)
            loss = loss + share.mean()
        return loss / len(wanted)


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


class MultiScaleMel(ReconstructionLoss):
    """Mean distance of log10 mel magnitudes, summed over windows of many lengths (DAC, Kumar et al. 2023).

    Each of `fft_sizes` has its own of `num_mels`, and a hop of a quarter of it.
    """

    def __init__(self, sample_rate: int, fft_sizes: list[int], num_mels: list[int], magnitude_floor: float = 1e-5):
        super().__init__()
        if len(fft_sizes) != len(num_mels):
            raise InputError(f"loss: fft_sizes {fft_sizes} and num_mels {num_mels} must be as many: one for one")
        self.magnitude_floor = magnitude_floor
        filters = [mel_filters(sample_rate, size, count) for size, count in zip(fft_sizes, num_mels, strict=True)]
        self.windows = nn.ParameterList(nn.Parameter(torch.hann_window(size), False) for size in fft_sizes)
        self.filters = nn.ParameterList(nn.Parameter(each, False) for each in filters)

    def features(self, audio: Tensor) -> list[Tensor]:
        """Audio [B, C, N] -> log10 mel magnitudes [B * C, mels, frames] by window."""
        pairs = zip(self.filters, self.windows, strict=True)
        mels = [filters @ magnitude(audio, window) for filters, window in pairs]
        return [each.clamp(min=self.magnitude_floor).log10() for each in mels]

    def distance(self, found: list[Tensor], wanted: list[Tensor]) -> Tensor:
        return torch.stack([(each - target).abs().mean() for each, target in zip(found, wanted, strict=True)]).sum()


class MidSide(ReconstructionLoss):
    """Another loss of the middle (left + right) / 2 and of the side (left - right) / 2, each for itself, averaged.

    What the channels share is mostly louder than what sets them apart: taken left and right, a loss hears a lost
    panning as a small error (Steinmetz et al. 2021). Takes stereo only.
    """

    def __init__(self, term: ReconstructionLoss):
        super().__init__()
        self.term = term

    def features(self, audio: Tensor) -> list[Tensor]:
        """Audio [B, 2, N] -> the features of the middle, then those of the side."""
        if audio.shape[1] != 2:
            raise InputError(f"loss: MidSide takes 2 channels, not {audio.shape[1]}: set codec.channels=2, or drop it")
        left, right = audio.split(1, dim=1)
        return [*self.term.features((left + right) / 2), *self.term.features((left - right) / 2)]

    def distance(self, found: list[Tensor], wanted: list[Tensor]) -> Tensor:
        half = len(wanted) // 2
        middle, side = (self.term.distance(found[part], wanted[part]) for part in (slice(half), slice(half, None)))
        return (middle + side) / 2


@dataclass(frozen=True)
class Term:
    """One loss of a reconstruction, and how much it counts."""

    value: Tensor  # []
    weight: float


Terms = dict[str, Term]  # loss -> term


class WeightedTerms(nn.Module):
    """Several losses of one reconstruction, by name, each with its weight.

    A weight is one number, or one by level name: a coarse level may be spared the phase, which its few codes cannot
    hold and a prior could not predict. What weighs 0 is not computed.
    """

    def __init__(self, terms: dict[str, ReconstructionLoss], weights: dict[str, float | dict[str, float]]):
        super().__init__()
        if set(terms) != set(weights):
            raise InputError(f"loss: terms {sorted(terms)} and weights {sorted(weights)} must name the same losses")
        self.terms, self.weights = nn.ModuleDict(terms), weights

    def forward(self, predictions: Mapping[str, Tensor], target: Tensor) -> dict[str, Terms]:
        """Each level's audio [B, C, N] and the target's -> its terms by level, all in full precision."""
        found: dict[str, Terms] = {level: {} for level in predictions}
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
                        found[level][name] = Term(value, weight)
        return found


def weighted_sum(terms: Terms) -> Tensor:
    """Terms -> []"""
    return torch.stack([term.weight * term.value for term in terms.values()]).sum()


def balanced_sum(terms: Terms, heard: Tensor, prediction: Tensor) -> Tensor:
    """Terms of a prediction [B, C, N] -> [], their weighted sum, but with other gradients (EnCodec, section 3.4).

    The terms are those of `heard`, the prediction's values as a leaf of their own, and left no gradient there.

    A term's gradient with respect to the prediction is scaled to a norm of its share of the weights, whatever its
    own was: weights then say what counts, not the losses' units. EnCodec divides by moving averages of the norms, here
    it is by those of the batch itself, so that there is nothing to save or to share between processes.
    """
    whole, pull = sum(term.weight for term in terms.values()), torch.zeros_like(prediction, dtype=torch.float32)
    with torch.autocast(prediction.device.type, enabled=False):
        for term in terms.values():
            (gradient,) = torch.autograd.grad(term.value, heard, retain_graph=True)
            gradient = gradient.float()
            pull = pull + term.weight / whole * gradient / gradient.norm().clamp(min=1e-12)
        surrogate = (prediction.float() * pull).sum()
    return weighted_sum(terms).detach() + surrogate - surrogate.detach()


def _power(audio: Tensor, floor: float) -> Tensor:
    """Mean square of audio [B, C, N] -> [], at least `floor`."""
    return audio.square().mean().clamp(min=floor)


def magnitude(audio: Tensor, window: Tensor) -> Tensor:
    """Audio [B, C, N] -> magnitudes [B * C, frequencies, frames], not normalised; hop a quarter of the window."""
    audio, size = rearrange(audio, "b c n -> (b c) n"), len(window)
    return torch.stft(audio, size, size // 4, window=window, return_complex=True).abs()


def mel_filters(sample_rate: int, fft_size: int, num_mels: int) -> Tensor:
    """Triangles [mels, frequencies] up to half the sample rate, of equal area in Hz, on Slaney's scale: librosa's."""
    with warnings.catch_warnings(action="ignore"):  # where mels are narrower than frequencies, some hold none: no harm
        filters = melscale_fbanks(
            fft_size // 2 + 1, 0.0, sample_rate / 2, num_mels, sample_rate, norm="slaney", mel_scale="slaney"
        )
    return filters.T.contiguous()


def _at(name: str, weight: float | dict[str, float], level: str) -> float:
    """A loss's weight at a level."""
    if isinstance(weight, dict) and level not in weight:
        raise InputError(f"loss.weights.{name}: the codec has a level {level}; give its weight, or one for all levels")
    return weight[level] if isinstance(weight, dict) else weight
