"""The words every other module speaks: what a codec writes and a prior models.

Shapes, everywhere in the package:
    B batch    C audio channels    N audio samples    T time steps
    K codebooks    D features    V vocabulary    H heads    S memory steps
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from jukebox_lite.errors import InputError

Codes = dict[str, Tensor]  # level name -> [B, K, T] int64 tokens, or [B, D, T] float latents
UNKNOWN = ""  # the first value of every label's vocabulary: absent, or never seen in training
NO_VALUE = -1  # fills the places of songs with fewer values of a label, or a shorter text, than another of the batch
LYRICS, LYRICS_PLACES = "lyrics", "lyrics_places"  # what a window's labels call its characters, and where they lie


@dataclass(frozen=True)
class Level:
    """One rung between a waveform and its most abstract description."""

    name: str
    vocab_size: int | None  # entries per codebook; None where the level is continuous
    channels: int = 1  # K codebooks, or D latent dimensions
    hop_length: int | None = None  # audio samples per time step; None where time is symbolic

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w[\w -]*", str(self.name)):  # it becomes part of files' names
            raise InputError(f"level {self.name!r}: expected a name of letters, digits, spaces, _ and -")

    def check(self, codes: Tensor, source: str) -> None:
        """Raises InputError unless `codes` from `source` are [B, K, T] values that the level can hold; none empty."""
        here = f"{source}: level {self.name}"
        if codes.ndim != 3 or codes.shape[1] != self.channels or 0 in codes.shape:
            raise InputError(
                f"{here} has shape {list(codes.shape)}, expected [songs, {self.channels}, steps], none empty"
            )
        if self.vocab_size is None:
            if not codes.dtype.is_floating_point or not codes.isfinite().all():
                raise InputError(f"{here} holds {codes.dtype} values, expected finite floats")
        elif codes.dtype != torch.int64:
            raise InputError(f"{here} holds {codes.dtype} values, expected {torch.int64}")
        elif codes.min() < 0 or codes.max() >= self.vocab_size:
            raise InputError(
                f"{here} holds codes from {codes.min()} to {codes.max()}, expected 0 to {self.vocab_size - 1}: "
                "give codes of this codec"
            )

    @property
    def codebook_size(self) -> int:
        """`vocab_size` of a discrete level; raises InputError where it is continuous."""
        if self.vocab_size is None:
            raise InputError(f"level {self.name} is continuous: expected a level of codes, with a vocab_size")
        return self.vocab_size

    @property
    def samples_per_step(self) -> int:
        """`hop_length` of a level with a fixed rate; raises InputError where time is symbolic."""
        if self.hop_length is None:
            raise InputError(f"level {self.name} has no fixed time step: expected a level with a hop_length")
        return self.hop_length


@dataclass
class Window:
    """The same seconds of a batch of songs on every level, and what is known of them.

    `labels` holds the indices of a song's values [B, M] int64 by label name, as `Facts.indices` gives them, and three
    times [B] float in seconds: "total_seconds" (length of the song), "start_seconds" and "end_seconds" (of this window
    in it). For priors that hear lyrics there are LYRICS and LYRICS_PLACES [B, S], the text around the window as
    `lyrics.window_lyrics` gives it; a JukeboxPrior takes OpenAI's tokens of it as LYRICS.
    """

    codes: Codes
    labels: dict[str, Tensor] = field(default_factory=dict)

    def beside(self, other: "Window") -> "Window":
        """This window's batch and the other's as one batch, of the same levels and labels."""
        return Window(
            {name: torch.cat([codes, other.codes[name]]) for name, codes in self.codes.items()},
            {name: torch.cat([values, other.labels[name]]) for name, values in self.labels.items()},
        )

    def to(self, device: torch.device | str) -> "Window":
        """The same window on another device."""
        return Window(
            {name: codes.to(device, non_blocking=True) for name, codes in self.codes.items()},
            {name: values.to(device, non_blocking=True) for name, values in self.labels.items()},
        )


@dataclass(frozen=True)
class Facts:
    """What a prior is told of its place: its level, the one above it, what its labels and codes can mean."""

    level: Level
    above: Level | None = None  # the next coarser level; None for the top
    vocabulary: Mapping[str, Sequence[str]] = field(default_factory=dict)  # label -> values, UNKNOWN first
    vectors: Mapping[str, Tensor] = field(
        default_factory=dict, compare=False
    )  # level -> [K, V, D]: what codes sound like
    sample_rate: int | None = None  # Hz, of the codec; None where none is told
    characters: Sequence[str] = ()  # of lyrics, UNKNOWN first; empty where no song has any

    @property
    def ratio(self) -> int:
        """Steps of this level per step of the level above; 1 at the top."""
        return self.above.samples_per_step // self.level.samples_per_step if self.above else 1

    def untold(self, window: Window, labels: Collection[str] | None = None) -> Window:
        """The same window with these labels, or all it has and its lyrics, UNKNOWN; its codes and times stay."""
        names = self.known(window) if labels is None else labels
        return Window(window.codes, {**window.labels, **{name: _untold(name, window.labels[name]) for name in names}})

    def known(self, window: Window) -> list[str]:
        """What the window tells of its songs that can be left untold: the labels of the vocabulary, and LYRICS."""
        return [*self.vocabulary, *([LYRICS] if self.characters and LYRICS in window.labels else [])]

    def indices(self, labels: Mapping[str, Sequence[str]]) -> dict[str, Tensor]:
        """Each song's values of every label of the vocabulary, as indices [B, M] int64.

        `labels` holds one text a song, of one value or several: "rock; jazz". M is the largest number of values in the
        batch; songs of fewer are filled with NO_VALUE. A label that is not mentioned, or of no value, is UNKNOWN.
        Raises InputError on a label or value that the vocabulary lacks.
        """
        for name, values in labels.items():
            if name not in self.vocabulary:
                known = ", ".join(self.vocabulary) or "no labels"
                raise InputError(f"labels.{name}: the prior of level {self.level.name} was trained with {known}")
            if wrong := sorted({value for text in values for value in split_values(text)} - set(self.vocabulary[name])):
                known = ", ".join(self.vocabulary[name][1:]) or "no value of it"
                raise InputError(f"labels.{name}={wrong[0]}: the prior of level {self.level.name} knows {known}")
        count = max((len(values) for values in labels.values()), default=1)
        return {
            name: _padded([[values.index(v) for v in split_values(t)] for t in labels.get(name, [UNKNOWN] * count)])
            for name, values in self.vocabulary.items()
        }


def split_values(text: str) -> list[str]:
    """The values of a label that a song has several of: "rock; jazz" -> jazz, rock; sorted, each once."""
    return sorted({value for part in text.split(";") if (value := part.strip())})


def _untold(name: str, indices: Tensor) -> Tensor:
    """A label's indices [B, M] as they are of songs that have no value of it; of lyrics, no character."""
    untold = torch.full_like(indices, NO_VALUE)
    if name != LYRICS:
        untold[:, 0] = 0
    return untold


def _padded(songs: Sequence[Sequence[int]]) -> Tensor:
    """Indices of unequal number as [B, M], filled with NO_VALUE; a song of no value has the index of UNKNOWN."""
    rows = [list(indices) or [0] for indices in songs]
    width = max(len(row) for row in rows)
    return torch.tensor([row + [NO_VALUE] * (width - len(row)) for row in rows])
