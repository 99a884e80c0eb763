"""Pages can be opened, compared and trusted; figures agree with numbers worked out by hand."""

import math
import re
from pathlib import Path

import pytest
import soundfile
import torch

from jukebox_lite.generation.report import Clip, Section, write_page
from jukebox_lite.metrics.signal import SILENCE_DB, describe, held_share, power_spectrogram

RATE = 22050
HOSTILE = """<script>alert("x")</script>'../../ü\N{MUSICAL SYMBOL G CLEF}"""


def sine(frequency: float, seconds: float = 1.0, channels: int = 1) -> torch.Tensor:
    """A full-scale sine [C, N]."""
    time = torch.arange(round(seconds * RATE), dtype=torch.float64) / RATE
    return torch.sin(2 * math.pi * frequency * time).float().expand(channels, -1)


@pytest.mark.parametrize("frequency", [440.0, 1234.5, 7000.0])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_full_scale_sine_is_described_as_what_it_is(frequency, channels):
    figures = describe(sine(frequency, channels=channels), RATE)
    assert figures["rms_db"] == pytest.approx(-10 * math.log10(2), abs=0.01)  # -3.01 dBFS
    assert figures["peak"] == pytest.approx(1, abs=1e-3)
    assert figures["spectral_centroid_hz"] == pytest.approx(frequency, rel=2e-3)
    assert power_spectrogram(sine(frequency), RATE).sum(0).mean() == pytest.approx(1, abs=1e-3)


def test_the_centroid_of_two_sines_is_weighted_by_their_energy():
    figures = describe(0.6 * sine(1000) + 0.3 * sine(4000), RATE)
    assert figures["spectral_centroid_hz"] == pytest.approx((4 * 1000 + 1 * 4000) / 5, rel=2e-3)


def test_clipping_and_silence_are_told():
    square = torch.tensor([[1.0, -1.0, 2.0, 0.5]]).repeat(1, 1000)
    figures = describe(square, RATE)
    assert figures["clipped_share"] == 0.75 and figures["peak"] == 2.0
    silence = describe(torch.zeros(2, 100), RATE)
    assert silence == {"rms_db": SILENCE_DB, "peak": 0, "clipped_share": 0, "spectral_centroid_hz": 0}


def test_held_tones_are_told_from_noise():
    """Notes of half a second are held for nearly all of the time, notes of 50 ms and noise, white or dull, for none."""
    scale = [sine(220 * 2 ** (step / 6)) for step in (0, 4, 7, 12, 9, 5)]

    def melody(seconds: float) -> torch.Tensor:
        length = round(seconds * RATE)
        return torch.cat([scale[i % len(scale)][:, :length] for i in range(round(4 / seconds))], -1)

    noise = torch.randn(1, 4 * RATE, generator=torch.Generator().manual_seed(0))
    dull = torch.nn.functional.avg_pool1d(noise, 40, 1)
    assert held_share(melody(0.5), RATE) > 0.95
    assert held_share(melody(0.5) + 0.1 * noise, RATE) > 0.95
    assert max(held_share(each, RATE) for each in (melody(0.05), noise, dull)) < 0.05


def test_whatever_titles_hold_the_page_is_inert_and_the_files_are_safe(tmp_path: Path):
    clips = [
        Clip(HOSTILE, sine(440, 0.1), RATE),
        Clip("../../etc/passwd", sine(440, 0.1), RATE),
        Clip("", sine(1), RATE),
    ]
    folder = tmp_path / "page"
    page = write_page(folder, HOSTILE, [Section(HOSTILE, clips, {HOSTILE: HOSTILE})], settings="</pre>" + HOSTILE)
    text = page.read_text(encoding="utf-8")
    assert "<script" not in text and text.count("</pre>") == 1
    assert text.count("&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt;&#39;") == 8
    assert [entry.name for entry in tmp_path.iterdir()] == ["page"]
    names = sorted(entry.name for entry in folder.iterdir())
    assert all(re.fullmatch(r"index\.html|01-0[123]-[a-z0-9-]+\.(wav|png)", name) for name in names) and len(names) == 7
    assert sorted(re.findall(r'src="([^"]+)"', text)) == [name for name in names if name != "index.html"]


def test_a_page_needs_nothing_from_elsewhere(tmp_path: Path):
    page = write_page(tmp_path, "Songs", [Section("One", [Clip("a", sine(440), RATE)])]).read_text()
    assert not re.search(r"https?:|//|@import|url\(", page)
    assert "<table>" not in page and "<details>" not in page, "no figures, no settings: nothing in their place"


def test_clips_are_16_bit_and_keep_their_samples(tmp_path: Path):
    write_page(tmp_path, "Songs", [Section("One", [Clip("a", 0.5 * sine(440, channels=2), RATE)])])
    info = soundfile.info(tmp_path / "01-01-a.wav")
    assert (info.samplerate, info.channels, info.frames, info.subtype) == (RATE, 2, RATE, "PCM_16")


@pytest.mark.parametrize("num_samples", [1, 100, 5000])
@pytest.mark.parametrize("sample_rate", [8000, 96000])
def test_short_clips_and_other_rates_are_drawn(num_samples, sample_rate, tmp_path: Path):
    audio = torch.rand(2, num_samples) - 0.5
    assert write_page(tmp_path, "Songs", [Section("One", [Clip("a", audio, sample_rate)])]).is_file()
    assert (tmp_path / "01-01-a.png").stat().st_size > 1000


@pytest.mark.parametrize("shape", [(2, 0), (100,), (1, 2, 100)])
def test_a_clip_is_channels_of_samples(shape):
    with pytest.raises(ValueError, match="clip 'a'"):
        Clip("a", torch.zeros(shape), RATE)


def test_a_page_is_replaced_whole(tmp_path: Path):
    write_page(tmp_path, "First", [])
    write_page(tmp_path, "Second", [])
    assert [entry.name for entry in tmp_path.iterdir()] == ["index.html"]
    assert "Second" in (tmp_path / "index.html").read_text()
