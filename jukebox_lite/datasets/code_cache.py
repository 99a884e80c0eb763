"""Every song's codes, written once per (codec, songs) and read as memory-maps."""

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

from jukebox_lite import audio
from jukebox_lite.codecs.base import Codec
from jukebox_lite.codecs.pieces import encode_in_pieces, padded_length
from jukebox_lite.datasets.songs import Song, Songs
from jukebox_lite.levels import Level
from jukebox_lite.metrics.codecs import code_histogram, code_use, perplexity
from jukebox_lite.progress import progress

PIECE_SECONDS = 20  # of audio encoded at once


def codec_fingerprint(codec: Codec) -> str:
    """Changes when any weight of the codec, or the meaning of its codes, does."""
    digest = hashlib.sha256(repr((type(codec).__name__, codec.sample_rate, codec.channels, codec.levels)).encode())
    for name, value in (codec.state_dict() if isinstance(codec, nn.Module) else {}).items():
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


@dataclass(frozen=True)
class CachedSong:
    """Where a song's codes lie: `start` and `length` in steps of the coarsest level."""

    name: str
    split: str
    seconds: float
    start: int
    length: int


class CodeCache:
    """The codes of all songs on every level, one array [steps, K] per level, memory-mapped.

    `open` finds or makes `folder/<codec>-<fingerprint>/<songs>-<fingerprint>`. While it is made, each song's codes are
    a file of their own beside it, so that an interrupted making goes on where it stopped; the folder appears when
    everything is in it. Another codec, or other songs, is another folder: stale codes cannot be read.
    """

    def __init__(self, folder: Path):
        manifest = json.loads((folder / "manifest.json").read_text())
        self.folder = folder
        self.levels = tuple(Level(**level) for level in manifest["levels"])
        self.songs = tuple(CachedSong(**song) for song in manifest["songs"])
        self.statistics: dict[str, dict[str, float]] = manifest["statistics"]
        self.arrays = {level.name: np.load(folder / f"{level.name}.npy", mmap_mode="r") for level in self.levels}

    @classmethod
    def open(cls, folder: str | Path, codec: Codec, songs: Songs) -> "CodeCache":
        """The cache of these songs' codes under `folder`, made now if it is not there."""
        name = f"{type(codec).__name__.lower()}-{codec_fingerprint(codec)}"
        path = Path(folder) / name / f"songs-{songs.fingerprint()}"
        if not (path / "manifest.json").exists():
            parts = path.with_name(f"{path.name}.parts")
            parts.mkdir(parents=True, exist_ok=True)
            _encode_songs(codec, songs, parts)
            _assemble(codec, songs, parts, path)
        return cls(path)

    def summary(self) -> str:
        """A line a level for people: how much of its codebook the held-out songs use."""
        return "\n".join(
            f"  level {level.name}: {self.statistics[level.name]['use']:.1%} of {level.vocab_size} codes used by held-out "
            f"songs, perplexity {self.statistics[level.name]['perplexity']:.0f}, "
            f"{self.statistics[level.name]['bits_per_second']:,.0f} bits/s"
            for level in self.levels
        )

    def codes(self, song: CachedSong, level: Level, start: int, length: int) -> Tensor:
        """Codes [K, length] of one level from its step `start` of the song on."""
        first = song.start * (self.levels[0].hop_length // level.hop_length) + start
        return torch.from_numpy(self.arrays[level.name][first : first + length].T.astype(np.int64))


def _encode_songs(codec: Codec, songs: Songs, parts: Path) -> None:
    """Writes the codes of every song that has none in `parts` yet."""
    missing = [(path, song) for song in songs.all if not (path := parts / _part(song)).exists()]
    if isinstance(codec, nn.Module):
        codec.eval().to(torch.accelerator.current_accelerator() or "cpu")
    total = sum(song.info.seconds for _, song in missing)
    with progress("encoding songs", total, "audio s") as advance:
        for path, song in missing:
            save_file(_encode(codec, song, advance), path.with_suffix(".partial"))
            path.with_suffix(".partial").replace(path)
    if isinstance(codec, nn.Module):
        codec.cpu()


def _part(song: Song) -> str:
    return hashlib.sha256(song.name.encode()).hexdigest()[:24] + ".safetensors"


def _encode(codec: Codec, song: Song, advance) -> dict[str, np.ndarray]:
    """Codes [steps, K] of every level of one song."""
    rate, channels = codec.sample_rate, codec.channels
    device = next(codec.parameters()).device if isinstance(codec, nn.Module) else "cpu"

    def read(start: int, length: int) -> Tensor:
        return audio.read(song.path, start, length, rate, channels).to(device)

    num_samples = round(song.info.seconds * rate)
    pieces: dict[str, list[np.ndarray]] = {level.name: [] for level in codec.levels}
    for _, codes in encode_in_pieces(codec, read, num_samples, PIECE_SECONDS * rate):
        for level in codec.levels:
            pieces[level.name].append(codes[level.name][0].T.cpu().numpy().astype(_dtype(level)))
        advance(codes[codec.levels[0].name].shape[-1] * codec.levels[0].hop_length / rate)
    return {name: np.ascontiguousarray(np.concatenate(arrays)) for name, arrays in pieces.items()}


def _dtype(level: Level) -> type[np.signedinteger]:
    return np.int16 if level.vocab_size <= 2**15 else np.int32


def _assemble(codec: Codec, songs: Songs, parts: Path, path: Path) -> None:
    """Joins the songs' codes into one array per level, and moves the folder into place."""
    making = path.with_name(f"{path.name}.making")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir()
    cached, start = [], 0
    for song in songs.all:
        length = padded_length(codec, round(song.info.seconds * codec.sample_rate)) // codec.levels[0].hop_length
        cached.append(CachedSong(song.name, song.split, song.info.seconds, start, length))
        start += length
    statistics = {}
    for level in codec.levels:
        ratio = codec.levels[0].hop_length // level.hop_length
        shape = (start * ratio, level.channels)
        array = np.lib.format.open_memmap(making / f"{level.name}.npy", "w+", _dtype(level), shape)
        for song, entry in zip(songs.all, cached, strict=True):
            array[entry.start * ratio : (entry.start + entry.length) * ratio] = load_file(parts / _part(song))[
                level.name
            ]
        array.flush()
        statistics[level.name] = _statistics(array, cached, ratio, level, codec.sample_rate)
    manifest = {
        "levels": [asdict(level) for level in codec.levels],
        "songs": [asdict(entry) for entry in cached],
        "statistics": statistics,
    }
    (making / "manifest.json").write_text(json.dumps(manifest, indent=1))
    making.replace(path)
    shutil.rmtree(parts)


def _statistics(
    array: np.ndarray, songs: list[CachedSong], ratio: int, level: Level, sample_rate: int
) -> dict[str, float]:
    """How much of the codebook the held-out songs use."""
    held_out = [array[s.start * ratio : (s.start + s.length) * ratio] for s in songs if s.split == "val"]
    codes = torch.from_numpy(np.concatenate(held_out).astype(np.int64).T)[None]
    histogram = code_histogram(codes, level.vocab_size)
    steps_per_second = sample_rate / level.hop_length
    return {
        "use": code_use(histogram).item(),
        "perplexity": perplexity(histogram).item(),
        "bits_per_second": steps_per_second * level.channels * float(np.log2(perplexity(histogram).item())),
    }
