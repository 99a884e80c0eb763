"""Quantizers: decoding the codes gives what the decoder saw, and our codebook is the library's, faster."""

from functools import partial

import pytest
import torch
from torch import Tensor
from vector_quantize_pytorch import VectorQuantize

from jukebox_lite.codecs.quantizers import VQ, Quantizer

QUANTIZERS = {
    "vq": partial(VQ, codebook_size=32),
    "vq with rotation": partial(VQ, codebook_size=32, rotation_trick=True),
}


def latents(seed: int, batch: int = 4, dim: int = 8, length: int = 50) -> Tensor:
    return torch.randn(batch, dim, length, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=QUANTIZERS.values(), ids=QUANTIZERS.keys())
def quantizer(request) -> Quantizer:
    torch.manual_seed(0)
    model = request.param(dim=8)
    model.train()(latents(0))
    return model.eval()


def test_decoding_the_codes_gives_what_the_decoder_saw(quantizer: Quantizer):
    """decode(codes) is the latent that forward gave with them."""
    quantized = quantizer(latents(1))
    torch.testing.assert_close(quantizer.decode(quantized.codes), quantized.latent, rtol=1e-5, atol=1e-6)
    assert quantized.codes.shape == (4, quantizer.channels, 50)
    assert quantized.codes.min() >= 0 and quantized.codes.max() < quantizer.vocab_size


def test_gradients_pass_straight_through(quantizer: Quantizer):
    """The encoder hears the decoder's gradient although the choice of an entry has none."""
    x = latents(2).requires_grad_()
    quantizer.train()(x).latent.square().sum().backward()
    assert x.grad is not None and x.grad.abs().min() > 0


def test_codes_are_the_nearest_entries_at_any_chunk():
    """The chunked search equals a brute-force one."""
    torch.manual_seed(0)
    model = VQ(dim=8, codebook_size=32)
    model.train()(latents(0))
    model.eval()
    x = latents(1)
    brute = torch.cdist(x.transpose(1, 2).double(), model.vq.codebook.double()).argmin(-1)
    for chunk in (1, 7, 10_000):
        model.vq._codebook.chunk = chunk
        assert torch.equal(model(x).codes[:, 0], brute)


def test_codes_and_averages_equal_the_library():
    """Ten training steps: the same codes, entries and moving averages as vector-quantize-pytorch's own codebook."""
    ours = VQ(dim=8, codebook_size=32, decay=0.9, dead_below=0.0, kmeans_init=False)
    theirs = VectorQuantize(8, 32, decay=0.9, commitment_weight=0.02, rotation_trick=False)
    theirs.load_state_dict(ours.vq.state_dict())
    for step in range(10):
        x = latents(step)
        latent, codes, loss = theirs(x.transpose(1, 2))
        quantized = ours(x)
        assert torch.equal(quantized.codes[:, 0], codes)
        torch.testing.assert_close(quantized.loss, loss)
        torch.testing.assert_close(quantized.latent.transpose(1, 2), latent)
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.vq.state_dict()[name], value, msg=name)


def test_a_revived_entry_survives_the_step():
    """audiocraft writes a revived entry and then overwrites it from the old averages in the same step; ours stays."""
    torch.manual_seed(0)
    model = VQ(dim=8, codebook_size=16, decay=0.5, dead_below=0.1, kmeans_init=False)
    book = model.vq._codebook
    book.embed[0, 3] = 1e4  # so far away that nothing chooses it
    book.embed_avg[0, 3] = 1e4
    for step in range(8):
        model.train()(latents(step))
    assert book.embed[0, 3].abs().max() < 10, "the dead entry was moved to a latent"
    before = book.embed[0, 3].clone()
    model.eval()(latents(9))
    assert torch.equal(book.embed[0, 3], before)
    used = model.train()(latents(10)).codes
    assert (used == 3).any() or book.cluster_size[0, 3] > 0.1


def test_a_collapsed_codebook_comes_back():
    """All entries but one out of reach: within some steps nearly all are in use again."""
    torch.manual_seed(0)
    model = VQ(dim=8, codebook_size=32, decay=0.8, dead_below=0.1, kmeans_init=False)
    model.vq._codebook.embed[0, 1:] = 1e3
    model.vq._codebook.embed_avg[0, 1:] = 1e3
    for step in range(40):
        codes = model.train()(latents(step)).codes
    assert len(codes.unique()) > 28


def test_evaluation_changes_nothing():
    """In eval mode the codebook does not learn."""
    model = VQ(dim=8, codebook_size=32)
    model.train()(latents(0))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.eval()(latents(1))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_the_decoders_vectors_are_the_codes_own(quantizer: Quantizer):
    """vectors()[k, code] is what decode gives for that code."""
    codes = torch.arange(quantizer.vectors().shape[1])[None, None]
    torch.testing.assert_close(quantizer.decode(codes)[0].T, quantizer.vectors()[0])
