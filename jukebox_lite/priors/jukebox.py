"""The priors of Jukebox as they were published, weight for weight (Jukebox, section 4; github.com/openai/jukebox).

For those who have such weights. AutoregressivePrior is ours to train: what differs is said at each part here.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from jukebox_lite.errors import InputError
from jukebox_lite.levels import LYRICS, Facts, Window
from jukebox_lite.nn.conv import ConvStack, ResidualStack, TransposedConv
from jukebox_lite.nn.convolution import Conv
from jukebox_lite.nn.dense import Linear, linear
from jukebox_lite.nn.device import bytes_of
from jukebox_lite.nn.reach import At, Beginning, Place, Reach, steps_at
from jukebox_lite.nn.transformer import Mixer, State
from jukebox_lite.priors.base import Loss, Sampler
from jukebox_lite.priors.codes import surprise
from jukebox_lite.priors.conditioning import Conditioner, Conditioning, condition
from jukebox_lite.priors.stepwise import Stepwise

_STEEPNESS = 1.702  # x * sigmoid(1.702 x) is near a GELU (Hendrycks & Gimpel 2016, section 2)


class JukeboxAttention(Mixer):
    """Attention within a reach, narrower than the model, with biases and without norm or rotation."""

    def __init__(self, dim: int, inner_dim: int, num_heads: int, reach: Reach):
        super().__init__()
        self.num_heads, self.head_dim, self.reach = num_heads, inner_dim // num_heads, reach
        self.qkv, self.out = Linear(dim, 3 * inner_dim), Linear(inner_dim, dim)

    def empty_state(self, batch_size: int, length: int) -> State:
        return self.reach.empty(self.out.bias, batch_size, self.num_heads, length, self.head_dim)

    def forward(self, x: Tensor, state: State = None, at: At = 0) -> tuple[Tensor, State]:
        q, k, v = self._heads(x)
        y = self.reach.attend(q, k, v) if state is None else self.reach.go_on(q, k, v, state, at)
        return self.out(rearrange(y, "b h t e -> b t (h e)")), state

    def weights(self, x: Tensor) -> Tensor:
        """How a sequence shares out its attention to the beginning, of a layer that sees no more: [B, H, T, S]."""
        assert isinstance(self.reach, Beginning)
        q, k, _ = self._heads(x)
        return self.reach.weights(q, k)

    def _heads(self, x: Tensor) -> list[Tensor]:
        """Queries, keys and values, each [B, H, T, E]."""
        return [rearrange(each, "b t (h e) -> b h t e", h=self.num_heads) for each in self.qkv(x).chunk(3, -1)]


class CrossAttention(nn.Module):
    """Attention to a memory; the state, which it cannot do without, is the memory's keys and values."""

    def __init__(self, dim: int, inner_dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.query, self.key_value = Linear(dim, inner_dim), Linear(dim, 2 * inner_dim)
        self.out = Linear(inner_dim, dim)

    def hear(self, memory: Tensor) -> State:
        """The state for a memory [B, S, D]."""
        return rearrange(self.key_value(memory), "b s (two h e) -> two b h s e", two=2, h=self.num_heads)

    def forward(self, x: Tensor, state: State, at: At = 0) -> tuple[Tensor, State]:
        """[B, T, D] -> [B, T, D]"""
        del at  # every step meets the whole memory
        q = rearrange(self.query(x), "b t (h e) -> b h t e", h=self.num_heads)
        k, v = state
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(rearrange(y, "b h t e -> b t (h e)")), state


class JukeboxBlock(nn.Module):
    """Attention y and a feed-forward layer z of x + y, side by side: x + scale * (y + z)."""

    def __init__(self, dim: int, hidden_dim: int, mixer: JukeboxAttention | CrossAttention, scale: float):
        super().__init__()
        self.mixer, self.scale = mixer, scale
        self.mixer_norm, self.feed_forward_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.widen, self.narrow = Linear(dim, hidden_dim), Linear(hidden_dim, dim)

    def forward(self, x: Tensor, state: State, at: At = 0) -> tuple[Tensor, State]:
        y, state = self.mixer(self.mixer_norm(x), state, at)
        hidden = self.widen(self.feed_forward_norm(x + y))
        z = self.narrow(_QuickGELU.apply(hidden))
        return torch.add(x, y + z, alpha=self.scale), state


class _QuickGELU(torch.autograd.Function):
    """x * sigmoid(1.702 x), near a GELU (Hendrycks & Gimpel 2016, section 2), with one pass back instead of three."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        steep = _STEEPNESS * x
        ctx.save_for_backward(steep)
        return F.silu(steep).div_(_STEEPNESS)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> Tensor:
        (steep,) = ctx.saved_tensors
        return torch.ops.aten.silu_backward(gradient, steep)


class JukeboxTransformer(nn.Module):
    """Tokens to what predicts the next ones: learnt positions, blocks, and no norm at the end."""

    def __init__(self, vocab_size: int, dim: int, max_length: int, blocks: Sequence[JukeboxBlock]):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, dim)
        self.positions = nn.Parameter(torch.zeros(max_length, dim))
        self.blocks = nn.ModuleList(blocks)

    def inputs(self, past: Tensor, start: Tensor, aligned: Tensor | None, at: At = 0) -> Tensor:
        """What predicts the steps after each of the tokens `past` [B, T], in a place or from the beginning: [B, T, D].

        Step 0 is predicted from `start` [B, D], so from the beginning there is one more input than tokens. Each is told
        the position and the condition (`aligned` [B, S, D], of all steps) of the step predicted.
        """
        x = self.embedding(past)
        if not isinstance(at, Place):
            x = torch.cat([start[:, None], x], 1)
        steps = steps_at(at, x.shape[1])
        x = x + self.positions[steps]
        return x if aligned is None else x + aligned[:, steps]

    def states(self, memory: Tensor | None, room: tuple[int, int] | None = None) -> list[State]:
        """Of every block, with the memory [B, S, D] heard; with `room`, batch size and length, to go step by step."""
        states = []
        for block in self.blocks:
            assert isinstance(block, JukeboxBlock)
            if isinstance(block.mixer, CrossAttention):
                assert memory is not None
                states.append(block.mixer.hear(memory))
            else:
                states.append(room and block.mixer.empty_state(*room))
        return states

    def forward(self, x: Tensor, states: list[State], at: At = 0) -> tuple[Tensor, list[State]]:
        """[B, T, D] -> [B, T, D]; goes on at `at`, after all that the states have seen."""
        after = []
        for block, state in zip(self.blocks, states, strict=True):
            x, state = block(x, state, at)
            after.append(state)
        return x, after


class JukeboxAbove(Conditioner):
    """The level above through convolutions up to this level's rate, at the model's width from the first to the last."""

    def __init__(self, codebook_size: int, dim: int, stack: ConvStack, name: str):
        super().__init__()
        self.name, self.stack = name, stack
        self.embedding, self.norm = nn.Embedding(codebook_size, dim), nn.LayerNorm(dim)

    def forward(self, window: Window, length: int) -> Conditioning:
        x = rearrange(self.embedding(window.codes[self.name][:, 0]), "b t d -> b d t")
        return Conditioning(aligned=self.norm(rearrange(self.stack(x), "b d t -> b t d"))[:, :length])


def upward_stack(
    dim: int, width: int, hidden_dim: int, dilations: Sequence[int], strides: Sequence[int], scale: float = 1.0
) -> ConvStack:
    """From the level above to this one's rate: [B, D, T] -> [B, D, T * the product of the strides]."""
    stack: list[nn.Module] = [Conv(dim, width, 3, padding=1)]
    for left, stride in zip(reversed(range(len(strides))), strides, strict=True):
        stack.append(ResidualStack(width, hidden_dim, dilations, scale=scale))
        stack.append(TransposedConv(width, width if left else dim, stride))
    return ConvStack(*stack)


class JukeboxLabels(Conditioner):
    """Artist and genres, summed, in the place of the step before the first.

    A song's genres [B, M] may be several, as the values of any label; of its artists [B, M] only the first is heard.
    """

    def __init__(self, num_artists: int, num_genres: int, dim: int):
        super().__init__()
        self.artist, self.genre = nn.Embedding(num_artists, dim), nn.Embedding(num_genres, dim)

    def forward(self, window: Window, length: int) -> Conditioning:
        del length
        artist, genres = window.labels["artist"], window.labels["genre"]
        heard = self.genre(genres.clamp(min=0)) * (genres >= 0)[..., None]
        return Conditioning(start=self.artist(artist[:, 0]) + heard.sum(1))


class JukeboxTiming(Conditioner):
    """The song's length, and of each step its place in the song in seconds and as a share of it, each in equal bins.

    Unlike Timing's these are of audio samples, and bins of the length begin at `min_seconds`. The shares of a window
    that runs past the song's end are squeezed, so that its whole context ends with the song.
    """

    def __init__(
        self, dim: int, num_bins: int, context_length: int, sample_rate: int, hop_length: int, seconds: Sequence[float]
    ):
        super().__init__()
        self.num_bins, self.context_length = num_bins, context_length
        self.sample_rate, self.num_samples = sample_rate, context_length * hop_length
        self.min_seconds, self.max_seconds = seconds
        self.total, self.absolute, self.relative = (nn.Embedding(num_bins, dim) for _ in range(3))

    def forward(self, window: Window, length: int) -> Conditioning:
        samples = (window.labels[f"{name}_seconds"][:, None] * self.sample_rate for name in ("total", "start"))
        total, start = (each.round().float() for each in samples)  # [B, 1]
        end, passed = start + self.num_samples, torch.arange(length, device=start.device) / self.context_length
        longest = self.max_seconds * self.sample_rate
        shortest = self.min_seconds * self.sample_rate
        begun, ended = start / total, (end / total).clamp(max=1)
        embedded = [
            self.total(self._bins((total - shortest) / (longest - shortest))),
            self.absolute(self._bins((start + (end - start) * passed) / longest)),
            self.relative(self._bins(begun + (ended - begun) * passed)),
        ]
        return Conditioning(aligned=embedded[0] + embedded[1] + embedded[2])

    def _bins(self, share: Tensor) -> Tensor:
        return (self.num_bins * share).floor().long().clamp(0, self.num_bins - 1)


@dataclass(frozen=True)
class LyricPrefix:
    """Lyrics that stand before the codes in one sequence, over one vocabulary, in which theirs comes first."""

    num_tokens: int
    vocab_size: int


class LyricEncoder(nn.Module):
    """Lyrics read by a transformer of their own, which also predicts them; what it makes of them is a memory."""

    def __init__(self, transformer: JukeboxTransformer, dim: int):
        super().__init__()
        vocab_size, width = transformer.embedding.weight.shape
        self.transformer, self.num_tokens = transformer, len(transformer.positions)
        self.start = nn.Parameter(torch.zeros(1, width))
        self.project, self.norm = Linear(width, dim), nn.LayerNorm(dim)
        self.head = Linear(dim, vocab_size, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, S] -> [B, S, D]; step s knows the tokens before it, its own not."""
        x = self.transformer.inputs(tokens[:, :-1], self.start.expand(len(tokens), -1), None)
        return self.norm(self.project(self.transformer(x, self.transformer.states(None))[0]))


class JukeboxPrior(Stepwise):
    """A prior of Jukebox: top or upsampler, with or without labels and lyrics.

    Beside a window's codes its labels are read: "artist" and "genre", the times, and "lyrics" [B, S], tokens of the
    song's text around the window; without these all are 0, which stands for none.
    """

    def __init__(
        self,
        facts: Facts,
        transformer: JukeboxTransformer,
        conditioners: Mapping[str, Conditioner],
        lyrics: LyricEncoder | LyricPrefix | None = None,
        lyric_weight: float = 0.0,
        merged: bool = False,
    ):
        """Without "labels" among the conditioners, what comes before the first step is learnt.

        A `merged` decoder has a head of its own, which is told nothing; else the head is the embedding, and is told the
        aligned conditions once more. `lyric_weight` is what a nat of lyrics counts in training.
        """
        super().__init__()
        vocab_size, dim = transformer.embedding.weight.shape
        self.facts, self.transformer, self.lyric_weight = facts, transformer, lyric_weight
        self.prefix = lyrics if isinstance(lyrics, LyricPrefix) else LyricPrefix(0, 0)
        self.encoder = lyrics if isinstance(lyrics, LyricEncoder) else None
        self.context_length = len(transformer.positions) - self.prefix.num_tokens
        self.conditioners = nn.ModuleDict(conditioners)
        self.start = None if "labels" in conditioners else nn.Parameter(torch.zeros(1, dim))
        self.merged, self.head = merged, Linear(dim, vocab_size, bias=False) if merged else None

    def nats(self, window: Window) -> Tensor:
        return self._nats(self._all_at_once(window)[0], window)

    def loss(self, window: Window) -> Loss:
        """Nats per token, of the lyrics too: their weight beside that of the codes is `lyric_weight` * S / T."""
        x, memory = self._all_at_once(window)
        nats = self._nats(x, window)
        metrics = {
            "nats_per_token": nats.mean().detach(),
            "chance": torch.full_like(nats.mean(), math.log(self.facts.level.codebook_size)),
        }
        lyrics = self._lyrics(window, len(x), x.device)
        if not lyrics.shape[1]:
            return Loss(nats.mean(), metrics)
        split = self.prefix.num_tokens
        if self.encoder is None:
            of_lyrics = surprise(lyrics, x[:, :split], self._head)
        else:
            assert memory is not None
            of_lyrics = surprise(lyrics, memory, self.encoder.head)
        share = lyrics.shape[1] / (lyrics.shape[1] + nats.shape[-1])
        total = self.lyric_weight * share * of_lyrics.mean() + (1 - share) * nats.mean()
        return Loss(total, metrics | {"nats_per_lyric_token": of_lyrics.mean().detach()})

    def logits(self, window: Window) -> Tensor:
        """Of every step given those before [B, T, V]; lyrics in the same sequence go first, as steps and as tokens."""
        return self._head(self._all_at_once(window)[0])

    @torch.no_grad()
    def draw(self, window: Window, sampler: Sampler, noise: Tensor, read: int | None = None) -> Iterator[Tensor]:
        """As every prior's, but where lyrics share the vocabulary: one of their tokens may be drawn in place of a code.

        It comes out as code 0, which does not tell which it was; so steps that are not read at once are drawn again.
        """
        if sampler.guidance != 1:
            raise InputError(f"guidance={sampler.guidance:g}: Jukebox's priors never learnt without labels; give 1")
        batch_size, _, length = noise.shape
        before = self.prefix.num_tokens
        known, memory = self._condition(window, batch_size, length)
        stream = self._stream(window, batch_size, noise.device)
        first = stream.shape[1] if read is None else before + read
        if first == before + length:
            return
        wanted = torch.arange(before + length) >= (first if before else stream.shape[1])
        stream, noise = F.pad(stream, (0, before + length - stream.shape[1])), F.pad(noise, (before, 0))
        states = self.transformer.states(memory, (batch_size, before + length))
        for position in self.fill(stream[:, None], first, wanted[None], noise, known, states, sampler):
            yield (stream[:, position, None] - self.prefix.vocab_size).clamp(min=0)

    def predict(self, past: Tensor, known: Conditioning, states: list[State], at: At) -> Tensor:
        y, _ = self.transformer(self._inputs(past[:, 0], known, at), states, at)
        last = at if isinstance(at, Place) else y.shape[1] - 1
        return self._head(self._told(y[:, -1:], known, last))

    def untie(self) -> None:
        vocab_size, dim = self.transformer.embedding.weight.shape
        if self.head is None:
            self.head = Linear(dim, vocab_size, bias=False)
            self.head.weight = self.transformer.embedding.weight

    def state_bytes(self, length: int) -> int:
        """What the blocks remember of lyrics and codes; what is known of every step is little beside it."""
        weight = self.transformer.embedding.weight
        memory = None if self.encoder is None else weight.new_zeros(1, self.encoder.num_tokens, weight.shape[1])
        return bytes_of(self.transformer.states(memory, (1, self.prefix.num_tokens + length)))

    def _nats(self, x: Tensor, window: Window) -> Tensor:
        """Of every code [B, 1, T], from what the head is given of the whole stream."""
        codes = window.codes[self.facts.level.name]
        tokens = codes[:, 0] + self.prefix.vocab_size
        return surprise(tokens, x[:, self.prefix.num_tokens :], self._head)[:, None]

    def _all_at_once(self, window: Window) -> tuple[Tensor, Tensor | None]:
        """What the head is given of the whole window [B, T, D], and the lyrics' memory."""
        codes = window.codes[self.facts.level.name]
        stream = self._stream(window, len(codes), codes.device)
        conditioning, memory = self._condition(window, len(codes), codes.shape[-1])
        x = self._inputs(stream[:, :-1], conditioning)
        return self._told(self.transformer(x, self.transformer.states(memory))[0], conditioning), memory

    def _stream(self, window: Window, batch_size: int, device: torch.device) -> Tensor:
        """The tokens that the window gives, as the transformer sees them [B, T]."""
        codes = window.codes.get(self.facts.level.name)
        if codes is None:
            codes = torch.zeros(batch_size, 1, 0, dtype=torch.int64, device=device)
        lyrics = self._lyrics(window, batch_size, device)[:, : self.prefix.num_tokens]
        return torch.cat([lyrics, codes[:, 0] + self.prefix.vocab_size], 1)

    def _lyrics(self, window: Window, batch_size: int, device: torch.device) -> Tensor:
        """Tokens of the lyrics [B, S], as many as the prior reads; 0 where the window has none, or fewer."""
        num_tokens = self.prefix.num_tokens if self.encoder is None else self.encoder.num_tokens
        nothing = torch.zeros(batch_size, num_tokens, dtype=torch.int64, device=device)
        return window.labels.get(LYRICS, nothing).clamp(min=0) if num_tokens else nothing

    def _condition(self, window: Window, batch_size: int, length: int) -> tuple[Conditioning, Tensor | None]:
        """What is known of every step of the stream, and the lyrics' memory."""
        known = condition(self.conditioners.values(), window, length)
        aligned = None if known.aligned is None else F.pad(known.aligned, (0, 0, self.prefix.num_tokens, 0))
        start = known.start if self.start is None else self.start.expand(batch_size, -1)
        lyrics = self._lyrics(window, batch_size, self.transformer.positions.device)
        return Conditioning(aligned, start), None if self.encoder is None else self.encoder(lyrics)

    def _inputs(self, past: Tensor, conditioning: Conditioning, at: At = 0) -> Tensor:
        assert conditioning.start is not None
        return self.transformer.inputs(past, conditioning.start, conditioning.aligned, at)

    def _told(self, x: Tensor, conditioning: Conditioning, at: At = 0) -> Tensor:
        """What the head is given of the steps from `at` on, of what the transformer makes of them [B, T, D]."""
        if self.merged or conditioning.aligned is None:
            return x
        return x + conditioning.aligned[:, steps_at(at, x.shape[1])]

    def _head(self, x: Tensor) -> Tensor:
        """Logits: [..., D] -> [..., V]."""
        return linear(x, self.transformer.embedding.weight) if self.head is None else self.head(x)
