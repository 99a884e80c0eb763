"""What a long computation has come to, on the disk as it goes: a file that only grows, of steps that are repeated by
reading. After kill -9, or a power cut, at any moment the same steps go on from the last that is whole.

The format is a line, and records: each a length in 8 bytes, the SHA-256 of all records so far, and the record itself, a
tensor and the seconds that it took as safetensors. The first is what the computation depends on, as JSON.
"""

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import torch
from safetensors.torch import load, save
from torch import Tensor

from jukebox_lite.errors import InputError
from jukebox_lite.files import sync
from jukebox_lite.settings import refuse_changes

_FORMAT = b"jukebox_lite journal 2\n"


def fingerprint_of(tensors: Mapping[str, Tensor]) -> str:
    """Changes when any of the tensors does, or its name."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]


class Steps:
    """Steps of a computation that nothing keeps; `seconds` is what they took together."""

    reading = False  # whether there are steps left that were taken before

    def __init__(self) -> None:
        self.seconds = 0.0

    def step(self, make: Callable[[], Tensor]) -> Tensor:
        """What `make` gives."""
        began = time.perf_counter()
        tensor = make()
        self.seconds += time.perf_counter() - began
        return tensor


class Journal(Steps):
    """Repeats a sequence of steps, as far as they were taken before, from a file; a context, closed at its end.

    What the steps make must follow from `facts`, and from the steps before; `seconds` counts what they took when they
    were taken. Opening makes the file; it raises InputError where another process has it open, and where steps were
    taken with other facts. A file without steps is gone at the end: what was refused at once leaves its name free.
    """

    def __init__(self, path: Path, facts: Mapping[str, Any]):
        super().__init__()
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: BinaryIO = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b")
        try:
            self._lock()
            self._digest = hashlib.sha256(_FORMAT)
            self._open(json.loads(json.dumps(facts)))
        except BaseException:
            self._file.close()
            raise

    @property
    def reading(self) -> bool:
        return self._next is not None

    def step(self, make: Callable[[], Tensor]) -> Tensor:
        """What `make` gives; read, if this step was taken before, and else on the disk when this returns."""
        if self._next is not None:
            record = load(self._next)
            self.seconds += float(record["seconds"])
            self._next = self._read()
            return record["made"]
        before = self.seconds
        tensor = super().step(make)
        taken = torch.tensor(self.seconds - before, dtype=torch.float64)
        self._write(save({"made": tensor.contiguous(), "seconds": taken}))
        self._empty = False
        return tensor

    def remove(self) -> None:
        """Deletes the file, when what the steps led to is kept elsewhere."""
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._empty:
            self.remove()
        self._file.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process
        except BlockingIOError:
            raise InputError(f"{self.path.parent}: another process is at work there; give another name=...") from None
        except OSError:
            pass  # a file system without locks

    def _open(self, facts: Mapping[str, Any]) -> None:
        """Reads the facts and the first step, or begins a file that has none."""
        begun = self._file.read(len(_FORMAT))
        if not _FORMAT.startswith(begun):
            raise InputError(f"{self.path} is no journal of this program: move it away, or give another name=...")
        known = self._read() if begun == _FORMAT else None
        self._next = known and self._read()
        self._empty = self._next is None
        if known and self._next:
            refuse_changes(self.path.parent, json.loads(known), facts)
            return
        self._file.seek(0)
        self._file.truncate()
        self._digest = hashlib.sha256(_FORMAT)
        self._file.write(_FORMAT)
        self._write(json.dumps(facts).encode())
        sync(self.path.parent)

    def _read(self) -> bytes | None:
        """The next whole record; where there is none, what is left of a torn one is cut off."""
        start = self._file.tell()
        size, told = int.from_bytes(self._file.read(8), "little"), self._file.read(32)
        if size <= os.fstat(self._file.fileno()).st_size - self._file.tell():
            data = self._file.read(size)
            digest = self._digest.copy()
            digest.update(data)
            if data and digest.digest() == told:
                self._digest = digest
                return data
        self._file.seek(start)
        self._file.truncate()
        return None

    def _write(self, data: bytes) -> None:
        """Appends a record and waits until it is on the disk."""
        self._digest.update(data)
        self._file.write(len(data).to_bytes(8, "little") + self._digest.digest() + data)
        self._file.flush()
        os.fsync(self._file.fileno())
