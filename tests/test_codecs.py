"""The hierarchical VQ-VAE: OpenAI's shape, lengths, and long files in pieces."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from jukebox_lite.codecs.pieces import encode_in_pieces, padded_length
from jukebox_lite.codecs.quantizers import VQ
from jukebox_lite.codecs.vqvae import HierarchicalVQVAE
from jukebox_lite.errors import InputError
from jukebox_lite.nn.conv import Encoder


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


@pytest.mark.parametrize("piece_samples", [1, 700, 5000, 10**6])
def test_a_long_file_in_pieces_equals_the_whole(piece_samples: int):
    """Codes do not depend on where the pieces end, for a length that divides nothing."""
    codec, num_samples = small(), 20_011
    audio = torch.randn(1, num_samples)
    padded = nn.functional.pad(audio, (0, padded_length(codec, num_samples) - num_samples))
    whole = codec.encode(padded[None])

    def read(start: int, length: int) -> Tensor:
        return padded[:, start : start + length]

    pieces = list(encode_in_pieces(codec, read, num_samples, piece_samples))
    for name, codes in whole.items():
        assert torch.equal(torch.cat([piece[name] for _, piece in pieces], -1), codes)


@pytest.mark.parametrize("strides", [[[4], [2, 2]], [[8]], [[2, 2, 2], [2, 2]]])
def test_the_halo_is_all_that_a_code_depends_on(strides: list[list[int]]):
    """The gradient of one latent reaches the halo's edge at most."""
    torch.manual_seed(0)
    encoder = Encoder(1, 4, 8, 2, 3, strides)
    hop = 1
    for group in strides:
        for stride in group:
            hop *= stride
    audio = torch.randn(1, 1, 64 * hop, requires_grad=True)
    encoder(audio)[0, :, 32].sum().backward()
    reached = audio.grad[0, 0].nonzero()
    assert 32 * hop - encoder.halo <= reached.min() and reached.max() < 33 * hop + encoder.halo


def test_an_odd_stride_is_refused():
    """Odd strides would not divide the length exactly; the message names the setting."""
    with pytest.raises(InputError, match="codec.strides: 3 is odd"):
        HierarchicalVQVAE(8000, {"top": [3]}, 8, 1, 4, partial(VQ, codebook_size=8))
