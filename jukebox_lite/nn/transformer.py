"""A pre-norm transformer whose sequence mixer is a part to choose.

A mixer maps [B, T, D] to [B, T, D] and threads a state: None while training, and while sampling a value that holds
what it must remember of the past, preallocated for the longest sequence and written in place.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from jukebox_lite.errors import InputError
from jukebox_lite.nn.cross import CrossAttention, Heard, Memory
from jukebox_lite.nn.dense import Linear
from jukebox_lite.nn.reach import At, Column, LastSteps, Past, PreviousRow, Reach, Row, steps_at

State = Any  # each mixer's own
_DEEPEST = 1000  # blocks
_BASE = 10_000.0  # of rotary positions, where a config says none: RoFormer's


class Mixer(nn.Module, ABC):
    """How the steps of a sequence see each other."""

    @abstractmethod
    def empty_state(self, batch_size: int, length: int) -> State:
        """Nothing remembered yet, with room for `length` steps."""

    @abstractmethod
    def forward(self, x: Tensor, state: State = None, at: At = 0) -> tuple[Tensor, State]:
        """[B, T, D] -> [B, T, D]; with a state, `x` goes on at `at`, after all that the state has seen."""


class Rotary(nn.Module):
    """Rotates pairs of features by angles that grow with the step (RoPE, Su et al. 2021).

    The first pair turns by a radian a step, the last by `base` ** (2 / `head_dim` - 1). Only pairs that turn by less
    than a radian over a distance can tell there what a key is, wherever it stands; the others tell near steps apart,
    and a larger base leaves fewer of them.
    """

    cos: Tensor  # [max_length, head_dim / 2]
    sin: Tensor  # [max_length, head_dim / 2]

    def __init__(self, head_dim: int, max_length: int, base: float):
        super().__init__()
        if not 1 <= base < math.inf:
            raise InputError(f"mixer.rotary_base={base}: expected 1 or more")
        frequencies = base ** (-torch.arange(0, head_dim, 2) / head_dim)
        angles = torch.outer(torch.arange(max_length), frequencies)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, x: Tensor, at: At) -> Tensor:
        """[B, H, T, D] at steps at, at + 1, ... -> the same, rotated."""
        steps = steps_at(at, x.shape[2])
        cos, sin = self.cos[steps], self.sin[steps]
        a, b = x.chunk(2, dim=-1)
        return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


class AttentionHeads(nn.Module):
    """Queries, keys and values with QK-norm and rotary positions, and the way back; what every attention shares."""

    def __init__(self, dim: int, num_heads: int, max_length: int, rotary_base: float):
        super().__init__()
        if dim % (2 * num_heads):
            raise InputError(f"prior.dim={dim}: give a multiple of {2 * num_heads}, an even width for each head")
        self.num_heads, self.head_dim = num_heads, dim // num_heads
        self.qkv = Linear(dim, 3 * dim, bias=False)
        self.out = Linear(dim, dim, bias=False)
        self.query_norm, self.key_norm = nn.RMSNorm(self.head_dim), nn.RMSNorm(self.head_dim)
        self.rotary = Rotary(self.head_dim, max_length, rotary_base)
        nn.init.zeros_(self.out.weight)

    def split(self, x: Tensor, at: At) -> tuple[Tensor, Tensor, Tensor]:
        """[B, T, D] at steps at, at + 1, ... -> queries, keys and values [B, H, T, D / H]."""
        q, k, v = (rearrange(each, "b t (h d) -> b h t d", h=self.num_heads) for each in self.qkv(x).chunk(3, -1))
        q, k = self.query_norm(q.float()), self.key_norm(k.float())  # norms in full precision under autocast
        return self.rotary(q, at).to(v.dtype), self.rotary(k, at).to(v.dtype), v

    def merge(self, y: Tensor) -> Tensor:
        """[B, H, T, D / H] -> [B, T, D]"""
        return self.out(rearrange(y, "b h t d -> b t (h d)"))


class Attention(Mixer):
    """Softmax attention to the steps within a reach; the state is what the reach remembers."""

    def __init__(self, dim: int, num_heads: int, max_length: int, reach: Reach, rotary_base: float):
        super().__init__()
        self.heads, self.reach = AttentionHeads(dim, num_heads, max_length, rotary_base), reach

    def empty_state(self, batch_size: int, length: int) -> State:
        like, heads = self.heads.query_norm.weight, self.heads
        return self.reach.empty(like, batch_size, heads.num_heads, length, heads.head_dim)

    def forward(self, x: Tensor, state: State = None, at: At = 0) -> tuple[Tensor, State]:
        q, k, v = self.heads.split(x, at)
        y = self.reach.attend(q, k, v) if state is None else self.reach.go_on(q, k, v, state, at)
        return self.heads.merge(y), state


class CausalAttention(Attention):
    """Every layer attends to the whole past."""

    def __init__(self, dim: int, num_heads: int, max_length: int, layer: int = 0, rotary_base: float = _BASE):
        del layer  # all are alike
        super().__init__(dim, num_heads, max_length, Past(), rotary_base)


class SlidingAttention(Attention):
    """Every layer attends to the last `window` steps, so that L layers see L * (window - 1) steps back."""

    def __init__(
        self, dim: int, num_heads: int, max_length: int, window: int, layer: int = 0, rotary_base: float = _BASE
    ):
        del layer  # all are alike
        super().__init__(dim, num_heads, max_length, LastSteps(window), rotary_base)


class FactoredAttention(Attention):
    """Layers in turn attend to their row of `row_length` steps, to their column, and to the row before.

    Three layers see everything, at a cost of T sqrt(T) where rows are as long as there are rows (Jukebox, section 4.1).
    """

    def __init__(
        self, dim: int, num_heads: int, max_length: int, layer: int, row_length: int, rotary_base: float = _BASE
    ):
        reach = (Row, Column, PreviousRow)[layer % 3](row_length)
        super().__init__(dim, num_heads, max_length, reach, rotary_base)


class SquaredReLU(nn.Module):
    """A feed-forward layer with relu(x)^2 between its matrices (So et al. 2021, Primer). [B, T, D] -> [B, T, D]."""

    def __init__(self, dim: int, expansion: int = 4):
        super().__init__()
        self.widen, self.narrow = (
            Linear(dim, expansion * dim, bias=False),
            Linear(expansion * dim, dim, bias=False),
        )
        nn.init.zeros_(self.narrow.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.narrow(F.relu(self.widen(x)).square())


class Block(nn.Module):
    """A mixer and a feed-forward layer, each behind a norm and beside a skip; between them, attention to a memory."""

    cross: CrossAttention | None  # where Transformer.look_at_memory gave it one

    def __init__(self, dim: int, mixer: Mixer, dropout: float):
        super().__init__()
        self.mixer, self.feed_forward = mixer, SquaredReLU(dim)
        self.mixer_norm, self.feed_forward_norm = nn.RMSNorm(dim), nn.RMSNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.register_module("cross", None)

    def forward(self, x: Tensor, state: State = None, at: At = 0, heard: Heard | None = None) -> tuple[Tensor, State]:
        y, state = self.mixer(self.mixer_norm(x), state, at)
        x = x + self.dropout(y)
        if self.cross is not None and heard is not None:
            x = x + self.dropout(self.cross(x, heard))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x))), state


class Transformer(nn.Module):
    """`depth` blocks; each starts as the identity, since its last matrices start at zero.

    With `checkpointing`, training keeps each block's input only and computes the rest again on the way back (Chen et
    al. 2016): less memory, more time, the same gradients.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        num_heads: int,
        max_length: int,
        mixer: Callable[..., Mixer],
        dropout: float = 0.0,
        checkpointing: bool = False,
    ):
        super().__init__()
        if not 0 <= depth <= _DEEPEST:  # a config may be somebody else's, and this would never end
            raise InputError(f"prior.depth={depth}: expected 0 to {_DEEPEST}")
        self.checkpointing = checkpointing
        layers = range(depth)  # a mixer is told which layer it is in, so that layers can differ
        mixers = [mixer(dim=dim, num_heads=num_heads, max_length=max_length, layer=layer) for layer in layers]
        self.blocks = nn.ModuleList(Block(dim, each, dropout) for each in mixers)
        self.norm = nn.RMSNorm(dim)

    def empty_state(self, batch_size: int, length: int) -> list[State]:
        """Nothing remembered yet, with room for `length` steps."""
        mixers = (module for module in self.blocks.modules() if isinstance(module, Mixer))
        return [mixer.empty_state(batch_size, length) for mixer in mixers]

    def look_at_memory(self, dim: int, num_heads: int, every: int) -> None:
        """Gives every `every`-th block attention to a memory, which at first adds nothing."""
        if every > len(self.blocks):
            raise InputError(
                f"every={every}: no block of {len(self.blocks)} looks at the lyrics; give it so many at most"
            )
        for block in self.blocks[every - 1 :: every]:
            block.add_module("cross", CrossAttention(dim, num_heads))

    def hear(self, memory: Memory | None) -> list[Heard | None]:
        """A memory as each block sees it, for `forward`; None where a block has no look at it, or there is none."""
        crosses = [block.cross for block in self.blocks if isinstance(block, Block)]
        return [None if cross is None or memory is None else cross.hear(memory) for cross in crosses]

    def forward(
        self,
        x: Tensor,
        states: list[State] | None = None,
        at: At = 0,
        heard: Sequence[Heard | None] | None = None,
    ) -> tuple[Tensor, list[State]]:
        """[B, T, D] -> [B, T, D]; with states, `x` goes on at `at`, after all that they have seen.

        `heard` is what `hear` gave.
        """
        after, nothing = [], [None] * len(self.blocks)
        for block, state, of_memory in zip(self.blocks, states or nothing, heard or nothing, strict=True):
            if self.checkpointing and state is None:  # a state is written to, which cannot be done twice
                x, state = checkpoint(
                    block, x, None, at, of_memory, use_reentrant=False
                )  # dropout draws the same again
            else:
                x, state = block(x, state, at, of_memory)
            after.append(state)
        return self.norm(x), after
