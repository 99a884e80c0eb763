"""An audio file to a file of codes, and back, of any length in constant memory."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path

import numpy as np
from torch import Tensor

from jukebox_lite.audio import probe, read, writing
from jukebox_lite.codecs.base import Codec
from jukebox_lite.codecs.pieces import PIECE_SAMPLES, decode_in_pieces, encode_in_pieces, padded_length
from jukebox_lite.datasets.code_cache import codec_fingerprint
from jukebox_lite.errors import InputError
from jukebox_lite.files import whole
from jukebox_lite.generation.songs import checked, codes_metadata, open_codes
from jukebox_lite.nn.device import device_of
from jukebox_lite.progress import progress

_DTYPES = {"I16": np.dtype("<i2"), "I32": np.dtype("<i4")}  # by their names in safetensors


def encode_file(codec: Codec, source: str | Path, target: str | Path, piece_samples: int = PIECE_SAMPLES) -> None:
    """Writes the codes of an audio file on every level as safetensors, [1, K, T] a level.

    The end is padded with silence to whole steps; the file's true length is kept, and `decode_file` cuts to it.
    """
    source, target = Path(source), Path(target)
    try:
        num_samples = probe(source).num_samples(codec.sample_rate)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    if num_samples < 1:
        raise InputError(f"{source}: holds no audio, expected a sample or more")
    device, end = device_of(codec), padded_length(codec, num_samples)

    def stretch(start: int, length: int) -> Tensor:
        return read(source, start, length, codec.sample_rate, codec.channels).to(device)

    shapes = {level.name: (1, level.channels, end // level.samples_per_step) for level in codec.levels}
    names = {level.name: "I16" if level.codebook_size <= 2**15 else "I32" for level in codec.levels}
    metadata = codes_metadata(codec, list(shapes), codec_fingerprint(codec)) | {"num_samples": str(num_samples)}
    target.parent.mkdir(parents=True, exist_ok=True)
    with (
        whole(target) as beside,
        _tensors(beside, names, shapes, metadata) as put,
        progress(f"encoding {source.name}", end / codec.sample_rate, "audio s") as advance,
    ):
        for start, codes in encode_in_pieces(codec, stretch, num_samples, piece_samples):
            for level in codec.levels:
                put(level.name, start // level.samples_per_step, codes[level.name][0])
            steps = codes[codec.levels[0].name].shape[-1]
            advance(steps * codec.levels[0].samples_per_step / codec.sample_rate)


def decode_file(
    codec: Codec,
    source: str | Path,
    target: str | Path,
    level: str | None = None,
    song: int = 1,
    piece_samples: int = PIECE_SAMPLES,
) -> None:
    """Writes how a file of codes sounds, from the finest level it holds or from `level`; `song` counts from 1."""
    source, fingerprint = Path(source), codec_fingerprint(codec)
    with open_codes(source, codec, fingerprint) as (file, names):
        name = level or names[-1]
        codec.level(name)  # refuses what no codec has
        if name not in names:
            raise InputError(f"level={name}: {source} holds {', '.join(names)}")
        shape, metadata = file.get_slice(name).get_shape(), file.metadata()
    rung = codec.level(name)
    if len(shape) != 3 or 0 in shape:
        raise InputError(f"{source}: level {name} has shape {shape}, expected [songs, {rung.channels}, steps]")
    if not 1 <= song <= shape[0]:
        raise InputError(f"song={song}: {source} holds {shape[0]}, numbered from 1")
    end = shape[-1] * rung.samples_per_step
    num_samples = _length(metadata.get("num_samples"), end, source)
    device = device_of(codec)

    def stretch(start: int, length: int) -> Tensor:
        with open_codes(source, codec, fingerprint) as (file, _):  # opened anew, since what was read stays mapped
            codes = file.get_slice(name)[song - 1 : song, :, start : start + length]
            return checked(rung, codes.clone(), source).to(device)

    done = 0
    with (
        writing(target, codec.sample_rate, codec.channels) as put,
        progress(f"decoding {source.name}", num_samples / codec.sample_rate, "audio s") as advance,
    ):
        for piece in decode_in_pieces(codec, rung, stretch, shape[-1], piece_samples):
            kept = piece[0, :, : num_samples - done]
            put(kept)
            done += kept.shape[-1]
            advance(kept.shape[-1] / codec.sample_rate)


def _length(told: str | None, end: int, source: Path) -> int:
    """Samples of a file of codes that span `end`: all of them, unless it tells where the music stopped."""
    if told is None:
        return end
    if not told.isdecimal() or not 0 < int(told) <= end:
        raise InputError(f"{source}: num_samples={told[:40]}, expected 1 to {end}, the samples that its codes span")
    return int(told)


@contextmanager
def _tensors(
    path: Path, dtypes: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str]
) -> Iterator[Callable[[str, int, Tensor], None]]:
    """A safetensors file to fill piece by piece: `put(name, start, codes [K, t])` sets steps of a tensor [1, K, T].

    The format is the header's length, the header as JSON, and the bytes that it points to; sizes are known beforehand.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    offset, starts = 0, {}
    for name, shape in shapes.items():
        size = prod(shape) * _DTYPES[dtypes[name]].itemsize
        header[name] = {"dtype": dtypes[name], "shape": shape, "data_offsets": (offset, offset + size)}
        starts[name], offset = offset, offset + size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        begin = file.tell()
        file.truncate(begin + offset)

        def put(name: str, start: int, codes: Tensor) -> None:
            dtype = _DTYPES[dtypes[name]]
            for index, row in enumerate(codes.cpu().numpy().astype(dtype)):
                file.seek(begin + starts[name] + (index * shapes[name][-1] + start) * dtype.itemsize)
                file.write(row.tobytes())

        yield put
