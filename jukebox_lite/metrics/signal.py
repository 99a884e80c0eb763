"""What can be measured of a waveform alone: level, clipping, and where its energy lies."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

SILENCE_DB = -120.0  # the decibels of silence, for which the logarithm has none
HELD_SECONDS = 0.2  # a strongest partial that stays as long is a held tone
_BLOCK = 1 << 18  # samples transformed at once
_FULL_SCALE = 1 - 2**-15  # the largest value of 16-bit audio


class SignalMeter:
    """Gathers what can be measured of audio that comes in pieces; its memory does not grow with the audio.

    Spectra are of frames of about 46 ms, a quarter of that apart. Audio of more than `max_frames` of them is shown
    by the mean power of as many stretches. `num_samples` is how long all pieces will be together.
    """

    def __init__(self, num_samples: int, sample_rate: int, max_frames: int = 1200) -> None:
        self._sample_rate, self._size = sample_rate, 2 ** round(math.log2(sample_rate * 0.046))
        self._hop, self._window = self._size // 4, torch.hann_window(self._size)
        self._num_frames = max(0, num_samples - self._size) // self._hop + 1
        self._sums = torch.zeros(self._size // 2 + 1, min(self._num_frames, max_frames))
        self._waiting = torch.zeros(0, 0)  # [C, n], the beginning of frames that the next piece completes
        self._frame = self._count = self._clipped = 0
        self._energy = self._peak = 0.0

    def add(self, audio: Tensor) -> None:
        """Takes the next piece [C, n] in [-1, 1]."""
        for block in audio.detach().float().cpu().split(_BLOCK, -1):
            self._count += block.numel()
            self._energy += float(block.square().sum(dtype=torch.float64))
            self._peak = max(self._peak, float(block.abs().max()))
            self._clipped += int((block.abs() >= _FULL_SCALE).sum())
            self._waiting = torch.cat([self._waiting, block], -1) if self._waiting.numel() else block
            self._take_frames()

    def power(self) -> Tensor:
        """Power [F, frames] from 0 Hz to half the sample rate, the mean of the channels.

        A full-scale sine has a power of 1, over the frequencies together.
        """
        if self._frame == 0:  # less than a frame in all
            self._waiting = functional.pad(self._waiting, (0, self._size - self._waiting.shape[-1]))
            self._take_frames()
        return self._sums / self._column(torch.arange(self._num_frames)).bincount().clamp(min=1)

    def figures(self) -> dict[str, float]:
        """As `describe` returns them."""
        power = self.power().mean(-1)
        frequency = torch.linspace(0, self._sample_rate / 2, len(power))
        mean_square = self._energy / self._count
        return {
            "rms_db": SILENCE_DB if mean_square <= 10 ** (SILENCE_DB / 10) else 10 * math.log10(mean_square),
            "peak": self._peak,
            "clipped_share": self._clipped / self._count,
            "spectral_centroid_hz": float((frequency * power).sum() / power.sum().clamp(min=1e-12)),
        }

    def _take_frames(self) -> None:
        """Adds the power of all frames that are complete to that of their stretch."""
        count = min((self._waiting.shape[-1] - self._size) // self._hop + 1, self._num_frames - self._frame)
        if count < 1:
            return
        taken = self._waiting[:, : (count - 1) * self._hop + self._size]
        spectrum = torch.stft(taken, self._size, self._hop, window=self._window, center=False, return_complex=True)
        power = spectrum.abs().square().mean(0) * (4 / (self._size * self._window.square().sum()))
        self._sums.index_add_(1, self._column(self._frame + torch.arange(count)), power)
        self._frame += count
        self._waiting = self._waiting[:, count * self._hop :].clone()

    def _column(self, frame: Tensor) -> Tensor:
        """The stretch [n] that frames [n] belong to."""
        return frame * self._sums.shape[1] // self._num_frames


def describe(audio: Tensor, sample_rate: int) -> dict[str, float]:
    """Of audio [C, N] in [-1, 1]: RMS in dB relative to full scale, peak, share of clipped samples, and the
    spectral centroid in Hz, weighted by energy (0 for silence).
    """
    meter = SignalMeter(audio.shape[-1], sample_rate)
    meter.add(audio)
    return meter.figures()


def power_spectrogram(audio: Tensor, sample_rate: int, max_frames: int = 1200) -> Tensor:
    """Power [F, frames] of audio [C, N], of at most `max_frames` frames, as `SignalMeter.power` gives it."""
    meter = SignalMeter(audio.shape[-1], sample_rate, max_frames)
    meter.add(audio)
    return meter.power()


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


def spectral_flux(audio: Tensor, places: Sequence[int], size: int = 1024) -> Tensor:
    """How much of the spectrum is new [places] in `size` samples about a place of audio [C, N], after those before it.

    The magnitudes that grew, as a share of all: 0 where nothing begins, 1 where sound begins after silence (spectral
    flux as onsets are found by it, Dixon 2006, as a share so that it does not depend on loudness).
    """
    window = torch.hann_window(size, device=audio.device)

    def magnitudes(start: int) -> Tensor:
        return torch.fft.rfft(audio[:, start : start + size] * window).abs()

    found = []
    for place in places:
        before, after = magnitudes(place - size), magnitudes(place - size // 2)  # a click at the place is in its middle
        found.append((after - before).relu().sum() / (after + before).sum().clamp(min=1e-9))
    return torch.stack(found)
