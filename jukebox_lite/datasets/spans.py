"""Where a batch's windows lie in a collection of songs: a pure function of integers."""

import hashlib
from collections.abc import Sequence

import torch


def draw_spans(
    lengths: Sequence[int], size: int, count: int, seed: int, split: str, step: int
) -> list[tuple[int, int]]:
    """(song, start) of `count` windows of `size`, uniform over every start that stays inside a song of `lengths`.

    A song shorter than `size` has one start, 0. The unit is the caller's: samples, or steps of a code.
    """
    starts = torch.tensor([max(length - size, 0) + 1 for length in lengths])
    ends = starts.cumsum(0)
    draws = torch.randint(int(ends[-1]), (count,), generator=generator_of(seed, split, step))
    songs = torch.searchsorted(ends, draws, right=True)
    return list(zip(songs.tolist(), (draws - (ends - starts)[songs]).tolist(), strict=True))


def generator_of(seed: int, *words: str | int) -> torch.Generator:
    """A generator whose numbers are a function of the seed and the words alone."""
    digest = hashlib.sha256("/".join(map(str, (seed, *words))).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)
