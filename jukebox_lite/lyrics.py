"""Lyrics as characters, and those that a window is told by linear alignment (Jukebox, section 4.2).

Nobody says when a line is sung, so the text is taken to run through the song at one pace. A window is told many more
characters than it sings, those around its middle; which of them it does sing, a prior has to find.
"""

import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from jukebox_lite.errors import InputError
from jukebox_lite.levels import LYRICS, LYRICS_PLACES, NO_VALUE, UNKNOWN


def read_lyrics(path: Path) -> str:
    """The text of a file in UTF-8. Raises InputError, which does not name it, where it is none."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"not readable ({error.strerror}); give a text file in UTF-8") from error
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 at byte {error.start}; save it as text in UTF-8") from error


def normalised(text: str) -> str:
    """A song's text as priors read it: lower case, compatible characters as one (NFKC), lines ending in "\\n"."""
    lines = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).lower()).splitlines()
    return "\n".join(lines).strip()


def characters_of(texts: Iterable[str]) -> list[str]:
    """The characters of normalised texts, sorted, UNKNOWN before them."""
    return [UNKNOWN, *sorted(set().union(*texts))]


def first_character(num_characters: int, size: int, start: float, end: float, total: float) -> int:
    """Where `size` characters around a window's middle begin, in a text of `num_characters` that takes `total`.

    As near to the middle as they can be without leaving the text. `start` and `end` are the window's, in any unit.
    """
    middle = int(num_characters * (start + end) / 2 / total)
    return max(min(middle - size // 2, num_characters - size), 0)


def window_lyrics(
    texts: Sequence[str], characters: Sequence[str], size: int, start: Tensor, end: Tensor, total: Tensor
) -> dict[str, Tensor]:
    """What windows are told of their songs' normalised texts, `size` characters each, as labels of a `Window`.

    LYRICS are indices into `characters` [B, S] int64, shorter texts filled with NO_VALUE; LYRICS_PLACES [B, S] float
    are where in the window linear alignment puts each: 0 is its start, 1 its end. `start`, `end` and `total` [B] are
    the windows' and their songs', in one unit.
    """
    index = {character: value for value, character in enumerate(characters)}
    tokens = torch.full((len(texts), size), NO_VALUE)
    places = torch.zeros(len(texts), size)
    times = zip(start.tolist(), end.tolist(), total.tolist(), strict=True)
    for song, (text, (begun, ended, whole)) in enumerate(zip(texts, times, strict=True)):
        first = first_character(len(text), size, begun, ended, whole)
        told = text[first : first + size]
        tokens[song, : len(told)] = torch.tensor([index.get(each, 0) for each in told], dtype=torch.int64)
        when = (torch.arange(first, first + len(told)) + 0.5) * whole / max(len(text), 1)
        places[song, : len(told)] = (when - begun) / (ended - begun)
    return {LYRICS: tokens, LYRICS_PLACES: places}
