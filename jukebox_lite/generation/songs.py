"""Songs as files: lengths in steps, codes to continue from, and what one call of sample.py leaves."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from jukebox_lite.audio import probe, read
from jukebox_lite.codecs.base import Codec
from jukebox_lite.codecs.pieces import PIECE_SAMPLES, decode_in_pieces, encode_in_pieces
from jukebox_lite.errors import InputError
from jukebox_lite.files import write_bytes
from jukebox_lite.generation.report import Clip, Section, write_page
from jukebox_lite.levels import Codes, Level
from jukebox_lite.nn.device import device_of

_FORMAT = "jukebox_lite codes 1"


def steps_for(codec: Codec, seconds: float) -> dict[str, int]:
    """Time steps by level name for at least `seconds`: the fewest steps of the coarsest level, and as long on each."""
    if not 0 < seconds < math.inf:
        raise InputError(f"seconds={seconds}: expected more than 0")
    coarsest = codec.levels[0].samples_per_step
    steps = math.ceil(seconds * codec.sample_rate / coarsest - 1e-6)  # whole steps, given in seconds, stay as many
    return {level.name: max(steps, 1) * coarsest // level.samples_per_step for level in codec.levels}


@torch.no_grad()
def encode_given(codec: Codec, path: Path, seconds: float | None = None) -> Codes:
    """Codes [1, K, T] of the first `seconds` of an audio file, or of all of it, on every level.

    Cut to whole steps of the coarsest level, not padded: a song goes on from its music, not from added silence.
    """
    try:
        available = probe(path).num_samples(codec.sample_rate)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    wanted = available if seconds is None else min(round(seconds * codec.sample_rate), available)
    coarsest, device = codec.levels[0].samples_per_step, device_of(codec)
    if (steps := wanted // coarsest) < 1:
        rate = codec.sample_rate
        raise InputError(f"{path}: {wanted / rate:.3f} s to begin with, expected {coarsest / rate:.3f} s or more")

    def stretch(start: int, num_samples: int) -> Tensor:
        return read(path, start, num_samples, codec.sample_rate, codec.channels).to(device)

    pieces = [codes for _, codes in encode_in_pieces(codec, stretch, steps * coarsest, PIECE_SAMPLES)]
    return {level.name: torch.cat([codes[level.name].cpu() for codes in pieces], -1) for level in codec.levels}


def save_codes(
    path: Path, codes: Codes, codec: Codec, fingerprint: str, extra: Mapping[str, str] | None = None
) -> None:
    """Writes codes [B, K, T] as safetensors, with what it takes to know them again: the codec's `fingerprint`."""
    metadata = {**(extra or {}), **codes_metadata(codec, list(codes), fingerprint)}
    write_bytes(path, save({name: values.cpu().contiguous() for name, values in codes.items()}, metadata))


def codes_metadata(codec: Codec, names: Sequence[str], fingerprint: str) -> dict[str, str]:
    """What a file of the codes of these levels says of them."""
    levels = json.dumps([vars(codec.level(name)) for name in names])
    return {"format": _FORMAT, "codec": fingerprint, "sample_rate": str(codec.sample_rate), "levels": levels}


def read_codes(path: Path, codec: Codec, fingerprint: str) -> Codes:
    """Codes [B, K, T] as `save_codes` wrote them; InputError unless they are whole and of this very codec."""
    with open_codes(path, codec, fingerprint) as (file, names):
        codes = {name: checked(codec.level(name), file.get_tensor(name), path) for name in names}
    _check_together(path, codec, codes)
    return codes


@contextmanager
def open_codes(path: Path, codec: Codec, fingerprint: str) -> Iterator[tuple[Any, list[str]]]:
    """A file of codes, as safetensors opens it, and its levels, coarse to fine; InputError unless of this codec."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected codes that sample.py wrote")
    try:
        with safe_open(path, framework="pt") as file:
            metadata, names = file.metadata() or {}, list(file.keys())
            if metadata.get("format") != _FORMAT:
                raise InputError(f"{path}: not a file of codes; expected codes.safetensors, as sample.py wrote it")
            if metadata.get("codec") != fingerprint:
                raise InputError(f"{path}: written with another codec than this one; sample again, or load that codec")
            known = [level.name for level in codec.levels]
            if not names or not set(names) <= set(known):
                raise InputError(f"{path}: holds levels {names}, expected some of {known}")
            yield file, [name for name in known if name in names]
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a whole safetensors file ({str(error).splitlines()[0][:120]})") from error


def checked(level: Level, codes: Tensor, path: Path) -> Tensor:
    """A level's codes [B, K, T] as read from a file, which may hold narrower integers; InputError on a wrong value."""
    codes = codes.to(torch.int64) if codes.dtype in (torch.int16, torch.int32) else codes
    level.check(codes, str(path))
    return codes


def write_songs(
    folder: Path,
    codec: Codec,
    codes: Codes,
    fingerprint: str,
    songs: Sequence[Section],
    settings: str = "",
    beside: Sequence[Section] = (),
    took: Mapping[str, float] | None = None,
) -> Path:
    """Writes codes.safetensors, and a page of codes [B, K, T] decoded from each level, finest first; returns the page.

    `songs` tell what is known of each of the B songs, and get their clips here; the sections `beside` follow them.
    `settings` is the YAML that made them; `took` are the seconds it took by level.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_codes(folder / "codes.safetensors", codes, codec, fingerprint, {"settings": settings})
    levels = [level for level in reversed(codec.levels) if level.name in codes]
    sections = [
        replace(song, clips=_clips(codec, {level.name: codes[level.name][index : index + 1] for level in levels}))
        for index, song in enumerate(songs)
    ]
    return write_page(folder, folder.name, [*sections, *beside], settings, took)


@torch.no_grad()
def real_section(codec: Codec, path: Path, seconds: float) -> Section:
    """The first `seconds` of a real recording, as they are and as each level's codes sound, to compare with."""
    codes = encode_given(codec, path, seconds)
    length = codes[codec.levels[0].name].shape[-1] * codec.levels[0].samples_per_step
    pieces = (
        read(path, start, min(PIECE_SAMPLES, length - start), codec.sample_rate, codec.channels)
        for start in range(0, length, PIECE_SAMPLES)
    )
    heard = _clips(codec, {level.name: codes[level.name] for level in reversed(codec.levels)})
    clips = chain([Clip("original", pieces, length, codec.sample_rate)], heard)
    return Section(f"Real: {path.name}", clips, reference=True)


def _clips(codec: Codec, codes: Codes) -> Iterator[Clip]:
    """Codes [1, K, T] of each level, to hear; decoded when they are asked for, so that one piece is held at once."""
    device = device_of(codec)
    for name, values in codes.items():
        level, num_steps = codec.level(name), values.shape[-1]
        read = partial(_stretch, values, device)
        pieces = (piece[0] for piece in decode_in_pieces(codec, level, read, num_steps, PIECE_SAMPLES))
        shown = values[0] if level.vocab_size else None
        yield Clip(name, pieces, num_steps * level.samples_per_step, codec.sample_rate, shown)


def _stretch(codes: Tensor, device: torch.device, start: int, length: int) -> Tensor:
    """Steps [start, start + length) of codes [1, K, T]."""
    return codes[..., start : start + length].to(device)


def _check_together(path: Path, codec: Codec, codes: Codes) -> None:
    """Raises InputError unless all levels hold as many songs, and as many seconds of them."""
    songs = {len(values) for values in codes.values()}
    hops = {name: codec.level(name).hop_length or 0 for name in codes}
    spans = {values.shape[-1] * hops[name] for name, values in codes.items() if hops[name]}
    if len(songs) > 1 or len(spans) > 1:
        shapes = ", ".join(f"{name} {list(values.shape)}" for name, values in codes.items())
        raise InputError(f"{path}: the levels do not span the same songs and seconds: {shapes}")
