"""Pictures of how a codec reconstructs (spectra, figures side by side, an example) and of how a prior predicts."""

import io
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from torch import Tensor

from jukebox_lite.files import write_bytes
from jukebox_lite.metrics.signal import power_spectrogram

_SOFTEST_DB = -100.0
_FEW_VALUES = 6  # of a setting, each of which has a tick of its own
_STRETCHES = 64  # of a window, over which a noisy curve is averaged


def draw_spectra(path: Path, spectra: Mapping[str, Tensor], sample_rate: int) -> None:
    """Writes a PNG of power spectra [F], 0 Hz to half the sample rate, by title, in decibels."""
    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for index, (title, power) in enumerate(spectra.items()):
        frequency = torch.linspace(0, sample_rate / 2, len(power))[1:]
        color = "black" if index == 0 else f"C{index - 1}"
        axes.plot(frequency.numpy(), _decibels(power[1:]), label=title, color=color, linewidth=1.0)
    axes.set(xscale="log", xlim=(30, sample_rate / 2), xlabel="Hz", ylabel="dB relative to the music's power")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    _save(figure, path)


def draw_bars(path: Path, figures: Mapping[str, Mapping[str, float]]) -> None:
    """Writes a PNG with a row of bars for each figure, from figures by title and then by name."""
    names = list(next(iter(figures.values())))
    columns = math.ceil(len(names) / 2)
    figure = Figure(figsize=(3.2 * columns, 5), dpi=150, layout="constrained")
    for place, name in enumerate(names, 1):
        axes = figure.add_subplot(2, columns, place)
        bars = axes.bar(list(figures), [each[name] for each in figures.values()], color="#4c8dd6")
        axes.bar_label(bars, fmt="%.3g", fontsize=8)
        axes.set_title(name, fontsize=9)
        axes.margins(y=0.2)
    _save(figure, path)


def draw_places(path: Path, nats: Sequence[float], chance: float, step_seconds: float) -> None:
    """Writes a PNG of nats per token by step of the window, as they are and as means over 64 stretches."""
    figure = Figure(figsize=(8, 4), dpi=150, layout="constrained")
    axes, values = figure.add_subplot(), np.asarray(nats)
    edges = np.unique(np.linspace(0, len(values), min(_STRETCHES, len(values)) + 1).round().astype(int))
    means = [values[start:end].mean() for start, end in pairwise(edges)]
    axes.plot(np.arange(len(values)) * step_seconds, values, color="#4c8dd6", alpha=0.3, linewidth=0.6)
    axes.stairs(means, edges * step_seconds, color="#4c8dd6", baseline=None, linewidth=1.5, label="mean")
    axes.axhline(chance, color="black", linestyle=":", linewidth=1.0, label="chance")
    axes.set(xlabel="seconds into the window", ylabel="nats per token", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    _save(figure, path)


def draw_values(path: Path, nats: Mapping[str, Mapping[str, float]], mean: float) -> None:
    """Writes a PNG with bars of nats per token by value, a picture below the other for each label."""
    heights = [1 + 0.25 * len(values) for values in nats.values()]
    figure = Figure(figsize=(8, sum(heights)), dpi=150, layout="constrained")
    grid = figure.subplots(len(nats), 1, squeeze=False, height_ratios=heights, sharex=True)[:, 0]
    for axes, (label, values) in zip(grid, nats.items(), strict=True):
        bars = axes.barh(list(values), list(values.values()), color="#4c8dd6")
        axes.bar_label(bars, fmt="%.3f", fontsize=8, padding=2)
        axes.axvline(mean, color="black", linestyle=":", linewidth=1.0)
        axes.invert_yaxis()
        axes.set_title(label, fontsize=9)
    grid[-1].set_xlabel("nats per token; dotted: mean of all songs")
    _save(figure, path)


def draw_spectrograms(path: Path, clips: Mapping[str, Tensor], sample_rate: int) -> None:
    """Writes a PNG of the spectrograms of audio [C, N] by title, one below the other, on one scale."""
    figure = Figure(figsize=(8, 2.2 * len(clips)), dpi=150, layout="constrained")
    image, grid = None, figure.subplots(len(clips), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (title, audio) in zip(grid, clips.items(), strict=True):
        seconds = audio.shape[-1] / sample_rate
        image = axes.imshow(
            _decibels(power_spectrogram(audio, sample_rate)),
            origin="lower",
            aspect="auto",
            extent=(0, seconds, 0, sample_rate / 2000),
            cmap="magma",
            vmin=_SOFTEST_DB,
            vmax=0,
        )
        axes.set(title=title, ylabel="kHz")
    grid[-1].set_xlabel("seconds")
    if image is not None:
        figure.colorbar(image, ax=list(grid), label="dBFS")
    _save(figure, path)


def draw_sweep(path: Path, scores: Sequence[float], settings: Mapping[str, Sequence[Any]]) -> None:
    """Writes a PNG of a sweep: the best score so far over `scores`, and the scores against each setting's values.

    Scores that are not finite are left out. A setting has one value a score, None where it has none; numbers that span
    a factor of 10 are on a logarithmic axis, and what are not numbers stand side by side.
    """
    columns = min(3, 1 + len(settings))
    rows = math.ceil((1 + len(settings)) / columns)
    figure = Figure(figsize=(4 * columns, 3 * rows), dpi=150, layout="constrained")
    known = np.array([score if math.isfinite(score) else np.nan for score in scores])
    axes = figure.add_subplot(rows, columns, 1)
    axes.plot(known, ".", color="#4c8dd6")
    axes.plot(np.fmin.accumulate(known), color="black", drawstyle="steps-post", linewidth=1.0)
    axes.set(xlabel="run, in the order of their starts", ylabel="score, and the best so far")
    for place, (name, values) in enumerate(settings.items(), 2):
        axes = figure.add_subplot(rows, columns, place)
        numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
        if len(numbers) == len(values):
            axes.plot(numbers, known, ".", color="#4c8dd6")
            if min(numbers) > 0 and max(numbers) >= 10 * min(numbers):
                axes.set_xscale("log")
                axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
            if len(set(numbers)) <= _FEW_VALUES:
                axes.set_xticks(sorted(set(numbers)))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter(NullFormatter())
        else:
            axes.plot([str(value) for value in values], known, ".", color="#4c8dd6")
        axes.set(xlabel=name)
        axes.grid(alpha=0.3)
    _save(figure, path)


def _decibels(power: Tensor) -> np.ndarray:
    return (10 * power.clamp(min=1e-12).log10()).numpy()


def _save(figure: Figure, path: Path) -> None:
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    write_bytes(path, drawn.getvalue())
