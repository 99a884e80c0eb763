"""Facts about a window, as a transformer can take them in (Jukebox, sections 4.2 and 4.3)."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from jukebox_lite.errors import InputError
from jukebox_lite.levels import NO_VALUE, Facts, Window
from jukebox_lite.nn.conv import ConvStack, ResidualStack
from jukebox_lite.nn.cross import Heard, Memory
from jukebox_lite.priors.codes import EMBEDDING_SCALE, CodeEmbedding, code_vectors, embed_all


@dataclass
class Conditioning:
    """The ways into a transformer. Each may be None."""

    aligned: Tensor | None = None  # [B, T, D] added to the input that predicts each step
    start: Tensor | None = None  # [B, D] added to what the sequence begins with
    memory: Memory | None = None  # [B, S, D] for blocks to look at; of one conditioner
    heard: Sequence[Heard | None] | None = None  # the memory as each block sees it, once a transformer has heard it

    def __add__(self, other: "Conditioning") -> "Conditioning":
        return Conditioning(
            _plus(self.aligned, other.aligned), _plus(self.start, other.start), self.memory or other.memory
        )


def _plus(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


class Conditioner(nn.Module, ABC):
    """One kind of fact; built with the transformer's width and the prior's `Facts`."""

    @abstractmethod
    def forward(self, window: Window, length: int) -> Conditioning:
        """What is known of a window of `length` steps."""


class LevelAbove(Conditioner):
    """The coarser level's codes through a WaveNet-like stack, stretched to this level's steps (Jukebox, section 4.2).

    At the top there is no level above, and nothing to add.
    """

    def __init__(
        self, dim: int, facts: Facts, width: int = 128, depth: int = 4, dilation_growth: int = 3, cycles: int = 1
    ):
        super().__init__()
        self.above, self.ratio = facts.above, facts.ratio
        if self.above is None:
            return
        size, vectors = self.above.codebook_size, code_vectors(facts.vectors.get(self.above.name), self.above.channels)
        self.embeddings = nn.ModuleList(CodeEmbedding(size, width, each) for each in vectors)
        dilations = [dilation_growth**i for i in range(depth)]
        self.stack = ConvStack(*(ResidualStack(width, width, dilations) for _ in range(cycles)))
        self.stretch = nn.ConvTranspose1d(width, dim, self.ratio, self.ratio)
        self.norm = nn.RMSNorm(dim)
        nn.init.constant_(self.norm.weight, EMBEDDING_SCALE)  # as loud as the codes it is added to

    def forward(self, window: Window, length: int) -> Conditioning:
        if self.above is None:
            return Conditioning()
        x = embed_all(self.embeddings, window.codes[self.above.name])
        x = self.stretch(self.stack(rearrange(x, "b t d -> b d t")))
        return Conditioning(aligned=self.norm(rearrange(x.float(), "b d t -> b t d"))[:, :length])


class Label(Conditioner):
    """One label of the song, such as its genre: the sum of its values' vectors, of which one is of the unknown value.

    Where a data set has no value of it, there is nothing to add.
    """

    def __init__(self, dim: int, facts: Facts, name: str):
        super().__init__()
        if name not in facts.vocabulary:
            raise InputError(f"conditioner {name}: windows.labels has only {', '.join(facts.vocabulary) or 'nothing'}")
        self.name, num_values = name, len(facts.vocabulary[name])
        self.embedding = _embedding(num_values, dim) if num_values > 1 else None

    def forward(self, window: Window, length: int) -> Conditioning:
        if self.embedding is None:
            return Conditioning()
        indices = window.labels[self.name]
        x = (self.embedding(indices.clamp(min=0)) * (indices != NO_VALUE)[..., None]).sum(1)
        return Conditioning(aligned=x[:, None].expand(-1, length, -1), start=x)


class Labels(Conditioner):
    """Every label of the vocabulary, each as `Label` tells it: which there are, `windows.labels` says."""

    def __init__(self, dim: int, facts: Facts):
        super().__init__()
        self.labels = nn.ModuleList(Label(dim, facts, name) for name in facts.vocabulary)

    def forward(self, window: Window, length: int) -> Conditioning:
        return condition(self.labels, window, length)


class Timing(Conditioner):
    """Where in the song each step lies: its length, its position, and the fraction gone by (Jukebox, section 4.3).

    Each in `num_bins` equal bins, as Jukebox does it, up to `max_seconds`; what lies beyond is in the last bin.
    """

    def __init__(self, dim: int, facts: Facts, max_seconds: float = 600.0, num_bins: int = 128):
        super().__init__()
        self.max_seconds, self.num_bins = max_seconds, num_bins
        # Only the top level is told the time: the levels below hear it in the codes above them.
        self.embeddings = nn.ModuleList(_embedding(num_bins, dim) for _ in range(0 if facts.above else 3))

    def forward(self, window: Window, length: int) -> Conditioning:
        if not self.embeddings:
            return Conditioning()
        start, end, total = (window.labels[f"{name}_seconds"][:, None] for name in ("start", "end", "total"))
        position = start + (end - start) * torch.arange(length, device=start.device) / length  # [B, T]
        shares = (total / self.max_seconds).expand_as(position), position / self.max_seconds, position / total
        bins = [(share * self.num_bins).long().clamp(0, self.num_bins - 1) for share in shares]
        embedded = [embed(index) for embed, index in zip(self.embeddings, bins, strict=True)]
        return Conditioning(aligned=torch.stack(embedded).sum(0))


def _embedding(num_values: int, dim: int) -> nn.Embedding:
    """A vector learnt per value."""
    embedding = nn.Embedding(num_values, dim)
    nn.init.normal_(embedding.weight, std=EMBEDDING_SCALE)
    return embedding


def condition(conditioners: Iterable[nn.Module], window: Window, length: int) -> Conditioning:
    """Everything that all the conditioners have to say, summed."""
    return sum((conditioner(window, length) for conditioner in conditioners), Conditioning())
