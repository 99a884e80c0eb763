"""Softmax attention over the last steps only: time and memory that grow linearly with the sequence.

The local attention of Longformer (Beltagy et al. 2020, section 3.1), causal, in blocks as long as the window.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from jukebox_lite.errors import InputError
from jukebox_lite.nn.transformer import AttentionHeads, Mixer, State


class SlidingAttention(Mixer):
    """Softmax attention over the last `window` steps, each step's own included.

    A depth of L blocks sees L * (window - 1) steps back. The state is a ring of `window` keys and values, however long
    the sequence gets.
    """

    def __init__(self, dim: int, num_heads: int, max_length: int, window: int, layer: int = 0):
        del layer  # all are alike
        super().__init__()
        if window < 1:
            raise InputError(f"mixer.window={window}: a step sees itself at least, give 1 or more")
        self.window = window
        self.heads = AttentionHeads(dim, num_heads, max_length)

    def empty_state(self, batch_size: int, length: int) -> State:
        weight, num_heads = self.heads.qkv.weight, self.heads.num_heads
        shape = (2, batch_size, num_heads, min(self.window, length), weight.shape[1] // num_heads)
        return 0, weight.new_empty(shape)

    def forward(self, x: Tensor, state: State = None) -> tuple[Tensor, State]:
        if state is None:
            return self.heads.merge(banded_attention(*self.heads.split(x, 0), self.window)), None
        start, ring = state
        size, end = ring.shape[3], start + x.shape[1]
        q, k, v = self.heads.split(x, start)
        past = ring[:, :, :, torch.arange(max(0, start - size), start, device=x.device) % size]  # in order
        kept = min(size, x.shape[1])
        ring[:, :, :, torch.arange(end - kept, end, device=x.device) % size] = torch.stack([k, v])[:, :, :, -kept:]
        if x.shape[1] == 1:  # softmax does not ask in which order the ring lies
            y = F.scaled_dot_product_attention(q, *ring[:, :, :, :end])
        else:
            before = past.shape[3]
            k, v = torch.cat([past, torch.stack([k, v])], 3)
            y = banded_attention(F.pad(q, (0, 0, before, 0)), k, v, self.window)[:, :, before:]
        return self.heads.merge(y), (end, ring)


def banded_attention(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Softmax attention [B, H, T, D] of each step to the last `window` steps up to itself.

    Blocks of `window` steps look at themselves and at the block before, so that no matrix is larger than
    [window, 2 * window] a block.
    """
    first = F.scaled_dot_product_attention(q[:, :, :window], k[:, :, :window], v[:, :, :window], is_causal=True)
    batch_size, _, length, _ = q.shape
    if length <= window:
        return first
    q, k, v = (F.pad(each, (0, 0, 0, -length % window)) for each in (q, k, v))
    q = rearrange(q[:, :, window:], "b h (n w) d -> (b n) h w d", w=window)
    k, v = (rearrange(each.unfold(2, 2 * window, window), "b h n d w -> (b n) h w d") for each in (k, v))
    band = torch.ones(window, 2 * window, dtype=torch.bool, device=q.device).tril(window).triu(1)
    rest = F.scaled_dot_product_attention(q, k, v, attn_mask=band)
    return torch.cat([first, rearrange(rest, "(b n) h w d -> b h (n w) d", b=batch_size)], 2)[:, :, :length]
