"""How a codec sounds on a folder of music: a table, evaluation.json and plots, by the code that validates in training.

python -m jukebox_lite.training.evaluate runs/vqvae /my/music --held-out --seconds 30

A song's figures are means over its clips of ten seconds, each heard as in the whole song, clipped to [-1, 1]; the
total's are means over songs. Clips of silence are left out. Codes are counted over all songs.

Where Basic Pitch is installed, the F1 of notes as well: how many of those it hears in the original it hears again.
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from jukebox_lite.audio import read
from jukebox_lite.codecs.base import Codec
from jukebox_lite.codecs.pieces import Reconstruction, reconstruct_in_pieces
from jukebox_lite.datasets.songs import Song, Songs
from jukebox_lite.errors import InputError, told_in_one_line
from jukebox_lite.files import write_text
from jukebox_lite.generation.plots import draw_bars, draw_spectra, draw_spectrograms
from jukebox_lite.metrics.bitrate import bitrate
from jukebox_lite.metrics.codecs import code_histogram, code_use, decibels, perplexity
from jukebox_lite.metrics.distances import measure
from jukebox_lite.metrics.notes import Transcriber, basic_pitch, note_f1
from jukebox_lite.metrics.signal import power_spectrogram
from jukebox_lite.nn.device import device_of
from jukebox_lite.progress import progress
from jukebox_lite.training.load import load_codec

CLIP_SECONDS = 10
_FEWEST_SAMPLES = 2048  # of a clip that a spectrum can be taken of
_QUIETEST = 1e-10  # mean square of a clip, -100 dBFS
_MOST_ROWS = 20  # of songs in the table
_AT_TIMES = {"panning error": "panning_error", "note F1": "note_f1"}  # figures that not every table has, by column

Figures = dict[str, float]


@dataclass
class Evaluation:
    """What was measured, by level name."""

    songs: dict[str, dict[str, Figures]] = field(default_factory=dict)  # song -> level -> figure
    mean: dict[str, Figures] = field(default_factory=dict)  # with what is known of the codes
    spectra: dict[str, Tensor] = field(default_factory=dict)  # power [F] of the original, and of each level's error
    example: dict[str, Tensor] = field(default_factory=dict)  # audio [C, N] of a clip, original and by level


@torch.no_grad()
def evaluate(
    codec: Codec, songs: list[Song], seconds: float | None = None, transcribe: Transcriber | None = None
) -> Evaluation:
    """Measures the codec on songs, or on the first `seconds` of each, in constant memory.

    Notes are compared if it may `transcribe`.
    """
    found = Evaluation()
    histograms = {
        level.name: torch.zeros(level.channels, level.codebook_size, dtype=torch.int64) for level in codec.levels
    }
    lengths = [min(seconds or song.info.seconds, song.info.seconds) for song in songs]
    with progress("evaluating", sum(lengths), "audio s") as advance:
        for song, length in zip(songs, lengths, strict=True):
            figures = _measure_song(codec, song, length, histograms, found, advance, transcribe)
            if figures:
                found.songs[song.name] = figures
    if not found.songs:
        raise InputError("there is nothing to measure: every song is silent, or shorter than a clip of 2,048 samples")
    for level in codec.levels:
        rows = [figures[level.name] for figures in found.songs.values()]
        histogram = histograms[level.name]
        found.mean[level.name] = {
            **{name: sum(row[name] for row in rows) / len(rows) for name in rows[0]},
            "use": code_use(histogram).item(),
            "perplexity": perplexity(histogram).item(),
            **bitrate(level, codec.sample_rate, histogram),
        }
    return found


def _measure_song(
    codec: Codec,
    song: Song,
    seconds: float,
    histograms: dict[str, Tensor],
    found: Evaluation,
    advance: Callable[[float], None],
    transcribe: Transcriber | None,
) -> dict[str, Figures]:
    """Means over a song's clips, by level; adds its codes to the histograms, its power to the spectra."""
    rate, step = codec.sample_rate, codec.levels[0].samples_per_step
    num_samples = round(seconds * rate) // step * step
    device, clips = device_of(codec), defaultdict(list)

    def stretch(start: int, length: int) -> Tensor:
        return read(song.path, start, length, rate, codec.channels).to(device)

    for piece in reconstruct_in_pieces(codec, stretch, num_samples, CLIP_SECONDS * rate):
        advance(piece.original.shape[-1] / rate)
        if piece.original.shape[-1] < _FEWEST_SAMPLES or piece.original.square().mean() < _QUIETEST:
            continue
        for name, figures in _measure_clip(piece, rate, transcribe).items():
            clips[name].append(figures)
            histograms[name] += code_histogram(piece.codes[name].cpu(), codec.level(name).codebook_size)
        _add_spectra(found, piece, rate)
    return {name: {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]} for name, rows in clips.items()}


def _measure_clip(piece: Reconstruction, sample_rate: int, transcribe: Transcriber | None) -> dict[str, Figures]:
    """How each level of a clip sounds."""
    heard = {name: audio.clamp(-1, 1) for name, audio in piece.heard.items()}
    figures = {
        name: {key: value.item() for key, value in measure(audio, piece.original, sample_rate).items()}
        for name, audio in heard.items()
    }
    if transcribe:
        notes = transcribe(piece.original[0], sample_rate)
        for name, audio in heard.items():
            figures[name]["note_f1"] = note_f1(transcribe(audio[0], sample_rate), notes)
    return figures


def _add_spectra(found: Evaluation, piece: Reconstruction, sample_rate: int) -> None:
    """Adds a clip's power, original and error by level; keeps the first clip to look at."""
    original = piece.original[0].cpu()
    heard = {name: audio[0].float().cpu().clamp(-1, 1) for name, audio in piece.heard.items()}
    clips = {"original": original} | {f"error of {name}": audio - original for name, audio in heard.items()}
    for title, audio in clips.items():
        power = power_spectrogram(audio, sample_rate).mean(-1) * audio.shape[-1]
        found.spectra[title] = found.spectra.get(title, torch.zeros_like(power)) + power
    found.example = found.example or {"original": original} | heard


def write(found: Evaluation, codec: Codec, folder: Path, about: dict[str, object]) -> None:
    """Writes evaluation.json, and PNGs of the spectra of errors, of the figures by level, and of an example."""
    folder.mkdir(parents=True, exist_ok=True)
    mean = {name: _with_decibels(figures) for name, figures in found.mean.items()}
    songs = {
        song: {name: _with_decibels(figures) for name, figures in levels.items()}
        for song, levels in found.songs.items()
    }
    write_text(folder / "evaluation.json", json.dumps({**about, "mean": mean, "songs": songs}, indent=1))
    whole = found.spectra["original"].sum()
    # of the music's mean power: a spectrum's height is then no matter of the songs' lengths or loudness
    shares = {title: power / whole for title, power in found.spectra.items()}
    draw_spectra(folder / "spectra.png", shares, codec.sample_rate)
    bars = {
        name: {_title(key): value for key, value in figures.items() if key != "spectral_convergence"}
        for name, figures in mean.items()
    }
    draw_bars(folder / "levels.png", bars)
    draw_spectrograms(folder / "example.png", found.example, codec.sample_rate)


def _with_decibels(figures: Figures) -> Figures:
    """With the spectral convergence in dB as well: 20 log10 of the mean ratio."""
    return {"spectral_convergence_db": decibels(figures["spectral_convergence"]), **figures}


def _title(key: str) -> str:
    """A figure's name for people."""
    return key.replace("spectral_convergence_db", "spectral convergence, dB").replace("_", " ")


def show(found: Evaluation, console: Console) -> None:
    """Prints a row for each level, and for each song where they are few."""
    columns = ["spectral conv.", "mel", "STFT", "SI-SDR"]
    for title, key in _AT_TIMES.items():
        columns += [title] if all(key in figures for figures in found.mean.values()) else []
    table = Table("song", "level", *columns, "use", "perplexity", "bits/s", "efficiency")
    for song, levels in found.songs.items() if 1 < len(found.songs) <= _MOST_ROWS else ():
        for name, figures in levels.items():
            table.add_row(song, name, *_distances(figures))
        table.add_section()
    for name, figures in found.mean.items():
        codes = (
            f"{figures['use']:.1%}",
            f"{figures['perplexity']:,.1f}",
            f"{figures['entropy_bits_per_second']:,.0f} of {figures['bits_per_second']:,.0f}",
            f"{figures['efficiency']:.1%}",
        )
        table.add_row(f"mean of {len(found.songs)}", name, *_distances(figures), *codes)
    console.print(table)


def _distances(figures: Figures) -> list[str]:
    return [
        f"{decibels(figures['spectral_convergence']):.2f} dB",
        f"{figures['mel_distance']:.3f}",
        f"{figures['stft_distance']:.3f}",
        f"{figures['si_sdr']:.2f} dB",
        *(f"{figures[key]:.3f}" for key in _AT_TIMES.values() if key in figures),
    ]


def main() -> None:
    """Reads the command line."""
    form = partial(argparse.RawDescriptionHelpFormatter, width=100)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("run", type=Path, help="the run of a codec, or one of its checkpoints")
    parser.add_argument("folder", help="a folder of music")
    parser.add_argument("--seconds", type=float, help="from the beginning of each song; all of it if not given")
    parser.add_argument("--held-out", action="store_true", help="only the songs that training would hold out")
    parser.add_argument("--out", type=Path, help="where to write; else RUN/evaluation/<name of the folder>")
    with told_in_one_line():
        run(parser.parse_args())


def run(arguments: argparse.Namespace) -> None:
    """Does what the command line says, on this machine's accelerator if it has one."""
    if arguments.seconds is not None and not 0 < arguments.seconds < float("inf"):
        raise InputError(f"--seconds={arguments.seconds}: expected more than 0")
    codec = load_codec(str(arguments.run))
    songs = Songs(arguments.folder)
    codec.to(torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu"))
    chosen = list(songs.val if arguments.held_out else songs.all)
    try:
        transcribe = basic_pitch()
    except InputError as missing:
        transcribe = None
        print(missing, file=sys.stderr)
    found = evaluate(codec, chosen, arguments.seconds, transcribe)
    folder = arguments.out or arguments.run / "evaluation" / songs.root.resolve().name
    about: dict[str, object] = {"run": str(arguments.run), "folder": str(songs.root), "seconds": arguments.seconds}
    write(found, codec, folder, about | {"held_out": arguments.held_out, "set_aside": dict(songs.set_aside)})
    show(found, Console())
    for name, reason in songs.set_aside:
        print(f"set aside: {name}: {reason}", file=sys.stderr)
    print(f"written: {folder}")


if __name__ == "__main__":
    main()
