"""Pictures of a clip on one time axis, as PNGs of bounded size: waveform, mel spectrogram, codes."""

import io
import math

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.colors import hsv_to_rgb
from PIL import Image
from torch import Tensor
from torchaudio.functional import melscale_fbanks

COLUMNS = 1600  # at most, of every picture: a wide screen's worth
LOUDEST_DB, SOFTEST_DB = 0.0, -80.0  # one range for every clip, so that pictures can be compared
_WAVE_ROWS = 192
_NUM_MELS = 128
_TICKS_HZ = (500, 1000, 2000, 4000, 8000, 16000)
_WAVE_COLOR = (76, 141, 214)  # reads on light and dark paper alike
_PLASTIC = 1.2207440846057596  # root of x^4 = x + 1: its powers spread points evenly (Roberts, 2018, "R_3")


class Envelope:
    """The least and the greatest sample of each of at most COLUMNS stretches of audio that comes in pieces."""

    def __init__(self, num_samples: int) -> None:
        columns = min(COLUMNS, num_samples)
        self.low, self.high = torch.full((columns,), math.inf), torch.full((columns,), -math.inf)
        self._num_samples, self._taken = num_samples, 0

    def add(self, audio: Tensor) -> None:
        """Takes the next piece [C, n]."""
        place = torch.arange(self._taken, self._taken + audio.shape[-1]) * len(self.low) // self._num_samples
        self.low.scatter_reduce_(0, place, audio.amin(0), "amin")
        self.high.scatter_reduce_(0, place, audio.amax(0), "amax")
        self._taken += audio.shape[-1]


def draw_wave(low: Tensor, high: Tensor) -> bytes:
    """A PNG of an envelope: column c is filled from low [columns] to high [columns], -1 at the bottom, 1 on top."""
    rows = torch.arange(_WAVE_ROWS)[:, None]
    first, last = (((1 - edge.clamp(-1, 1)) / 2 * (_WAVE_ROWS - 1)).round() for edge in (high, low))
    image = Image.fromarray(((rows >= first) & (rows <= last)).numpy().astype(np.uint8))
    image.putpalette([*_WAVE_COLOR, *_WAVE_COLOR])
    return _png(image, transparency=0)


def draw_mels(power: Tensor, sample_rate: int) -> bytes:
    """A PNG of power [F, frames] from 0 Hz to half the sample rate, as decibels on the mel scale, low notes below."""
    filters = melscale_fbanks(len(power), 0.0, sample_rate / 2, _NUM_MELS, sample_rate)  # triangles that peak at 1
    decibels = 10 * (filters.T @ power).clamp(min=1e-12).log10()
    shade = ((decibels - SOFTEST_DB) / (LOUDEST_DB - SOFTEST_DB)).clamp(0, 1).mul(255).round()
    image = Image.fromarray(shade.flip(0).numpy().astype(np.uint8))
    image.putpalette((colormaps["magma"](np.arange(256))[:, :3] * 255).round().astype(np.uint8).tobytes())
    return _png(image)


def draw_codes(codes: Tensor) -> bytes:
    """A PNG of codes [K, T]: a row a codebook, a column a step, or every so many steps where T exceeds COLUMNS."""
    columns = min(codes.shape[-1], COLUMNS)
    shown = codes.cpu()[:, torch.arange(columns) * codes.shape[-1] // columns]
    return _png(Image.fromarray(code_colors(shown)))


def code_colors(codes: Tensor) -> np.ndarray:
    """RGB [..., 3] uint8 of codes [...]: a colour of its own for each of the first 65,536.

    Codes are names, not amounts: neighbours get colours that are far apart, so that one held is told from one changing.
    """
    spread = codes.numpy()[..., None] / _PLASTIC ** np.arange(1, 4) % 1.0
    return (hsv_to_rgb(spread * (1, 0.5, 0.5) + (0, 0.3, 0.5)) * 255).round().astype(np.uint8)


def frequency_ticks(sample_rate: int) -> list[tuple[str, float]]:
    """Labels in Hz beside a spectrogram, and how far up each is, from 0 to 1."""
    top = _mel(sample_rate / 2)
    ticks = [tick for tick in _TICKS_HZ if _mel(tick) < 0.97 * top]
    return [(f"{tick // 1000}k" if tick >= 1000 else str(tick), _mel(tick) / top) for tick in ticks]


def time_ticks(seconds: float) -> list[tuple[str, float]]:
    """At most seven labels of a time axis from 0, a round number apart, and how far along each is, from 0 to 1."""
    spacing = next((step for step in _spacings() if seconds / step <= 6), seconds)
    return [(clock(i * spacing, spacing), i * spacing / seconds) for i in range(math.floor(seconds / spacing) + 1)]


def clock(seconds: float, spacing: float = 1.0) -> str:
    """Minutes and seconds, 1:05, with as many decimals as labels that are `spacing` seconds apart need."""
    decimals = max(0, -math.floor(math.log10(spacing) + 1e-9))
    minutes, rest = divmod(round(seconds, decimals), 60)
    return f"{minutes:.0f}:{rest:0{2 + (decimals > 0) + decimals}.{decimals}f}"


def _spacings() -> list[float]:
    """Round numbers of seconds, ascending."""
    return [*(m * 10**e for e in (-3, -2, -1, 0) for m in (1, 2, 5)), 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600]


def _mel(frequency: float) -> float:
    """Hz as mels, by HTK's formula, which melscale_fbanks spaces its triangles by."""
    return 2595 * math.log10(1 + frequency / 700)


def _png(image: Image.Image, **how: int) -> bytes:
    drawn = io.BytesIO()
    image.save(drawn, format="png", optimize=True, **how)
    return drawn.getvalue()
