"""Every song's codes, written once per (codec, songs) and read as memory-maps."""

import errno
import fcntl
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save
from torch import Tensor

from jukebox_lite import audio
from jukebox_lite.codecs.base import Codec
from jukebox_lite.codecs.pieces import encode_in_pieces, padded_length
from jukebox_lite.datasets.songs import Song, Songs
from jukebox_lite.errors import InputError
from jukebox_lite.files import write_bytes, write_text
from jukebox_lite.levels import Level
from jukebox_lite.metrics.codecs import bits_per_step, code_histogram, code_use, perplexity
from jukebox_lite.nn.device import device_of
from jukebox_lite.progress import progress

PIECE_SECONDS = 20  # of audio encoded at once


def codec_fingerprint(codec: Codec) -> str:
    """Changes when any weight of the codec, or the meaning of its codes, does."""
    digest = hashlib.sha256(repr((type(codec).__name__, codec.sample_rate, codec.channels, codec.levels)).encode())
    for name, value in codec.state_dict().items():
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
    everything is in it. Processes that make the same cache, those of one run or the runs of a sweep, share the songs:
    each takes the next that nobody has, and what a killed one was at is taken again. Another codec, or other songs, is
    another folder: stale codes cannot be read.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        try:
            manifest = json.loads((folder / "manifest.json").read_text())
            self.levels = tuple(Level(**level) for level in manifest["levels"])
            self.songs = tuple(CachedSong(**song) for song in manifest["songs"])
            self.statistics: dict[str, dict[str, float]] = manifest["statistics"]
            self.arrays = {level.name: np.load(folder / f"{level.name}.npy", mmap_mode="r") for level in self.levels}
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError, EOFError) as error:
            raise InputError(f"{folder} is no cache of codes ({error}); remove it, and it is made again") from error

    @classmethod
    def open(cls, folder: str | Path, codec: Codec, songs: Songs) -> "CodeCache":
        """The cache of these songs' codes under `folder`, made now if it is not there."""
        name = f"{type(codec).__name__.lower()}-{codec_fingerprint(codec)}"
        path = Path(folder) / name / f"songs-{songs.fingerprint()}"
        parts = path.with_name(f"{path.name}.parts")
        with _alone(path):
            if not _is_there(path):
                parts.mkdir(exist_ok=True)
        if not _is_there(path):
            _encode_songs(codec, songs, parts, path)
        with _alone(path):
            if not _is_there(path):
                _assemble(codec, songs, parts, path)
        return cls(path)

    def summary(self) -> str:
        """A line a level for people: how much of its codebook the held-out songs use."""
        lines = []
        for level in self.levels:
            told = self.statistics[level.name]
            lines.append(
                f"  level {level.name}: {told['use']:.1%} of {level.vocab_size} codes used by held-out songs, "
                f"perplexity {told['perplexity']:.0f}, {told['bits_per_second']:,.0f} bits/s"
            )
        return "\n".join(lines)

    def codes(self, song: CachedSong, level: Level, start: int, length: int) -> Tensor:
        """Codes [K, length] of one level from its step `start` of the song on."""
        first = song.start * (self.levels[0].samples_per_step // level.samples_per_step) + start
        return torch.from_numpy(self.arrays[level.name][first : first + length].T.astype(np.int64))


@contextmanager
def _alone(path: Path, song: int = -1, wait: bool = True) -> Iterator[bool]:
    """Whether no other process is at work on a song of the cache at `path`, or on all of it, perhaps after a wait.

    A lock for each is a byte of one file, and the system takes a killed process's locks from it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("w") as file:
        alone = True
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, song + 1)
        except OSError as error:  # else a file system without locks: nobody waits
            alone = error.errno not in (errno.EACCES, errno.EAGAIN)
        yield alone


def _is_there(path: Path) -> bool:
    return (path / "manifest.json").exists()


def _encode_songs(codec: Codec, songs: Songs, parts: Path, path: Path) -> None:
    """Writes the codes of every song that has none in `parts` yet, until all have or the cache is there."""
    missing = [(index, song) for index, song in enumerate(songs.all) if not (parts / _part(song)).exists()]
    codec.eval().to(torch.accelerator.current_accelerator(check_available=True) or "cpu")
    total = sum(song.info.seconds for _, song in missing)
    with progress("encoding songs", total, "audio s") as advance:
        for wait in (False, True):  # last, what others are at: when they let go it is done, or they were killed
            left = []
            for index, song in missing:
                part = parts / _part(song)
                with _alone(path, index, wait) as alone:
                    if not alone:
                        left.append((index, song))
                    elif part.exists() or _is_there(path):  # in this order: parts go when the cache is there
                        advance(song.info.seconds, before=True)
                    else:
                        write_bytes(part, save(_encode(codec, song, advance)))
            missing = left
    codec.cpu()


def _part(song: Song) -> str:
    return hashlib.sha256(song.name.encode()).hexdigest()[:24] + ".safetensors"


def _encode(codec: Codec, song: Song, advance: Callable[[float], None]) -> dict[str, np.ndarray]:
    """Codes [steps, K] of every level of one song."""
    rate, channels = codec.sample_rate, codec.channels
    device = device_of(codec)

    def read(start: int, length: int) -> Tensor:
        return audio.read(song.path, start, length, rate, channels).to(device)

    num_samples = song.info.num_samples(rate)
    pieces: dict[str, list[np.ndarray]] = {level.name: [] for level in codec.levels}
    for _, codes in encode_in_pieces(codec, read, num_samples, PIECE_SECONDS * rate):
        for level in codec.levels:
            pieces[level.name].append(codes[level.name][0].T.cpu().numpy().astype(_dtype(level)))
        advance(codes[codec.levels[0].name].shape[-1] * codec.levels[0].samples_per_step / rate)
    return {name: np.ascontiguousarray(np.concatenate(arrays)) for name, arrays in pieces.items()}


def _dtype(level: Level) -> type[np.signedinteger]:
    return np.int16 if level.codebook_size <= 2**15 else np.int32


def _assemble(codec: Codec, songs: Songs, parts: Path, path: Path) -> None:
    """Joins the songs' codes into one array per level, and moves the folder into place."""
    making = path.with_name(f"{path.name}.making")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir()
    cached, start = [], 0
    for song in songs.all:
        num_samples = padded_length(codec, song.info.num_samples(codec.sample_rate))
        length = num_samples // codec.levels[0].samples_per_step
        cached.append(CachedSong(song.name, song.split, song.info.seconds, start, length))
        start += length
    statistics, held_out = {}, {song.name for song in songs.val}
    for level in codec.levels:
        ratio = codec.levels[0].samples_per_step // level.samples_per_step
        shape = (start * ratio, level.channels)
        with (making / f"{level.name}.npy").open("wb") as file:  # written: a full disk kills who writes to a memory-map
            header = {"descr": np.dtype(_dtype(level)).str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for song in songs.all:
                file.write(load_file(parts / _part(song))[level.name].data)
        array = np.load(making / f"{level.name}.npy", mmap_mode="r")
        spans = [slice(s.start * ratio, (s.start + s.length) * ratio) for s in cached if s.name in held_out]
        heard = np.concatenate([array[span] for span in spans])
        statistics[level.name] = _statistics(heard, level, codec.sample_rate)
    manifest = {
        "levels": [asdict(level) for level in codec.levels],
        "songs": [asdict(entry) for entry in cached],
        "statistics": statistics,
    }
    write_text(making / "manifest.json", json.dumps(manifest, indent=1))
    making.replace(path)
    shutil.rmtree(parts)


def _statistics(heard: np.ndarray, level: Level, sample_rate: int) -> dict[str, float]:
    """How much of the codebook the held-out songs' codes [steps, K] use."""
    codes = torch.from_numpy(heard.astype(np.int64).T)[None]
    histogram = code_histogram(codes, level.codebook_size)
    steps_per_second = sample_rate / level.samples_per_step
    return {
        "use": code_use(histogram).item(),
        "perplexity": perplexity(histogram).item(),
        "bits_per_second": steps_per_second * bits_per_step(histogram).item(),
    }
