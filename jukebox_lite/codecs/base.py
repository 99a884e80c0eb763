"""What every codec promises: music in, codes out, and codes heard as audio."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from jukebox_lite.errors import InputError
from jukebox_lite.levels import Codes, Facts, Level


class Codec(nn.Module, ABC):
    """Writes music as codes on `levels`, coarse to fine, and renders codes as audio."""

    sample_rate: int  # Hz of the audio it takes and gives
    channels: int  # audio channels C
    levels: tuple[Level, ...]  # coarse to fine
    halo: int = 0  # samples to either side of a code that it depends on, a multiple of every hop
    decoder_halo: Mapping[str, int] = {}  # by level, steps to either side that a step's sound depends on; 0 if unnamed

    @abstractmethod
    def encode(self, audio: Tensor) -> Codes:
        """Audio [B, C, N] in [-1, 1] -> codes of every level, [B, K, N / hop_length]; N a multiple of every hop."""

    @abstractmethod
    def decode(self, codes: Codes) -> Tensor:
        """Audio [B, C, N], from the finest level that `codes` holds; whoever writes it clips it to [-1, 1]."""

    def encode_stretch(self, audio: Tensor) -> Codes:
        """What `encode` computes at once, where that splits long audio into stretches; else what it does itself."""
        return self.encode(audio)

    def code_vectors(self) -> dict[str, Tensor]:
        """What the decoder is given for each code [K, V, D], by level; a codec without such vectors has none."""
        return {}

    def level(self, name: str) -> Level:
        """The level called `name`."""
        for level in self.levels:
            if level.name == name:
                return level
        raise InputError(f"level '{name}': this codec has {', '.join(level.name for level in self.levels)}")

    def steps_per_second(self, name: str) -> float:
        """Time steps of a level in a second of audio."""
        return self.sample_rate / self.level(name).samples_per_step

    def above(self, name: str) -> Level | None:
        """The next coarser level, or None for the coarsest."""
        index = self.levels.index(self.level(name))
        return self.levels[index - 1] if index else None

    def facts(self, name: str, vocabulary: Mapping[str, Sequence[str]], characters: Sequence[str] = ()) -> Facts:
        """What a prior of a level is told of its place, of the values of labels and of the characters of lyrics."""
        vectors = self.code_vectors()
        return Facts(self.level(name), self.above(name), vocabulary, vectors, self.sample_rate, characters)
