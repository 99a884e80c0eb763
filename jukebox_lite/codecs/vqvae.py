"""The Jukebox codec: one autoencoder per level, each straight from the waveform (Jukebox, section 3)."""

from collections.abc import Callable, Iterator, Mapping
from math import prod

import torch
from torch import Tensor, nn

from jukebox_lite.codecs.base import Codec
from jukebox_lite.codecs.health import Health
from jukebox_lite.codecs.pieces import encode_in_pieces, padded_length
from jukebox_lite.codecs.quantizers import Quantized, Quantizer
from jukebox_lite.errors import InputError
from jukebox_lite.levels import Codes, Level
from jukebox_lite.nn.conv import Decoder, Encoder

_DEEPEST = 1000  # layers of a stack


class HierarchicalVQVAE(Codec):
    """Independent encoders, codebooks and decoders per level.

    `strides` names the levels, coarse to fine, and what each adds to the finer ones: {top: [2, 2], bottom: [2, 2, 2]}
    gives hops of 32 and 8. `multipliers` scale both width and depth of a level's stacks; 1 where not named.
    Dilations grow by `dilation_growth` from one residual convolution to the next, and begin again every
    `dilation_cycle`; inside, they are `inner_factor` as wide as the stack. `activation` is relu or snake.
    """

    def __init__(
        self,
        sample_rate: int,
        strides: dict[str, list[int]],
        dim: int,
        depth: int,
        latent_dim: int,
        quantizer: Callable[..., Quantizer],
        channels: int = 1,
        dilation_growth: int = 3,
        dilation_cycle: int | None = None,
        inner_factor: float = 1.0,
        activation: str = "relu",
        multipliers: dict[str, int] | None = None,
    ):
        super().__init__()
        if odd := [stride for group in strides.values() for stride in group if stride % 2]:
            raise InputError(f"codec.strides: {odd[0]} is odd; strides must be even to divide the length exactly")
        if unknown := [name for name in multipliers or {} if name not in strides]:
            raise InputError(f"codec.multipliers: there is no level {unknown[0]}; there are {', '.join(strides)}")
        self.sample_rate, self.channels = sample_rate, channels
        self.encoders, self.decoders, self.quantizers = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        self.healths = nn.ModuleDict()
        levels, halo, decoder_halo = [], 0, {}
        for name, groups in stages(strides):
            scale = (multipliers or {}).get(name, 1)
            if not 0 <= depth * scale <= _DEEPEST:  # a config may be somebody else's, and this would never end
                raise InputError(f"codec.depth={depth} times {scale} of level {name}: expected 0 to {_DEEPEST}")
            dilations = [dilation_growth ** (i % (dilation_cycle or depth * scale)) for i in range(depth * scale)]
            shape = (channels, latent_dim, dim * scale, int(dim * scale * inner_factor), dilations, groups, activation)
            encoder, decoder, codebooks = Encoder(*shape), Decoder(*shape), quantizer(dim=latent_dim)
            self.encoders[name], self.decoders[name], self.quantizers[name] = encoder, decoder, codebooks
            hop_length = prod(prod(group) for group in groups)
            levels.append(Level(name, codebooks.vocab_size, codebooks.channels, hop_length))
            self.healths[name] = Health(codebooks.channels, levels[-1].codebook_size)
            halo = max(halo, encoder.halo)
            decoder_halo[name] = -(-decoder.halo // hop_length)
        self.levels = tuple(levels)
        longest = self.levels[0].samples_per_step
        self.halo, self.decoder_halo = -(-halo // longest) * longest, decoder_halo

    def forward(self, audio: Tensor) -> dict[str, tuple[Tensor, Quantized]]:
        """Audio [B, C, N] -> per level, its reconstruction [B, C, N] and its quantized latent."""
        quantized = {name: quantizer(self.encoders[name](audio)) for name, quantizer in self.quantizers.items()}
        for name, health in self.healths.items() if self.training else ():
            assert isinstance(health, Health)
            health.note(quantized[name].codes, quantized[name].revived)
        return {name: (self.decoders[name](q.latent), q) for name, q in quantized.items()}

    @torch.no_grad()
    def encode(self, audio: Tensor) -> Codes:
        """Audio [B, C, N] in [-1, 1] -> codes of every level, [B, K, N / hop_length], of whole steps only, as OpenAI's.

        Raises InputError on audio of other channels, or shorter than a step of the coarsest level.
        """
        length, shortest = audio.shape[-1], self.levels[0].samples_per_step
        if audio.ndim != 3 or audio.shape[1] != self.channels or length < shortest:
            given = "x".join(map(str, audio.shape))
            raise InputError(
                f"audio of {given}: expected batch x {self.channels} channels x {shortest} samples or more"
            )
        audio, whole = audio.to(next(self.encoders.parameters()).dtype), padded_length(self, length)
        ((_, codes),) = encode_in_pieces(self, lambda start, count: audio[..., start : start + count], length, whole)
        return codes

    @torch.no_grad()
    def encode_stretch(self, audio: Tensor) -> Codes:
        """Audio [B, C, N] of any length, in one go -> codes of every level [B, K, N / hop_length]."""
        return {name: quantizer(self.encoders[name](audio)).codes for name, quantizer in self.quantizers.items()}

    @torch.no_grad()
    def decode(self, codes: Codes) -> Tensor:
        """Audio [B, C, N], from the finest level that `codes` holds; whoever writes it clips it to [-1, 1].

        Raises InputError on codes of no level of this codec, or that its level does not have.
        """
        finest = next((level for level in reversed(self.levels) if level.name in codes), None)
        if finest is None:
            names = ", ".join(level.name for level in self.levels)
            raise InputError(f"codes: levels {', '.join(codes) or 'none'}, expected one of {names}")
        finest.check(codes[finest.name], "codes")
        quantizer = self.quantizers[finest.name]
        assert isinstance(quantizer, Quantizer)
        return self.decoders[finest.name](quantizer.decode(codes[finest.name]))

    def health(self, level: str) -> dict[str, Tensor]:
        """How the entries of a level's codebooks fare in training, each []: dead, revived, age."""
        health = self.healths[level]
        assert isinstance(health, Health)
        return health.figures()

    def advice(self, level: str) -> str:
        """What to change where a level's codes come to little use, for people."""
        quantizer = self.quantizers[level]
        assert isinstance(quantizer, Quantizer)
        return quantizer.advice

    def code_vectors(self) -> dict[str, Tensor]:
        """What the decoder is given for each code [K, V, D], by level."""
        quantizers = {
            name: quantizer for name, quantizer in self.quantizers.items() if isinstance(quantizer, Quantizer)
        }
        return {name: quantizer.vectors().detach() for name, quantizer in quantizers.items()}


def stages(strides: Mapping[str, list[int]]) -> Iterator[tuple[str, list[list[int]]]]:
    """Each level's name and the groups of strides its encoder goes through, the finest level's first."""
    names = list(strides)
    for index, name in enumerate(names):
        yield name, [strides[finer] for finer in reversed(names[index:])]
