"""The next step given the past: Jukebox's priors and upsamplers (section 4), one class for both."""

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from jukebox_lite.levels import Facts, Window
from jukebox_lite.nn.transformer import Mixer, Transformer
from jukebox_lite.priors.base import Prior, Sampler
from jukebox_lite.priors.codes import NO_CODE, CodeEmbedding, CodeHead, code_vectors, embed_all
from jukebox_lite.priors.conditioning import Conditioner, Conditioning, condition
from jukebox_lite.priors.patterns import Parallel, Pattern

_PARALLEL = Parallel()


class AutoregressivePrior(Prior):
    """A transformer over one level's codes, whose K codebooks lie along its sequence as `pattern` says.

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
        pattern: Pattern = _PARALLEL,
        checkpointing: bool = False,
    ):
        super().__init__()
        self.facts, self.context_length, self.pattern = facts, context_length, pattern
        level = facts.level
        vectors = code_vectors(facts.vectors.get(level.name), level.channels)
        self.embeddings = nn.ModuleList(CodeEmbedding(level.codebook_size, dim, each) for each in vectors)
        self.heads = nn.ModuleList(CodeHead(dim, level.codebook_size, each) for each in vectors)
        self.start = nn.Parameter(torch.zeros(dim))
        max_length = pattern.length(level.channels, context_length)
        self.transformer = Transformer(dim, depth, num_heads, max_length, mixer, dropout, checkpointing)
        self.conditioners = nn.ModuleDict({name: make(dim=dim, facts=facts) for name, make in conditioners.items()})

    def nats(self, window: Window) -> Tensor:
        logits = rearrange(self.logits(window).float(), "b k t v -> b v k t")
        return F.cross_entropy(logits, window.codes[self.facts.level.name], reduction="none")

    def logits(self, window: Window) -> Tensor:
        """Of every code of a whole window, given the codes at the positions before its own: [B, K, T, V]."""
        codes = window.codes[self.facts.level.name]
        num_steps = codes.shape[-1]
        past = self.pattern.apply(codes)[..., :-1]
        y, _ = self.transformer(self._inputs(past, self._conditioning(window, num_steps), 0))
        positions = self.pattern.positions(len(self.heads), num_steps, y.device)
        return torch.stack([head(y[:, own]) for head, own in zip(self.heads, positions, strict=True)], 1)

    @torch.no_grad()
    def sample(self, window: Window, sampler: Sampler, noise: Tensor) -> Tensor:
        """Codes [B, K, T] drawn with `noise` [B, K, T], position by position after those that the window gives."""
        given, num_steps = window.codes.get(self.facts.level.name), noise.shape[-1]
        codes = torch.full(noise.shape, NO_CODE, device=noise.device)
        if given is not None:
            codes[..., : given.shape[-1]] = given
        sequence, noise = self.pattern.apply(codes), self.pattern.apply(noise)
        missing = self._missing(num_steps, 0 if given is None else given.shape[-1])
        if not missing:
            return codes
        copies = 1 if sampler.guidance == 1 else 2  # the second is not told its labels
        told = window if copies == 1 else window.beside(self.facts.untold(window))
        conditioning = self._conditioning(told, num_steps)
        states = self.transformer.empty_state(copies * len(codes), sequence.shape[-1])
        done = 0
        for position, codebooks in missing.items():
            past = sequence[..., max(done - 1, 0) : position].repeat(copies, 1, 1)
            y, states = self.transformer(self._inputs(past, conditioning, done), states)
            logits = torch.stack([self.heads[k](y[:, -1]) for k in codebooks], 1)
            drawn = draw(guided(logits, sampler.guidance), sampler, noise[:, codebooks, position])
            sequence[:, codebooks, position] = drawn
            done = position + 1
        return self.pattern.revert(sequence, num_steps)

    def _missing(self, num_steps: int, given: int) -> dict[int, list[int]]:
        """The positions at which codes are to be drawn, in their order, and of which codebooks."""
        by_position = (self.pattern.steps(len(self.heads), num_steps) >= given).T.tolist()
        drawn = {place: [k for k, wanted in enumerate(row) if wanted] for place, row in enumerate(by_position)}
        return {place: codebooks for place, codebooks in drawn.items() if codebooks}

    def _conditioning(self, window: Window, num_steps: int) -> Conditioning:
        """What is known of a window, aligned with the positions: each hears of the newest time step it predicts."""
        known = condition(self.conditioners.values(), window, num_steps)
        if known.aligned is None:
            return known
        newest = self.pattern.steps(len(self.heads), num_steps, known.aligned.device).amax(0)
        return replace(known, aligned=known.aligned[:, newest])

    def _inputs(self, past: Tensor, conditioning: Conditioning, first: int) -> Tensor:
        """What predicts positions `first`, first + 1, ... [B, S, D], from the codes before each of them [B, K, S].

        Position 0 is predicted from the start vector, so at `first` 0 there is one more input than codes. The aligned
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
