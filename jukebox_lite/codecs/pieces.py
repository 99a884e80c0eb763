"""Audio of any length, encoded, decoded and reconstructed piece by piece in constant memory."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from jukebox_lite.codecs.base import Codec
from jukebox_lite.levels import Codes, Level

PIECE_SAMPLES = 1 << 18  # where nobody says otherwise: long beside the halo, few enough for a small machine
_STRETCH_SAMPLES = 1 << 18  # encoded at once, or
_STRETCH_HALOS = 16  # as many halos, if that is more: two of them are encoded beside it, in vain


def padded_length(codec: Codec, num_samples: int) -> int:
    """`num_samples` rounded up to whole steps of the coarsest level."""
    hop_length = codec.levels[0].samples_per_step
    return -(-num_samples // hop_length) * hop_length


def encode_in_pieces(
    codec: Codec, read: Callable[[int, int], Tensor], num_samples: int, piece_samples: int
) -> Iterator[tuple[int, Codes]]:
    """Yields (first sample, codes [B, K, t] of every level) of consecutive pieces, equal to encoding the whole at once.

    `read(start, length)` gives audio [B, C, length] or [C, length], zeros past the end. Whatever the size of a piece,
    the codec works on the same stretches, each with `codec.halo` samples to either side: convolutions of another
    length round differently, and where two entries are as near, that would be another code.
    """
    end, hop_length = padded_length(codec, num_samples), codec.levels[0].samples_per_step
    hops = {level.name: level.samples_per_step for level in codec.levels}
    piece = max(1, piece_samples // hop_length) * hop_length
    stretch = padded_length(codec, max(_STRETCH_SAMPLES, _STRETCH_HALOS * codec.halo))
    waiting: list[Codes] = []
    begin = 0  # of what is waiting to be a piece
    for start in range(0, end, stretch):
        stop = min(start + stretch, end)
        waiting.append(_encode_stretch(codec, read, start, stop, end))
        if stop - begin < piece and stop < end:
            continue
        codes = {name: torch.cat([each[name] for each in waiting], -1) for name in hops}
        length = stop - begin if stop == end else (stop - begin) // piece * piece
        for first in range(0, length, piece):
            last = min(first + piece, length)
            yield begin + first, {name: codes[name][..., first // hop : last // hop] for name, hop in hops.items()}
        waiting, begin = [{name: codes[name][..., length // hop :] for name, hop in hops.items()}], begin + length


def _encode_stretch(codec: Codec, read: Callable[[int, int], Tensor], start: int, stop: int, end: int) -> Codes:
    """Codes of samples [start, stop), with as much of a halo as there is before `end`."""
    first, last = max(0, start - codec.halo), min(end, stop + codec.halo)
    audio = read(first, last - first)
    audio = (audio if audio.ndim == 3 else audio[None]).clone(memory_format=torch.contiguous_format)
    hops = {level.name: level.samples_per_step for level in codec.levels}
    inner = {name: slice((start - first) // hop, (stop - first) // hop) for name, hop in hops.items()}
    return {name: codes[..., inner[name]].to(torch.int64) for name, codes in codec.encode_stretch(audio).items()}


def decode_in_pieces(
    codec: Codec, level: Level, read: Callable[[int, int], Tensor], num_steps: int, piece_samples: int
) -> Iterator[Tensor]:
    """Yields audio [B, C, n] of consecutive pieces, equal to decoding the level's whole codes at once.

    `read(start, length)` gives codes [B, K, length]. Each piece is decoded with `codec.decoder_halo` steps to either
    side, as far as they exist.
    """
    hop_length, halo = level.samples_per_step, codec.decoder_halo.get(level.name, 0)
    piece = max(1, piece_samples // hop_length)
    for start in range(0, num_steps, piece):
        stop = min(start + piece, num_steps)
        first, last = max(0, start - halo), min(num_steps, stop + halo)
        audio = codec.decode({level.name: read(first, last - first)})
        yield audio[..., (start - first) * hop_length : (stop - first) * hop_length]


@dataclass(frozen=True)
class Reconstruction:
    """A stretch of audio, its codes, and how each level's codes sound, as in the whole file."""

    original: Tensor  # [1, C, n]
    codes: Codes
    heard: dict[str, Tensor]  # level -> [1, C, n]


def reconstruct_in_pieces(
    codec: Codec, read: Callable[[int, int], Tensor], num_samples: int, piece_samples: int
) -> Iterator[Reconstruction]:
    """Yields consecutive pieces of audio with their codes and their sound from every level.

    `read(start, length)` gives audio [C, length], zeros past the end; the last piece is padded to whole steps.
    """
    end, hop_length = padded_length(codec, num_samples), codec.levels[0].samples_per_step
    hops = {level.name: level.samples_per_step for level in codec.levels}
    reach = padded_length(codec, max(hops[name] * codec.decoder_halo.get(name, 0) for name in hops))
    piece = max(1, piece_samples // hop_length) * hop_length
    pieces = encode_in_pieces(codec, read, num_samples, piece)
    _, held = next(pieces)
    begin, known = 0, min(piece, end)  # what the codes held span
    for start in range(0, end, piece):
        stop = min(start + piece, end)
        first, last = max(0, start - reach), min(end, stop + reach)
        while known < last:
            _, more = next(pieces)
            held = {name: torch.cat([held[name], more[name]], -1) for name in hops}
            known = min(known + piece, end)
        near = {name: held[name][..., (first - begin) // hop : (last - begin) // hop] for name, hop in hops.items()}
        inner = {name: near[name][..., (start - first) // hop : (stop - first) // hop] for name, hop in hops.items()}
        heard = {name: codec.decode({name: near[name]})[..., start - first : stop - first] for name in hops}
        yield Reconstruction(read(start, stop - start)[None], inner, heard)
        held = {name: held[name][..., (first - begin) // hop :] for name, hop in hops.items()}
        begin = first
