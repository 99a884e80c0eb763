"""The music that comes with the project: Bach's four-part chorales, from music21's corpus, rendered to audio.

Each piece is rendered once, on one instrument: what is held out is never heard in another version.
"""

import csv
import io
import json
import os
import random
import re
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing import get_context, parent_process
from pathlib import Path

import midirenderer
import pretty_midi
import soundfile
import soxr
import torch
from einops import rearrange
from music21 import converter, corpus, exceptions21, stream
from music21.corpus.chorales import ChoraleListRKBWV
from music21.key import Key
from torch import Tensor

from jukebox_lite import audio
from jukebox_lite.datasets.songs import Songs
from jukebox_lite.errors import InputError
from jukebox_lite.files import write_bytes, write_text
from jukebox_lite.progress import progress

SAMPLE_RATE = 44_100  # Hz
_VERSION = 1  # of everything below that changes what is heard
_INSTRUMENTS = {"piano": 0, "church organ": 19, "strings": 48, "choir": 52}  # General MIDI programs, from 0
_QUARTERS_PER_MINUTE = 80.0
_MAX_SHIFT = 3  # semitones of transposition, up or down
_MIN_SECONDS = 15.0
_RELEASE_SECONDS = 2.0  # rendered past the last note, for it to die away
_LEVEL_DB = -20.0  # RMS of a finished song, less where its peaks would pass 0.99
_SILENCE = 1e-3  # amplitude below which a song's ends are trimmed...
_REST_SECONDS = 0.2  # ...but for this
_KEYS = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")

Voice = list[tuple[float, float, int]]  # (start, end, MIDI pitch), in quarter notes


@dataclass(frozen=True)
class _Piece:
    """One chorale as it will be rendered."""

    name: str  # as in the corpus: bwv66.6
    title: str
    instrument: str
    key: str  # as rendered: "G major"
    seconds: float  # of the score
    midi: bytes


class Chorales(Songs):
    """Bach's chorales, rendered into `rendered` at the first use; any other `root` is a plain folder of songs."""

    def __init__(self, root: str, rendered: str, minutes: float = 64, held_out_every: int = 8):
        if Path(root).resolve() == Path(rendered).resolve():
            prepare_chorales(Path(rendered), minutes, held_out_every)
        super().__init__(root, held_out_every)


def prepare_chorales(folder: Path, minutes: float, held_out_every: int = 8) -> None:
    """Renders chorales into `folder` until their scores last `minutes`: flac (mono, 44.1 kHz), midi, metadata.csv.

    Goes on where it was interrupted, with the same result; metadata.csv comes last and marks the end.
    """
    if not minutes > 0:
        raise InputError(f"minutes={minutes}: expected more than 0")
    if _is_prepared(folder, minutes, held_out_every):
        return
    print(f"preparing {minutes:g} minutes of Bach chorales in {folder} (once)", file=sys.stderr, flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "recipe.json", json.dumps(_recipe(minutes, held_out_every)))
    (folder / "metadata.csv").unlink(missing_ok=True)
    pieces = []
    for piece in _read_pieces():
        pieces.append(piece)
        if sum(piece.seconds for piece in pieces) >= 60 * minutes:
            break
    missing = [piece for piece in pieces if not (folder / f"{piece.name}.flac").exists()]
    if missing:
        _render_all(missing, folder)
    write_text(folder / "metadata.csv", _metadata(pieces, held_out_every))


def _recipe(minutes: float, held_out_every: int) -> dict[str, float]:
    """What a prepared folder depends on."""
    return {"version": _VERSION, "held_out_every": held_out_every, "minutes": minutes}


def _is_prepared(folder: Path, minutes: float, held_out_every: int) -> bool:
    """Whether the folder is complete. Raises InputError if it was made by a recipe that cannot be continued."""
    if not (folder / "recipe.json").is_file():
        if folder.exists() and (not folder.is_dir() or any(not path.name.startswith(".") for path in folder.iterdir())):
            raise InputError(f"{folder}: holds something else, expected a new folder; give another as data.rendered")
        return False
    wanted = _recipe(minutes, held_out_every)
    try:
        made = json.loads((folder / "recipe.json").read_text("utf-8"))
        continues = {**made, "minutes": minutes} == wanted and made["minutes"] <= minutes
        told = ", ".join(f"{name} {value:g}" for name, value in made.items())
    except (ValueError, TypeError, KeyError, AttributeError):
        made, continues, told = {}, False, "a recipe.json that cannot be read"
    if not continues:
        asked = ", ".join(f"{name} {value:g}" for name, value in wanted.items())
        raise InputError(f"{folder}: prepared with {told}, not {asked}; remove it or give another as data.rendered")
    return made == wanted and (folder / "metadata.csv").is_file()


def _read_pieces() -> Iterator[_Piece]:
    """The corpus's four-part chorales in the order of their numbers, each piece once."""
    titles = {number: entry["title"] for number, entry in ChoraleListRKBWV().byBWV.items()}
    paths = [path for path in map(Path, corpus.getComposer("bach")) if re.fullmatch(r"bwv[\d.]+", path.stem)]
    seen: set[tuple[tuple[int, ...], ...]] = set()
    for index, path in enumerate(sorted(paths, key=lambda path: [int(n) for n in re.findall(r"\d+", path.stem)])):
        try:
            score = converter.parse(path, forceSource=True, storePickle=False)
        except exceptions21.Music21Exception:
            continue
        if not isinstance(score, stream.Score) or len(score.parts) != 4:
            continue
        voices = [_voice(part) for part in score.parts]
        tune = tuple(_intervals(voice) for voice in (voices[0], voices[-1]))
        if not all(voices) or tune in seen:  # some chorales stand in the corpus twice, in other keys
            continue
        seen.add(tune)
        number = path.stem.removeprefix("bwv")
        title = f"{titles[number]} (BWV {number})" if number in titles else f"BWV {number}"
        piece = _arrange(index, path.stem, title, score, voices)
        if piece.seconds >= _MIN_SECONDS:
            yield piece


def _voice(part: stream.Stream) -> Voice:
    """The notes of one part, tied notes joined."""
    notes: Voice = []
    for note in part.flatten().notes:
        start = float(note.offset)
        end = start + float(note.quarterLength)
        held = note.tie is not None and note.tie.type in ("stop", "continue")
        for pitch in {pitch.midi for pitch in note.pitches} if end > start else set():
            if held and notes and notes[-1][2] == pitch and abs(notes[-1][1] - start) < 1e-6:
                notes[-1] = (notes[-1][0], end, pitch)
            else:
                notes.append((start, end, pitch))
    return notes


def _intervals(voice: Voice) -> tuple[int, ...]:
    """The steps between a voice's first 16 notes, in semitones: the same in every key."""
    return tuple(after[2] - before[2] for before, after in pairwise(voice[:16]))


def _arrange(index: int, name: str, title: str, score: stream.Score, voices: list[Voice]) -> _Piece:
    """One piece as MIDI, its instrument, tempo and key drawn from its place in the corpus."""
    draw = random.Random(index)
    instrument = draw.choice(sorted(_INSTRUMENTS))
    quarter = 60 / (_QUARTERS_PER_MINUTE * draw.uniform(0.92, 1.08))  # seconds
    shift = draw.randint(-_MAX_SHIFT, _MAX_SHIFT)
    seconds = max(voice[-1][1] for voice in voices) * quarter
    player = pretty_midi.Instrument(_INSTRUMENTS[instrument])
    loud = [pretty_midi.ControlChange(number, 127, 0.0) for number in (7, 11)]  # volume, expression
    end = pretty_midi.ControlChange(7, 127, seconds + _RELEASE_SECONDS)  # the renderer stops at the last event
    player.control_changes = [*loud, end]
    player.notes = [
        pretty_midi.Note(96, pitch + shift, start * quarter, stop * quarter)
        for voice in voices
        for start, stop, pitch in voice
    ]
    midi = pretty_midi.PrettyMIDI(initial_tempo=60 / quarter)
    midi.instruments.append(player)
    file = io.BytesIO()
    midi.write(file)
    key = score.analyze("key")
    assert isinstance(key, Key)
    key_name = f"{_KEYS[(key.tonic.pitchClass + shift) % 12]} {key.mode}"
    return _Piece(name, title, instrument, key_name, seconds, file.getvalue())


def _render_all(pieces: list[_Piece], folder: Path) -> None:
    """Renders on every core; the renderer holds the interpreter's lock, so processes, not threads."""
    workers = min(os.cpu_count() or 1, len(pieces))
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _begin_worker)
    try:
        futures = [pool.submit(_render, piece, folder) for piece in pieces]
        with progress("rendering chorales", sum(piece.seconds for piece in pieces), "audio s") as advance:
            for future in as_completed(futures):
                advance(future.result())
    finally:
        pool.shutdown(cancel_futures=True)


def _begin_worker() -> None:
    """Leaves Ctrl-C to the process that started this one, and ends with it: an orphan would wait for work for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _render(piece: _Piece, folder: Path) -> float:
    """Writes a piece's .mid, then its .flac: where that stands, the piece is done. Returns its seconds."""
    soundfont = (Path(pretty_midi.__file__).parent / "TimGM6mb.sf2").read_bytes()
    wav = midirenderer.render_wave_from(soundfont, piece.midi)
    stereo, rate = soundfile.read(io.BytesIO(wav), dtype="float32", always_2d=True)
    # Mono: the default codec hears one channel, and every training step then reads half as much.
    mono = soxr.resample(stereo.mean(1, keepdims=True), rate, SAMPLE_RATE)
    song = _finished(rearrange(torch.from_numpy(mono), "n c -> c n"))
    write_bytes(folder / f"{piece.name}.mid", piece.midi)
    audio.write(folder / f"{piece.name}.flac", song, SAMPLE_RATE)
    return piece.seconds


def _finished(song: Tensor) -> Tensor:
    """Audio [1, N] brought to the level of all songs, and the silence at its ends trimmed."""
    gain = 10 ** (_LEVEL_DB / 20) / song.square().mean().sqrt()
    song = song * torch.minimum(gain, 0.99 / song.abs().max())
    heard = (song[0].abs() > _SILENCE).nonzero()
    rest = int(_REST_SECONDS * SAMPLE_RATE)
    return song[:, max(int(heard[0]) - rest, 0) : int(heard[-1]) + rest]


def _metadata(pieces: list[_Piece], held_out_every: int) -> str:
    """metadata.csv of the prepared pieces."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["file_name", "title", "artist", "genre", "key", "split"])
    for index, piece in enumerate(pieces):
        split = "val" if index % held_out_every == 0 else "train"
        writer.writerow([f"{piece.name}.flac", piece.title, "J. S. Bach", piece.instrument, piece.key, split])
    return table.getvalue()
