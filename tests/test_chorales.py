"""The chorales that come with the project: reproducible, level, whole in their key, and continued where interrupted."""

import csv
import math
from itertools import islice
from pathlib import Path

import pretty_midi
import pytest
from music21 import converter

from jukebox_lite import audio
from jukebox_lite.datasets import chorales
from jukebox_lite.datasets.chorales import Chorales, prepare_chorales
from jukebox_lite.errors import InputError

MINUTES = 0.6  # two pieces


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chorales") / "songs"
    prepare_chorales(folder, MINUTES)
    return folder


def test_each_piece_is_once_there_with_labels_and_midi(prepared: Path):
    songs = Chorales(str(prepared), str(prepared), MINUTES)
    assert len(songs.all) == 2 and songs.set_aside == () and len(songs.val) == 1
    assert not {song.name for song in songs.train} & {song.name for song in songs.val}
    for song in songs.all:
        assert (song.info.sample_rate, song.info.channels) == (44_100, 1)
        assert set(song.labels) == {"title", "artist", "genre", "key"}
        midi = pretty_midi.PrettyMIDI(str(song.path.with_suffix(".mid")))
        assert len(midi.instruments) == 1 and midi.instruments[0].program in (0, 19, 48, 52)
        assert max(note.end for note in midi.instruments[0].notes) == pytest.approx(song.info.seconds, abs=2)


def test_songs_are_equally_loud_and_begin_at_once(prepared: Path):
    """-20 dB RMS, no clipping, at most 0.3 s of silence at either end."""
    for song in Chorales(str(prepared), str(prepared), MINUTES).all:
        samples = audio.read(song.path, 0, song.info.num_frames, 44_100, 1)[0]
        assert 20 * math.log10(samples.square().mean().sqrt()) == pytest.approx(-20, abs=0.5)
        assert samples.abs().max() < 1
        heard = (samples.abs() > 1e-3).nonzero()
        assert heard[0] < 0.3 * 44_100 and heard[-1] > len(samples) - 0.3 * 44_100


def test_an_interrupted_preparation_ends_with_the_same_bytes(prepared: Path, tmp_path: Path):
    """Whatever had been finished is kept, the rest is made anew, byte for byte."""
    folder = tmp_path / "songs"
    folder.mkdir()
    names = sorted(path.name for path in prepared.iterdir())
    for name in ("recipe.json", "bwv2.6.mid", "bwv2.6.flac"):
        (folder / name).write_bytes((prepared / name).read_bytes())
    kept = (folder / "bwv2.6.flac").stat().st_mtime_ns
    prepare_chorales(folder, MINUTES)
    assert sorted(path.name for path in folder.iterdir()) == names
    assert all((folder / name).read_bytes() == (prepared / name).read_bytes() for name in names)
    assert (folder / "bwv2.6.flac").stat().st_mtime_ns == kept


def test_no_piece_is_taken_twice():
    """Each has its own name and notes, is long enough, and is the same at every reading."""
    pieces = list(islice(chorales._read_pieces(), 8))
    assert len({piece.midi for piece in pieces}) == len({piece.name for piece in pieces}) == 8
    assert all(piece.seconds >= 15 for piece in pieces)
    assert list(islice(chorales._read_pieces(), 8)) == pieces


def test_tied_notes_sound_once():
    part = converter.parse("tinynotation: 4/4 c2 d2~ d2 d2")
    assert chorales._voice(part) == [(0, 2, 60), (2, 6, 62), (6, 8, 62)]


def test_a_finished_folder_is_left_alone_and_a_foreign_one_refused(prepared: Path, tmp_path: Path):
    before = {path: path.stat().st_mtime_ns for path in prepared.iterdir()}
    prepare_chorales(prepared, MINUTES)
    assert {path: path.stat().st_mtime_ns for path in prepared.iterdir()} == before
    with pytest.raises(InputError, match="remove it or give another"):
        prepare_chorales(prepared, MINUTES / 2)
    with pytest.raises(InputError, match="remove it or give another"):
        prepare_chorales(prepared, MINUTES, held_out_every=3)
    (tmp_path / "mine.wav").touch()
    with pytest.raises(InputError, match="holds something else"):
        prepare_chorales(tmp_path, MINUTES)
    with pytest.raises(InputError, match="expected more than 0"):
        prepare_chorales(tmp_path / "new", 0)


def test_another_root_is_a_plain_folder(prepared: Path, tmp_path: Path):
    """data.root=/my/music needs no chorales."""
    audio.write(tmp_path / "mine" / "a.wav", audio.read(next(prepared.glob("*.flac")), 0, 44_100, 44_100, 1), 44_100)
    songs = Chorales(str(tmp_path / "mine"), str(tmp_path / "never"))
    assert [song.name for song in songs.all] == ["a.wav"] and not (tmp_path / "never").exists()


def test_the_metadata_is_plain_csv(prepared: Path):
    with (prepared / "metadata.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["split"] for row in rows] == ["val", "train"]
    assert all(row["key"].endswith((" major", " minor")) for row in rows)
