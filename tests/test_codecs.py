"""The hierarchical VQ-VAE: OpenAI's shape, lengths, and long files in pieces."""

from functools import partial
from math import prod

import pytest
import torch
from torch import Tensor, nn

from jukebox_lite.codecs import pieces
from jukebox_lite.codecs.pieces import decode_in_pieces, encode_in_pieces, padded_length, reconstruct_in_pieces
from jukebox_lite.codecs.quantizers import VQ
from jukebox_lite.codecs.vqvae import HierarchicalVQVAE
from jukebox_lite.errors import InputError
from jukebox_lite.nn.conv import Decoder, Encoder, ResidualStack, Snake, StridedConv, TransposedConv


def small(channels: int = 1) -> HierarchicalVQVAE:
    torch.manual_seed(0)
    strides = {"top": [4], "middle": [2, 2], "bottom": [8]}
    codec = HierarchicalVQVAE(8000, strides, 8, 2, 4, partial(VQ, codebook_size=64), channels=channels)
    codec.train()(torch.randn(4, channels, 4096))
    return codec.eval()


def test_the_5b_shape_has_openais_parameters():
    """Jukebox's published VQ-VAE has 1,485,763 parameters beside its codebooks, and hops of 128, 32 and 8."""
    strides = {"top": [2, 2], "middle": [2, 2], "bottom": [2, 2, 2]}
    codec = HierarchicalVQVAE(44100, strides, 32, 4, 64, partial(VQ, codebook_size=2048), multipliers={"bottom": 2})
    assert sum(parameter.numel() for parameter in codec.parameters()) == 1_485_763
    assert [(level.hop_length, level.vocab_size) for level in codec.levels] == [(128, 2048), (32, 2048), (8, 2048)]


@pytest.mark.parametrize("channels", [1, 2])
def test_codes_and_audio_have_the_lengths_of_their_levels(channels: int):
    """N samples give N / hop codes on every level, and each level's codes give N samples back."""
    codec, audio = small(channels), torch.rand(2, channels, 1280) * 2 - 1
    codes = codec.encode(audio)
    for level in codec.levels:
        assert codes[level.name].shape == (2, 1, 1280 // level.hop_length)
        assert codec.decode({level.name: codes[level.name]}).shape == audio.shape
    finest = codec.decode({"bottom": codes["bottom"]})
    assert torch.equal(codec.decode(codes), finest), "of several levels the finest is heard"


def test_levels_are_independent():
    """Each level is an autoencoder of its own: a loss on one moves no parameter of another (Jukebox, section 3)."""
    codec = small().train()
    reconstruction, quantized = codec(torch.randn(1, 1, 1280))["middle"]
    (reconstruction.square().mean() + quantized.loss).backward()
    for name, parameter in codec.named_parameters():
        assert (parameter.grad is not None) == (".middle." in name), name


@pytest.fixture
def short_stretches(monkeypatch: pytest.MonkeyPatch):
    """Makes long files of short ones."""
    monkeypatch.setattr(pieces, "_STRETCH_SAMPLES", 3000)
    monkeypatch.setattr(pieces, "_STRETCH_HALOS", 0)


@pytest.mark.parametrize("num_samples", [1, 3000, 20_011])
@pytest.mark.usefixtures("short_stretches")
def test_a_long_file_is_encoded_as_by_one_call_of_the_networks(num_samples: int):
    """In stretches as at once, but for the rounding of convolutions of another length."""
    codec = small()
    audio = nn.functional.pad(torch.randn(2, 1, num_samples), (0, -num_samples % 128))
    whole, found = codec.encode_stretch(audio), codec.encode(audio)
    assert all((whole[name] != found[name]).float().mean() < 1e-3 for name in whole)


@pytest.mark.parametrize("num_samples", [128, 129, 255, 3001, 6007])
@pytest.mark.usefixtures("short_stretches")
def test_what_is_left_over_beyond_whole_steps_has_no_code(num_samples: int):
    """Each level has the codes of its whole steps, as OpenAI's networks give, which see what is left over.

    Audio that was no multiple of the coarsest hop once failed with "too many values to unpack".
    """
    codec, audio = small(), torch.randn(2, 1, num_samples)
    whole, found = codec.encode_stretch(audio), codec.encode(audio)
    for level in codec.levels:
        assert found[level.name].shape == whole[level.name].shape == (2, 1, num_samples // level.samples_per_step)
        assert (whole[level.name] != found[level.name]).float().mean() < 1e-2


@pytest.mark.parametrize("shape", [(1, 1, 127), (1, 1, 0), (2, 2, 256), (1, 256)])
def test_audio_that_cannot_be_encoded_is_refused(shape: tuple[int, ...]):
    """Shorter than a step, or of other channels: it once failed inside of a convolution."""
    with pytest.raises(InputError, match=f"audio of {'x'.join(map(str, shape))}: expected batch x 1 channels x 128"):
        small().encode(torch.zeros(shape))


def test_audio_of_another_precision_is_encoded_all_the_same():
    codec, audio = small(), torch.randn(1, 1, 1024)
    for name, codes in codec.encode(audio.double()).items():
        assert torch.equal(codes, codec.encode(audio)[name])


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ({"bottom": torch.full((1, 1, 4), -1)}, "holds codes from -1 to -1, expected 0 to 63"),
        ({"bottom": torch.full((1, 1, 4), 64)}, "holds codes from 64 to 64, expected 0 to 63"),
        ({"bottom": torch.zeros(1, 4, dtype=torch.int64)}, r"has shape \[1, 4\]"),
        ({"bottom": torch.zeros(1, 1, 4)}, "holds torch.float32 values"),
        ({"lowest": torch.zeros(1, 1, 4, dtype=torch.int64)}, "levels lowest, expected one of top, middle, bottom"),
        ({}, "levels none"),
    ],
)
def test_codes_that_no_level_has_are_refused(codes: dict[str, Tensor], message: str):
    """Code -1 was once taken for the last entry without a word."""
    with pytest.raises(InputError, match=message):
        small().decode(codes)


@pytest.mark.parametrize("piece_samples", [1, 700, 5000, 10**6])
@pytest.mark.usefixtures("short_stretches")
def test_a_long_file_in_pieces_equals_the_whole(piece_samples: int):
    """Codes do not depend on where the pieces end, for a length that divides nothing.

    Pieces of any size were once encoded as they came: a code that lay as near to two entries then went to either.
    """
    codec, num_samples = small(), 20_011
    audio = torch.randn(1, num_samples)
    padded = nn.functional.pad(audio, (0, padded_length(codec, num_samples) - num_samples))
    whole = codec.encode(padded[None])

    def read(start: int, length: int) -> Tensor:
        return padded[:, start : start + length]

    found = list(encode_in_pieces(codec, read, num_samples, piece_samples))
    starts, size = [start for start, _ in found], max(piece_samples // 128, 1) * 128
    assert starts == list(range(0, num_samples, size))
    for name, codes in whole.items():
        assert torch.equal(torch.cat([piece[name] for _, piece in found], -1), codes)


@pytest.mark.parametrize("strides", [[[4], [2, 2]], [[8]], [[2, 2, 2], [2, 2]]])
def test_the_halo_is_all_that_a_code_depends_on(strides: list[list[int]]):
    """The gradient of one latent reaches the halo's edge at most."""
    torch.manual_seed(0)
    encoder = Encoder(1, 4, 8, 8, [1, 3], strides)
    hop = 1
    for group in strides:
        for stride in group:
            hop *= stride
    audio = torch.randn(1, 1, 64 * hop, requires_grad=True)
    encoder(audio)[0, :, 32].sum().backward()
    reached = audio.grad[0, 0].nonzero()
    assert 32 * hop - encoder.halo <= reached.min() and reached.max() < 33 * hop + encoder.halo


@pytest.mark.parametrize("strides", [[[4], [2, 2]], [[8]], [[2, 2, 2], [2, 2]], [[2]]])
def test_the_decoders_halo_is_all_that_a_stretch_of_audio_depends_on(strides: list[list[int]]):
    """The gradient of a hop's samples reaches the halo's farthest step, or the one before it, and none beyond."""
    torch.manual_seed(0)
    decoder = Decoder(1, 4, 8, 8, [1, 3], strides)
    hop = prod(prod(group) for group in strides)
    latent = torch.randn(1, 4, 64, requires_grad=True)
    decoder(latent)[0, 0, 32 * hop : 33 * hop].sum().backward()
    reached, steps = latent.grad[0].abs().sum(0).nonzero(), -(-decoder.halo // hop)
    assert 32 - steps <= reached.min() <= 32 - steps + 1 and reached.max() <= 32 + steps


@pytest.mark.parametrize("piece_samples", [1, 701, 5003, 10**6])
@pytest.mark.parametrize("channels", [1, 2])
def test_long_codes_in_pieces_sound_as_the_whole(piece_samples: int, channels: int):
    """Every level's audio is the same to float round-off, wherever the pieces end."""
    codec = small(channels)
    codes = codec.encode(torch.randn(2, channels, 20_096))
    for level in codec.levels:
        values = codes[level.name]
        whole = codec.decode({level.name: values})
        pieces = decode_in_pieces(
            codec, level, lambda a, n, v=values: v[..., a : a + n], values.shape[-1], piece_samples
        )
        torch.testing.assert_close(torch.cat(list(pieces), -1), whole, atol=1e-6, rtol=0)


@pytest.mark.parametrize("piece_samples", [701, 5003, 10**6])
@pytest.mark.usefixtures("short_stretches")
def test_a_reconstruction_in_pieces_is_that_of_the_whole(piece_samples: int):
    """Originals, codes and every level's sound are those of the file in one piece."""
    codec, num_samples = small(), 20_011
    audio = nn.functional.pad(torch.randn(1, num_samples), (0, padded_length(codec, num_samples) - num_samples))
    found = list(reconstruct_in_pieces(codec, lambda a, n: audio[:, a : a + n], num_samples, piece_samples))
    assert torch.equal(torch.cat([piece.original for piece in found], -1), audio[None])
    for name, codes in codec.encode(audio[None]).items():
        assert torch.equal(torch.cat([piece.codes[name] for piece in found], -1), codes)
        heard = torch.cat([piece.heard[name] for piece in found], -1)
        torch.testing.assert_close(heard, codec.decode({name: codes}), atol=1e-6, rtol=0)


def test_an_odd_stride_is_refused():
    """Odd strides would not divide the length exactly; the message names the setting."""
    with pytest.raises(InputError, match="codec.strides: 3 is odd"):
        HierarchicalVQVAE(8000, {"top": [3]}, 8, 1, 4, partial(VQ, codebook_size=8))


def test_snake_goes_on_with_what_repeats():
    """x + sin^2, the slope 1 at 0; its frequencies are learnt, one a feature, and a codec of it trains."""
    snake = Snake(3)
    with torch.no_grad():
        snake.alpha.copy_(torch.tensor([1.0, 2.0, 0.5])[:, None, None])
    x = torch.randn(2, 3, 1, 50)
    for index, alpha in enumerate((1.0, 2.0, 0.5)):
        torch.testing.assert_close(snake(x)[:, index], x[:, index] + (alpha * x[:, index]).sin() ** 2 / alpha)
    period = torch.pi / torch.tensor([1.0, 2.0, 0.5])[:, None, None]
    torch.testing.assert_close(snake(x + period), snake(x) + period, rtol=1e-4, atol=1e-5)
    stack = ResidualStack(3, 3, [1, 3], "snake")
    stack(x).sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in stack.parameters())
    assert sum(isinstance(each, Snake) for each in stack.modules()) == 4
    with pytest.raises(InputError, match="codec.activation=gelu: give one of relu, snake"):
        ResidualStack(3, 3, [1], "gelu")


@pytest.mark.parametrize("stride", [2, 4, 16])
@pytest.mark.parametrize("length", [16, 80, 83])
@pytest.mark.parametrize("kind", [StridedConv, TransposedConv])
def test_strided_convolutions_are_torchs(kind: type[StridedConv | TransposedConv], stride: int, length: int):
    """Output, and gradients of weight, bias and input, also of lengths that a stride does not divide."""
    torch.manual_seed(0)
    layer, x = kind(3, 5, stride).double(), torch.randn(2, 3, 1, length, dtype=torch.float64)
    plain = super(kind, layer).forward
    found = []
    for forward in (layer, plain):
        leaf = x.clone().requires_grad_()
        y = forward(leaf)
        found.append([y, *torch.autograd.grad(y.sin().sum(), [leaf, *layer.parameters()])])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_narrowest_codec_trains():
    """torch refused the gradient of a weight of one feature on both sides, for the layout it had in memory."""
    codec = HierarchicalVQVAE(8000, {"top": [2]}, 1, 1, 2, partial(VQ, codebook_size=4))
    sum(heard.sum() for heard, _ in codec.train()(torch.randn(1, 1, 64)).values()).backward()
    assert all(parameter.grad is not None for parameter in codec.encoders.parameters())
