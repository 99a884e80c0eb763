"""Attention from a sequence to a memory beside it, such as the text that is sung."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from jukebox_lite.nn.dense import Linear


@dataclass
class Memory:
    """What every step of a sequence may look at."""

    values: Tensor  # [B, S, D]
    present: Tensor  # [B, S] bool: what is not there cannot be seen; something is there for each of the batch


@dataclass
class Heard:
    """A memory as one layer's heads see it; made once, however many steps look at it."""

    keys: Tensor  # [B, H, S, D / H]
    values: Tensor  # [B, H, S, D / H]
    present: Tensor  # [B, 1, 1, S]


class CrossAttention(nn.Module):
    """Softmax attention to a memory, with QK-norm, behind a norm; starts at nothing."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.RMSNorm(dim)
        self.query, self.key_value = Linear(dim, dim, bias=False), Linear(dim, 2 * dim, bias=False)
        self.out = Linear(dim, dim, bias=False)
        self.query_norm, self.key_norm = nn.RMSNorm(dim // num_heads), nn.RMSNorm(dim // num_heads)
        nn.init.zeros_(self.out.weight)

    def hear(self, memory: Memory) -> Heard:
        """A memory [B, S, D] as `forward` takes it."""
        keys, values = rearrange(self.key_value(memory.values), "b s (two h d) -> two b h s d", two=2, h=self.num_heads)
        return Heard(self.key_norm(keys.float()).to(values.dtype), values, memory.present[:, None, None])

    def forward(self, x: Tensor, heard: Heard) -> Tensor:
        """[B, T, D] -> [B, T, D]"""
        q = self._queries(x).to(heard.values.dtype)
        y = F.scaled_dot_product_attention(q, heard.keys, heard.values, attn_mask=heard.present)
        return self.out(rearrange(y, "b h t d -> b t (h d)"))

    def weights(self, x: Tensor, heard: Heard) -> Tensor:
        """How `forward` shares each step's attention out: [B, H, T, S], of sum 1 along S."""
        alike = self._queries(x) @ heard.keys.float().mT * heard.keys.shape[-1] ** -0.5
        return alike.masked_fill(~heard.present, -torch.inf).softmax(-1)

    def _queries(self, x: Tensor) -> Tensor:
        """[B, H, T, D / H], in full precision"""
        q = rearrange(self.query(self.norm(x)), "b t (h d) -> b h t d", h=self.num_heads)
        return self.query_norm(q.float())
