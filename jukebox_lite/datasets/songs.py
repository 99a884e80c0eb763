"""A folder of music: which songs it holds, what is known of them, and which are held out."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import mutagen

from jukebox_lite.audio import AudioInfo, probe
from jukebox_lite.datasets.metadata import Row, joined, read_metadata
from jukebox_lite.errors import InputError
from jukebox_lite.levels import UNKNOWN, split_values
from jukebox_lite.lyrics import characters_of, normalised, read_lyrics
from jukebox_lite.progress import progress

SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff")
_TAGS = {"artist": "TPE1", "genre": "TCON", "title": "TIT2"}  # label -> its ID3 frame, as wav and aiff have it
_EDGE = 1 << 16  # bytes at either end of a file that go into the fingerprint


@dataclass(frozen=True)
class Song:
    """One readable file of the folder."""

    name: str  # relative to the folder, with /
    path: Path
    info: AudioInfo
    labels: dict[str, str]  # artist, genre, title, ...: only what is known; several values as "rock; jazz"
    split: Literal["train", "val"]
    lyrics: str = ""  # normalised, with its line breaks


class Songs:
    """The songs of a folder and all its subfolders, by name; hidden files are passed over.

    Labels come from metadata.csv or metadata.jsonl, else from the files' own tags; lyrics from the metadata's column of
    that name, else from a .txt in UTF-8 beside the song, named as it is. Whole files are held out for validation: those
    the metadata says, else every `held_out_every`-th. A file that is unreadable or shorter than `min_seconds` is set
    aside with its reason, and the rest goes on; a .txt likewise, and its song goes on without lyrics.
    """

    all: tuple[Song, ...]
    train: tuple[Song, ...]
    val: tuple[Song, ...]
    set_aside: tuple[tuple[str, str], ...]  # (name, reason)

    def __init__(self, root: str, held_out_every: int = 8, min_seconds: float = 0.1):
        self.root = Path(root)
        _check_folder(self.root)
        if held_out_every < 2:
            raise InputError(f"held_out_every={held_out_every}: expected 2 or more, so that songs are left to train on")
        files = dict(sorted((_name(path, self.root), path) for path in _music_files(self.root)))
        source, rows = read_metadata(self.root)
        missing = f"listed in {source}, but the folder has no such music file"
        set_aside = [(name, missing) for name in rows if name not in files]
        readable: list[tuple[str, Path, AudioInfo]] = []
        with progress(f"reading {root}", len(files), "files") as advance:
            for name, path in files.items():
                try:
                    readable.append((name, path, _probe_length(path, min_seconds)))
                except InputError as error:
                    set_aside.append((name, str(error)))
                advance(1)
        songs = []
        for index, (name, path, info) in enumerate(readable):
            row, lyrics = rows.get(name), ""
            try:
                lyrics = _lyrics(path, row)
            except InputError as error:
                set_aside.append((_name(path.with_suffix(".txt"), self.root), str(error)))
            labels, split = _labels(path, source, row), _split(row, index, held_out_every)
            songs.append(Song(name, path, info, labels, split, lyrics))
        self.all, self.set_aside = tuple(songs), tuple(sorted(set_aside))
        self._check_songs(source)
        single = len(self.all) == 1
        self.train = tuple(song for song in self.all if single or song.split == "train")
        self.val = tuple(song for song in self.all if single or song.split == "val")

    def vocabulary(self, names: Sequence[str]) -> dict[str, list[str]]:
        """The values of these labels in the training songs, sorted, UNKNOWN before them."""
        return {
            name: [UNKNOWN, *sorted({v for song in self.train for v in split_values(song.labels.get(name, ""))})]
            for name in names
        }

    def characters(self) -> list[str]:
        """The characters of the training songs' lyrics, sorted, UNKNOWN before them."""
        return characters_of(song.lyrics for song in self.train)

    def fingerprint(self) -> str:
        """16 hex digits that change with the songs' names, lengths, splits or first and last bytes, not with labels."""
        digest = hashlib.sha256()
        for song in self.all:
            try:
                with song.path.open("rb") as file:
                    size = file.seek(0, os.SEEK_END)
                    digest.update(repr((song.name, size, song.info.num_frames, song.split)).encode())
                    for edge in (0, max(size - _EDGE, 0)):
                        file.seek(edge)
                        digest.update(file.read(_EDGE))
            except OSError as error:
                raise InputError(f"{song.path}: gone since the folder was read ({error.strerror})") from error
        return digest.hexdigest()[:16]

    def summary(self) -> str:
        """A few lines for people: how much music, what will be converted, and what was set aside."""
        minutes = {split: sum(s.info.seconds for s in songs) / 60 for split, songs in self._splits().items()}
        forms = Counter(f"{s.info.sample_rate / 1000:g} kHz x {s.info.channels}" for s in self.all)
        lines = [
            f"{self.root}: {len(self.all)} songs, {sum(s.info.seconds for s in self.all) / 60:.1f} minutes",
            f"  train {len(self.train)} ({minutes['train']:.1f} min), val {len(self.val)} ({minutes['val']:.1f} min)",
            "  rate x channels: " + ", ".join(f"{form} ({count})" for form, count in forms.most_common()),
        ]
        if self.set_aside:
            lines.append(f"  set aside: {len(self.set_aside)}")
            lines += [f"    {name}: {reason}" for name, reason in self.set_aside]
        return "\n".join(lines)

    def _splits(self) -> dict[str, tuple[Song, ...]]:
        return {"train": self.train, "val": self.val}

    def _check_songs(self, source: str) -> None:
        """Raises InputError unless there is music for either split."""
        if not self.all:
            reason = f", of {len(self.set_aside)} set aside {': '.join(self.set_aside[0])}" if self.set_aside else ""
            raise InputError(f"{self.root}: no readable music{reason}; give a folder of {' '.join(SUFFIXES)} files")
        for split in ("train", "val"):
            if len(self.all) > 1 and all(song.split != split for song in self.all):
                raise InputError(f"{self.root / source}: no readable song has split {split}; give at least one")


def _check_folder(root: Path) -> None:
    """Raises InputError unless `root` is a folder."""
    if not root.exists():
        raise InputError(f"{root}: there is no such folder; give a folder of music as data.root")
    if not root.is_dir():
        raise InputError(f"{root}: is a file, expected a folder of music; give {root.parent}")


def _music_files(root: Path) -> Iterator[Path]:
    """Every music file below `root`; links to folders are followed, each folder once."""
    seen: set[str] = set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in files:
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                yield Path(folder) / name


def _name(path: Path, root: Path) -> str:
    """The file's name in the folder, printable even where the file system's bytes are not UTF-8."""
    return path.relative_to(root).as_posix().encode("utf-8", "backslashreplace").decode()


def _probe_length(path: Path, min_seconds: float) -> AudioInfo:
    """The file's facts. Raises InputError if it is unreadable or too short."""
    info = probe(path)
    if info.seconds < min_seconds:
        raise InputError(f"{1000 * info.seconds:.0f} ms of audio, at least {1000 * min_seconds:.0f} ms are needed")
    return info


def _split(row: Row | None, index: int, held_out_every: int) -> Literal["train", "val"]:
    """The metadata's word, else every `held_out_every`-th song is held out."""
    stated = row.split if row else None
    return "val" if stated == "val" or (stated is None and index % held_out_every == 0) else "train"


def _lyrics(path: Path, row: Row | None) -> str:
    """A song's text: its row's, else that of the .txt beside it. Raises InputError if that is unreadable."""
    if row and row.lyrics:
        return normalised(row.lyrics)
    text = path.with_suffix(".txt")
    return normalised(read_lyrics(text)) if text.is_file() else ""


def _labels(path: Path, source: str, row: Row | None) -> dict[str, str]:
    """What is known of a song: its row; without a metadata file, its tags."""
    if source:
        return row.labels if row else {}
    try:
        tags: Any = mutagen.File(path, easy=True) or {}  # pyright: ignore[reportPrivateImportUsage]
        found = {label: tags.get(label) or tags.get(frame) for label, frame in _TAGS.items()}
        texts = {label: joined(values) for label, values in found.items() if values}
    except Exception:  # mutagen lets many kinds through, and a broken tag is no reason to lose the song
        return {}
    return {label: text for label, text in texts.items() if text}
