"""Pages can be opened, compared and trusted; figures agree with numbers worked out by hand."""

import io
import json
import math
import re
import tomllib
import weakref
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from jukebox_lite.generation import report
from jukebox_lite.generation.pictures import (
    COLUMNS,
    Envelope,
    clock,
    code_colors,
    draw_codes,
    draw_mels,
    draw_wave,
    frequency_ticks,
    time_ticks,
)
from jukebox_lite.generation.report import Clip, Lyrics, Section, write_comparison, write_page
from jukebox_lite.metrics.signal import SILENCE_DB, SignalMeter, describe, held_share, power_spectrogram

RATE = 22050
ROOT = Path(__file__).parents[1]
PAGE = Path(report.__file__).parent / "page"
HOSTILE = """</script><script>alert("x")</script>'"><img src=x onerror=alert(1)></pre></style>{{ 7 * 7 }}{% raw %}-->
../../ü\N{MUSICAL SYMBOL G CLEF}"""


def sine_clip(title: str = "a", seconds: float = 0.1) -> Clip:
    audio = sine(440, seconds)
    return Clip(title, [audio], audio.shape[-1], RATE)


class Parsed(HTMLParser):
    """A page's elements, links, texts and script; fails where an element is closed that is not the open one."""

    VOID = frozenset({"meta", "img", "input"})

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.links: list[str] = []
        self.texts: dict[str, str] = {}
        self.feed(page.read_text(encoding="utf-8"))
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts[self.open[-1] if self.open else ""] = self.texts.get(self.open[-1] if self.open else "", "") + data


def pixels(png: bytes | Path) -> np.ndarray:
    """The pixels of a PNG, [rows, columns, 4]."""
    with Image.open(io.BytesIO(png) if isinstance(png, bytes) else png) as image:
        return np.asarray(image.convert("RGBA"))


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


def test_whatever_texts_hold_the_page_is_inert_and_the_files_are_safe(tmp_path: Path):
    """In titles, labels, lyrics, figures, settings and the names of what took time, on the page and the sweep's."""
    codes = torch.arange(6).reshape(2, 3)
    clips = [
        Clip(HOSTILE, [sine(440, 0.1)], 2205, RATE, codes),
        sine_clip("../../etc/passwd"),
        Clip("", [sine(1)], RATE, RATE),
    ]
    lyrics = Lyrics(HOSTILE, [0.5] * len(HOSTILE))
    odd = {HOSTILE: HOSTILE}
    for job in ("0", "1 #?%<b>\"'&"):
        folder = tmp_path / "sweep" / job
        section = Section(HOSTILE, clips, odd, odd, lyrics)
        page = write_page(folder, HOSTILE, [section], json.dumps({HOSTILE: HOSTILE + job}), {HOSTILE: 1.0})
    sweep = write_comparison(tmp_path / "sweep", folder)
    for path, template in ((page, "song.html"), (sweep, "sweep.html")):
        parsed = Parsed(path)
        plain = re.sub(r"{%.*?%}|{{.*?}}", "", "".join((PAGE / name).read_text() for name in TEMPLATES[template]))
        known = {tag.lower() for tag in re.findall(r"<([a-zA-Z]\w*)", plain)}
        assert set(parsed.tags) <= known, "an element that no template holds"
        assert parsed.tags.count("script") == parsed.tags.count("noscript") == 1
        assert parsed.texts["script"].strip() == (PAGE / "page.js").read_text().strip()
        assert not [name for name, _ in parsed.attributes if name.startswith("on")]
        assert " ".join(HOSTILE.split()) in " ".join(parsed.texts["h2"].split())
    assert [entry.name for entry in tmp_path.iterdir()] == ["sweep"]
    names = sorted(entry.name for entry in folder.iterdir())
    allowed = r"index\.html|page\.json|01-0[123]-[a-z0-9-]+\.(wav|png)"
    assert all(re.fullmatch(allowed, name) for name in names) and len(names) == 12


TEMPLATES = {
    "song.html": ("base.html", "listening.html", "song.html", "player.html"),
    "sweep.html": ("base.html", "listening.html", "sweep.html", "player.html"),
}


def test_a_page_needs_nothing_from_elsewhere_and_can_be_moved(tmp_path: Path):
    """Every link is relative and leads to a file that is there; nothing else is fetched."""
    for job in ("0", "1"):
        clip = Clip("a", [sine(440)], RATE, RATE, torch.zeros(1, 9, dtype=torch.int64))
        page = write_page(tmp_path / "old" / job, "Songs", [Section("One", [clip])], "seed: 0")
    write_comparison(tmp_path / "old", tmp_path / "old" / "0")
    (tmp_path / "old").rename(tmp_path / "moved")
    for page in (tmp_path / "moved" / "index.html", tmp_path / "moved" / "1" / "index.html"):
        assert not re.search(r"https?:|url\(|@import|fetch\(|import\(|XMLHttp|WebSocket", page.read_text())
        links = Parsed(page).links
        assert len(links) >= 5
        for link in links:
            assert not link.startswith(("/", "data:")) and (page.parent / link).is_file()


def test_what_is_not_known_has_no_place_on_the_page(tmp_path: Path):
    parsed = Parsed(write_page(tmp_path, "Songs", [Section("One", [sine_clip()])]))
    assert not {"table", "details", "dl"} & set(parsed.tags)
    assert ("class", "codes") not in parsed.attributes and ("class", "lyrics") not in parsed.attributes


def test_controls_are_labelled_and_pictures_described(tmp_path: Path):
    """A player has a button, a slider as long as its clip, a link, and a text for every picture."""
    clip = Clip("top", [sine(440)], RATE, RATE, torch.zeros(1, 9, dtype=torch.int64))
    page = write_page(tmp_path, "Songs", [Section("Song 1", [clip])]).read_text()
    for tag, wanted in {"button": 'aria-label="Play Song 1, top"', "input type=.range": 'max="1.0"'}.items():
        (found,) = re.findall(rf"<{tag}[^>]*>", page)
        assert wanted in found and "aria-label" in found
    pictures = re.findall(r"<img[^>]*>", page)
    assert len(pictures) == 3 and all("of Song 1, top" in picture for picture in pictures)


def test_settings_labels_times_and_lyrics_are_told(tmp_path: Path):
    lyrics = Lyrics("a b", [0.25, None, 1.5])
    section = Section("One", [sine_clip()], {"use": "5 %"}, {"genre": "organ"}, lyrics)
    parsed = Parsed(write_page(tmp_path, "Songs", [section], "seed: 7\n", {"top": 1234.56}))
    assert parsed.texts["pre"] == "seed: 7\n"
    assert "organ" in parsed.texts["dd"] and "genre" in parsed.texts["dt"]
    assert "1,234.6 s" in parsed.texts["td"] and "5 %" in parsed.texts["td"]
    assert [value for name, value in parsed.attributes if name == "data-at"] == ["0.25", "1.5"]


def test_words_light_up_when_their_first_character_is_sung():
    """Every character is kept; a word none of whose characters has a time never lights up."""
    text = " One two,\n\nthree"
    times = [None, *(0.5, 0.25, None), None, *[None] * 4, None, None, *(3.0, 2.0, 4.0, 5.0, 6.0)]
    words = Lyrics(text, times).words()
    assert words == [(" One ", 0.25), ("two,\n\n", None), ("three", 2.0)]
    assert "".join(word for word, _ in Lyrics(text).words()) == text
    with pytest.raises(ValueError, match="lyrics of 3 characters, times of 2"):
        Lyrics("abc", [0, 1])


def test_clips_are_16_bit_and_keep_their_samples(tmp_path: Path):
    audio = 0.5 * sine(440, channels=2)
    write_page(tmp_path, "Songs", [Section("One", [Clip("a", audio.split(777, -1), RATE, RATE)])])
    info = soundfile.info(tmp_path / "01-01-a.wav")
    assert (info.samplerate, info.channels, info.frames, info.subtype) == (RATE, 2, RATE, "PCM_16")
    assert np.abs(soundfile.read(tmp_path / "01-01-a.wav")[0].T - audio.numpy()).max() < 2**-15


@pytest.mark.parametrize("num_samples", [1, 100, 5000])
@pytest.mark.parametrize("sample_rate", [8000, 96000])
def test_short_clips_and_other_rates_are_drawn(num_samples, sample_rate, tmp_path: Path):
    audio = torch.rand(2, num_samples) - 0.5
    Parsed(write_page(tmp_path, "Songs", [Section("One", [Clip("a", [audio], num_samples, sample_rate)])]))
    assert pixels(tmp_path / "01-01-a-wave.png").shape[1] == min(num_samples, COLUMNS)
    assert pixels(tmp_path / "01-01-a-mels.png").max() > 0


@pytest.mark.parametrize("shape", [(2, 0), (100,), (1, 2, 100), (1, 99), (1, 101)])
def test_a_clip_is_channels_of_as_many_samples_as_it_says(shape, tmp_path: Path):
    with pytest.raises(ValueError, match="clip 'a'"):
        write_page(tmp_path, "Songs", [Section("One", [Clip("a", [torch.zeros(shape)], 100, RATE)])])


def test_a_page_is_replaced_whole(tmp_path: Path):
    write_page(tmp_path, "First", [])
    write_page(tmp_path, "Second", [])
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["index.html", "page.json"]
    assert "Second" in (tmp_path / "index.html").read_text()


def test_a_long_clip_is_taken_piece_by_piece_and_drawn_in_bounded_size(tmp_path: Path):
    """No more than two pieces live at once, and pictures are as wide as those of a clip of a tenth of the length."""
    alive: list[weakref.ref[torch.Tensor]] = []

    def pieces(count: int) -> Iterator[torch.Tensor]:
        for index in range(count):
            piece = sine(220 + index, 3).clone()
            alive.append(weakref.ref(piece))
            yield piece
            assert sum(each() is not None for each in alive) <= 2

    sizes = []
    for count in (10, 100):
        codes = torch.zeros(4, 20_000 * count, dtype=torch.int64)
        clip = Clip("a", pieces(count), count * 3 * RATE, RATE, codes)
        write_page(tmp_path / str(count), "Songs", [Section("One", [clip])])
        sizes.append([pixels(path).shape for path in sorted((tmp_path / str(count)).glob("*.png"))])
    assert sizes[0][1][1] <= sizes[1][1][1] == COLUMNS and sizes[0][::2] == sizes[1][::2]
    assert [shape[1] for shape in sizes[1]] == [COLUMNS] * 3
    assert len((tmp_path / "100" / "index.html").read_text()) - len((tmp_path / "10" / "index.html").read_text()) < 100


# --- pictures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_samples", [1, 7, COLUMNS, COLUMNS + 1, 10_007])
@pytest.mark.parametrize("piece", [1000, 1 << 20])
def test_an_envelope_is_the_least_and_greatest_of_each_stretch(num_samples, piece):
    audio = torch.randn(2, num_samples, generator=torch.Generator().manual_seed(num_samples))
    envelope = Envelope(num_samples)
    for part in audio.split(piece, -1):
        envelope.add(part)
    columns = min(num_samples, COLUMNS)
    edges = [math.ceil(column * num_samples / columns) for column in range(columns + 1)]
    stretches = [audio[:, edges[column] : edges[column + 1]] for column in range(columns)]
    assert envelope.low.tolist() == [stretch.min().item() for stretch in stretches]
    assert envelope.high.tolist() == [stretch.max().item() for stretch in stretches]


def test_a_wave_is_filled_from_its_low_to_its_high():
    drawn = pixels(draw_wave(torch.tensor([-1.0, -0.5, 0.0, -2.0]), torch.tensor([1.0, 0.0, 0.0, -1.5])))[..., 3] > 0
    height = len(drawn)
    assert drawn.sum(0) / height == pytest.approx([1, 0.25, 0, 0], abs=1.5 / height)
    middle = np.flatnonzero(drawn[:, 1]) / (height - 1)
    assert (middle[0], middle[-1]) == pytest.approx((0.5, 0.75), abs=1 / height)
    assert np.flatnonzero(drawn[:, 3]).tolist() == [height - 1], "beyond full scale: at the edge"


@pytest.mark.parametrize("num_steps", [1, 50, COLUMNS, COLUMNS + 1, 5 * COLUMNS + 3])
def test_a_picture_of_codes_is_the_codes(num_steps):
    """A pixel a code, in a colour that no other code has; where there are too many steps, those under the pixels."""
    codes = torch.randint(0, 2048, (3, num_steps), generator=torch.Generator().manual_seed(num_steps))
    columns = min(num_steps, COLUMNS)
    shown = torch.stack([codes[:, column * num_steps // columns] for column in range(columns)], -1)
    colors = {tuple(color): code for code, color in enumerate(code_colors(torch.arange(2048)).tolist())}
    drawn = [[colors[tuple(pixel)] for pixel in row] for row in pixels(draw_codes(codes))[..., :3].tolist()]
    assert drawn == shown.tolist()


def test_no_two_codes_have_one_color():
    assert len(np.unique(code_colors(torch.arange(65_536)), axis=0)) == 65_536


@pytest.mark.parametrize("frequency", [500, 1000, 4000])
def test_a_tone_is_drawn_beside_its_tick_and_as_loud_as_it_is(frequency):
    quiet = 0.1 * sine(frequency)
    drawn = pixels(draw_mels(power_spectrogram(quiet, RATE), RATE))[..., :3].sum(-1).mean(1)
    up = dict(frequency_ticks(RATE))[f"{frequency // 1000}k" if frequency >= 1000 else str(frequency)]
    assert 1 - drawn.argmax() / len(drawn) == pytest.approx(up, abs=1.5 / len(drawn))
    louder = pixels(draw_mels(power_spectrogram(10 * quiet, RATE), RATE))[..., :3].sum(-1).mean(1)
    assert louder.max() > drawn.max()


@pytest.mark.parametrize("num_samples", [10, 2000, RATE, 12 * RATE])
@pytest.mark.parametrize("piece", [333, 5000])
def test_audio_in_pieces_is_measured_as_the_whole_is(num_samples, piece):
    """The same power and figures; where there are too many frames, the mean of those of each stretch."""
    audio = torch.randn(2, num_samples, generator=torch.Generator().manual_seed(0)) / 4
    whole = power_spectrogram(audio, RATE, max_frames=10_000)
    meter = SignalMeter(num_samples, RATE, max_frames=100)
    for part in audio.split(piece, -1):
        meter.add(part)
    assert meter.figures() == pytest.approx(describe(audio, RATE), rel=2e-3)
    columns = min(100, whole.shape[1])
    place = torch.arange(whole.shape[1]) * columns // whole.shape[1]
    pooled = torch.stack([whole[:, place == column].mean(1) for column in range(columns)], -1)
    torch.testing.assert_close(meter.power(), pooled)


@pytest.mark.parametrize("seconds", [0.0001, 0.05, 1, 9.997, 20, 61, 600, 7200])
def test_a_time_axis_has_few_round_labels(seconds):
    labels, places = zip(*time_ticks(seconds), strict=True)
    assert 1 <= len(labels) <= 7 and len(set(labels)) == len(labels)
    assert places[0] == 0 and max(places) <= 1 and list(places) == sorted(places)


def test_a_clock_counts_minutes_and_seconds():
    assert [clock(t, 0.1) for t in (0, 9.96, 59.96, 65.43, 600)] == ["0:00.0", "0:10.0", "1:00.0", "1:05.4", "10:00.0"]
    assert clock(65.4) == "1:05" and clock(0.125, 0.005) == "0:00.125"


# --- sweeps --------------------------------------------------------------------------------------------------------


def job(sweep: Path, number: int, temperature: float) -> Path:
    """A finished job's folder: two songs of two levels, and a real recording."""
    songs = [Section(f"Song {index}", [sine_clip("bottom"), sine_clip("top")]) for index in (1, 2)]
    settings = f"seed: 0\nsampler: {{temperature: {temperature}}}\nlabels: {{}}\nname: {number}\n"
    real = Section("Real", [sine_clip("original")], reference=True)
    write_page(sweep / str(number), "job", [*songs, real], settings, {"top": 1.5, "bottom": 2.0})
    return sweep / str(number)


def test_a_sweep_is_compared_on_one_page(tmp_path: Path):
    """A table of what differs, a player a job and song, the real recording once; jobs in the order of their numbers."""
    for number in (10, 2):
        write_comparison(tmp_path, job(tmp_path, number, number / 10))
    (tmp_path / "3").mkdir()
    (tmp_path / "3" / "page.json").write_text('{"format": "another"}')
    (tmp_path / "4").mkdir()
    (tmp_path / "4" / "page.json").write_text("[")
    page = write_comparison(tmp_path, tmp_path / "2")
    parsed, text = Parsed(page), page.read_text()
    sounds = [link for link in parsed.links if link.endswith(".wav")]
    wanted = [f"{name}/0{song}-01-bottom.wav" for song in (1, 2) for name in (2, 10)] + ["2/03-01-original.wav"]
    assert sounds == [link for link in wanted for _ in range(2)], "in the player, and to download"
    (table,) = re.findall(r"<table>.*</table>", text, re.DOTALL)
    rows = [re.findall(r"<t[hd]\b[^>]*>(?:<a[^>]*>)?([^<]*)", row) for row in table.split("</tr>")[:3]]
    assert rows == [["job", "sampler.temperature", "time taken"], ["2", "0.2", "3.5 s"], ["10", "1.0", "3.5 s"]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["10", "2", "3", "4", "index.html"]
    assert not list(tmp_path.glob("*/sweep.html"))


def test_jobs_side_by_side_lose_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A job that finishes while another writes the comparison: the other puts an older page in place, and sees it."""
    plain, others = report._write_html, iter([1, 2])

    def slow(path: Path, template: str, values: dict[str, object]) -> None:
        plain(path, template, values)
        if template == "sweep.html" and (number := next(others, None)):
            write_comparison(tmp_path, job(tmp_path, number, number))

    monkeypatch.setattr(report, "_write_html", slow)
    page = write_comparison(tmp_path, job(tmp_path, 0, 0))
    assert {link.split("/")[0] for link in Parsed(page).links} == {"0", "1", "2"}


def test_the_pages_parts_are_installed():
    """Each is named by package-data, without which an installed package has no page."""
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["jukebox_lite"]
    package = ROOT / "jukebox_lite"
    named = {path for pattern in data for path in package.glob(pattern)}
    assert {path for path in package.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")} <= named
