"""The next step given the past: Jukebox's priors and upsamplers (section 4), one class for both."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from jukebox_lite.levels import Facts, Window
from jukebox_lite.nn.transformer import Mixer, Transformer
from jukebox_lite.priors.base import Loss, Prior, Sampler
from jukebox_lite.priors.codes import CodeEmbedding, CodeHead, code_vectors, embed_all
from jukebox_lite.priors.conditioning import Conditioner, Conditioning, condition


class AutoregressivePrior(Prior):
    """A transformer over one level's codes; the K codebooks of a step are drawn together, given the steps before.

    The top prior and the upsamplers differ only in `facts`: an upsampler has a level above.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        num_heads: int,
        context_length: int,
        mixer: Callable[..., Mixer],
        facts: Facts,
        conditioners: dict[str, Callable[..., Conditioner]],
        dropout: float = 0.0,
    ):
        super().__init__()
        self.facts, self.context_length = facts, context_length
        level = facts.level
        vectors = code_vectors(facts.vectors.get(level.name), level.channels)
        self.embeddings = nn.ModuleList(CodeEmbedding(level.codebook_size, dim, each) for each in vectors)
        self.heads = nn.ModuleList(CodeHead(dim, level.codebook_size, each) for each in vectors)
        self.start = nn.Parameter(torch.zeros(dim))
        self.transformer = Transformer(dim, depth, num_heads, context_length, mixer, dropout)
        self.conditioners = nn.ModuleDict({name: make(dim=dim, facts=facts) for name, make in conditioners.items()})

    def loss(self, window: Window) -> Loss:
        """Mean nats per token of window.codes[level] [B, K, T], and the chance line beside it."""
        codes = window.codes[self.facts.level.name]
        x = self.inputs(codes[..., :-1], condition(self.conditioners.values(), window, codes.shape[-1]), 0)
        logits = self.logits(self.transformer(x)[0])
        nats = F.cross_entropy(rearrange(logits.float(), "b k t v -> b v k t"), codes)
        chance = torch.full_like(nats, math.log(self.facts.level.codebook_size))
        return Loss(nats, {"nats_per_token": nats.detach(), "chance": chance})

    @torch.no_grad()
    def sample(self, window: Window, sampler: Sampler, noise: Tensor) -> Tensor:
        """Codes [B, K, T] drawn with `noise` [B, K, T], step by step after those that the window gives."""
        length = noise.shape[-1]
        given = window.codes.get(self.facts.level.name)
        done = 0 if given is None else given.shape[-1]
        codes = torch.empty(noise.shape, dtype=torch.int64, device=noise.device)
        if given is not None:
            codes[..., :done] = given
        if done >= length:
            return codes
        copies = 1 if sampler.guidance == 1 else 2  # the second is not told its labels
        told = window if copies == 1 else window.beside(self.facts.untold(window))
        conditioning = condition(self.conditioners.values(), told, length)
        states = self.transformer.empty_state(copies * len(codes), length)
        x = self.inputs(codes[..., :done].repeat(copies, 1, 1), conditioning, 0)  # the given steps in one pass
        for step in range(done, length):
            y, states = self.transformer(x, states)
            logits = self.logits(y[:, -1:])[:, :, 0]
            codes[..., step] = draw(guided(logits, sampler.guidance), sampler, noise[..., step])
            if step + 1 < length:
                x = self.inputs(codes[..., step : step + 1].repeat(copies, 1, 1), conditioning, step + 1)
        return codes

    def inputs(self, past: Tensor, conditioning: Conditioning, first: int) -> Tensor:
        """What predicts steps `first`, first + 1, ... [B, T, D], from the codes before them [B, K, T].

        Step 0 is predicted from the start vector, so at `first` 0 there is one more input than codes. The aligned
        conditioning is that of the step predicted, not of the step before (Jukebox does the same).
        """
        x = embed_all(self.embeddings, past)
        if first == 0:
            start = self.start.expand(len(past), -1)
            start = start if conditioning.start is None else start + conditioning.start
            x = torch.cat([start[:, None], x], 1)
        if conditioning.aligned is not None:
            x = x + conditioning.aligned[:, first : first + x.shape[1]]
        return x

    def logits(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, K, T, V]"""
        return torch.stack([head(x) for head in self.heads], 1)


def guided(logits: Tensor, guidance: float) -> Tensor:
    """Logits [2 B, ..., V], first with labels and then without -> [B, ..., V] beyond the first; at 1, as they are.

    Classifier-free guidance (Ho and Salimans 2022), in logits as MusicGen has it: without + guidance (with - without).
    """
    if guidance == 1:
        return logits
    told, untold = logits.float().chunk(2)
    return untold + guidance * (told - untold)


def draw(logits: Tensor, sampler: Sampler, noise: Tensor) -> Tensor:
    """Logits [..., V] and noise [...] in [0, 1) -> indices [...], by inverting the distribution function."""
    if sampler.temperature == 0:
        return logits.argmax(-1)
    logits = logits.float() / sampler.temperature
    if sampler.top_k:
        smallest = logits.topk(min(sampler.top_k, logits.shape[-1]), -1).values[..., -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    if sampler.top_p is not None:
        logits, order = logits.sort(descending=True, dim=-1)
        before = logits.softmax(-1).cumsum(-1) - logits.softmax(-1)  # the likeliest one always stays
        chosen = _invert(logits.masked_fill(before >= sampler.top_p, -torch.inf).softmax(-1), noise)
        return order.gather(-1, chosen[..., None])[..., 0]
    return _invert(logits.softmax(-1), noise)


def _invert(probabilities: Tensor, noise: Tensor) -> Tensor:
    """The first index where the cumulative probability exceeds `noise`; never one of probability 0."""
    cumulative = probabilities.cumsum(-1)
    target = noise[..., None] * cumulative[..., -1:]
    return torch.searchsorted(cumulative, target, right=True)[..., 0].clamp(max=probabilities.shape[-1] - 1)
