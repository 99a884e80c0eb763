"""What every codec promises: music in, codes out, and codes heard as audio."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from jukebox_lite.errors import InputError
from jukebox_lite.levels import Codes, Level


class Codec(nn.Module, ABC):
    """Writes music as codes on `levels`, coarse to fine, and renders codes as audio."""

    sample_rate: int  # Hz of the audio it takes and gives
    channels: int  # audio channels C
    levels: tuple[Level, ...]  # coarse to fine
    halo: int = 0  # samples to either side of a code that it depends on, a multiple of every hop

    @abstractmethod
    def encode(self, audio: Tensor) -> Codes:
        """Audio [B, C, N] in [-1, 1] -> codes of every level, [B, K, N / hop_length]; N a multiple of every hop."""

    @abstractmethod
    def decode(self, codes: Codes) -> Tensor:
        """Audio [B, C, N] in [-1, 1], from the finest level that `codes` holds."""

    def code_vectors(self) -> dict[str, Tensor]:
        """What the decoder is given for each code [K, V, D], by level; a codec without such vectors has none."""
        return {}

    def level(self, name: str) -> Level:
        """The level called `name`."""
        for level in self.levels:
            if level.name == name:
                return level
        raise InputError(f"level '{name}': this codec has {', '.join(level.name for level in self.levels)}")

    def above(self, name: str) -> Level | None:
        """The next coarser level, or None for the coarsest."""
        index = self.levels.index(self.level(name))
        return self.levels[index - 1] if index else None
