"""Lyrics as a memory that a prior's blocks look at (Jukebox, section 4.2: a separate encoder)."""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from jukebox_lite.errors import InputError
from jukebox_lite.levels import LYRICS, LYRICS_PLACES, NO_VALUE, Facts, Window
from jukebox_lite.nn.cross import Memory
from jukebox_lite.nn.dense import Linear
from jukebox_lite.priors.codes import EMBEDDING_SCALE
from jukebox_lite.priors.conditioning import Conditioner, Conditioning

_REACH = 5  # characters that a layer sees, its own in the middle
_OCTAVES, _SLOWEST = 10, 2**-4  # of the waves that tell a place; the slowest one in periods a window


class Lyrics(Conditioner):
    """The text around the window, through `depth` convolutions of `width`, as a memory [B, 1 + S, D] for attention.

    Every `every`-th block of the transformer looks at it. Before the S = `num_characters` characters there is one
    thing to look at where nothing is sung, so that a song without lyrics has a memory too. Characters and steps are
    told their places in the window in the same waves, of which characters have theirs by linear alignment: a step
    knows about where in the text to look. Convolutions, not Jukebox's transformer: what is remembered of a character
    stays its own, which is what an alignment reads.
    """

    def __init__(
        self, dim: int, facts: Facts, num_characters: int = 512, width: int = 128, depth: int = 3, every: int = 2
    ):
        super().__init__()
        check_characters(facts)
        if num_characters < 1 or every < 1:
            raise InputError(f"conditioner lyrics: num_characters={num_characters}, every={every}: expected 1 or more")
        self.num_characters, self.every = num_characters, every
        self.embedding = nn.Embedding(len(facts.characters), width)
        self.layers = nn.ModuleList(_Near(width) for _ in range(depth))
        self.project, self.norm = Linear(width, dim, bias=False), nn.RMSNorm(dim)
        self.place = nn.Linear(2 * _OCTAVES, dim, bias=False)
        nn.init.normal_(self.place.weight, std=_OCTAVES**-0.5)
        self.nothing = nn.Parameter(torch.zeros(dim))

    def forward(self, window: Window, length: int) -> Conditioning:
        tokens, places = window.labels[LYRICS], window.labels[LYRICS_PLACES]
        present = tokens != NO_VALUE
        x = self.embedding(tokens.clamp(min=0))
        for layer in self.layers:
            x = layer(x, present)
        x = self.norm(self.project(x).float() + self.place(_waves(places)))
        x = torch.cat([self.nothing.expand(len(x), 1, -1), x], 1)
        steps = (torch.arange(length, device=places.device) + 0.5) / length
        aligned = EMBEDDING_SCALE * self.place(_waves(steps)).expand(len(x), -1, -1)
        return Conditioning(aligned=aligned, memory=Memory(x, F.pad(present, (1, 0), value=True)))


def check_characters(facts: Facts) -> None:
    """Raises InputError where there is no text to learn from."""
    if len(facts.characters) < 2:
        raise InputError(
            "lyrics: no training song has any; give a lyrics column of metadata.csv, or a .txt named as the song "
            "beside it"
        )


class _Near(nn.Module):
    """What stands near each character: a convolution behind a norm and beside a skip. [B, S, W] -> [B, S, W]."""

    def __init__(self, width: int):
        super().__init__()
        self.norm, self.mix = nn.RMSNorm(width), nn.Conv1d(width, width, _REACH, padding=_REACH // 2)

    def forward(self, x: Tensor, present: Tensor) -> Tensor:
        y = F.silu(self.norm(x)) * present[..., None]  # what is not there is as what lies beyond the text
        return x + rearrange(self.mix(rearrange(y, "b s w -> b w s")), "b w s -> b s w")


def _waves(places: Tensor) -> Tensor:
    """Places [...] in windows -> sines and cosines of them, in octaves [..., 2 * _OCTAVES]."""
    octaves = torch.arange(_OCTAVES, device=places.device)
    angles = 2 * math.pi * _SLOWEST * 2.0**octaves * places[..., None]
    return torch.cat([angles.sin(), angles.cos()], -1)
