"""How the K codebooks of a level lie along one sequence (MusicGen, Copet et al. 2023, section 2.2).

A pattern gives every code a position. What lies at a position is predicted from all that lies at the positions before
it: codes at one position are drawn together, without a word of each other.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from jukebox_lite.priors.codes import NO_CODE

Device = torch.device | None


class Pattern(ABC):
    """Where each code is in the sequence. With one codebook, all patterns are the same."""

    @abstractmethod
    def length(self, num_codebooks: int, num_steps: int) -> int:
        """Positions S of a sequence that holds [K, T] codes."""

    @abstractmethod
    def positions(self, num_codebooks: int, num_steps: int, device: Device = None) -> Tensor:
        """The position of each code, [K, T] int64 in [0, S), growing along T: one code of a codebook at a position."""

    def apply(self, values: Tensor) -> Tensor:
        """Values of codes [B, K, T] as a sequence [B, K, S]; NO_CODE where a codebook has none."""
        batch_size, num_codebooks, num_steps = values.shape
        positions = self.positions(num_codebooks, num_steps, values.device).expand(batch_size, -1, -1)
        empty = values.new_full((batch_size, num_codebooks, self.length(num_codebooks, num_steps)), NO_CODE)
        return empty.scatter(2, positions, values)

    def revert(self, sequence: Tensor, num_steps: int) -> Tensor:
        """A sequence [B, K, S] of `num_steps` time steps as codes [B, K, T]: what `apply` was given."""
        positions = self.positions(sequence.shape[1], num_steps, sequence.device)
        return sequence.gather(2, positions.expand(len(sequence), -1, -1))

    def steps(self, num_codebooks: int, num_steps: int, device: Device = None) -> Tensor:
        """The time step that each codebook has at each position: [K, S] int64, NO_CODE where it has none."""
        return self.apply(torch.arange(num_steps, device=device).expand(1, num_codebooks, -1))[0]


class Parallel(Pattern):
    """A step's codes together, given the steps before: as short as can be, and deaf to how the codebooks agree."""

    def length(self, num_codebooks: int, num_steps: int) -> int:
        del num_codebooks
        return num_steps

    def positions(self, num_codebooks: int, num_steps: int, device: Device = None) -> Tensor:
        return torch.arange(num_steps, device=device).expand(num_codebooks, -1)


class Delay(Pattern):
    """Codebook k lags k positions: it knows its step's codes of the codebooks before it, for K - 1 positions more."""

    def length(self, num_codebooks: int, num_steps: int) -> int:
        return num_steps + num_codebooks - 1

    def positions(self, num_codebooks: int, num_steps: int, device: Device = None) -> Tensor:
        return torch.arange(num_steps, device=device) + torch.arange(num_codebooks, device=device)[:, None]


class Flatten(Pattern):
    """One code after the other, each given all before it: the exact chain rule, in K times as many positions."""

    def length(self, num_codebooks: int, num_steps: int) -> int:
        return num_codebooks * num_steps

    def positions(self, num_codebooks: int, num_steps: int, device: Device = None) -> Tensor:
        codebooks = torch.arange(num_codebooks, device=device)[:, None]
        return num_codebooks * torch.arange(num_steps, device=device) + codebooks
