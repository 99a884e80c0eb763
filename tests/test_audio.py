"""Audio files: a window equals the slice of the whole, streams equal it too, no damaged file passes or crashes."""

import random
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch

from jukebox_lite import audio
from jukebox_lite.errors import InputError

SECONDS = 3
SUFFIXES, RATES = ("wav", "flac", "ogg", "mp3"), (22_050, 44_100, 48_000, 96_000)
FORMS = [(s, r) for s in SUFFIXES for r in RATES if s != "mp3" or r <= 48_000]  # MPEG layer III knows no more


def _noise(num_frames: int, channels: int) -> np.ndarray:
    """Loud low-passed noise [n, channels]: every sample differs from its neighbours, and lossy codecs keep it."""
    noise = np.random.default_rng(0).standard_normal((num_frames + 7, channels)).cumsum(0)
    return (0.05 * (noise[7:] - noise[:-7])).clip(-0.9, 0.9).astype(np.float32)


def _save(path: Path, samples: np.ndarray, sample_rate: int) -> Path:
    with soundfile.SoundFile(path, "w", sample_rate, samples.shape[1]) as file:
        for start in range(0, len(samples), 4096):
            file.write(samples[start : start + 4096])
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One stereo file a format and rate."""
    folder = tmp_path_factory.mktemp("audio")
    for suffix, rate in FORMS:
        _save(folder / f"{rate}.{suffix}", _noise(rate * SECONDS + 777, 2), rate)
    return folder


@pytest.mark.parametrize(("suffix", "rate"), FORMS)
def test_a_window_is_the_slice_of_the_whole(folder: Path, suffix: str, rate: int):
    """Wherever it starts, also across the end, whatever the file's rate and format."""
    path = folder / f"{rate}.{suffix}"
    whole = soundfile.read(path, dtype="float32")[0].mean(1, keepdims=True)
    whole = torch.from_numpy(soxr.resample(whole, rate, 44_100) if rate != 44_100 else whole).T
    size = 5_000
    padded = torch.cat([whole, torch.zeros(1, 3 * size)], 1)
    last = whole.shape[1]
    assert audio.probe(path).num_samples(44_100) == last
    for start in (0, 1, 4_097, 70_001, last - size, last - 1_234, last - 1, last, last + size):
        window = audio.read(path, start, size, 44_100, 1)
        assert torch.allclose(window, padded[:, start : start + size], atol=1e-4), start


@pytest.mark.parametrize(("native", "wanted"), [(44_101, 44_100), (8_000, 44_100), (96_000, 22_050), (11_025, 48_000)])
def test_the_length_after_resampling_is_known_beforehand(tmp_path: Path, native: int, wanted: int):
    for num_frames in (3_000, 3_001, 3_019):
        path = _save(tmp_path / "a.wav", _noise(num_frames, 1), native)
        length, whole = audio.probe(path).num_samples(wanted), soundfile.read(path)[0]
        assert len(soxr.resample(whole, native, wanted)) == length


def test_channels_are_averaged_repeated_or_the_first(tmp_path: Path):
    """8 channels at 96 kHz read as mono; a mono file fills any number; too few is an error."""
    samples = _noise(96_000, 8)
    wide = _save(tmp_path / "8.wav", samples, 96_000)
    assert audio.read(wide, 0, 44_100, 44_100, 1).shape == (1, 44_100)
    exact = torch.from_numpy(samples).T
    assert torch.allclose(audio.read(wide, 0, 96_000, 96_000, 1)[0], exact.mean(0), atol=1e-4)
    assert torch.allclose(audio.read(wide, 0, 96_000, 96_000, 2), exact[:2], atol=1e-4)
    mono = _save(tmp_path / "1.wav", samples[:, :1], 96_000)
    assert torch.equal(*audio.read(mono, 10, 100, 96_000, 2))
    with pytest.raises(InputError, match="has 8 channels, 9 are asked for"):
        audio.read(wide, 0, 10, 96_000, 9)


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_what_is_written_is_read_back_clipped(tmp_path: Path, suffix: str):
    song = torch.from_numpy(_noise(20_000, 2)).T
    song[:, 100] = torch.tensor([1.5, -1.5])
    audio.write(tmp_path / "new" / f"a.{suffix}", song, 44_100)
    back = audio.read(tmp_path / "new" / f"a.{suffix}", 0, 20_000, 44_100, 2)
    assert torch.allclose(back, song.clamp(-1, 1), atol=1e-4)
    assert [path.name for path in (tmp_path / "new").iterdir()] == [f"a.{suffix}"]


def test_a_long_ogg_is_written(tmp_path: Path):
    """Written in one call, 20 s of Vorbis crash the process (python-soundfile #233)."""
    tone = 0.5 * torch.sin(torch.arange(20 * 44_100) * 0.05).repeat(2, 1)
    audio.write(tmp_path / "a.ogg", tone, 44_100)
    back = audio.read(tmp_path / "a.ogg", 0, tone.shape[1], 44_100, 2)
    assert (back - tone).abs().max() < 0.05


def test_a_failed_write_leaves_what_was_there(tmp_path: Path):
    audio.write(tmp_path / "a.wav", torch.zeros(1, 100), 44_100)
    before = (tmp_path / "a.wav").read_bytes()
    with pytest.raises(InputError, match="5000 channels at 44100 Hz: Format not recognised"):
        audio.write(tmp_path / "a.wav", torch.zeros(5_000, 10), 44_100)
    assert (tmp_path / "a.wav").read_bytes() == before and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(InputError, match="cannot write .mp4"):
        audio.write(tmp_path / "a.mp4", torch.zeros(1, 100), 44_100)


@pytest.mark.parametrize("suffix", ["wav", "aiff", "flac", "mp3", "ogg", "opus"])
def test_a_file_that_was_cut_off_is_told(tmp_path: Path, suffix: str, capfd: pytest.CaptureFixture[str]):
    """Its reason gives the seconds that are there; the mp3 decoder's complaints stay off the terminal."""
    path = tmp_path / f"a.{suffix}"
    if suffix == "opus":
        soundfile.write(path, _noise(48_000 * 4, 1), 48_000, format="OGG", subtype="OPUS")
    else:
        _save(path, _noise(44_100 * 4, 1), 44_100)
    assert audio.probe(path).seconds == pytest.approx(4, abs=0.1)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"ends after [12]\.\d s (of the 4.0 s that its header|without its closing)"):
        audio.probe(path)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.wav", b"", "empty file"),
        ("a.mp3", b"", "empty file"),
        ("a.flac", b"hello " * 99, "not readable as audio"),
        ("a.mp3", b"hello " * 99, "not readable as audio"),
        ("a.wav", b"RIFF\x24\0\0\0WAVEfmt ", "not readable as audio"),
    ],
)
def test_what_is_not_audio_gets_one_short_line(tmp_path: Path, name: str, content: bytes, reason: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=reason) as caught:
        audio.probe(tmp_path / name)
    assert "\n" not in str(caught.value) and str(tmp_path) not in str(caught.value)


def test_a_file_that_is_gone_or_holds_no_numbers_is_named(tmp_path: Path):
    with pytest.raises(InputError, match="cannot be opened"):
        audio.probe(tmp_path / "gone.wav")
    with pytest.raises(InputError, match=r"gone\.wav: cannot be read"):
        audio.read(tmp_path / "gone.wav", 0, 10, 44_100, 1)
    soundfile.write(tmp_path / "nan.wav", np.full(1000, np.nan), 44_100, subtype="FLOAT")
    with pytest.raises(InputError, match=r"nan\.wav: holds samples that are not numbers"):
        audio.read(tmp_path / "nan.wav", 0, 10, 44_100, 1)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "aiff"])
def test_no_damage_to_a_file_makes_another_error_than_ours(tmp_path: Path, suffix: str):
    """Bytes flipped, cut out or put in, mostly in the header: it reads, finite and of the asked size, or InputError."""
    path = _save(tmp_path / f"a.{suffix}", _noise(20_000, 1), 44_100)
    content = path.read_bytes()
    draw = random.Random(1)
    for _ in range(60):
        damaged = bytearray(content)
        reach = draw.choice([64, 512, len(content)])
        for _ in range(draw.randint(1, 8)):
            position = draw.randrange(min(reach, len(damaged)))
            damaged[position : position + draw.choice([0, 1, 1, 4])] = draw.randbytes(draw.choice([0, 1, 1, 4]))
        path.write_bytes(damaged)
        try:
            info = audio.probe(path)
            window = audio.read(path, info.num_samples(44_100) // 2, 2_000, 44_100, 1)
        except InputError as error:
            assert "\n" not in str(error)
        else:
            assert window.shape == (1, 2_000) and window.isfinite().all()
