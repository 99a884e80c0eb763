"""The main job, end to end, on the music that comes with the project. `python -m jukebox_lite.demo`, or `make demo`"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import soundfile
import torch
from rich.console import Console
from rich.table import Table

from jukebox_lite.datasets.chorales import prepare_chorales
from jukebox_lite.files import write_text
from jukebox_lite.metrics.codecs import decibels
from jukebox_lite.metrics.signal import describe, held_share
from jukebox_lite.training.table import metrics

LEVELS = ("top", "middle", "bottom")
RUNS = Path("runs/demo")
CHORALES = Path("data/chorales/songs")
BESIDE = CHORALES / "bwv2.6.flac"  # the first held-out piece
SECONDS = 10


def main() -> None:
    """Each stage as its own command, as a user would type it; then the figures, and where to listen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("overrides", nargs="*", help="key=value for every training run, such as trainer.max_steps=20")
    overrides = parser.parse_args().overrides
    console, minutes = Console(), {}
    began = time.monotonic()
    prepare_chorales(CHORALES, 64)
    minutes["chorales"] = (time.monotonic() - began) / 60
    stages = {"codec": ["train.py", "experiment=demo_vqvae", *overrides]}
    # Small models on a core each learn more together than one after the other on all cores; the longest goes first.
    stages["priors"] = [
        "train.py",
        "-m",
        f"experiment={','.join(f'demo_{level}' for level in reversed(LEVELS))}",
        "launcher=joblib",
        f"hydra.sweep.dir={RUNS}",
        "hydra.sweep.subdir=${task.level}",
        *overrides,
    ]
    priors = ",".join(str(RUNS / level) for level in LEVELS)
    stages["sampling"] = [
        "sample.py",
        f"priors=[{priors}]",
        f"name={RUNS.name}/sample",
        f"seconds={SECONDS}",
        f"beside={BESIDE}",
        "total_seconds=40",
        "labels.artist=J. S. Bach",
        "labels.genre=[church organ,strings]",
        "sampler.temperature={top: 0.95, middle: 0.9, bottom: 0.85}",
        # A window below the top begins without a past, from the level above alone: upsamplers so young lose themselves
        # in what they have drawn before, which a window that goes on from the last one's end takes over.
        "windows=parallel",
        "overlap={top: 0.5, middle: 0.0, bottom: 0.0}",
    ]
    for name, command in stages.items():
        minutes[name] = _run(name, command, console)
    figures = _figures(minutes)
    write_text(RUNS / "figures.json", json.dumps(figures, indent=1))
    _show(figures, console)
    console.print(f"\nlisten: {(RUNS / 'sample' / 'index.html').resolve().as_uri()}", soft_wrap=True)


def _run(name: str, command: Sequence[str], console: Console) -> float:
    """Runs a stage in a process of its own; returns its minutes, and ends the demo if it fails."""
    console.print(
        f"\n== {name}: python {' '.join(command)}", style="bold", highlight=False, markup=False, soft_wrap=True
    )
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, *command])
    try:
        code = process.wait()
    except KeyboardInterrupt:  # it has got Ctrl-C as well, and saves before it ends
        code = process.wait() or 130
    if code:
        sys.exit(code)
    return (time.monotonic() - began) / 60


def _figures(minutes: dict[str, float]) -> dict[str, dict[str, float]]:
    """What the runs came to, by stage."""
    codec = next(line for line in reversed(metrics(RUNS / "vqvae")) if "score" in line)
    figures, statistics = {"minutes": minutes}, _code_statistics()
    for level in LEVELS:
        prior = next(line for line in reversed(metrics(RUNS / level)) if "score" in line)
        figures[level] = {
            "spectral convergence, dB": decibels(codec[f"val/spectral_convergence/{level}"]),
            "codes used, %": 100 * statistics[level]["use"],
            "perplexity": statistics[level]["perplexity"],
            "nats per token": prior["val/nats_per_token"],
            "chance": prior["val/chance"],
        }
    *sampled, decoded = sorted((RUNS / "sample").glob(f"*-{LEVELS[-1]}.wav"))  # the real piece's section comes last
    named = {f"sampled {i + 1}": path for i, path in enumerate(sampled)}
    for name, path in {"real": BESIDE, "real, from its codes": decoded, **named}.items():
        audio, sample_rate = soundfile.read(path, frames=SECONDS * 44_100, dtype="float32", always_2d=True)
        waveform = torch.from_numpy(audio.T)
        figures[name] = describe(waveform, sample_rate) | {"held_share": held_share(waveform, sample_rate)}
    return figures


def _code_statistics() -> dict[str, dict[str, float]]:
    """How the held-out pieces use each level's codes, from the code cache that the priors learnt from."""
    start = json.loads((RUNS / LEVELS[0] / "provenance.json").read_text())[-1]["fingerprints"]
    (manifest,) = Path("cache").glob(f"*-{start['codec']}/songs-{start['songs']}/manifest.json")
    return json.loads(manifest.read_text())["statistics"]


def _show(figures: dict[str, dict[str, float]], console: Console) -> None:
    """Prints the figures, a table for each kind."""
    for names in (["minutes"], list(LEVELS), [name for name in figures if name not in ("minutes", *LEVELS)]):
        columns = list(figures[names[0]])
        table = Table("", *columns)
        for name in names:
            table.add_row(name, *(f"{figures[name][column]:.3g}" for column in columns))
        console.print(table)


if __name__ == "__main__":
    main()
