"""Audio of any length, encoded piece by piece in constant memory."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from jukebox_lite.codecs.base import Codec
from jukebox_lite.levels import Codes


def padded_length(codec: Codec, num_samples: int) -> int:
    """`num_samples` rounded up to whole steps of the coarsest level."""
    hop_length = codec.levels[0].samples_per_step
    return -(-num_samples // hop_length) * hop_length


def encode_in_pieces(
    codec: Codec, read: Callable[[int, int], Tensor], num_samples: int, piece_samples: int
) -> Iterator[tuple[int, Codes]]:
    """Yields (first sample, codes [1, K, t] of every level) of consecutive pieces, equal to encoding the whole at once.

    `read(start, length)` gives audio [C, length], zeros past the end. Each piece is encoded with `codec.halo` samples
    to either side, as far as they exist, which is all that its codes depend on.
    """
    end, hop_length = padded_length(codec, num_samples), codec.levels[0].samples_per_step
    piece = max(1, piece_samples // hop_length) * hop_length
    for start in range(0, end, piece):
        stop = min(start + piece, end)
        first, last = max(0, start - codec.halo), min(end, stop + codec.halo)
        codes = codec.encode(read(first, last - first)[None])
        hops = {level.name: level.samples_per_step for level in codec.levels}
        inner = {name: slice((start - first) // hop, (stop - first) // hop) for name, hop in hops.items()}
        yield start, {name: codes[name][..., steps].to(torch.int64) for name, steps in inner.items()}
