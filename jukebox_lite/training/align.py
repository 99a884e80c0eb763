"""When each character of a song's lyrics is sung, by where a finished prior looks while it hears the song's codes.

python -m jukebox_lite.training.align runs/top
python -m jukebox_lite.training.align runs/top /other/music --out aligned

Without a folder, the songs that the run held out. Every layer and head of the prior that looks at lyrics is scored by
how well it goes through the text from its beginning to its end (1 at best, 0 for one that always looks at the same);
the best is taken. Beside the alignment stand the prior's nats per token with the song's own lyrics, with none, and with
those of the next song that has any: where the three agree, the prior has not learnt to listen yet.
"""

import argparse
import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from jukebox_lite import config
from jukebox_lite.datasets.code_cache import CachedSong
from jukebox_lite.datasets.code_windows import CodeWindows
from jukebox_lite.datasets.songs import Songs
from jukebox_lite.errors import InputError, told_in_one_line
from jukebox_lite.files import write_text
from jukebox_lite.generation.windows import windows as spans_of
from jukebox_lite.levels import LYRICS, Level, Window
from jukebox_lite.lyrics import window_lyrics
from jukebox_lite.nn.device import device_of
from jukebox_lite.priors.alignment import Head, Listener, align, rank_heads
from jukebox_lite.priors.base import Prior
from jukebox_lite.progress import progress
from jukebox_lite.training.load import load_prior
from jukebox_lite.training.score import own_songs

_OVERLAP = 0.5  # of two windows of a song: what a window begins with is heard without a past
_MOST_HEADS = 8  # in the table
_OWN, _NONE, _OTHER = "own", "none", "another's"  # lyrics that a prior can be told


@dataclass
class Aligned:
    """What was found of some songs."""

    heads: dict[Head, float]  # how well each goes through the texts, the best first
    nats: dict[str, float]  # per token, by whose lyrics the prior is told
    songs: dict[str, tuple[str, list[float]]]  # name -> text, and the second of each of its characters


@torch.no_grad()
def align_songs(prior: Listener, windows: CodeWindows, names: Collection[str]) -> Aligned:
    """Aligns the songs of these names that have lyrics, with the head that follows all their texts best."""
    songs = [song for song in windows.cache.songs if song.name in names and windows.lyrics[song.name]]
    level = prior.facts.level
    step_seconds = level.samples_per_step * windows.seconds_per_sample
    with progress("aligning", 3 * sum(song.seconds for song in songs), "audio s") as advance:

        def heard(song: CachedSong) -> Iterator[tuple[int, Window]]:
            yield from _windows(prior, windows, song)
            advance(song.seconds)

        heads = rank_heads(prior, (window for song in songs for _, window in heard(song)))
        totals, best = Counter[str](), next(iter(heads))
        found, num_windows = {}, 0
        for index, song in enumerate(songs):
            other = windows.lyrics[songs[(index + 1) % len(songs)].name]
            for _, window in heard(song):
                num_windows += 1
                totals.update({told: prior.nats(each).mean().item() for told, each in _told(prior, window, other)})
            text, num_steps = windows.lyrics[song.name], _num_steps(windows, song, level)
            seconds = align(prior, best, heard(song), len(text), num_steps, step_seconds)
            found[song.name] = (text, seconds.tolist())
    return Aligned(heads, {told: total / num_windows for told, total in totals.items()}, found)


def _windows(prior: Prior, windows: CodeWindows, song: CachedSong) -> Iterator[tuple[int, Window]]:
    """(first step, window of a batch of 1) of windows that cover a song."""
    facts, device = prior.facts, device_of(prior)
    for start, end in spans_of(_num_steps(windows, song, facts.level), prior.context_length, _OVERLAP, facts.ratio):
        yield start, windows.cut([(song, start)], facts, end - start, prior.num_characters).to(device)


def _num_steps(windows: CodeWindows, song: CachedSong, level: Level) -> int:
    """Of the level in a song."""
    return song.length * windows.cache.levels[0].samples_per_step // level.samples_per_step


def _told(prior: Prior, window: Window, other: str) -> Iterator[tuple[str, Window]]:
    """The window of one song as it is, told no lyrics, and told those of another song."""
    yield _OWN, window
    yield _NONE, prior.facts.untold(window, [LYRICS])
    times = (window.labels[f"{name}_seconds"].cpu() for name in ("start", "end", "total"))
    lyrics = window_lyrics([other], prior.facts.characters, prior.num_characters, *times)
    yield _OTHER, Window(window.codes, window.labels | lyrics).to(device_of(prior))


def write(found: Aligned, path: Path, about: Mapping[str, object]) -> None:
    """Writes what was found as JSON."""
    told = {
        **about,
        "heads": [{**vars(head), "progress": score} for head, score in found.heads.items()],
        "nats_per_token": found.nats,
        "songs": {name: {"text": text, "seconds": seconds} for name, (text, seconds) in found.songs.items()},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(told, indent=1, ensure_ascii=False))


def show(found: Aligned, console: Console) -> None:
    """Prints the best heads, and what the lyrics are worth."""
    table = Table("layer", "head", "progress")
    for head, score in list(found.heads.items())[:_MOST_HEADS]:
        table.add_row(f"{head.layer}", f"{head.head}", f"{score:.3f}")
    console.print(table)
    told = ", ".join(f"{whose} lyrics {nats:.4f}" for whose, nats in found.nats.items())
    console.print(f"nats per token, told {told}", highlight=False)


def main() -> None:
    """Reads the command line."""
    form = partial(argparse.RawDescriptionHelpFormatter, width=100)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("run", type=Path, help="the run of a prior that hears lyrics")
    parser.add_argument("folder", nargs="?", help="a folder of music with lyrics; else the songs that the run held out")
    parser.add_argument("--out", type=Path, help="the file to write; else RUN/alignment.json")
    with told_in_one_line():
        run(parser.parse_args())


def run(arguments: argparse.Namespace) -> None:
    """Does what the command line says, on this machine's accelerator if it has one."""
    prior, codec = load_prior(str(arguments.run))
    if not isinstance(prior, Listener) or not prior.num_characters:
        raise InputError(f"{arguments.run}: its prior hears no lyrics; give a run of conditioner=lyrics")
    cfg = config.read(arguments.run / "config.yaml")
    songs = Songs(arguments.folder) if arguments.folder else own_songs(arguments.run)
    windows = CodeWindows(songs, 1, cfg.windows.folder, list(prior.facts.vocabulary), codec)
    prior.to(torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu"))
    found = align_songs(prior, windows, {song.name for song in (songs.all if arguments.folder else songs.val)})
    out = arguments.out or arguments.run / "alignment.json"
    write(found, out, {"run": str(arguments.run), "folder": str(songs.root)})
    show(found, Console())
    print(f"written: {out}")


if __name__ == "__main__":
    main()
