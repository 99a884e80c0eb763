"""A page to listen on: players, pictures and figures, in one folder that needs no server."""

import io
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torchaudio.functional import melscale_fbanks

from jukebox_lite.audio import write
from jukebox_lite.files import write_bytes
from jukebox_lite.metrics.signal import describe, power_spectrogram

_NUM_MELS = 128
_COLUMNS = 1000  # of the drawn waveform
_LOUDEST_DB, _SOFTEST_DB = 0.0, -80.0  # one range for every clip, so that pictures can be compared
_TICKS_HZ = (250, 500, 1000, 2000, 4000, 8000, 16000)
_GREY = "#808896"  # reads on light and dark paper alike


@dataclass(frozen=True)
class Clip:
    """Something to hear."""

    title: str
    audio: Tensor  # [C, N] in [-1, 1]
    sample_rate: int  # Hz

    def __post_init__(self) -> None:
        if self.audio.ndim != 2 or not self.audio.numel():
            raise ValueError(
                f"clip '{self.title}' has audio {list(self.audio.shape)}, expected [C, N] with N of 1 or more"
            )


@dataclass(frozen=True)
class Section:
    """Clips that belong side by side, and figures about them."""

    title: str
    clips: Iterable[Clip]  # taken once, in turn: may be made as they are asked for
    figures: Mapping[str, str] = field(default_factory=dict)


def write_page(folder: Path, title: str, sections: Sequence[Section], settings: str = "") -> Path:
    """Writes a wav and a PNG for every clip, then index.html, and returns its path. Titles may hold anything."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for number, section in enumerate(sections, 1):
        clips = [_write_clip(folder, f"{number:02d}-{index:02d}", clip) for index, clip in enumerate(section.clips, 1)]
        entries.append({"title": section.title, "clips": clips, "figures": section.figures})
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.get_template("report.html.jinja")
    page = folder / "index.html"
    write_bytes(page, template.render(title=title, sections=entries, settings=settings).encode("utf-8", "replace"))
    return page


def _write_clip(folder: Path, number: str, clip: Clip) -> dict[str, str]:
    """Writes a clip's two files, and returns what the page says of it."""
    stem = f"{number}-{_slug(clip.title)}"
    waveform = clip.audio.detach().float().cpu()
    sound, image = folder / f"{stem}.wav", folder / f"{stem}.png"
    write(sound, waveform, clip.sample_rate)
    drawn = io.BytesIO()
    _draw(waveform, clip.sample_rate).savefig(drawn, format="png", transparent=True)
    write_bytes(image, drawn.getvalue())
    return {"title": clip.title, "facts": _facts(waveform, clip.sample_rate), "sound": sound.name, "image": image.name}


def _facts(audio: Tensor, sample_rate: int) -> str:
    """One line on audio [C, N]."""
    figures = describe(audio, sample_rate)
    parts = [
        f"{audio.shape[-1] / sample_rate:.2f} s",
        f"RMS {figures['rms_db']:.1f} dBFS",
        f"peak {figures['peak']:.2f}",
        f"centroid {figures['spectral_centroid_hz']:,.0f} Hz",
        *([f"{figures['clipped_share']:.2%} clipped"] if figures["clipped_share"] else []),
    ]
    return " · ".join(part.replace(" ", "\N{NO-BREAK SPACE}") for part in parts)


def _draw(audio: Tensor, sample_rate: int) -> Figure:
    """Waveform over log-mel spectrogram of audio [C, N], on axes that are the same for every clip."""
    seconds = audio.shape[-1] / sample_rate
    figure = Figure(figsize=(6.2, 3.5), dpi=160, layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=(1, 3), width_ratios=(60, 1))
    wave, mels, scale = (figure.add_subplot(place) for place in (grid[0, 0], grid[1, 0], grid[1, 1]))
    low, high = _envelope(audio)
    wave.fill_between(np.linspace(0, seconds, len(low)), low, high, color="#4c8dd6", linewidth=0.4)
    wave.set(xlim=(0, seconds), ylim=(-1, 1), yticks=(-1, 0, 1), xticks=())
    image = mels.imshow(
        _mel_decibels(audio, sample_rate).numpy(),
        origin="lower",
        aspect="auto",
        extent=(0, seconds, 0, _mel(sample_rate / 2)),
        cmap="magma",
        vmin=_SOFTEST_DB,
        vmax=_LOUDEST_DB,
        interpolation="bilinear",
    )
    ticks = [tick for tick in _TICKS_HZ if tick <= sample_rate / 2]
    labels = [f"{tick // 1000}k" if tick >= 1000 else str(tick) for tick in ticks]
    mels.set_yticks([_mel(tick) for tick in ticks], labels)
    mels.set(xlabel="seconds", ylabel="Hz")
    figure.colorbar(image, cax=scale, label="dBFS", ticks=np.arange(_SOFTEST_DB, _LOUDEST_DB + 1, 20))
    for axes in (wave, mels, scale):
        axes.tick_params(colors=_GREY, labelsize=8)
        axes.xaxis.label.set(color=_GREY, size=8)
        axes.yaxis.label.set(color=_GREY, size=8)
        axes.spines[:].set_visible(False)
    return figure


def _envelope(audio: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Least and greatest sample of audio [C, N] in each of at most _COLUMNS stretches."""
    width = -(-audio.shape[-1] // _COLUMNS)
    stretches = audio.T.split(width)
    low = torch.stack([stretch.min() for stretch in stretches])
    high = torch.stack([stretch.max() for stretch in stretches])
    return low.numpy(), high.numpy()


def _mel_decibels(audio: Tensor, sample_rate: int) -> Tensor:
    """Audio [C, N] as decibels [mels, frames]; a full-scale sine is at 0 where it lies on one mel."""
    power = power_spectrogram(audio, sample_rate)
    filters = melscale_fbanks(len(power), 0.0, sample_rate / 2, _NUM_MELS, sample_rate)  # triangles that peak at 1
    return 10 * (filters.T @ power).clamp(min=10 ** (_SOFTEST_DB / 10)).log10()


def _mel(frequency: float) -> float:
    """Hz as mels, by HTK's formula, which melscale_fbanks spaces its triangles by."""
    return 2595 * math.log10(1 + frequency / 700)


def _slug(title: str) -> str:
    """A title as part of a file name: lower-case ASCII letters, digits and hyphens, at most 48."""
    plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain)[:48].strip("-") or "clip"
