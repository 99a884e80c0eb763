"""Whether guidance makes a label heard: `python -m benchmarks.labels runs/demo/top --label genre`

A probe that has never met the prior says which value of the label a window has: logistic regression on how often each
code occurs, fitted to the run's training songs, judged by real windows of its held-out songs. Then windows are sampled
that are told a value each, at several strengths of guidance and with equal noise, and the probe names what it hears.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from jukebox_lite import config
from jukebox_lite.datasets.code_windows import CodeWindows
from jukebox_lite.errors import InputError, told_in_one_line
from jukebox_lite.generation.windows import windows as spans_of
from jukebox_lite.levels import Window
from jukebox_lite.priors.base import Prior, Sampler
from jukebox_lite.training.load import load_prior
from jukebox_lite.training.score import own_songs


def main() -> None:
    """Fits the probe, samples, and prints how often it hears what was asked for."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("run", type=Path, help="the run of a top prior")
    parser.add_argument("--label", default="genre")
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 2.0, 4.0])
    parser.add_argument("--windows", type=int, default=32, help="sampled for each value and strength")
    parser.add_argument("--temperature", type=float, default=1.0)
    with told_in_one_line():
        run(parser.parse_args())


def run(arguments: argparse.Namespace) -> None:
    """Does what the command line says."""
    prior, codec = load_prior(str(arguments.run))
    label, facts = arguments.label, prior.facts
    if facts.above or len(facts.vocabulary.get(label, ())) < 3:
        raise InputError(f"{arguments.run}: expected a top prior that learnt two values or more of --label={label}")
    folder = config.read(arguments.run / "config.yaml").windows.folder
    data = CodeWindows(own_songs(arguments.run), 1, folder, list(facts.vocabulary), codec)
    learnt, real = (_windows(prior, data, split, label) for split in ("train", "val"))
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000))
    probe.fit(_histograms(prior, learnt), learnt.labels[label][:, 0])
    console, chance = Console(), 1 / (len(facts.vocabulary[label]) - 1)
    console.print(f"{label}: {', '.join(facts.vocabulary[label][1:])}; chance {chance:.0%}")
    table = Table("windows", "number", "told", "heard by the probe")
    heard = probe.score(_histograms(prior, real), real.labels[label][:, 0])
    table.add_row("real, held out", f"{len(real.labels[label])}", "", f"{heard:.1%}")
    values = torch.arange(1, len(facts.vocabulary[label])).repeat_interleave(arguments.windows)
    asked = _asked(real, label, values)
    noise = torch.rand(len(values), facts.level.channels, prior.context_length, generator=torch.manual_seed(0))
    cases = [("untold", facts.untold(asked, [label]), 1.0)]
    cases += [(f"guidance {guidance:g}", asked, guidance) for guidance in arguments.guidance]
    for name, window, guidance in cases:
        codes = prior.sample(window, Sampler(arguments.temperature, guidance=guidance), noise)
        heard = probe.score(_histograms(prior, Window({facts.level.name: codes})), values)
        table.add_row("sampled", f"{len(values)}", name, f"{heard:.1%}")
    console.print(table)


def _windows(prior: Prior, data: CodeWindows, split: str, label: str) -> Window:
    """Every window of the songs of a split that have one value of the label, side by side."""
    picks = [
        (song, start)
        for song in data.cache.songs
        if song.name in data.names[split] and len(data.known(song.name, label, prior.facts)) == 1
        for start, end in spans_of(song.length, prior.context_length, 0.0)
        if end - start == prior.context_length
    ]
    return data.cut(picks, prior.facts, prior.context_length)


def _asked(real: Window, label: str, values: Tensor) -> Window:
    """Windows without codes that are told these values, and of all else what the real ones in turn are told."""
    rows = torch.arange(len(values)) % len(real.labels[label])
    labels = {name: told[rows] for name, told in real.labels.items()}
    return Window({}, labels | {label: values[:, None]})


def _histograms(prior: Prior, window: Window) -> np.ndarray:
    """How often each code of each codebook occurs in each window [B, K * V], in square roots."""
    codes, size = window.codes[prior.facts.level.name], prior.facts.level.codebook_size
    counts = torch.zeros(*codes.shape[:2], size).scatter_add_(2, codes, torch.ones(codes.shape))
    return counts.sqrt().flatten(1).numpy()


if __name__ == "__main__":
    main()
