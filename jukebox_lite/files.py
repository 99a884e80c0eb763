"""Files and folders that are whole or not there at all, whatever happens while they are written."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_BESIDE = ".tmp-"  # begins the name of everything that is not yet, or no longer, in its place


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, as `write_bytes` does."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file beside its place, bring it to the disk and move it there; a reader never sees half of it."""
    with whole(path) as beside:
        beside.write_bytes(data)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path beside `path` to write a file to; takes its place if the block succeeds, and is gone if not."""
    beside = path.with_name(f"{_BESIDE}{path.name}-{os.getpid()}")
    try:
        yield beside
        sync(beside)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    sync(path.parent)


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """An empty folder beside `folder` to write into; takes its place, with all its files, if the block succeeds, and is
    gone if not: a full disk is not kept full by what did not fit.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    clean(folder.parent)
    beside = folder.with_name(f"{_BESIDE}{folder.name}")
    beside.mkdir()
    try:
        yield beside
        for path in beside.rglob("*"):
            sync(path)
        sync(beside)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    if folder.exists():
        folder.rename(folder.with_name(f"{_BESIDE}{folder.name}-old"))
    beside.rename(folder)
    sync(folder.parent)
    clean(folder.parent)


def remove(folder: Path) -> None:
    """Delete a folder so that no reader can meet it half deleted."""
    beside = folder.with_name(f"{_BESIDE}{folder.name}-old")
    folder.rename(beside)
    shutil.rmtree(beside)


def clean(folder: Path) -> None:
    """Delete what a killed process left half written in `folder`."""
    for leftover in folder.glob(f"{_BESIDE}*"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file's contents, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
