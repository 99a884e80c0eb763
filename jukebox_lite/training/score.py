"""How well a finished prior predicts music: a table, score.json and plots; what its labels are worth, above all.

python -m jukebox_lite.training.score runs/top
python -m jukebox_lite.training.score runs/top /other/music --seconds 30

Without a folder, the songs that the run held out. Each song is cut into windows as long as the prior's context, one
after the other, the last shifted back to end with the song; every code is scored once. A label's worth is how many nats
per token a song's own values save: against the label untold, and against the values of another song of the folder that
shares none with it. Both are means over the codes of the songs whose values the prior knows.
"""

import argparse
import json
import math
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from jukebox_lite import config
from jukebox_lite.datasets.code_cache import CachedSong
from jukebox_lite.datasets.code_windows import CodeWindows
from jukebox_lite.datasets.songs import Songs
from jukebox_lite.datasets.spans import generator_of
from jukebox_lite.errors import InputError, told_in_one_line
from jukebox_lite.files import write_text
from jukebox_lite.generation.plots import draw_places, draw_values
from jukebox_lite.generation.windows import windows as spans_of
from jukebox_lite.levels import LYRICS, Facts, Window
from jukebox_lite.nn.device import device_of
from jukebox_lite.priors.base import Prior
from jukebox_lite.priors.stepwise import for_sampling
from jukebox_lite.progress import progress
from jukebox_lite.training.load import load_prior
from jukebox_lite.training.run import read_fingerprints

_BATCH_SIZE = 8
_MOST_VALUES = 20  # of a label in the table and the plot: those of most songs
_TOLD, _UNTOLD = "told", "untold"  # all the song's labels, none of them
_UNKNOWN = "(unknown)"


@dataclass
class SongScore:
    """One song: how many codes were scored, and their nats, summed, by what the prior was told of its labels."""

    tokens: int
    nats: dict[str, float]  # told, untold, "untold genre", "wrong genre"
    values: dict[str, list[str]]  # of each label, those that the prior knows


@dataclass(frozen=True)
class Worth:
    """What a label is worth, in nats per token, to the songs that have it."""

    songs: int
    nats: float  # saved against the label untold
    helped: int  # songs to which it saves any
    wrong_songs: int  # those that could be told another song's values
    wrong_nats: float | None  # saved against those; None where there are no such songs


@dataclass
class Score:
    """What was measured of a prior."""

    facts: Facts
    steps_per_second: float
    place_nats: Tensor  # [K, T] summed over windows, by codebook and step of the window
    place_counts: Tensor  # [T] windows
    songs: dict[str, SongScore] = field(default_factory=dict)

    def mean(self, told: str = _TOLD, songs: Collection[str] | None = None) -> float:
        """Nats per token of all songs, or of these."""
        chosen = [self.songs[name] for name in (self.songs if songs is None else songs)]
        return sum(song.nats[told] for song in chosen) / sum(song.tokens for song in chosen)

    def by_place(self) -> list[float]:
        """Mean nats per token at each step of a window that any song reaches."""
        reached = int((self.place_counts > 0).sum())
        return (self.place_nats.mean(0) / self.place_counts)[:reached].tolist()

    def by_codebook(self) -> list[float]:
        """Mean nats of each codebook's tokens."""
        return (self.place_nats.sum(1) / self.place_counts.sum()).tolist()

    def by_value(self, label: str) -> dict[str, float]:
        """Nats per token of the songs of each value of a label, those of most songs first."""
        having: dict[str, list[str]] = {}
        for name, song in self.songs.items():
            for value in song.values[label] or [_UNKNOWN]:
                having.setdefault(value, []).append(name)
        ordered = sorted(having, key=lambda value: (value == _UNKNOWN, -len(having[value]), value))
        return {value: self.mean(songs=having[value]) for value in ordered}

    def worth(self, label: str) -> Worth | None:
        """What a label is worth; None where no song has a value of it that the prior knows."""
        saved = {
            kind: {
                name: song.nats[f"{kind} {label}"] - song.nats[_TOLD]
                for name, song in self.songs.items()
                if f"{kind} {label}" in song.nats
            }
            for kind in ("untold", "wrong")
        }
        if not saved["untold"]:
            return None
        untold, wrong = (self._per_token(nats) for nats in saved.values())
        helped = sum(nats > 0 for nats in saved["untold"].values())
        return Worth(len(saved["untold"]), untold, helped, len(saved["wrong"]), wrong if saved["wrong"] else None)

    def figures(self) -> dict[str, float]:
        """Of all songs: nats per token, with chance beside them, and both as bits per second of music."""
        level = self.facts.level
        bits = level.channels * self.steps_per_second / math.log(2)  # a second, for each nat per token
        mean, chance = self.mean(), math.log(level.codebook_size)
        return {
            "tokens": sum(song.tokens for song in self.songs.values()),
            "nats_per_token": mean,
            "chance": chance,
            "nats_per_token_untold": self.mean(_UNTOLD),
            "bits_per_second": mean * bits,
            "chance_bits_per_second": chance * bits,
        }

    def _per_token(self, nats: Mapping[str, float]) -> float:
        return sum(nats.values()) / max(sum(self.songs[name].tokens for name in nats), 1)


@torch.no_grad()
def score(prior: Prior, windows: CodeWindows, names: Collection[str], seconds: float | None = None) -> Score:
    """Scores the songs of these names, or the first `seconds` of each, with everything that each is told."""
    level, coarsest, rate = prior.facts.level, windows.cache.levels[0], 1 / windows.seconds_per_sample
    places = torch.zeros(level.channels, prior.context_length, dtype=torch.float64)
    found = Score(prior.facts, rate / level.samples_per_step, places, torch.zeros_like(places[0]))
    songs = [song for song in windows.cache.songs if song.name in names]
    wrong = {name: _wrong_values(windows, prior.facts, name) for name in prior.facts.vocabulary}
    ratio = coarsest.samples_per_step // level.samples_per_step
    lengths = [song.length * ratio for song in songs]
    if seconds is not None:
        most = max(round(seconds * rate / coarsest.samples_per_step), 1) * ratio
        lengths = [min(length, most) for length in lengths]
    with progress("scoring", sum(lengths) / found.steps_per_second, "audio s") as advance:
        for song, length in zip(songs, lengths, strict=True):
            values = {name: windows.known(song.name, name, prior.facts) for name in prior.facts.vocabulary}
            others = {name: texts[song.name] for name, texts in wrong.items() if song.name in texts}
            found.songs[song.name] = SongScore(length * level.channels, {}, values)
            _score_song(prior, windows, song, length, others, found)
            advance(length / found.steps_per_second)
    if not found.songs:
        raise InputError("there is nothing to score: give a folder with at least one song")
    return found


def _score_song(
    prior: Prior, windows: CodeWindows, song: CachedSong, length: int, others: Mapping[str, str], found: Score
) -> None:
    """Adds a song's codes to what was found, a batch of windows at a time."""
    row, device = found.songs[song.name], device_of(prior)
    spans = list(spans_of(length, prior.context_length, 0.0, prior.facts.ratio))
    size, done = spans[0][1], 0
    for batch in (spans[at : at + _BATCH_SIZE] for at in range(0, len(spans), _BATCH_SIZE)):
        window = windows.cut([(song, start) for start, _ in batch], prior.facts, size, prior.num_characters).to(device)
        new = torch.zeros(len(batch), size, dtype=torch.float64)  # 1 where a step was not in the window before
        for index, (start, end) in enumerate(batch):
            new[index, max(done - start, 0) :] = 1
            done = end
        for told, variant in _variants(prior.facts, window, row.values, others):
            nats = prior.nats(variant).double().cpu() * new[:, None]
            row.nats[told] = row.nats.get(told, 0.0) + nats.sum().item()
            if told == _TOLD:
                found.place_nats[:, :size] += nats.sum(0)
                found.place_counts[:size] += new.sum(0)
    row.nats.setdefault(_UNTOLD, row.nats[_TOLD])  # nothing was known of it


def _variants(
    facts: Facts, window: Window, values: Mapping[str, Sequence[str]], others: Mapping[str, str]
) -> Iterator[tuple[str, Window]]:
    """The window of one song as it is, and told less or wrongly of its labels."""
    yield _TOLD, window
    known = [label for label, own in values.items() if own]
    if known or LYRICS in window.labels:
        yield _UNTOLD, facts.untold(window)
    for label in known:
        yield f"untold {label}", facts.untold(window, [label])
        if label in others:
            own = window.labels[label]
            wrong = facts.indices({label: [others[label]]})[label].to(own.device).expand(len(own), -1)
            yield f"wrong {label}", Window(window.codes, {**window.labels, label: wrong})


def _wrong_values(windows: CodeWindows, facts: Facts, label: str) -> dict[str, str]:
    """By song, the values of another song drawn from those that share none with it; a function of the names alone."""
    known = {song.name: values for song in windows.songs.all if (values := windows.known(song.name, label, facts))}
    drawn = {}
    for name, values in known.items():
        if others := [other for other in known.values() if not set(other) & set(values)]:
            index = torch.randint(len(others), (), generator=generator_of(0, "wrong", label, name)).item()
            drawn[name] = "; ".join(others[int(index)])
    return drawn


def write(found: Score, folder: Path, about: Mapping[str, object]) -> None:
    """Writes score.json, and PNGs of nats by place in the window and by label value."""
    folder.mkdir(parents=True, exist_ok=True)
    known = {label: worth for label in found.facts.vocabulary if (worth := found.worth(label))}
    told = {
        **about,
        **found.figures(),
        "labels": {label: {**vars(worth), "values": found.by_value(label)} for label, worth in known.items()},
        "by_codebook": found.by_codebook(),
        "by_place": found.by_place(),
        "songs": {
            name: {"tokens": song.tokens, "values": song.values, **_per_token(song)}
            for name, song in found.songs.items()
        },
    }
    write_text(folder / "score.json", json.dumps(told, indent=1, ensure_ascii=False))
    draw_places(folder / "places.png", found.by_place(), found.figures()["chance"], 1 / found.steps_per_second)
    if known:
        values = {label: dict(list(found.by_value(label).items())[:_MOST_VALUES]) for label in known}
        draw_values(folder / "labels.png", values, found.mean())


def _per_token(song: SongScore) -> dict[str, float]:
    return {told: nats / song.tokens for told, nats in song.nats.items()}


def show(found: Score, console: Console) -> None:
    """Prints what holds for all songs, a row for each label, and one for each of its values."""
    figures, level = found.figures(), found.facts.level
    whole = Table("level", "songs", "tokens", "nats per token", "chance", "untold", "bits/s", "chance")
    nats = (f"{figures[name]:.3f}" for name in ("nats_per_token", "chance", "nats_per_token_untold"))
    bits = (f"{figures[name]:,.0f}" for name in ("bits_per_second", "chance_bits_per_second"))
    whole.add_row(level.name, f"{len(found.songs):,}", f"{figures['tokens']:,}", *nats, *bits)
    console.print(whole)
    if level.channels > 1:
        console.print("by codebook: " + ", ".join(f"{nats:.3f}" for nats in found.by_codebook()))
    labels = Table("label", "songs", "saves against untold", "helps", "saves against wrong", "value", "nats per token")
    for label in found.facts.vocabulary:
        if (worth := found.worth(label)) is None:
            continue
        wrong = "" if worth.wrong_nats is None else f"{worth.wrong_nats:+.4f} ({worth.wrong_songs} songs)"
        row = (label, f"{worth.songs}", f"{worth.nats:+.4f}", f"{worth.helped} of {worth.songs}", wrong)
        for value, mean in list(found.by_value(label).items())[:_MOST_VALUES]:
            labels.add_row(*row, value, f"{mean:.3f}")
            row = ("",) * len(row)
        labels.add_section()
    if labels.row_count:
        console.print(labels)


def main() -> None:
    """Reads the command line."""
    form = partial(argparse.RawDescriptionHelpFormatter, width=100)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("run", type=Path, help="the run of a prior")
    parser.add_argument("folder", nargs="?", help="a folder of music; else the songs that the run held out")
    parser.add_argument("--all", action="store_true", help="without a folder, the songs that the run learnt from too")
    parser.add_argument("--seconds", type=float, help="from the beginning of each song; all of it if not given")
    parser.add_argument("--precision", default="fp32", help="of the weights, as in sample.py: what fewer bits cost")
    parser.add_argument("--out", type=Path, help="where to write; else RUN/score/<held_out, all or the folder's name>")
    with told_in_one_line():
        run(parser.parse_args())


def run(arguments: argparse.Namespace) -> None:
    """Does what the command line says, on this machine's accelerator if it has one."""
    if arguments.seconds is not None and not 0 < arguments.seconds < math.inf:
        raise InputError(f"--seconds={arguments.seconds}: expected more than 0")
    if arguments.folder and arguments.all:
        raise InputError("--all: a folder is scored whole; give one of them")
    prior, codec = load_prior(str(arguments.run))
    cfg = config.read(arguments.run / "config.yaml")
    songs = Songs(arguments.folder) if arguments.folder else own_songs(arguments.run)
    windows = CodeWindows(songs, _BATCH_SIZE, cfg.windows.folder, list(prior.facts.vocabulary), codec)
    chosen = songs.all if arguments.folder or arguments.all else songs.val
    prior = for_sampling(prior, arguments.precision)
    prior.to(torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu"))
    found = score(prior, windows, {song.name for song in chosen}, arguments.seconds)
    which = songs.root.resolve().name if arguments.folder else "all" if arguments.all else "held_out"
    folder = arguments.out or arguments.run / "score" / which
    about = {"run": str(arguments.run), "folder": str(songs.root), "which": which}
    about |= {"seconds": arguments.seconds, "precision": arguments.precision}
    write(found, folder, about | {"set_aside": dict(songs.set_aside)})
    show(found, Console())
    for name, reason in songs.set_aside:
        print(f"set aside: {name}: {reason}", file=sys.stderr)
    print(f"written: {folder}")


def own_songs(run: Path) -> Songs:
    """The songs a run learnt from. Raises InputError where they have changed, and so perhaps which are held out."""
    data = config.read(run / "config.yaml").data
    settings = {key: data[key] for key in ("held_out_every", "min_seconds") if key in data}
    songs = Songs(str(data.root), **settings)
    if songs.fingerprint() != read_fingerprints(run).get("songs"):
        raise InputError(
            f"{songs.root}: not the songs that {run} learnt from any more; give the folder to score it whole"
        )
    return songs


if __name__ == "__main__":
    main()
