"""Audio files in and out: probe, read a window, stream, write. soundfile decodes, soxr resamples."""

import errno
import math
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
from einops import rearrange
from torch import Tensor

from jukebox_lite.errors import InputError
from jukebox_lite.files import whole

_CREDIBLE_RATES = (1_000, 768_000)  # Hz; a header outside of this is damaged
_MARGIN = 256  # samples of the slower rate around a window; soxr's filter reaches about 80
_BLOCK = 1 << 16  # frames per read or write of a stream
_OPEN_ENDED = 0x7FFF_0000  # chunk sizes from here on mean "unknown when the header was written"
_CUT_CHUNK = re.compile(r"^\s*(?:data|SSND) : (\d+) \(should be (\d+)\)", re.MULTILINE)
_UNKNOWN_FORMAT = 1  # libsndfile's code, of what a format has no room for
_FORMATS = {".wav": ("WAV", "PCM_16"), ".flac": ("FLAC", "PCM_16"), ".ogg": ("OGG", "VORBIS")}
_stderr_lock = threading.Lock()


@dataclass(frozen=True)
class AudioInfo:
    """What the header of an audio file says."""

    sample_rate: int  # Hz
    channels: int
    num_frames: int  # samples per channel

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return self.num_frames / self.sample_rate

    def num_samples(self, sample_rate: int) -> int:
        """Samples per channel once resampled to `sample_rate` Hz."""
        return (2 * self.num_frames * sample_rate + self.sample_rate) // (2 * self.sample_rate)


def probe(path: str | Path) -> AudioInfo:
    """The header's facts, having checked that the file's end is there, without decoding all of it.

    Raises InputError with a short reason (not the path) on a file that is empty, not audio or cut off.
    """
    path = Path(path)
    try:
        if not path.is_file() and path.exists():
            raise InputError("not a file")  # opening a pipe would wait for ever
        if path.stat().st_size == 0:
            raise InputError("empty file (0 bytes)")
        with _quiet(path), soundfile.SoundFile(path) as file:
            info = AudioInfo(file.samplerate, file.channels, file.frames)
            container, log = file.format, file.extra_info
    except soundfile.SoundFileError as error:
        raise InputError(f"not readable as audio ({_reason(error)})") from error
    except OSError as error:
        raise InputError(f"cannot be opened ({error.strerror})") from error
    low, high = _CREDIBLE_RATES
    if not low <= info.sample_rate <= high:
        raise InputError(f"its header gives {info.sample_rate} Hz, expected {low} to {high} Hz")
    if not 0 <= info.num_frames < 1 << 48:
        raise InputError("its header does not say how long it is; convert it to wav or flac")
    _check_end(path, info, container, log)
    return info


def read(path: str | Path, start: int, num_samples: int, sample_rate: int, channels: int) -> Tensor:
    """Samples [start, start + num_samples) of the file as resampled to `sample_rate` Hz: [C, N], zeros past its end.

    Decodes only that span and a margin, begun where the resampling of the whole file has the same phase.
    One channel is the mean of all; more are the first ones, or a mono file repeated. Raises InputError.
    """
    path = Path(path)
    with _opened(path) as file:
        native = file.samplerate
        if native == sample_rate:
            audio = _mixed(_decode(file, start, num_samples), channels, path)
        else:
            step, phase_step = (rate // math.gcd(native, sample_rate) for rate in (native, sample_rate))
            margin = math.ceil(_MARGIN * max(1.0, native / sample_rate))
            first = max(start * native // sample_rate - margin, 0) // step * step
            last = -(-(start + num_samples) * native // sample_rate) + margin
            audio = _mixed(_decode(file, first, last - first), channels, path)
            skip = start - first // step * phase_step
            audio = soxr.resample(audio, native, sample_rate)[skip : skip + num_samples] if len(audio) else audio
    window = np.zeros((channels, num_samples), np.float32)  # numpy: torch would wake its threads for a small copy
    window[:, : len(audio)] = rearrange(audio, "n c -> c n")
    return torch.from_numpy(window)


def write(path: str | Path, audio: Tensor, sample_rate: int) -> None:
    """Writes audio [C, N], clipped to [-1, 1], as the suffix says: 16-bit .wav or .flac, or Vorbis .ogg.

    The file appears whole or not at all.
    """
    with writing(path, sample_rate, len(audio)) as put:
        put(audio)


@contextmanager
def writing(path: str | Path, sample_rate: int, channels: int) -> Iterator[Callable[[Tensor], None]]:
    """Gives `put`, which adds audio [C, n] to a file as `write` writes it; the file appears when the block succeeds.

    Raises OSError where the disk does not take all of it.
    """
    path = Path(path)
    if path.suffix.lower() not in _FORMATS:
        raise InputError(f"{path}: cannot write {path.suffix or 'a file without suffix'}; use {', '.join(_FORMATS)}")
    container, subtype = _FORMATS[path.suffix.lower()]
    path.parent.mkdir(parents=True, exist_ok=True)
    num_frames = 0
    with whole(path) as beside:
        beside.touch()  # whose OSError says more than libsndfile's
        try:
            with soundfile.SoundFile(beside, "w", sample_rate, channels, subtype, format=container) as file:

                def put(audio: Tensor) -> None:
                    nonlocal num_frames
                    for block in audio.split(_BLOCK, -1):  # one long call crashes on ogg (python-soundfile #233)
                        frames = rearrange(block.detach().float().cpu().clamp(-1, 1), "c n -> n c").contiguous().numpy()
                        try:
                            file.write(frames)
                        except AssertionError as error:  # that all was written
                            raise _not_taken(path) from error
                        num_frames += len(frames)

                yield put
        except soundfile.LibsndfileError as error:
            if error.code == _UNKNOWN_FORMAT:
                raise InputError(f"{path}: {channels} channels at {sample_rate} Hz: {error.error_string}") from error
            raise _not_taken(path) from error
        if not _holds(beside, num_frames):  # closing it, libsndfile says nothing of what it could not write
            raise _not_taken(path)


def _not_taken(path: Path) -> OSError:
    """For a file that libsndfile could not write: it does not say why."""
    return OSError(errno.EIO, "not written whole, as on a full disk", str(path))


def _holds(path: Path, num_frames: int) -> bool:
    """Whether a file that was written can be read to its end."""
    try:
        info = probe(path)
    except InputError:
        return num_frames == 0
    return info.num_frames == num_frames


def _check_end(path: Path, info: AudioInfo, container: str, log: str) -> None:
    """Raises InputError if the file stops before the end that its header promises."""
    promised = info.seconds
    if cut := _CUT_CHUNK.search(log):  # wav and aiff: libsndfile shortens the song and says so in its log only
        stated, present = (int(size) for size in cut.groups())
        if present < stated < _OPEN_ENDED:
            promised = info.seconds * stated / max(present, 1)
            raise InputError(f"ends after {info.seconds:.1f} s of the {promised:.1f} s that its header promises")
    if container == "OGG" and not _ogg_is_closed(path):  # ogg promises no length, but marks its last page
        raise InputError(f"cut off: ends after {info.seconds:.1f} s without its closing page")
    tail = min(info.num_frames, 1024)
    # The length of an mp3 may be an estimate from its size, and some encoders round that of a whole ogg up: the last
    # hundredth of either may be missing.
    slack = info.num_frames // 100 if container in ("MP3", "MPEG", "OGG") else 0
    last = info.num_frames - max(tail, slack)
    if _decodes(path, last, tail):
        return
    low, high = 0, last
    while high - low > info.sample_rate // 20:
        middle = (low + high) // 2
        low, high = (middle, high) if _decodes(path, middle, tail) else (low, middle)
    ending = low / info.sample_rate
    raise InputError(f"ends after {ending:.1f} s of the {promised:.1f} s that its header promises")


def _decodes(path: Path, start: int, count: int) -> bool:
    """Whether frames [start, start + count) are there; opens anew, as a failed seek leaves libsndfile confused."""
    try:
        with _opened(path) as file:
            return len(_decode(file, start, count)) == count
    except InputError:
        return False


def _ogg_is_closed(path: Path) -> bool:
    """Whether the last page of an ogg file carries the end-of-stream flag (RFC 3533, section 6)."""
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - (1 << 17), 0))  # a page is at most 65,307 bytes
        end = file.read()
    page = end.rfind(b"OggS")
    return 0 <= page < len(end) - 5 and bool(end[page + 5] & 4)


def _decode(file: soundfile.SoundFile, start: int, count: int) -> np.ndarray:
    """Frames [start, start + count) of an open file as float32 [n, channels]; fewer where it ends."""
    if start >= file.frames:
        return np.zeros((0, file.channels), np.float32)
    # libsndfile misplaces a seek into the last page of a Vorbis file by some samples: seek earlier, and read on.
    target = min(start, max(file.frames - 2 * file.samplerate, 0)) if file.subtype == "VORBIS" else start
    file.seek(target)
    return file.read(start - target + count, dtype="float32", always_2d=True)[start - target :]


def _mixed(audio: np.ndarray, channels: int, path: Path) -> np.ndarray:
    """Audio [n, any] mixed to [n, C], all of it finite."""
    present = audio.shape[1]
    if not np.isfinite(audio).all():
        raise InputError(f"{path}: holds samples that are not numbers (NaN or infinite); repair or remove it")
    if channels == 1:
        return audio.mean(1, keepdims=True)
    if present == 1:
        return np.repeat(audio, channels, 1)
    if present < channels:
        raise InputError(f"{path}: has {present} channels, {channels} are asked for; lower the number of channels")
    return np.ascontiguousarray(audio[:, :channels])


@contextmanager
def _opened(path: Path) -> Iterator[soundfile.SoundFile]:
    """The file open for reading; whatever the decoder raises becomes an InputError that names it."""
    try:
        with _quiet(path), soundfile.SoundFile(path) as file:
            yield file
    except soundfile.SoundFileError as error:
        raise InputError(f"{path}: cannot be read ({_reason(error)}); repair or remove it") from error


@contextmanager
def _quiet(path: Path) -> Iterator[None]:
    """Keeps libmpg123, which writes its complaints to file descriptor 2, off the terminal while an mp3 is open."""
    if path.suffix.lower() != ".mp3":
        yield
        return
    with _stderr_lock:
        kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            os.close(nowhere)


def _reason(error: soundfile.SoundFileError) -> str:
    """The decoder's own words, in short."""
    return str(getattr(error, "error_string", error)).strip().rstrip(".") or "the decoder gives no reason"
