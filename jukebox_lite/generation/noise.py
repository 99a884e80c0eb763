"""The numbers that decide every draw: of each song, level and step its own, whatever is sampled beside or before it."""

import numpy as np
import torch
from torch import Tensor

_CHUNK = 4096  # time steps drawn at once; another number is other music for the same seed


def noise(seed: int, level: int, song: int, channels: int, start: int, end: int) -> Tensor:
    """Uniform [channels, end - start] in [0, 1) of these steps of a song, for the codec's level number `level`."""
    chunks = []
    for chunk in range(start // _CHUNK, -(-end // _CHUNK)):
        mixed = np.random.SeedSequence([seed, level, song, chunk]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(mixed[0]))
        chunks.append(torch.rand(channels, _CHUNK, generator=generator))
    first = start // _CHUNK * _CHUNK
    return torch.cat(chunks, -1)[:, start - first : end - first]
