"""One level's missing codes, drawn in batches of windows, and saved every few seconds.

A prior remembers its windows until they are done, so that saving costs nothing and changes nothing. A process that goes
on where another was cut off has the prior step through what was drawn of the windows in work, which gives the same
numbers to the bit, as reading it at once would not: at most as long as one batch of windows takes.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

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
SAVE_SECONDS = 2.0  # of drawing between two saves: what a kill can lose


@dataclass(frozen=True)
class Cost:
    """What sampling a level is expected to take."""

    seconds: float
    num_bytes: int  # beside the weights


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
                for count, known in self._fill_batch(codes, rows, steps):
                    advance(count, f"{finished} of {num_windows} windows", known)
                finished += len(rows)

    def cost(self, codes: Codes, batch_size: int) -> Cost:
        """What `fill` will take, from a few steps at a window's beginning and at its end, of the largest batch.

        A step's time is taken to grow evenly along the window, and that of reading what was drawn before, too. Another
        batch than the largest is taken to cost as much: where it is smaller, it may cost less.
        """
        own = codes[self.level.name]
        batch = list(batches(self.waves, len(own), batch_size))
        if not batch:
            return Cost(0, 0)
        rows = max(batch, key=lambda rows: len(rows) * (rows[0].piece.end - rows[0].piece.start))
        length = rows[0].piece.end - rows[0].piece.start
        few = min(_MEASURED_STEPS, length - 1)
        self._seconds(codes, rows, 0, 1)  # warms up
        first, more = (self._seconds(codes, rows, 0, count) for count in (1, 1 + few))
        last, longer = (self._seconds(codes, rows, length - count, count) for count in (1, 1 + few))
        step = max(more - first + longer - last, 0) / 2 / max(few, 1)
        reading = max(last - step, 0) / length  # a step known before
        pieces = [rows[0].piece for rows in batch]
        drawn, read = sum(p.end - p.begin for p in pieces), sum(p.begin - p.start for p in pieces)
        return Cost(drawn * (step or first) + read * reading, own.nbytes + len(rows) * self.row_bytes())

    def row_bytes(self) -> int:
        """Memory that a window takes while it is sampled."""
        length = max((piece.end - piece.start for wave in self.waves for piece in wave), default=0)
        return self.prior.state_bytes(length) * (1 if self.sampler.guidance == 1 else 2)

    def _fill_batch(self, codes: Codes, rows: Sequence[Row], steps: Steps) -> Iterator[tuple[int, bool]]:
        """Fills a batch's windows in parts, each on the disk when it is told: its number of codes, and whether it was
        there before.
        """
        own, piece = codes[self.level.name], rows[0].piece
        begin, done, length = (step - piece.start for step in (piece.begin, piece.begin, piece.end))

        def missing() -> Iterator[Tensor]:  # begins when it is first asked, after all that was there before
            yield from islice(self._draw(codes, rows, begin, done), done - begin, None)

        drawing = missing()
        while done < length:
            known = steps.reading
            new = steps.step(partial(_part, drawing))
            for row, song in zip(rows, new, strict=True):
                own[row.song, :, row.piece.start + done : row.piece.start + done + new.shape[-1]] = song
            done += new.shape[-1]
            yield new.numel(), known

    def _draw(self, codes: Codes, rows: Sequence[Row], read: int, done: int) -> Iterator[Tensor]:
        """Codes [B, K] of each step of the rows' windows from `read` on, of which those before `done` are known."""
        device, level = device_of(self.prior), self.codec.levels.index(self.level)
        numbers = [
            noise(self.seed, level, row.song, self.level.channels, row.piece.start, row.piece.end) for row in rows
        ]
        window = self.window(codes, rows, done).to(device)
        for drawn in self.prior.draw(window, self.sampler, torch.stack(numbers).to(device), read):
            expected, prior = [len(rows), self.level.channels], type(self.prior).__name__
            assert list(drawn.shape) == expected, f"{prior} gave {list(drawn.shape)}, not {expected}"
            yield drawn

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

    def _seconds(self, codes: Codes, rows: Sequence[Row], done: int, count: int) -> float:
        """What drawing so many steps takes, after `done` that are read."""
        began = time.perf_counter()
        torch.stack(list(islice(self._draw(codes, rows, done, done), count))).cpu()
        return time.perf_counter() - began


def _part(drawing: Iterator[Tensor]) -> Tensor:
    """The codes [B, K, n] of as many steps as can be drawn until it is time to save them, on the CPU."""
    began, drawn = time.monotonic(), []
    for codes in drawing:
        drawn.append(codes)
        if time.monotonic() - began >= SAVE_SECONDS:
            break
    return torch.stack(drawn, -1).cpu()


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
