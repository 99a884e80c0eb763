"""How a level longer than the context is cut into windows, and which of them are sampled side by side.

One after the other, each window goes on from the end of the last (Jukebox, section 4.4). Below the top, what happens
when is settled by the level above: there, windows that do not touch can be drawn at once, and then those between.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jukebox_lite.errors import InputError

Span = tuple[int, int]  # the steps from the first to before the second


@dataclass(frozen=True)
class Piece:
    """A window [start, end), of which the steps before `begin` are known and the others are to be drawn."""

    start: int
    begin: int
    end: int


@dataclass(frozen=True)
class Row:
    """One song's part of a batch."""

    piece: Piece
    song: int


Wave = list[Piece]  # windows that do not wait for each other


class Windows(ABC):
    """The order of a level's windows."""

    def __init__(self, batch_size: int | None = None):
        """Up to `batch_size` windows are sampled side by side, None for as many as half of the free memory holds."""
        if batch_size is not None and batch_size < 1:
            raise InputError(f"windows.batch_size={batch_size}: expected 1 or more, or null for what fits into memory")
        self.batch_size = batch_size

    @abstractmethod
    def waves(self, spans: Sequence[Span], known: int, above: bool) -> list[Wave]:
        """The windows `spans`, of which `known` steps of the level are there already, in the waves to draw them in.

        `above` is whether there is a level above, which ties together what is drawn apart. A later wave draws some
        steps anew that an earlier one drew without their past.
        """


class Sequential(Windows):
    """Window after window; only songs are side by side."""

    def waves(self, spans: Sequence[Span], known: int, above: bool) -> list[Wave]:
        del above
        begins = [known, *(end for _, end in spans)]
        return [[Piece(start, begin, end)] for (start, end), begin in zip(spans, begins, strict=False)]


class Parallel(Windows):
    """Every other window at once, from nothing but the level above; then those between.

    A window between goes on from the end of its left neighbour, to its own end: so it draws once more the steps that it
    shares with its right neighbour, which that neighbour drew without a past. Of a step the noise is the same both
    times, so that often the same code comes out. What is left of the right neighbour knew as many steps of its own
    before it, but other ones, where they differ: there is the seam, one for two windows. It costs nearly what a
    window's start from nothing does, so a small overlap is best: half of a window draws 3 codes for 2 that are kept, a
    quarter 7 for 6 and with fewer seams; without any, the codes are those of window after window, which has as many
    joins as windows (`python -m benchmarks.seams`). The top level, which nothing ties together, goes one by one.
    """

    def waves(self, spans: Sequence[Span], known: int, above: bool) -> list[Wave]:
        one_by_one = Sequential().waves(spans, known, above)
        if not above or len(one_by_one) < 3:
            return one_by_one
        pieces = [piece for wave in one_by_one for piece in wave]
        hop = pieces[1].start - pieces[0].start
        if 2 * hop < pieces[0].end - pieces[0].start:
            raise InputError(
                "overlap: windows=parallel takes windows that share a half of themselves at most: give 0.5 or less"
            )
        shifted = pieces[-1].start - pieces[-2].start < hop  # back, to end with the song
        last = [pieces.pop()] if shifted else []
        first = [pieces[0], *(Piece(piece.start, piece.start, piece.end) for piece in pieces[2::2])]
        return [wave for wave in (first, pieces[1::2], last) if wave]


def seams(waves: Sequence[Wave]) -> list[int]:
    """The steps at which what an earlier wave drew follows on what a later one drew, in order."""
    found = []
    for index, wave in enumerate(waves):
        sooner = [piece for earlier in waves[:index] for piece in earlier]
        found += [piece.end for piece in wave if any(other.begin <= piece.end < other.end for other in sooner)]
    return sorted(found)


def batches(waves: Sequence[Wave], num_songs: int, batch_size: int) -> Iterator[list[Row]]:
    """All rows, in order: of one wave, of windows equally long and equally far known, at most `batch_size` together."""
    for wave in waves:
        alike: dict[Span, list[Row]] = {}
        for piece in wave:
            rows = alike.setdefault((piece.begin - piece.start, piece.end - piece.start), [])
            rows += [Row(piece, song) for song in range(num_songs)]
        for rows in alike.values():
            yield from (rows[first : first + batch_size] for first in range(0, len(rows), batch_size))


def windows(length: int, context_length: int, overlap: float, multiple: int = 1) -> Iterator[Span]:
    """Spans (start, end) that cover `length` steps in order, each sharing at most `overlap` of itself with the last.

    Spans begin and end on a `multiple`, so that each has a whole number of steps above it. They are as long as
    `context_length` allows, or the one span is `length` where that is less; the last is shifted back to end at `length`
    (Jukebox, section 4.4).
    """
    if length % multiple:
        raise ValueError(f"a length of {length} steps is not a multiple of {multiple}")
    if not 0 <= overlap < 1:
        raise InputError(f"overlap={overlap}: windows can share from 0 to less than 1 of themselves")
    if context_length < multiple:
        raise InputError(f"context_length={context_length}: fewer than the {multiple} steps under one step above")
    size = min(context_length // multiple * multiple, length)
    hop = min(max(math.ceil(context_length * (1 - overlap) / multiple - 1e-9), 1) * multiple, size)
    for start in range(0, length - size + hop, hop):
        start = min(start, length - size)
        yield start, start + size
