"""What every prior promises: a loss on a window, and the window's level filled in."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from jukebox_lite.levels import Facts, Window


@dataclass(frozen=True)
class Sampler:
    """How to draw from a distribution over the vocabulary."""

    temperature: float = 1.0  # 0 takes the likeliest
    top_k: int | None = None  # only the k likeliest
    top_p: float | None = None  # only the likeliest that together hold this much probability
    guidance: float = 1.0  # how far to go from the logits without labels to those with them, and beyond; 1 is there


@dataclass
class Loss:
    """What a prior makes of a batch of windows."""

    total: Tensor  # []
    metrics: dict[str, Tensor] = field(default_factory=dict)


class Prior(nn.Module, ABC):
    """A model of one level, given the level above it and the labels."""

    facts: Facts
    context_length: int  # time steps of its level in a window
    num_characters: int = 0  # of the lyrics that a window is told; 0 where the prior hears none

    @abstractmethod
    def nats(self, window: Window) -> Tensor:
        """How surprising each of the level's codes is, given what the prior knows when it draws it: [B, K, T]."""

    def loss(self, window: Window) -> Loss:
        """Mean nats per token of window.codes[level] [B, K, T], and the chance line beside it."""
        nats = self.nats(window).mean()
        chance = torch.full_like(nats, math.log(self.facts.level.codebook_size))
        return Loss(nats, {"nats_per_token": nats.detach(), "chance": chance})

    @abstractmethod
    def draw(self, window: Window, sampler: Sampler, noise: Tensor, read: int | None = None) -> Iterator[Tensor]:
        """The codes [B, K] of one time step of the window after the other, from the step `read` on.

        As far as window.codes[level] goes, if it is there, codes are what it says: all of these are read at once, or
        only the first `read`, and the others step by step. What is drawn after them is then, to the bit, what follows
        where they were drawn themselves; where they were read at once, rounding differs, which at times tips a draw.
        `noise` [B, K, T], uniform in [0, 1), decides every draw: equal noise, equal codes.
        """

    def sample(self, window: Window, sampler: Sampler, noise: Tensor) -> Tensor:
        """Codes [B, K, T] of the whole window, drawn after those that it gives."""
        given = window.codes.get(self.facts.level.name)
        drawn = [codes[..., None] for codes in self.draw(window, sampler, noise)]
        return torch.cat(drawn if given is None else [given, *drawn], -1)

    def state_bytes(self, length: int) -> int:
        """Memory that sampling a window of `length` steps holds for each song, beside weights and codes.

        0 for a prior that keeps nothing from step to step.
        """
        del length
        return 0
