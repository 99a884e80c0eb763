"""Quantizers: decoding the codes gives what the decoder saw, and our codebook is the library's, faster."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from vector_quantize_pytorch import VectorQuantize

from jukebox_lite.codecs.health import DEAD_AFTER, Health
from jukebox_lite.codecs.jukebox_vq import JukeboxVQ
from jukebox_lite.codecs.quantizers import DAC, FSQ, LFQ, RVQ, VQ, Adapter, Quantizer, SimVQ
from jukebox_lite.codecs.vqvae import HierarchicalVQVAE
from jukebox_lite.errors import InputError
from jukebox_lite.metrics.codecs import bits_per_step, code_histogram, code_use, perplexity

QUANTIZERS: dict[str, Callable[..., Quantizer]] = {
    "jukebox": partial(JukeboxVQ, codebook_size=32),
    "vq": partial(VQ, codebook_size=32),
    "vq with rotation": partial(VQ, codebook_size=32, rotation_trick=True),
    "rvq": partial(RVQ, codebook_size=32, num_codebooks=3),
    "rvq with rotation": partial(RVQ, codebook_size=32, num_codebooks=3, rotation_trick=True),
    "simvq": partial(SimVQ, codebook_size=32),
    "dac": partial(DAC, codebook_size=32, num_codebooks=2, codebook_dim=4),
    "dac with rotation": partial(DAC, codebook_size=32, num_codebooks=2, codebook_dim=8, rotation_trick=True),
    "fsq": partial(FSQ, axes=[4, 3, 3]),
    "two fsq": partial(FSQ, axes=[4, 3], num_codebooks=2),
    "fsq of the latent's own axes": partial(FSQ, axes=[3, 3, 4, 3], num_codebooks=2),
    "lfq": partial(LFQ, codebook_size=32),
    "two lfq": partial(LFQ, codebook_size=16, num_codebooks=2),
}


def latents(seed: int, batch: int = 4, dim: int = 8, length: int = 50) -> Tensor:
    return torch.randn(batch, dim, length, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=QUANTIZERS.values(), ids=QUANTIZERS.keys())
def make(request: pytest.FixtureRequest) -> Callable[..., Quantizer]:
    """Makes a quantizer, given `dim`."""
    return request.param


@pytest.fixture
def quantizer(make: Callable[..., Quantizer]) -> Quantizer:
    """A quantizer that has learnt from one batch, in evaluation mode."""
    torch.manual_seed(0)
    model = make(dim=8)
    model.train()(latents(0))
    return model.eval()


def books(model: Quantizer) -> list[nn.Module]:
    """The codebooks of the kinds whose dead entries are revived."""
    if isinstance(model, VQ):
        return [model.vq._codebook]
    return [layer._codebook for layer in (model.rvq.layers if isinstance(model, RVQ) else model.layers)]


def test_decoding_the_codes_gives_what_the_decoder_saw(quantizer: Quantizer):
    """decode(codes) is the latent that forward gave with them; also where the rest of the model is in bfloat16."""
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            quantized = quantizer(latents(1))
        torch.testing.assert_close(quantizer.decode(quantized.codes), quantized.latent, rtol=1e-5, atol=1e-5)
    assert quantized.codes.shape == (4, quantizer.channels, 50) and quantized.codes.dtype == torch.int64
    assert quantized.codes.min() >= 0 and quantized.codes.max() < quantizer.vocab_size
    assert quantized.loss.shape == ()


def test_gradients_pass_straight_through(quantizer: Quantizer):
    """The encoder hears the decoder's gradient although the choice of an entry has none."""
    x = latents(2).requires_grad_()
    (quantizer.train()(x).latent * latents(3)).sum().backward()
    assert x.grad is not None and x.grad.abs().min() > 0


@pytest.mark.parametrize("num_codebooks", [1, 4])
def test_the_decoders_gradient_passes_once_however_many_codebooks(num_codebooks: int):
    """The library's ResidualVQ adds it up once a codebook: an encoder's learning rate would grow with their number."""
    model = RVQ(8, 32, num_codebooks, kmeans_init=False)
    x = latents(2).requires_grad_()
    model.train()(x).latent.sum().backward()
    torch.testing.assert_close(x.grad, torch.ones_like(x))


def learn(model: Quantizer, num_steps: int) -> tuple[list[float], Tensor]:
    """Train a linear autoencoder around it: its errors, as shares of the power, and the histogram of the last codes."""
    generator = torch.Generator().manual_seed(1)
    encoder, decoder = nn.Conv1d(8, 8, 1), nn.Conv1d(8, 8, 1)
    mix = torch.randn(8, 8, generator=generator) * torch.linspace(0.1, 1, 8)
    optimizer = torch.optim.Adam([p for part in (encoder, decoder, model) for p in part.parameters()], 1e-2)
    errors, codes = [], torch.empty(0)
    for _ in range(num_steps):
        x = torch.einsum("dc,bct->bdt", mix, torch.randn(8, 8, 64, generator=generator))
        quantized = model(encoder(x))
        error = (decoder(quantized.latent) - x).square().mean() / x.square().mean()
        optimizer.zero_grad()
        (error + quantized.loss).backward()
        optimizer.step()
        errors.append(error.item())
        codes = quantized.codes
    assert model.vocab_size is not None
    return errors, code_histogram(codes, model.vocab_size)


def test_it_learns_and_comes_into_use(make: Callable[..., Quantizer]):
    """The error falls well under that of silence, which is 1; most of the vocabulary is in use."""
    torch.manual_seed(0)
    errors, histogram = learn(make(dim=8).train(), 150)
    assert errors[-1] < 0.7 and errors[-1] < errors[0] / 1.5
    assert code_use(histogram) > 0.6


@pytest.mark.parametrize("kind", [kind for kind in QUANTIZERS if "fsq" not in kind])
def test_latents_that_hardly_differ_come_into_use(kind: str):
    """A new encoder writes nearly one vector at every step of a coarse level: the kinds whose entries do not start from
    the latents gave all of them one code, and stayed there. FSQ leaves it to the encoder to spread its latents.
    """
    torch.manual_seed(0)
    model = QUANTIZERS[kind](dim=8).train()
    for step in range(20):
        codes = model(5 + 0.01 * latents(step)).codes
    assert perplexity(code_histogram(codes, model.vocab_size)) > 0.3 * model.vocab_size


def test_saved_and_loaded_it_takes_the_same_next_step(make: Callable[..., Quantizer]):
    """Codes, latent, loss, and all that is kept after it, bit for bit; the draws are those of the seed."""
    torch.manual_seed(0)
    model = make(dim=8).train()
    for step in range(3):
        model(latents(step))
    other = make(dim=8).train()
    other.load_state_dict({name: value.clone() for name, value in model.state_dict().items()})
    results = []
    for each in (model, other):
        torch.manual_seed(5)
        results.append(each(latents(5)))
    assert all(
        torch.equal(getattr(results[0], name), getattr(results[1], name)) for name in ("codes", "latent", "loss")
    )
    ours, theirs = model.state_dict(), other.state_dict()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


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


def test_evaluation_changes_nothing(quantizer: Quantizer):
    """In eval mode the codebook does not learn."""
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    quantizer(latents(1))
    assert all(torch.equal(before[name], value) for name, value in quantizer.state_dict().items())


def test_the_decoders_vectors_are_the_codes_own(quantizer: Quantizer):
    """vectors()[k, code] is what that code adds to the latent: summed over the codebooks, what decode gives."""
    vectors, generator = quantizer.vectors(), torch.Generator().manual_seed(2)
    assert vectors.shape == (quantizer.channels, quantizer.vocab_size, 8)
    codes = torch.randint(0, vectors.shape[1], (2, quantizer.channels, 7), generator=generator)
    added = sum(vectors[index][codes[:, index]] for index in range(quantizer.channels))
    torch.testing.assert_close(quantizer.decode(codes).transpose(1, 2), added, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "kind, settings, complaint",
    [
        (FSQ, {"axes": [8, 2]}, r"quantizer.axes=\[8, 2\]: give 3 or more"),
        (FSQ, {"axes": []}, "quantizer.axes"),
        (LFQ, {"codebook_size": 1000}, "quantizer.codebook_size=1000: expected a power of 2"),
        (SimVQ, {"codebook_size": 32, "codebook_weight": 0.0}, "quantizer.codebook_weight=0.0: give more than 0"),
    ],
)
def test_a_vocabulary_that_cannot_be_is_refused(kind: type[Adapter], settings: dict, complaint: str):
    """In a line, and not by the library's assertions."""
    with pytest.raises(InputError, match=complaint):
        kind(dim=8, **settings)


# --- health --------------------------------------------------------------------------------------------------------


def test_ages_count_the_batches_since_an_entry_was_chosen_or_revived():
    """Those chosen are 0; those never chosen are as old as the training, and dead after DEAD_AFTER batches."""
    health = Health(num_codebooks=2, codebook_size=4)
    codes = torch.tensor([[[0, 1, 0], [3, 3, 3]]])
    for _ in range(DEAD_AFTER - 1):
        health.note(codes, None)
    assert health.ages.tolist() == [[0, 0, 99, 99], [99, 99, 99, 0]]
    assert {name: value.item() for name, value in health.figures().items()} == {"dead": 0, "revived": 0, "age": 61.875}
    revived = torch.zeros(2, 4, dtype=torch.bool)
    revived[1, :2] = True
    health.note(codes, revived)
    assert health.ages.tolist() == [[0, 0, 100, 100], [0, 0, 100, 0]]
    assert {name: value.item() for name, value in health.figures().items()} == {
        "dead": 0.375,
        "revived": 2,
        "age": 37.5,
    }


@pytest.mark.parametrize("make", [QUANTIZERS[name] for name in ("vq", "rvq", "dac")], ids=["vq", "rvq", "dac"])
def test_revived_entries_are_told_and_are_latents_of_the_batch(make: partial):
    """In every codebook: the entry that nothing chooses is named in the step that moves it, and stays put."""
    torch.manual_seed(0)
    model = partial(make, decay=0.5, dead_below=0.1, kmeans_init=False)(dim=8).train()
    for book in books(model):
        book.embed.data[0, 3] = book.embed_avg[0, 3] = 1e4
        if isinstance(model, DAC):  # searched by direction: the first of two that have the same is the one chosen
            book.embed.data[0, 3] = 2**14 * book.embed.data[0, 2]
    told = torch.zeros(model.channels, dtype=torch.bool)
    for step in range(8):
        revived = model(latents(step)).revived
        assert revived.shape == (model.channels, 32)
        for index, book in enumerate(books(model)):
            if revived[index, 3]:
                told[index] = True
                assert book.embed[0, 3].abs().max() < 10 and book.cluster_size[0, 3] > 1, "it survives the step"
    assert told.all()
    assert all(book.embed[0, 3].abs().max() < 10 for book in books(model))


def test_a_codec_tells_the_health_of_its_levels_and_reads_weights_that_know_none():
    """Ages grow in training alone and are saved; a checkpoint from before they were is young."""
    torch.manual_seed(0)
    codec = HierarchicalVQVAE(8000, {"top": [4], "bottom": [8]}, 8, 1, 4, partial(FSQ, axes=[4, 4, 4, 4]))
    for _ in range(3):
        codec(torch.randn(1, 1, 512))
    codec.eval()(torch.randn(1, 1, 512))
    assert codec.health("top")["age"] > 2 and codec.healths["top"].ages.max() == 3
    saved = {name: value.clone() for name, value in codec.state_dict().items()}
    older = {name: value for name, value in saved.items() if not name.startswith("healths.")}
    assert len(saved) == len(older) + 2
    codec.load_state_dict(older)
    assert codec.health("top")["age"] == 0
    codec.load_state_dict(saved)
    assert codec.health("top")["age"] > 2


def test_bits_are_the_entropy_of_each_codebook_summed():
    """Half of 8 entries in even use is 2 bits; one entry is none; a codebook of a quarter and three quarters, 0.811."""
    histogram = torch.tensor([[5, 5, 5, 5, 0, 0, 0, 0], [7, 0, 0, 0, 0, 0, 0, 0], [1, 3, 0, 0, 0, 0, 0, 0]])
    assert bits_per_step(histogram).item() == pytest.approx(2 + 0 + 0.8112781)
    assert bits_per_step(torch.zeros(1, 8, dtype=torch.int64)) == 0
