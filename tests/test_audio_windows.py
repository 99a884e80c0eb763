"""Batches of audio are pure functions of integers; spans stay inside the songs and cover them evenly."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from jukebox_lite.datasets.audio_windows import AudioWindows
from jukebox_lite.datasets.songs import Songs
from jukebox_lite.datasets.spans import draw_spans
from jukebox_lite.errors import InputError

RATE = 8_000


@pytest.fixture
def songs(tmp_path: Path) -> Songs:
    """Two songs of 1 and 3 seconds to train on, one held out; each a ramp, so that a window tells where it lies."""
    for name, seconds in [("a.wav", 1), ("b.wav", 1), ("c.wav", 3)]:
        soundfile.write(tmp_path / name, np.linspace(0.1, 0.9, RATE * seconds), RATE, subtype="FLOAT")
    return Songs(str(tmp_path))


def test_a_batch_depends_on_seed_split_and_step_alone(songs: Songs):
    """Read in any order, by any object: the same batch; another seed, split or step: another."""
    first, second = (AudioWindows(songs, 4, 1_000, RATE, seed=5) for _ in range(2))
    forward = [first.batch("train", step) for step in range(4)]
    backward = [second.batch("train", step) for step in reversed(range(4))][::-1]
    assert all(torch.equal(one, other) for one, other in zip(forward, backward, strict=True))
    assert forward[0].shape == (4, 1, 1_000)
    others = [first.batch("val", 0), first.batch("train", 1), AudioWindows(songs, 4, 1_000, RATE, seed=6)]
    others[2] = others[2].batch("train", 0)
    assert not any(torch.equal(forward[0], other) for other in others)


def test_short_songs_are_followed_by_silence(songs: Songs):
    batch = AudioWindows(songs, 8, 4 * RATE, RATE, channels=2).batch("train", 0)
    assert batch.shape == (8, 2, 4 * RATE)
    assert (batch[:, :, : RATE - 1] > 0).all() and (batch[:, :, 3 * RATE :] == 0).all()


def test_a_share_of_the_training_windows_is_turned_down(songs: Songs):
    """By 0 to 60 dB, evenly in dB, at the share that is asked for; the others, and validation, stay as they are."""
    plain, quiet = AudioWindows(songs, 64, 100, RATE), AudioWindows(songs, 64, 100, RATE, quiet_share=0.25)
    ratios = torch.cat([quiet.batch("train", s)[:, 0, 0] / plain.batch("train", s)[:, 0, 0] for s in range(20)])
    fallen = -20 * ratios[ratios < 0.9999].log10()
    assert len(fallen) / len(ratios) == pytest.approx(0.25, abs=0.04)
    assert fallen.max() < 60.01
    assert fallen.mean().item() == pytest.approx(30, abs=4)
    assert (ratios[ratios >= 0.9999] == 1).all()
    assert torch.equal(plain.batch("val", 3), quiet.batch("val", 3))
    assert torch.equal(quiet.batch("train", 3), quiet.batch("train", 3))


def test_a_song_lost_since_the_scan_is_named(songs: Songs):
    windows = AudioWindows(songs, 8, 1_000, RATE)
    for song in songs.val:
        song.path.unlink()
    with pytest.raises(InputError, match=r"a\.wav: cannot be read"):
        windows.batch("val", 0)


def test_a_batch_of_nothing_is_refused(songs: Songs):
    with pytest.raises(InputError, match="num_samples=0"):
        AudioWindows(songs, 4, 0, RATE)


def test_a_share_is_a_share(songs: Songs):
    with pytest.raises(InputError, match="quiet_share=2: expected 0 to 1"):
        AudioWindows(songs, 4, 100, RATE, quiet_share=2)


def test_spans_stay_inside_and_reach_every_start():
    """A song shorter than the window has one start; every start of all songs is about as likely as any other."""
    lengths, size = [5, 12, 3, 8], 5
    draws = Counter(draw_spans(lengths, size, 16_000, seed=1, split="train", step=0))
    expected = {(song, start) for song, length in enumerate(lengths) for start in range(max(length - size, 0) + 1)}
    assert set(draws) == expected
    mean = 16_000 / len(expected)
    assert all(abs(count - mean) < 5 * mean**0.5 for count in draws.values())


def test_spans_never_change():
    """A resumed run, on whatever machine, sees these very windows."""
    assert draw_spans([1_000, 50, 3_000], 100, 3, seed=7, split="val", step=11) == [(0, 319), (0, 239), (2, 2159)]
