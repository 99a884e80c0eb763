"""A folder of music: odd files are set aside with one line, metadata is read or refused, songs are split whole."""

import random
import shutil
from pathlib import Path

import mutagen.id3
import numpy as np
import pytest
import soundfile

from jukebox_lite.datasets.songs import Songs
from jukebox_lite.errors import InputError


def _make(root: Path, *names: str, seconds: float = 0.5) -> Path:
    """A folder with a different short song under every name."""
    for index, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        tone = 0.3 * np.sin(np.arange(int(8_000 * seconds)) * 0.02 * (index + 1))
        soundfile.write(path, tone, 8_000, format=path.suffix[1:].lower().replace("aif", "aiff"))
    return root


def test_songs_are_found_by_name_in_subfolders(tmp_path: Path):
    """Case does not matter; hidden and other files are passed over."""
    _make(tmp_path, "b.wav", "jazz/One.FLAC", "a.aif", "jazz/deep/two.ogg", ".hidden.wav", ".trash/x.wav")
    (tmp_path / "cover.jpg").write_bytes(b"x")
    songs = Songs(str(tmp_path))
    assert [song.name for song in songs.all] == ["a.aif", "b.wav", "jazz/One.FLAC", "jazz/deep/two.ogg"]
    assert songs.set_aside == () and songs.all[1].info.seconds == 0.5


def test_whole_songs_are_held_out(tmp_path: Path):
    """Every n-th by name; two songs make one of each; a single song is both."""
    _make(tmp_path / "many", *(f"{number:02}.wav" for number in range(9)))
    songs = Songs(str(tmp_path / "many"), held_out_every=4)
    assert [song.name for song in songs.val] == ["00.wav", "04.wav", "08.wav"]
    assert sorted(song.name for song in songs.train + songs.val) == [song.name for song in songs.all]
    two = Songs(str(_make(tmp_path / "two", "a.wav", "b.wav")))
    assert (len(two.train), len(two.val)) == (1, 1)
    one = Songs(str(_make(tmp_path / "one", "a.wav")))
    assert one.train == one.val == one.all
    with pytest.raises(InputError, match="held_out_every=1"):
        Songs(str(tmp_path / "one"), held_out_every=1)


def test_every_odd_file_gets_its_line_and_the_rest_goes_on(tmp_path: Path):
    _make(tmp_path, "good.wav", "cut.wav")
    _make(tmp_path, "short.wav", seconds=0.01)
    (tmp_path / "cut.wav").write_bytes((tmp_path / "cut.wav").read_bytes()[:4_000])
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.flac").write_text("not music")
    songs = Songs(str(tmp_path))
    assert [song.name for song in songs.all] == ["good.wav"]
    reasons = dict(songs.set_aside)
    assert reasons["short.wav"] == "10 ms of audio, at least 100 ms are needed"
    assert reasons["empty.wav"] == "empty file (0 bytes)"
    assert "ends after 0.2 s of the 0.5 s" in reasons["cut.wav"] and "not readable" in reasons["text.flac"]
    lines = songs.summary().splitlines()
    assert len(lines) == 4 + len(reasons) and "8 kHz x 1 (1)" in lines[2]


def test_folders_without_music_are_one_line(tmp_path: Path):
    (tmp_path / "file.txt").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.wav").touch()
    for name, reason in [
        ("nowhere", "no such folder"),
        ("file.txt", "is a file, expected a folder"),
        ("empty", "no readable music; give"),
        ("broken", r"no readable music, of 1 set aside a\.wav: empty file"),
    ]:
        with pytest.raises(InputError, match=reason) as caught:
            Songs(str(tmp_path / name))
        assert "\n" not in str(caught.value)


def test_links_that_go_in_circles_end(tmp_path: Path):
    _make(tmp_path, "sub/a.wav")
    (tmp_path / "sub" / "up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "sub" / "self.wav").symlink_to(tmp_path / "sub" / "self.wav")
    songs = Songs(str(tmp_path))
    assert [song.name for song in songs.all] == ["sub/a.wav"] and songs.set_aside[0][0] == "sub/self.wav"


def test_metadata_gives_labels_and_splits(tmp_path: Path):
    """As csv or jsonl alike; text is data, whatever it looks like; what has no row has no labels."""
    _make(tmp_path, "a.wav", "sub/b.wav", "c.wav")
    script = "<script>alert(1)</script>"
    (tmp_path / "metadata.csv").write_text(
        f'file_name,artist,genre,split\nsub/b.wav,"Ann, Bob",,train\na.wav,{script},jazz,validation\n'
        "gone.wav,x,y,train\n"
    )
    as_csv = Songs(str(tmp_path))
    (tmp_path / "metadata.csv").unlink()
    (tmp_path / "metadata.jsonl").write_text(
        '{"file_name": "sub/b.wav", "artist": "Ann, Bob", "genre": null, "split": "train"}\n\n'
        f'{{"file_name": "./a.wav", "artist": "{script}", "genre": "jazz", "split": "test"}}\n'
        '{"file_name": "gone.wav"}\n'
    )
    as_jsonl = Songs(str(tmp_path))
    assert as_csv.all == as_jsonl.all
    labels = {song.name: (song.labels, song.split) for song in as_csv.all}
    assert labels["a.wav"] == ({"artist": script, "genre": "jazz"}, "val")
    assert labels["sub/b.wav"] == ({"artist": "Ann, Bob"}, "train")
    assert labels["c.wav"] == ({}, "train")
    assert as_csv.vocabulary(["artist", "genre"]) == {"artist": ["", "Ann, Bob"], "genre": [""]}
    assert as_csv.set_aside == (("gone.wav", "listed in metadata.csv, but the folder has no such music file"),)


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("metadata.csv", "artist\nx\n", "line 1: expected a header"),
        ("metadata.csv", "", "line 1: expected a header"),
        ("metadata.csv", "file_name,artist\na.wav,x,y\n", "line 2: expected 2 fields"),
        ("metadata.csv", "file_name,artist\na.wav\n", "line 2: expected 2 fields"),
        ("metadata.csv", 'file_name\n"a.wav\n', "not csv"),
        ("metadata.csv", "file_name,split\na.wav,maybe\n", "line 2: split 'maybe', expected train"),
        ("metadata.csv", "file_name\n../x.wav\n", r"line 2: file_name '\.\./x\.wav', expected a path inside"),
        ("metadata.csv", "file_name\n/etc/x.wav\n", "expected a path inside the folder"),
        ("metadata.csv", "file_name\na.wav\na.wav\n", "line 3: 'a.wav' is listed twice"),
        ("metadata.csv", "file_name,split\na.wav,train\nb.wav,train\n", "no readable song has split val"),
        ("metadata.jsonl", '{"file_name": "a.wav"}\n{oops\n', "line 2: expected one JSON object a line"),
        ("metadata.jsonl", "[" * 100_000, "line 1: expected one JSON object a line"),
        ("metadata.jsonl", '{"artist": "x"}\n', "line 1: expected an object with a file_name"),
        ("metadata.jsonl", '{"file_name": ["a.wav", "../b"]}\n', "expected a path inside"),
    ],
)
def test_bad_metadata_is_refused_by_file_and_line(tmp_path: Path, name: str, text: str, reason: str):
    _make(tmp_path, "a.wav", "b.wav")
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=reason) as caught:
        Songs(str(tmp_path))
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_a_song_may_have_several_values_of_a_label(tmp_path: Path):
    """As text between semicolons or as a list; the vocabulary is of single values, and of the training songs alone."""
    _make(tmp_path, "a.wav", "b.wav", "c.wav")
    (tmp_path / "metadata.jsonl").write_text(
        '{"file_name": "a.wav", "genre": "rock; jazz", "split": "train"}\n'
        '{"file_name": "b.wav", "genre": ["soul", null, "jazz "], "mood": [], "split": "train"}\n'
        '{"file_name": "c.wav", "genre": "polka;jazz", "split": "val"}\n'
    )
    songs = Songs(str(tmp_path))
    assert [song.labels for song in songs.all[:2]] == [{"genre": "rock; jazz"}, {"genre": "soul; jazz"}]
    assert songs.vocabulary(["genre", "mood"]) == {"genre": ["", "jazz", "rock", "soul"], "mood": [""]}


@pytest.mark.parametrize("suffix", ["flac", "mp3", "wav"])
def test_tags_are_labels_where_there_is_no_metadata(tmp_path: Path, suffix: str):
    path = tmp_path / f"a.{suffix}"
    with soundfile.SoundFile(path, "w", 44_100, 1) as file:
        file.artist, file.genre = "Ann  Bob", "Jazz"
        file.write(np.zeros(44_100))
    assert Songs(str(tmp_path)).all[0].labels == ({} if suffix == "wav" else {"artist": "Ann Bob", "genre": "Jazz"})
    tags = mutagen.File(path)
    if suffix == "wav":
        tags.add_tags()
        tags.tags.add(mutagen.id3.TCON(text=["Jazz", "Soul"]))
    elif suffix == "mp3":
        tags.tags.setall("TCON", [mutagen.id3.TCON(text=["Jazz", "Soul"])])
    else:
        tags["genre"] = ["Jazz", "Soul"]
    tags.save()
    assert Songs(str(tmp_path)).all[0].labels["genre"] == "Jazz; Soul"


def test_the_fingerprint_follows_the_music_and_not_its_labels(tmp_path: Path):
    root = _make(tmp_path / "one", "a.wav", "b.wav", "c.wav")
    before = Songs(str(root)).fingerprint()
    shutil.copytree(root, tmp_path / "two")
    assert Songs(str(tmp_path / "two")).fingerprint() == before
    (root / "metadata.csv").write_text("file_name,artist\na.wav,x\n")
    assert Songs(str(root)).fingerprint() == before
    assert Songs(str(root), held_out_every=2).fingerprint() != before
    (root / "b.wav").rename(root / "bb.wav")
    assert Songs(str(root)).fingerprint() != before
    content = bytearray((tmp_path / "two" / "b.wav").read_bytes())
    content[-1] ^= 1
    (tmp_path / "two" / "b.wav").write_bytes(content)
    assert Songs(str(tmp_path / "two")).fingerprint() != before


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metadata.csv", 'file_name,artist,split\na.wav,"x, y",train\nb.wav,z,val\n'),
        ("metadata.jsonl", '{"file_name": "a.wav", "artist": "x"}\n{"file_name": "b.wav", "split": "val"}\n'),
    ],
)
def test_no_damage_to_metadata_makes_another_error_than_ours(tmp_path: Path, name: str, text: str):
    _make(tmp_path, "a.wav", "b.wav")
    draw = random.Random(2)
    for _ in range(150):
        damaged = bytearray(text.encode())
        for _ in range(draw.randint(1, 4)):
            position = draw.randrange(len(damaged))
            junk = draw.choice([draw.randbytes(2), b'"', b"\n", b"\0", b"\r", b",", b"\\", b"../", b"\xff"])
            damaged[position : position + draw.randint(0, 3)] = junk
        (tmp_path / name).write_bytes(damaged)
        try:
            songs = Songs(str(tmp_path))
        except InputError as error:
            assert "\n" not in str(error)
        else:
            assert all(value for song in songs.all for value in song.labels.values())
