"""A page to listen on: players, pictures, lyrics and figures, in one folder that needs no server and can be moved.

Audio lies beside the page as wav, not in it: a browser seeks in it, a musician drags it into an editor, and an hour
of it makes the page no larger. The same holds for the pictures, which the page that compares a sweep shows again.
"""

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
from torch import Tensor

from jukebox_lite.audio import writing
from jukebox_lite.files import write_bytes, write_text
from jukebox_lite.generation.pictures import (
    COLUMNS,
    LOUDEST_DB,
    SOFTEST_DB,
    Envelope,
    clock,
    draw_codes,
    draw_mels,
    draw_wave,
    frequency_ticks,
    time_ticks,
)
from jukebox_lite.metrics.signal import SignalMeter
from jukebox_lite.settings import leaves, parse

_FORMAT = "jukebox_lite page 1"
_RECORD = "page.json"
_NUMBER = int | float
_RECORDED = {  # of a page.json: what a page that compares several shows of each
    "format": str,
    "settings": str,
    "took": {"any": _NUMBER},
    "sections": [
        {
            "title": str,
            "reference": bool,
            "clips": [
                {
                    "title": str,
                    "facts": [str],
                    "sound": str,
                    "pictures": {"wave": str, "mels": str},
                    "num_codebooks": int,
                    "seconds": _NUMBER,
                    "length": str,
                    "time_ticks": [[str, _NUMBER]],
                    "frequency_ticks": [[str, _NUMBER]],
                }
            ],
        }
    ],
}
_OWN = ("name", "runs")  # settings that say where a job's files go, not how it sounds


@dataclass(frozen=True)
class Clip:
    """Something to hear, and the codes it was decoded from."""

    title: str
    pieces: Iterable[Tensor]  # audio [C, n] in [-1, 1], in order; taken once: may be made as they are asked for
    num_samples: int  # of all pieces together
    sample_rate: int  # Hz
    codes: Tensor | None = None  # [K, T] int64, spanning the whole clip


@dataclass(frozen=True)
class Lyrics:
    """The words of a song, and when each of their characters is sung."""

    text: str
    seconds: Sequence[float | None] | None = None  # one a character, None where it is not sung; None: not known

    def __post_init__(self) -> None:
        if self.seconds is not None and len(self.seconds) != len(self.text):
            raise ValueError(f"lyrics of {len(self.text)} characters, times of {len(self.seconds)}: expected as many")

    def words(self) -> list[tuple[str, float | None]]:
        """The text cut into words, each with the space after it, and the second at which each begins to be sung."""
        spans = [match.span() for match in re.finditer(r"\s*\S+\s*", self.text)]
        times = self.seconds or [None] * len(self.text)
        sung = [min((t for t in times[start:end] if t is not None), default=None) for start, end in spans]
        return [(self.text[start:end], time) for (start, end), time in zip(spans, sung, strict=True)]


@dataclass(frozen=True)
class Section:
    """Clips that belong together, such as the levels of one song, and what is known of them."""

    title: str
    clips: Iterable[Clip] = ()  # taken once, in turn
    figures: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    lyrics: Lyrics | None = None
    reference: bool = False  # to compare with: the same in every job of a sweep


def write_page(
    folder: Path,
    title: str,
    sections: Sequence[Section],
    settings: str = "",
    took: Mapping[str, float] | None = None,
) -> Path:
    """Writes a wav and PNGs for every clip, then index.html, and returns its path. Texts may hold anything.

    `settings` is YAML; `took` are seconds by what took them. page.json tells `write_comparison` what the page shows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shown = [_write_section(folder, number, section) for number, section in enumerate(sections, 1)]
    record = {"format": _FORMAT, "title": title, "settings": settings, "sections": shown, "took": dict(took or {})}
    _write_html(folder / "index.html", "song.html", record)
    write_text(folder / _RECORD, json.dumps(record))
    return folder / "index.html"


def write_comparison(folder: Path, staging: Path) -> Path:
    """Writes index.html, which compares the pages in the folders below `folder`; returns its path.

    Each finished job of a sweep may call this, side by side with others and on several machines: the page is written
    to `staging`, a folder of the job's own, and moved into place, again if another job has finished meanwhile. So
    whoever comes last has seen all.
    """
    page, seen = folder / "index.html", None
    while (found := _finished(folder)) != seen:
        jobs, seen = [_job(path) for path, _ in found], found
        _write_html(staging / "sweep.html", "sweep.html", _compared(folder.name, [job for job in jobs if job]))
        (staging / "sweep.html").replace(page)
    return page


def write_table(folder: Path, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Path:
    """Writes index.html: a table whose first column names folders below, and the picture scores.png beside it."""
    lines = [{"place": f"{quote(row[0])}/", "name": row[0], "cells": row[1:]} for row in rows]
    _write_html(folder / "index.html", "table.html", {"title": title, "columns": columns, "rows": lines})
    return folder / "index.html"


def _write_section(folder: Path, number: int, section: Section) -> dict[str, Any]:
    """Writes the files of a section's clips, and returns what the page says of it, as JSON takes it."""
    clips = [_write_clip(folder, f"{number:02d}-{index:02d}", clip) for index, clip in enumerate(section.clips, 1)]
    return {
        "title": section.title,
        "clips": clips,
        "figures": dict(section.figures),
        "labels": dict(section.labels),
        "lyrics": section.lyrics.words() if section.lyrics else [],
        "reference": section.reference,
    }


def _write_clip(folder: Path, number: str, clip: Clip) -> dict[str, Any]:
    """Writes a clip's files piece by piece, and returns what the page says of it."""
    stem, seconds = f"{number}-{_slug(clip.title)}", clip.num_samples / clip.sample_rate
    meter, envelope = SignalMeter(clip.num_samples, clip.sample_rate, COLUMNS), Envelope(clip.num_samples)
    pieces = _pieces(clip)
    first = next(pieces)
    with writing(folder / f"{stem}.wav", clip.sample_rate, len(first)) as put:
        for piece in chain([first], pieces):
            put(piece)
            meter.add(piece)
            envelope.add(piece)
    pictures = {"wave": draw_wave(envelope.low, envelope.high), "mels": draw_mels(meter.power(), clip.sample_rate)}
    if clip.codes is not None:
        pictures["codes"] = draw_codes(clip.codes)
    for name, drawn in pictures.items():
        write_bytes(folder / f"{stem}-{name}.png", drawn)
    return {
        "title": clip.title,
        "facts": _facts(clip, meter.figures()),
        "sound": f"{stem}.wav",
        "pictures": {name: f"{stem}-{name}.png" for name in pictures},
        "num_codebooks": 0 if clip.codes is None else len(clip.codes),
        "seconds": seconds,
        "length": clock(seconds, 0.1),
        "time_ticks": time_ticks(seconds),
        "frequency_ticks": frequency_ticks(clip.sample_rate),
    }


def _pieces(clip: Clip) -> Iterator[Tensor]:
    """The pieces of a clip on the CPU; ValueError if they are not what it says."""
    taken = 0
    for piece in clip.pieces:
        taken += piece.shape[-1]
        if piece.ndim != 2 or not piece.numel() or taken > clip.num_samples:
            raise ValueError(
                f"clip '{clip.title}' has audio {list(piece.shape)}, {taken} samples so far: expected [C, n] with n of "
                f"1 or more, {clip.num_samples} in all"
            )
        yield piece.detach().float().cpu()
    if not taken or taken < clip.num_samples:
        raise ValueError(f"clip '{clip.title}' has {taken} samples, expected {clip.num_samples}, 1 or more")


def _facts(clip: Clip, figures: Mapping[str, float]) -> list[str]:
    """What can be said of a clip in few words."""
    return [
        f"RMS {figures['rms_db']:.1f} dBFS",
        f"peak {figures['peak']:.2f}",
        f"centroid {figures['spectral_centroid_hz']:,.0f} Hz",
        *([f"{figures['clipped_share']:.2%} clipped"] if figures["clipped_share"] else []),
        *([f"{' × '.join(f'{n:,}' for n in clip.codes.shape)} codes"] if clip.codes is not None else []),
    ]


def _finished(folder: Path) -> list[tuple[Path, int]]:
    """The records of the pages in the folders below and their times, in the order of the folders' numbers."""
    found = sorted(folder.glob(f"*/{_RECORD}"), key=lambda path: (len(path.parent.name), path.parent.name))
    return [(path, path.stat().st_mtime_ns) for path in found]


def _job(path: Path) -> dict[str, Any]:
    """A page's record with its folder's name and its settings by dotted path; nothing if it is not such a record."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"), parse_int=lambda digits: int(float(digits)))
        if not _is_like(record, _RECORDED) or record["format"] != _FORMAT:
            return {}
        settings = {key: str(value) for key, value in leaves(parse(record["settings"])) if key not in _OWN}
    except (ValueError, RecursionError, OverflowError):  # the last of an integer of hundreds of digits
        return {}
    return {**record, "name": path.parent.name, "place": f"{quote(path.parent.name)}/", "settings": settings}


def _is_like(value: Any, form: Any) -> bool:
    """Whether JSON has a form: a type; a list or a dict of one form for all; a pair; a dict of at least these keys."""
    match form:
        case [first, second]:
            return (
                isinstance(value, list) and len(value) == 2 and _is_like(value[0], first) and _is_like(value[1], second)
            )
        case [each]:
            return isinstance(value, list) and all(_is_like(child, each) for child in value)
        case {"any": each}:
            return isinstance(value, dict) and all(_is_like(child, each) for child in value.values())
        case dict():
            return isinstance(value, dict) and all(key in value and _is_like(value[key], form[key]) for key in form)
    return isinstance(value, form)


def _compared(title: str, jobs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a page says of jobs: the settings in which they differ, and of each section every job's first clip."""
    keys = sorted({key for job in jobs for key in job["settings"]})
    differing = [key for key in keys if len({job["settings"].get(key) for job in jobs}) > 1]
    jobs = [{**job, "differing": {key: job["settings"].get(key, "") for key in differing}} for job in jobs]
    sections = []
    for number in range(max((len(job["sections"]) for job in jobs), default=0)):
        having = [job for job in jobs if number < len(job["sections"]) and job["sections"][number]["clips"]]
        same = having[:1] if all(job["sections"][number]["reference"] for job in having) else having
        if same:
            clips = [(job, job["sections"][number]["clips"][0]) for job in same]
            titles = {job["sections"][number]["title"] for job in same}
            sections.append({"title": titles.pop() if len(titles) == 1 else f"Song {number + 1}", "clips": clips})
    return {"title": title, "jobs": jobs, "differing": differing, "sections": sections}


def _write_html(path: Path, template: str, values: Mapping[str, Any]) -> None:
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "page")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template(template).render(values, softest=SOFTEST_DB, loudest=LOUDEST_DB)
    write_bytes(path, page.encode("utf-8", "replace"))


def _slug(title: str) -> str:
    """A title as part of a file name: lower-case ASCII letters, digits and hyphens, at most 48."""
    plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain)[:48].strip("-") or "clip"
