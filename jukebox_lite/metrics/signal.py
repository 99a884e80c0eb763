"""What can be measured of a waveform alone: level, clipping, and where its energy lies."""

import math

import torch
from torch import Tensor
from torch.nn import functional

SILENCE_DB = -120.0  # the decibels of silence, for which the logarithm has none
HELD_SECONDS = 0.2  # a strongest partial that stays as long is a held tone
_FULL_SCALE = 1 - 2**-15  # the largest value of 16-bit audio


def describe(audio: Tensor, sample_rate: int) -> dict[str, float]:
    """Of audio [C, N] in [-1, 1]: RMS in dB relative to full scale, peak, share of clipped samples, and the
    spectral centroid in Hz, weighted by energy (0 for silence).
    """
    audio = audio.detach().float().cpu()
    power = power_spectrogram(audio, sample_rate).mean(-1)
    frequency = torch.linspace(0, sample_rate / 2, len(power))
    mean_square = float(audio.square().mean())
    return {
        "rms_db": SILENCE_DB if mean_square <= 10 ** (SILENCE_DB / 10) else 10 * math.log10(mean_square),
        "peak": float(audio.abs().max()),
        "clipped_share": float((audio.abs() >= _FULL_SCALE).float().mean()),
        "spectral_centroid_hz": float((frequency * power).sum() / power.sum().clamp(min=1e-12)),
    }


def power_spectrogram(audio: Tensor, sample_rate: int, max_frames: int = 1200) -> Tensor:
    """Power [F, frames] of audio [C, N] from 0 Hz to half the sample rate, the mean of the channels.

    A full-scale sine has a power of 1, over the frequencies together. Frames are about 46 ms; in audio too long for
    `max_frames` at a quarter of that apart, they are spread evenly.
    """
    size = 2 ** round(math.log2(sample_rate * 0.046))
    if audio.shape[-1] < size:
        audio = functional.pad(audio, (0, size - audio.shape[-1]))
    hop = max(size // 4, math.ceil(audio.shape[-1] / max_frames))
    window = torch.hann_window(size)
    spectrum = torch.stft(audio, size, hop, window=window, center=False, return_complex=True)  # [C, F, frames]
    return spectrum.abs().square().mean(0) * (4 / (size * window.square().sum()))


def held_share(audio: Tensor, sample_rate: int) -> float:
    """Share of the time of audio [C, N] in which the strongest partial of 100 to 4,000 Hz is one held tone.

    Held is what moves by less than 0.6 semitones from one frame to the next, for HELD_SECONDS or longer. Noise of
    whatever spectrum has next to nothing of it, a chorale about 0.8, and a drone all: look at a spectrogram too.
    """
    size = 2 ** round(math.log2(sample_rate * 0.093))
    hop, bin_hz = size // 4, sample_rate / size
    spectrum = torch.stft(audio.float().mean(0), size, hop, window=torch.hann_window(size), return_complex=True).abs()
    lowest, highest = round(100 / bin_hz), round(4000 / bin_hz)
    strongest = spectrum[lowest:highest].argmax(0) + lowest
    moved = (12 * torch.log2(strongest[1:] / strongest[:-1])).abs() >= 0.6
    runs = torch.bincount(torch.cat([torch.zeros(1, dtype=torch.int64), moved.cumsum(0)]))
    return float(runs[runs * hop >= HELD_SECONDS * sample_rate].sum() / runs.sum())
