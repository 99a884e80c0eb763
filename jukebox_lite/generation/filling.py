"""One level's missing codes, drawn in batches of windows, a stretch at a time."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from jukebox_lite.codecs.base import Codec
from jukebox_lite.generation.journal import Steps
from jukebox_lite.generation.noise import noise
from jukebox_lite.generation.windows import Row, Wave, batches
from jukebox_lite.levels import Codes, Level, Window
from jukebox_lite.lyrics import window_lyrics
from jukebox_lite.nn.device import device_of, free_bytes
from jukebox_lite.priors.base import Prior, Sampler
from jukebox_lite.progress import progress

_MOST_ROWS = 1024  # side by side, however much memory there is
_MEASURED_STEPS = 4


@dataclass(frozen=True)
class Cost:
    """What sampling a level is expected to take."""

    seconds: float
    num_bytes: int  # beside the weights
    stretch_seconds: float  # of the longest time between two saves


@dataclass(frozen=True)
class Filling:
    """All that is to be sampled of one level, of all songs."""

    codec: Codec
    prior: Prior
    sampler: Sampler
    seed: int
    labels: dict[str, Tensor]  # [num_songs, ...]
    lyrics: Sequence[str]  # each song's whole text, normalised
    waves: Sequence[Wave]
    stretch: int  # steps drawn between two saves

    @property
    def level(self) -> Level:
        """The level that is filled."""
        return self.prior.facts.level

    def fill(self, codes: Codes, batch_size: int, steps: Steps) -> None:
        """Draws what is missing into codes[level] [num_songs, K, T], from the level above in `codes`."""
        own = codes[self.level.name]
        num_windows, finished = sum(map(len, self.waves)) * len(own), 0
        drawn = sum(piece.end - piece.begin for wave in self.waves for piece in wave) * own.shape[0] * own.shape[1]
        with progress(f"sampling {self.level.name}", drawn, "codes") as advance:
            for rows in batches(self.waves, len(own), batch_size):
                for done, stop in self._stretches(rows):
                    known = steps.reading
                    new = steps.step(partial(self._draw, codes, rows, done, stop))
                    for row, song in zip(rows, new, strict=True):
                        own[row.song, :, row.piece.start + done : row.piece.start + stop] = song
                    finished += len(rows) if rows[0].piece.start + stop == rows[0].piece.end else 0
                    advance(new.numel(), f"{finished} of {num_windows} windows", known)

    def cost(self, codes: Codes, batch_size: int) -> Cost:
        """What `fill` will take, from a few steps at a window's beginning and at its end, of the largest batch.

        A step's time is taken to grow evenly along the window, and that of reading what was drawn before, too. Another
        batch than the largest is taken to cost as much: where it is smaller, it may cost less.
        """
        own = codes[self.level.name]
        batch = list(batches(self.waves, len(own), batch_size))
        if not batch:
            return Cost(0, 0, 0)
        rows = max(batch, key=lambda rows: len(rows) * (rows[0].piece.end - rows[0].piece.start))
        length = rows[0].piece.end - rows[0].piece.start
        few = min(_MEASURED_STEPS, length - 1)
        self._draw(codes, rows, 0, 1)  # warms up
        first, more = (self._seconds(codes, rows, 0, stop) for stop in (1, 1 + few))
        last, longer = (self._seconds(codes, rows, length - steps, length) for steps in (1, 1 + few))
        step = max(more - first + longer - last, 0) / 2 / max(few, 1)
        reading = max(last - step, 0) / length  # a step known before
        stretches = [(stop - done, done) for rows in batch for done, stop in self._stretches(rows)]
        seconds = [steps * (step or first) + done * reading for steps, done in stretches]
        return Cost(sum(seconds), own.nbytes + len(rows) * self.row_bytes(), max(seconds))

    def row_bytes(self) -> int:
        """Memory that a window takes while it is sampled."""
        length = max((piece.end - piece.start for wave in self.waves for piece in wave), default=0)
        return self.prior.state_bytes(length) * (1 if self.sampler.guidance == 1 else 2)

    def _stretches(self, rows: Sequence[Row]) -> Iterator[tuple[int, int]]:
        """Steps of a batch's windows between two saves, from the first that is not known to the window's end."""
        piece = rows[0].piece
        for step in range(piece.begin - piece.start, piece.end - piece.start, self.stretch):
            yield step, min(step + self.stretch, piece.end - piece.start)

    def _draw(self, codes: Codes, rows: Sequence[Row], done: int, stop: int) -> Tensor:
        """Codes [B, K, stop - done] of these steps of the rows' windows, on the CPU, made wherever the prior is."""
        device, level = device_of(self.prior), self.codec.levels.index(self.level)
        numbers = [
            noise(self.seed, level, row.song, self.level.channels, row.piece.start, row.piece.end) for row in rows
        ]
        window = self.window(codes, rows, done)
        drawn = self.prior.sample(window.to(device), self.sampler, torch.stack(numbers).to(device), stop).cpu()
        expected = [len(rows), self.level.channels, stop]
        assert list(drawn.shape) == expected, f"{type(self.prior).__name__} gave {list(drawn.shape)}, not {expected}"
        return drawn[..., done:]

    def window(self, codes: Codes, rows: Sequence[Row], done: int) -> Window:
        """What is known of the rows' windows: the level above, `done` steps of their own, labels, times, lyrics."""
        above, ratio = self.prior.facts.above, self.prior.facts.ratio
        within = {above.name: _cut(codes[above.name], rows, ratio)} if above else {}
        if done:
            within[self.level.name] = _cut(codes[self.level.name], rows)[..., :done]
        labels = {name: values[[row.song for row in rows]] for name, values in self.labels.items()}
        if (seconds := step_seconds(self.codec, self.level)) is not None:
            start = labels["start_seconds"] = torch.tensor([row.piece.start * seconds for row in rows])
            end = labels["end_seconds"] = torch.tensor([row.piece.end * seconds for row in rows])
            if size := self.prior.num_characters:
                texts, characters = [self.lyrics[row.song] for row in rows], self.prior.facts.characters
                labels |= window_lyrics(texts, characters, size, start, end, labels["total_seconds"])
        return Window(within, labels)

    def _seconds(self, codes: Codes, rows: Sequence[Row], done: int, stop: int) -> float:
        """What drawing these steps takes."""
        began = time.perf_counter()
        self._draw(codes, rows, done, stop)
        return time.perf_counter() - began


def fitting(filling: Filling) -> Tensor:
    """How many windows of a level fit into half of the free memory, an integer []."""
    free = free_bytes(device_of(filling.prior)) // 2
    return torch.tensor(max(1, min(free // max(filling.row_bytes(), 1), _MOST_ROWS)))


def step_seconds(codec: Codec, level: Level) -> float | None:
    """Seconds of one time step; None where time is symbolic."""
    return level.hop_length / codec.sample_rate if level.hop_length else None


def _cut(codes: Tensor, rows: Sequence[Row], ratio: int = 1) -> Tensor:
    """The rows' windows [B, K, T / ratio] of codes with a step for each `ratio` of theirs."""
    return torch.stack([codes[row.song, :, row.piece.start // ratio : row.piece.end // ratio] for row in rows])
