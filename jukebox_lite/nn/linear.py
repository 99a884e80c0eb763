"""Linear attention by the gated delta rule: a memory of one size, however long the song (Yang et al. 2024).

Gated Delta Networks (arXiv 2412.06464): each head holds a matrix S that maps keys to values. A step forgets some of
all of it, replaces what the step's key recalls by the step's value, and reads with its query:

    S <- a S;  S <- S + b k (v - S^T k)^T;  y = S^T q        a in (0, 1), b in (0, 1), |k| = |q| = 1

Erasing before writing is what plain linear attention lacks, and what it needs to recall one thing among many.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from jukebox_lite.errors import InputError
from jukebox_lite.nn.dense import Linear
from jukebox_lite.nn.reach import At
from jukebox_lite.nn.transformer import Mixer, State

_REACH = 4  # steps that queries, keys and values are made of; a key can so name what came before its value


class GatedDeltaRule(Mixer):
    """Gated delta rule with short convolutions and a gated, normalised output, as the paper's figure 1 has them.

    Time and memory grow linearly with T in training, in chunks of `chunk_length` steps; the state is a matrix a head
    and the last inputs of the convolution. Heads start with spans of memory spread evenly, in octaves, up to
    `max_length` steps. Order is told by the decay and the convolution: there are no positions.
    """

    def __init__(self, dim: int, num_heads: int, max_length: int, chunk_length: int, layer: int = 0):
        del layer  # all are alike
        super().__init__()
        if dim % num_heads:
            raise InputError(f"prior.dim={dim}: give a multiple of {num_heads}, a width for each head")
        if chunk_length < 1:
            raise InputError(f"mixer.chunk_length={chunk_length}: expected 1 or more steps")
        self.num_heads, self.chunk_length = num_heads, chunk_length
        self.qkv = Linear(dim, 3 * dim, bias=False)
        self.near = nn.Conv1d(3 * dim, 3 * dim, _REACH, groups=3 * dim, bias=False)
        self.rates = Linear(dim, 2 * num_heads)  # how much each head writes, and how fast it forgets
        self.gate = Linear(dim, dim, bias=False)
        self.norm = nn.RMSNorm(dim // num_heads, eps=1e-5)
        self.out = Linear(dim, dim, bias=False)
        spans = max_length ** (torch.arange(1, num_heads + 1) / num_heads)  # steps until a head has forgotten 63 %
        with torch.no_grad():
            self.rates.bias[:num_heads] = 0.0
            self.rates.bias[num_heads:] = torch.log(torch.expm1(1 / spans))  # softplus gives 1 / spans
        nn.init.zeros_(self.out.weight)

    def empty_state(self, batch_size: int, length: int) -> State:
        del length  # of one size for any
        like, head_dim = self.near.weight, len(self.norm.weight)
        before = like.new_zeros(batch_size, _REACH - 1, len(like))
        return before, like.new_zeros((batch_size, self.num_heads, head_dim, head_dim), dtype=torch.float32)

    def forward(self, x: Tensor, state: State = None, at: At = 0) -> tuple[Tensor, State]:
        del at  # order is told by the state
        before, memory = self.empty_state(len(x), x.shape[1]) if state is None else state
        qkv = self.qkv(x)
        qkv = torch.cat([before.to(qkv.dtype), qkv], 1)
        near = F.silu(self.near(rearrange(qkv, "b t d -> b d t")))
        q, k, v = rearrange(near, "b (three h d) t -> three b h t d", three=3, h=self.num_heads)
        with torch.autocast(x.device.type, enabled=False):  # sums over thousands of steps want full precision
            rates = rearrange(self.rates(x.float()), "b t (two h) -> two b h t", two=2)
            q, k = F.normalize(q.float(), dim=-1), F.normalize(k.float(), dim=-1)
            strength, log_decay = rates[0].sigmoid(), -F.softplus(rates[1])
            y, after = delta_rule(q, k, v.float(), strength, log_decay, memory, self.chunk_length)
            y = rearrange(self.norm(y), "b h t d -> b t (h d)")
        y = self.out(y * F.silu(self.gate(x)))
        if state is not None:
            before.copy_(qkv[:, 1 - _REACH :])
            memory.copy_(after)
        return y, state


def delta_rule(
    q: Tensor, k: Tensor, v: Tensor, strength: Tensor, log_decay: Tensor, memory: Tensor, chunk_length: int
) -> tuple[Tensor, Tensor]:
    """What the queries read, [B, H, T, D], and the memory [B, H, D, D] after the last step; exact for any chunks.

    `q`, `k`, `v` are [B, H, T, D], `strength` (b above) and `log_decay` (log a) [B, H, T]. Within a chunk the values
    that are truly written solve a triangular system (Yang et al. 2024, section 3.3, after the WY representation of
    arXiv 2406.06484); from chunk to chunk the memory is multiplied by a matrix and added to. Decays enter only as
    ratios of at most 1, so that nothing overflows.
    """
    batch_size, _, length, _ = q.shape
    size = min(chunk_length, length)
    padding = -length % size  # steps that write nothing and forget nothing
    q, k, v = (rearrange(F.pad(x, (0, 0, 0, padding)), "b h (n c) d -> n (b h) c d", c=size) for x in (q, k, v))
    strength, log_decay = (
        rearrange(F.pad(x, (0, padding)), "b h (n c) -> n (b h) c 1", c=size) for x in (strength, log_decay)
    )
    log_left = log_decay.cumsum(2)  # of what the chunk began with, [N, BH, C, 1]
    future = torch.ones(size, size, dtype=torch.bool, device=q.device).triu(1)
    left = (log_left - log_left.mT).masked_fill(future, -torch.inf).exp()  # at step i of what step j wrote
    alike = strength * left * (k @ k.mT)
    new = torch.linalg.solve_triangular(
        alike, strength * torch.cat([v, log_left.exp() * k], -1), upper=False, unitriangular=True
    )
    wanted, erased = new.chunk(2, -1)  # written is wanted - erased @ memory
    last = (log_left[:, :, -1:] - log_left).exp() * k  # keys as they weigh at the chunk's end
    decay = log_left[:, :, -1:].exp() * torch.eye(q.shape[-1], dtype=q.dtype, device=q.device)
    keeping, adding = decay - last.mT @ erased, last.mT @ wanted  # [N, BH, D, D]
    memories = [rearrange(memory, "b h k v -> (b h) k v")]
    for keep, add in zip(keeping.unbind(), adding.unbind(), strict=True):
        memories.append(torch.baddbmm(add, keep, memories[-1]))
    began = torch.stack(memories[:-1])
    y = (log_left.exp() * q) @ began + (left * (q @ k.mT)) @ (wanted - erased @ began)
    y = rearrange(y, "n (b h) c d -> b h (n c) d", b=batch_size)[:, :, :length]
    return y, rearrange(memories[-1], "(b h) k v -> b h k v", b=batch_size)
