"""Cached codes are the codec's own, aligned over levels and songs, and survive whatever interrupts their making."""

import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import HOPS, LEVELS, SAMPLE_RATE, child, forkserver, music

from jukebox_lite import audio
from jukebox_lite.codecs.quantizers import RVQ, VQ
from jukebox_lite.codecs.vqvae import HierarchicalVQVAE
from jukebox_lite.datasets import code_cache
from jukebox_lite.datasets.code_cache import CodeCache
from jukebox_lite.datasets.code_windows import CodeWindows
from jukebox_lite.datasets.songs import Songs
from jukebox_lite.errors import InputError
from jukebox_lite.levels import NO_VALUE, UNKNOWN, Facts, Window


def make_codec(seed: int = 0, num_codebooks: int = 1) -> HierarchicalVQVAE:
    """A codec of three levels that has heard some noise, so that its codebooks are in use."""
    torch.manual_seed(seed)
    strides = {"top": [4], "middle": [4], "bottom": [8]}
    several = partial(RVQ, codebook_size=32, num_codebooks=num_codebooks)
    quantizer = several if num_codebooks > 1 else partial(VQ, codebook_size=32)
    codec = HierarchicalVQVAE(SAMPLE_RATE, strides, dim=8, depth=1, latent_dim=4, quantizer=quantizer)
    codec(torch.randn(1, 1, 8192) * torch.linspace(0, 0.5, 8192))
    return codec.eval()


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Songs:
    """Five songs of 2 to 3 seconds; the first is held out."""
    return Songs(str(music(tmp_path_factory.mktemp("music"))))


@pytest.fixture(scope="module")
def cache(songs: Songs, tmp_path_factory: pytest.TempPathFactory) -> CodeCache:
    """The codes of all songs, encoded in pieces of a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(code_cache, "PIECE_SECONDS", 1)
        return CodeCache.open(tmp_path_factory.mktemp("cache"), make_codec(), songs)


@pytest.fixture
def windows(songs: Songs, cache: CodeCache) -> CodeWindows:
    """Batches of four windows."""
    return CodeWindows(songs, 4, str(cache.folder.parents[1]), ["genre", "artist"], make_codec())


def facts(windows: CodeWindows, level: str) -> Facts:
    """What a prior of this level is told."""
    codec = make_codec()
    return Facts(codec.level(level), codec.above(level), windows.vocabulary)


def files(folder: Path) -> dict[str, bytes]:
    """Everything in a folder, by name."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_cached_codes_are_those_of_the_whole_file(songs: Songs, cache: CodeCache):
    """In pieces, at any rate and channel count, joined one after another, in 16 bits; nothing is left over."""
    codec = make_codec()
    for song, cached in zip(songs.all, cache.songs, strict=True):
        num_samples = cached.length * HOPS["top"]
        assert 0 <= num_samples - song.info.num_samples(SAMPLE_RATE) < HOPS["top"]
        whole = codec.encode(audio.read(song.path, 0, num_samples, SAMPLE_RATE, 1)[None])
        for level in codec.levels:
            codes = cache.codes(cached, level, 0, num_samples // HOPS[level.name])
            assert torch.equal(codes, whole[level.name][0]) and len(codes.unique()) > 4
    for level, array in cache.arrays.items():
        assert array.dtype == np.int16 and len(array) == sum(song.length for song in cache.songs) * 128 // HOPS[level]


def test_several_codebooks_reach_the_windows_in_their_order(songs: Songs, tmp_path: Path):
    """Codes [K, T] of a song are the codec's own, row by row; windows of them are [B, K, T], as is the level above."""
    codec = make_codec(num_codebooks=3)
    windows = CodeWindows(songs, 2, str(tmp_path), ["genre"], codec)
    cached = windows.cache.songs[0]
    num_samples = cached.length * HOPS["top"]
    whole = codec.encode(audio.read(songs.all[0].path, 0, num_samples, SAMPLE_RATE, 1)[None])
    for level in codec.levels:
        codes = windows.cache.codes(cached, level, 0, num_samples // HOPS[level.name])
        assert level.channels == 3 and torch.equal(codes, whole[level.name][0])
        assert not torch.equal(codes[0], codes[1])
        told = windows.cache.statistics[level.name]
        assert 0 < told["bits_per_second"] <= 3 * 5 * SAMPLE_RATE / HOPS[level.name]
    batch = windows.batch("train", 0, Facts(codec.level("bottom"), codec.above("bottom"), windows.vocabulary), 64)
    assert {name: tuple(codes.shape) for name, codes in batch.codes.items()} == {
        "bottom": (2, 3, 64),
        "middle": (2, 3, 16),
    }


def test_another_codec_or_other_songs_are_another_folder(songs: Songs, cache: CodeCache, tmp_path: Path):
    """One weight is enough; so is one song less."""
    changed = make_codec()
    with torch.no_grad():
        next(changed.decoders["top"].parameters()).view(-1)[0] += 1e-3
    other = CodeCache.open(cache.folder.parents[1], changed, songs)
    assert other.folder.parent != cache.folder.parent and other.folder.name == cache.folder.name
    fewer = CodeCache.open(cache.folder.parents[1], make_codec(), Songs(str(music(tmp_path, 4))))
    assert fewer.folder.parent == cache.folder.parent and fewer.folder.name != cache.folder.name


def open_killed(folder: Path, root: Path, num_songs: int) -> None:
    """Make the cache of a folder of music, and kill -9 the own process after so many songs."""
    torch.set_num_threads(1)
    encode, done = code_cache._encode, []

    def killing(*arguments: Any) -> Any:
        if len(done) == num_songs:
            os.kill(os.getpid(), signal.SIGKILL)
        done.append(encode(*arguments))
        return done[-1]

    code_cache._encode = killing
    CodeCache.open(folder, make_codec(), Songs(str(root)))


def test_a_killed_making_goes_on_where_it_stopped(songs: Songs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Finished songs are not encoded again, a reader meets no half cache, and every byte is the same in the end."""
    whole = CodeCache.open(tmp_path / "whole", make_codec(), songs)
    assert child(open_killed, tmp_path / "cut", songs.root, 2) == -signal.SIGKILL
    assert not list((tmp_path / "cut").rglob("manifest.json"))
    encode, encoded = code_cache._encode, []

    def counting(codec: Any, song: Any, advance: Any) -> Any:
        encoded.append(song.name)
        return encode(codec, song, advance)

    monkeypatch.setattr(code_cache, "_encode", counting)
    resumed = CodeCache.open(tmp_path / "cut", make_codec(), songs)
    assert encoded == [song.name for song in songs.all[2:]]
    assert files(resumed.folder) == files(whole.folder) and files(whole.folder).keys() > {"manifest.json", "top.npy"}
    assert not list(tmp_path.rglob("*.parts")) + list(tmp_path.rglob("*.making"))
    CodeCache.open(tmp_path / "cut", make_codec(), songs)
    assert len(encoded) == len(songs.all) - 2  # whole: nothing is encoded


def open_all(folder: Path, root: Path, ready: Any, failed: Any) -> None:
    """Open the cache at the same moment as another process; counts what fails."""
    torch.set_num_threads(1)
    codec, songs = make_codec(), Songs(str(root))
    ready.wait()
    try:
        CodeCache.open(folder, codec, songs)
    except BaseException:
        failed.release()
        raise


def test_the_runs_of_a_sweep_make_one_cache(songs: Songs, tmp_path: Path):
    """Two priors begun at once used to take each other's half-written files away; now one waits for the other."""
    whole = CodeCache.open(tmp_path / "whole", make_codec(), songs)
    context = forkserver()
    ready, failed = context.Barrier(2), context.Semaphore(0)
    processes = [
        context.Process(target=open_all, args=(tmp_path / "both", songs.root, ready, failed)) for _ in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0] and not failed.acquire(block=False)
    assert files(CodeCache.open(tmp_path / "both", make_codec(), songs).folder) == files(whole.folder)


@pytest.mark.parametrize("level", LEVELS)
def test_windows_are_aligned_over_levels_and_songs(windows: CodeWindows, cache: CodeCache, level: str):
    """A window's codes, and those of the level above, are the same seconds of the song that its labels tell of."""
    told, by_length = facts(windows, level), {song.seconds: song for song in cache.songs}
    labels = {song.name: song.labels for song in windows.songs.all}
    for step in range(4):
        batch = windows.batch("train", step, told, 64)
        assert batch.codes.keys() == {level} | ({told.above.name} if told.above else set())
        for row in range(4):
            song = by_length[min(by_length, key=lambda s: abs(s - batch.labels["total_seconds"][row].item()))]
            start, end = (batch.labels[f"{edge}_seconds"][row].item() * SAMPLE_RATE for edge in ("start", "end"))
            assert start >= 0 and round(end) <= song.length * HOPS["top"]
            assert end - start == pytest.approx(64 * HOPS[level], abs=0.01)
            for name, codes in batch.codes.items():
                steps = 64 * HOPS[level] // HOPS[name]
                expected = cache.codes(song, make_codec().level(name), round(start / HOPS[name]), steps)
                assert torch.equal(codes[row], expected)
            (genre,) = (windows.vocabulary["genre"][index] for index in batch.labels["genre"][row])
            assert genre in (labels[song.name]["genre"], UNKNOWN) and batch.labels["artist"][row].tolist() == [0]


def equal(a: Window, b: Window) -> bool:
    """Whether two batches hold the same codes and labels."""
    return all(torch.equal(x[name], y[name]) for x, y in ((a.codes, b.codes), (a.labels, b.labels)) for name in x)


def test_a_batch_is_a_function_of_seed_split_and_step(songs: Songs, windows: CodeWindows, cache: CodeCache):
    """In any order, from another object; another step, split or seed is another batch."""
    told = facts(windows, "bottom")
    later, first = windows.batch("train", 7, told, 64), windows.batch("train", 0, told, 64)
    again = CodeWindows(songs, 4, str(cache.folder.parents[1]), ["genre", "artist"], make_codec())
    assert equal(again.batch("train", 0, told, 64), first) and equal(again.batch("train", 7, told, 64), later)
    reseeded = CodeWindows(songs, 4, str(cache.folder.parents[1]), ["genre"], make_codec(), seed=1)
    others = [later, windows.batch("val", 0, told, 64), reseeded.batch("train", 0, told, 64)]
    assert not any(torch.equal(first.codes["bottom"], other.codes["bottom"]) for other in others)


def test_held_out_songs_are_never_trained_on(windows: CodeWindows):
    """By their length in seconds, which no two songs share; every song of a split is seen."""
    told, seen = facts(windows, "middle"), {"train": set(), "val": set()}
    for split, lengths in seen.items():
        for step in range(20):
            lengths |= {round(s, 2) for s in windows.batch(split, step, told, 64).labels["total_seconds"].tolist()}
    assert seen["val"] == {round(song.info.seconds, 2) for song in windows.songs.val}
    assert seen["train"] == {round(song.info.seconds, 2) for song in windows.songs.train}


def test_a_single_song_is_in_both_splits(tmp_path: Path):
    """It was only where its own split said; a folder of one song could not train a prior."""
    one = Songs(str(music(tmp_path / "one", 1)))
    windows = CodeWindows(one, 2, str(tmp_path / "cache"), [], make_codec())
    for split in ("train", "val"):
        assert windows.batch(split, 0, facts(windows, "top"), 32).codes["top"].shape == (2, 1, 32)


def test_a_context_longer_than_every_song_is_refused(windows: CodeWindows):
    """In one line that says how long it is in seconds."""
    with pytest.raises(InputError, match="^prior.context_length=9600 is 9.6 s .*longer than every train"):
        windows.batch("train", 0, facts(windows, "bottom"), 9600)


def test_labels_are_dropped_in_training_together_and_one_by_one(cache: CodeCache, tmp_path: Path):
    """Of 1,000 windows 0.2 are told nothing, and 0.2 of the others not each label; held-out windows are told all.

    Of two values each is left out with that chance, but not both. Priors that had been told nothing but two or three
    values at once and were asked for one followed it no better, or less, the more they were guided.
    """
    data = music(tmp_path / "music", labelled=False)
    rows = [
        f"{path.name},jazz; rock,Ann,{'val' if not i else 'train'}" for i, path in enumerate(sorted(data.iterdir()))
    ]
    (data / "metadata.csv").write_text("\n".join(["file_name,genre,artist,split", *rows]))
    windows = CodeWindows(
        Songs(str(data)), 10, str(cache.folder.parents[1]), ["genre", "artist"], make_codec(), label_dropout=0.2
    )
    told, untold = facts(windows, "top"), {}
    for split in ("train", "val"):
        batches = [windows.batch(split, step, told, 64).labels for step in range(100)]
        genres, artists = (torch.cat([batch[name] for batch in batches]) for name in ("genre", "artist"))
        rows = [tuple(row) for row in genres.tolist()]
        fewer = {(0, NO_VALUE), (1, NO_VALUE), (2, NO_VALUE)} if split == "train" else set()
        assert set(rows) == {(1, 2)} | fewer
        for alone in fewer - {(0, NO_VALUE)}:
            assert rows.count(alone) / len(rows) == pytest.approx((0.8 * 0.8) * 0.8 * 0.2, abs=0.04)
        untold[split] = torch.stack([genres[:, 0] == 0, artists[:, 0] == 0]).float()
    shares = untold["train"].mean(1).tolist()
    together = untold["train"].prod(0).mean().item()
    assert shares == pytest.approx([0.2 + 0.8 * 0.2] * 2, abs=0.05), "each: told nothing, or not this one"
    assert together == pytest.approx(0.2 + 0.8 * 0.2 * 0.2, abs=0.05), "both: and not by chance alone, which 0.13 is"
    assert not untold["val"].any()
