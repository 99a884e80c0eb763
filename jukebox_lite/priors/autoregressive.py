"""The next step given the past: Jukebox's priors and upsamplers (section 4), one class for both."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from jukebox_lite.errors import InputError
from jukebox_lite.levels import Facts, Window
from jukebox_lite.nn.device import bytes_of
from jukebox_lite.nn.reach import At, Place, steps_at
from jukebox_lite.nn.transformer import Mixer, State, Transformer
from jukebox_lite.priors.base import Sampler
from jukebox_lite.priors.codes import NO_CODE, CodeEmbedding, CodeHead, code_vectors, embed_all, surprise
from jukebox_lite.priors.conditioning import Conditioner, Conditioning, condition
from jukebox_lite.priors.lyrics import Lyrics
from jukebox_lite.priors.patterns import Parallel, Pattern
from jukebox_lite.priors.stepwise import Stepwise

_PARALLEL = Parallel()


class AutoregressivePrior(Stepwise):
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
        lyrics = [conditioner for conditioner in self.conditioners.values() if isinstance(conditioner, Lyrics)]
        if len(lyrics) > 1:
            raise InputError(f"prior.conditioners: {len(lyrics)} that tell the lyrics, expected one; remove the others")
        for conditioner in lyrics:
            self.num_characters = conditioner.num_characters
            self.transformer.look_at_memory(dim, num_heads, conditioner.every)

    def nats(self, window: Window) -> Tensor:
        codes = window.codes[self.facts.level.name].unbind(1)
        each = zip(codes, self._features(window), self.heads, strict=True)
        return torch.stack([surprise(row, x, head) for row, x, head in each], 1)

    def logits(self, window: Window) -> Tensor:
        """Of every code of a whole window, given the codes at the positions before its own: [B, K, T, V]."""
        return torch.stack([head(x) for head, x in zip(self.heads, self._features(window), strict=True)], 1)

    def _features(self, window: Window) -> list[Tensor]:
        """What each codebook's head predicts its codes of a whole window from, each [B, T, D]."""
        codes = window.codes[self.facts.level.name]
        num_steps = codes.shape[-1]
        past = self.pattern.apply(codes)[..., :-1]
        known = self._conditioning(window, num_steps)
        y, _ = self.transformer(self._inputs(past, known), heard=known.heard)
        positions = self.pattern.positions(len(self.heads), num_steps, y.device)
        return [y[:, own] for own in positions]

    @torch.no_grad()
    def draw(self, window: Window, sampler: Sampler, noise: Tensor, read: int | None = None) -> Iterator[Tensor]:
        given, (batch_size, num_codebooks, num_steps) = window.codes.get(self.facts.level.name), noise.shape
        num_given = 0 if given is None else given.shape[-1]
        read = num_given if read is None else read
        if read == num_steps:
            return
        codes = torch.full(noise.shape, NO_CODE, device=noise.device)
        if given is not None:
            codes[..., :num_given] = given
        sequence = self.pattern.apply(codes)
        copies = 1 if sampler.guidance == 1 else 2  # the second is not told its labels
        told = window if copies == 1 else window.beside(self.facts.untold(window))
        states = self.transformer.empty_state(copies * batch_size, sequence.shape[-1])
        known = self._conditioning(told, num_steps)
        wanted = self.pattern.steps(num_codebooks, num_steps) >= num_given
        positions = self.pattern.positions(num_codebooks, num_steps, noise.device)[:, read:]
        first, ends = int(positions[:, 0].min()), positions.amax(0).tolist()
        filled = self.fill(sequence, first, wanted, self.pattern.apply(noise), known, states, sampler)
        codebooks = torch.arange(num_codebooks, device=noise.device)
        for end, each in zip(ends, positions.unbind(1), strict=True):
            next(position for position in filled if position == end)
            yield sequence[:, codebooks, each]

    def state_bytes(self, length: int) -> int:
        """What the mixers remember, and what is known of every step."""
        positions = self.pattern.length(len(self.heads), length)
        return bytes_of(self.transformer.empty_state(1, positions)) + positions * self.start.nbytes

    def predict(self, past: Tensor, known: Conditioning, states: list[State], at: At) -> Tensor:
        y, _ = self.transformer(self._inputs(past, known, at), states, at, known.heard)
        return torch.stack([head(y[:, -1]) for head in self.heads], 1)

    def _conditioning(self, window: Window, num_steps: int) -> Conditioning:
        """What is known of a window, aligned with the positions: each hears of the newest time step it predicts."""
        known = condition(self.conditioners.values(), window, num_steps)
        known = replace(known, heard=self.transformer.hear(known.memory))
        if known.aligned is None:
            return known
        newest = self.pattern.steps(len(self.heads), num_steps, known.aligned.device).amax(0)
        return replace(known, aligned=known.aligned[:, newest])

    def _inputs(self, past: Tensor, conditioning: Conditioning, at: At = 0) -> Tensor:
        """What predicts the positions after each of the codes `past` [B, K, S], in a place or from the beginning.

        Position 0 is predicted from the start vector, so from the beginning there is one more input than codes. The
        aligned conditioning is that of the step predicted, not of the step before (Jukebox does the same).
        """
        x = embed_all(self.embeddings, past)
        if not isinstance(at, Place):
            start = self.start.expand(len(past), -1)
            start = start if conditioning.start is None else start + conditioning.start
            x = torch.cat([start[:, None], x], 1)
        if conditioning.aligned is not None:
            x = x + conditioning.aligned[:, steps_at(at, x.shape[1])]
        return x
