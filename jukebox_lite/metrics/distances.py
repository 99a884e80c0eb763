"""How far a reconstruction is from its original: in spectra as DAC is judged by, and in the waveform."""

from functools import cache

import torch
from einops import rearrange
from torch import Tensor

from jukebox_lite.losses import magnitude, mel_filters
from jukebox_lite.metrics.codecs import spectral_convergence

_WINDOWS = {2048: 150, 512: 80}  # and their mels: audiotools' defaults, which DAC is evaluated with
_POWER_FLOOR = 1e-5  # below the logarithm
_SILENCE = 1e-10  # mean square of a clip that has no ratio of signal to distortion, -100 dBFS


def measure(prediction: Tensor, target: Tensor, sample_rate: int) -> dict[str, Tensor]:
    """Audio [B, C, N] twice -> spectral convergence (a ratio), mel and STFT distance, SI-SDR in dB, each [].

    Of stereo the panning as well. All in full precision. Lower is better, but for SI-SDR.
    """
    with torch.autocast(target.device.type, enabled=False):
        prediction, target = prediction.float(), target.float()
        figures = {
            "spectral_convergence": spectral_convergence(prediction, target),
            "mel_distance": mel_distance(prediction, target, sample_rate),
            "stft_distance": stft_distance(prediction, target),
            "si_sdr": si_sdr(prediction, target),
        }
        return figures | ({"panning_error": panning_error(prediction, target)} if target.shape[1] == 2 else {})


def stft_distance(prediction: Tensor, target: Tensor) -> Tensor:
    """Audio [B, C, N] twice -> [], summed over windows of 2048 and 512, hop a quarter.

    Each window gives the mean difference of magnitudes, and that of their squares' log10 (DAC, Kumar et al.
    2023; audiotools' MultiScaleSTFTLoss). Taken at the audio's own rate; DAC's figures are of 44.1 and of 22.05 kHz.
    """
    distance = target.new_zeros(())
    for size in _WINDOWS:
        distance = distance + _spectral(*(magnitude(audio, _window(size, target)) for audio in (prediction, target)))
    return distance


def mel_distance(prediction: Tensor, target: Tensor, sample_rate: int) -> Tensor:
    """As `stft_distance`, of 150 mels at 2048 and 80 at 512 (audiotools' MelSpectrogramLoss). Audio [B, C, N] -> []"""
    distance = target.new_zeros(())
    for size, num_mels in _WINDOWS.items():
        window, filters = _window(size, target), _filters(sample_rate, size, num_mels).to(target.device)
        distance = distance + _spectral(*(filters @ magnitude(audio, window) for audio in (prediction, target)))
    return distance


def si_sdr(prediction: Tensor, target: Tensor) -> Tensor:
    """Audio [B, C, N] twice -> [], the mean over clips of the scale-invariant signal-to-distortion ratio in dB.

    The target is scaled to come nearest to the prediction; their means are taken off first, and a clip's channels are
    one signal (Le Roux et al. 2019; the means as in auraloss and audiotools). Clips of silence are left out, and a
    clip that has nothing of its target counts as -80 dB.
    """
    loud = target.flatten(1).square().mean(1) > _SILENCE
    found, wanted = (audio.flatten(1) - audio.flatten(1).mean(1, keepdim=True) for audio in (prediction, target))
    scaled = wanted * ((found * wanted).sum(1) / wanted.square().sum(1).clamp(min=1e-12))[:, None]
    ratio = scaled.square().sum(1) / (found - scaled).square().sum(1).clamp(min=1e-12)
    return (10 * ratio.clamp(min=1e-8).log10() * loud).sum() / loud.sum().clamp(min=1)


def panning_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Stereo [B, 2, N] twice -> [], how far a side is off: 0 as it was, 1 where hard left is the middle, 2 across.

    The mean of |p - p'| over windows of 2048 and frequencies, weighted by the target's power there; p, the panning of
    Avendano and Jot (2004) with its sign, is (|R|^2 - |L|^2) / (|R|^2 + |L|^2): -1 where all is left.
    """
    found, wanted = (_powers(audio) for audio in (prediction, target))
    weight = wanted.sum(1)
    off = (_side(found) - _side(wanted)).abs()
    return (off * weight).sum() / weight.sum().clamp(min=_SILENCE)


def _powers(stereo: Tensor) -> Tensor:
    """[B, 2, N] -> [B, 2, frequencies, frames]"""
    power = magnitude(stereo, _window(2048, stereo)).square()
    return rearrange(power, "(b c) f t -> b c f t", c=2)


def _side(power: Tensor) -> Tensor:
    """Left and right [B, 2, F, T] -> [B, F, T], from -1 to 1; 0 where there is nothing."""
    left, right = power.unbind(1)
    return (right - left) / (right + left).clamp(min=_SILENCE)


def _spectral(found: Tensor, wanted: Tensor) -> Tensor:
    """Two spectra of equal shape -> [], their mean difference in magnitude and in the log10 of the power."""
    logarithms = [spectrum.square().clamp(min=_POWER_FLOOR).log10() for spectrum in (found, wanted)]
    return (found - wanted).abs().mean() + (logarithms[0] - logarithms[1]).abs().mean()


def _window(size: int, like: Tensor) -> Tensor:
    return torch.hann_window(size, device=like.device)


@cache
def _filters(sample_rate: int, fft_size: int, num_mels: int) -> Tensor:
    return mel_filters(sample_rate, fft_size, num_mels)
