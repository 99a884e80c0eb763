"""Discriminators, and the codec that learns against them."""

from functools import partial
from pathlib import Path

import pytest
import torch
from tiny import music
from torch import Tensor

from jukebox_lite.codecs.quantizers import VQ
from jukebox_lite.codecs.vqvae import HierarchicalVQVAE
from jukebox_lite.datasets.audio_windows import AudioWindows
from jukebox_lite.datasets.songs import Songs
from jukebox_lite.errors import InputError
from jukebox_lite.losses import Term, WaveformL2, WeightedTerms
from jukebox_lite.nn.discriminators import Discriminators, PeriodDiscriminator, SpectrumDiscriminator
from jukebox_lite.tasks.adversarial import Adversary, _differing, _passing, _telling
from jukebox_lite.tasks.codec import CodecTask

BANDS = [0.0, 0.25, 1.0]


def discriminators(channels: int = 1) -> Discriminators:
    torch.manual_seed(0)
    return Discriminators(channels, periods=[2, 3], fft_sizes=[256], bands=BANDS, dim=2)


def test_a_period_discriminator_sees_every_pth_sample_by_itself():
    """The scores of a column are moved by the samples of its phase, and by no other's."""
    torch.manual_seed(0)
    critic, audio = PeriodDiscriminator(1, 5, 2), torch.randn(1, 1, 1000, requires_grad=True)
    critic(audio)[-1][..., 3].sum().backward()
    reached = audio.grad[0, 0].reshape(-1, 5).abs().sum(0)
    assert reached[3] > 0 and reached[[0, 1, 2, 4]].sum() == 0


def test_a_bands_features_are_its_own():
    """A tone in the upper band moves what the lower one's layers see by no more than the window leaks."""
    torch.manual_seed(0)
    critic, time = SpectrumDiscriminator(1, 256, BANDS, 2), torch.arange(4096) / 256
    audio = torch.randn(1, 1, 4096)
    tone = torch.sin(2 * torch.pi * 100 * time)  # in bin 100 of 128; the lower band ends at 32
    before, after = critic(audio), critic(audio + tone)
    moved = (after[0] - before[0]).abs()[:, :, 4:-4]  # but where the reflected ends are heard
    edge = critic.sizes[0]
    assert moved[..., :edge].max() < 1e-3 < moved[..., edge:].max()


def test_a_spectrum_is_the_complex_one():
    """Real and imaginary parts of every channel: the power is the signal's (Parseval)."""
    critic, audio = SpectrumDiscriminator(2, 256, BANDS, 2), torch.randn(3, 2, 4096)
    spectrum = critic.spectrum(audio)
    assert spectrum.shape == (3, 4, 4096 // 64 + 1, 129)
    twice = torch.full((129,), 2.0)
    twice[[0, -1]] = 1.0  # 0 Hz and half the sample rate stand once in a spectrum, all others twice
    power = (spectrum.square() * twice).sum((1, 3)).mean() / 256  # of a sample, both channels together
    assert power.item() == pytest.approx(2 * (3 / 8), rel=0.05)  # a Hann window lets 3/8 through


def test_loudness_and_offset_tell_nothing():
    """A clip is judged at a peak of 0.8 and without its mean; silence is judged too."""
    critic, audio = discriminators(2), torch.randn(2, 2, 2048)
    for ours, theirs in zip(critic(audio), critic(0.01 * audio + 0.3), strict=True):
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    assert all(features[-1].isfinite().all() for features in critic(torch.zeros(1, 2, 2048)))


def test_losses_by_hand():
    """Told apart, taken for music, seen alike."""
    real, fake = torch.ones(2, 1, 3), torch.full((1, 1, 3), 0.5)
    both = [[torch.zeros(3, 4, 3), torch.cat([real, fake])]]
    assert _telling(both, 2).item() == pytest.approx(0.25)
    assert _passing([[fake]]).item() == pytest.approx(0.25)
    assert _passing([[real]]).item() == 0
    features = torch.tensor([[[1.0], [-3.0]]])
    assert _differing([[features + 1, fake]], [[features, real]]).item() == pytest.approx(0.5)


@pytest.mark.parametrize("bands", [[0.0, 0.5], [0.0, 0.5, 0.5, 1.0], [0.5, 0.0, 1.0]])
def test_bands_that_are_none_are_refused(bands: list[float]):
    with pytest.raises(InputError, match=r"discriminator\.bands"):
        Discriminators(1, [2], [256], bands, 2)


def task(folder: Path, start: int, balance_gradients: bool = False, num_samples: int = 1024) -> CodecTask:
    """A small codec of 8 kHz, its discriminators and windows of tiny songs."""
    torch.manual_seed(0)
    return CodecTask(
        HierarchicalVQVAE(8000, {"top": [4], "bottom": [8]}, 8, 1, 4, partial(VQ, codebook_size=16)),
        partial(AudioWindows, songs=Songs(str(music(folder))), batch_size=2, num_samples=2048, seed=0),
        WeightedTerms({"l2": WaveformL2()}, {"l2": 1.0}),
        balance_gradients=balance_gradients,
        adversary=partial(Adversary, discriminators, start, num_samples, 1.0, 1.0),
    )


@pytest.mark.parametrize("balance_gradients", [False, True])
def test_each_learns_from_its_own_loss_and_from_the_start_step_on(tmp_path: Path, balance_gradients: bool):
    """Before it the discriminator is not asked; after it neither's loss leaves a gradient in the other."""
    learnt: list[str] = []
    playing = task(tmp_path, start=1, balance_gradients=balance_gradients)
    models = playing.models
    parameters = {name: list(model.parameters()) for name, model in models.items()}

    def update(name: str, loss: Tensor) -> None:
        learnt.append(name)
        gradients = torch.autograd.grad(loss, parameters[name], allow_unused=True)
        assert all(each is not None and each.isfinite().all() for each in gradients)

    early = playing.step(models, playing.batch("train", 0), 0, update)
    assert learnt == ["codec"] and "adversarial/top" not in early
    late = playing.step(models, playing.batch("train", 1), 1, update)
    assert learnt == ["codec", "discriminator", "codec"]
    assert {f"{name}/{level}" for name in ("adversarial", "features") for level in ("top", "bottom")} <= late.keys()
    assert all(parameter.grad is None for each in parameters.values() for parameter in each)


def test_a_discriminator_hears_one_place_of_the_music_and_of_all_levels(tmp_path: Path):
    """It is random, the same in all, and the only one where a reconstruction is pulled."""
    playing = task(tmp_path, start=0)
    assert playing.adversary is not None
    music = torch.arange(2048.0).repeat(2, 1, 1)
    given: list[Tensor] = []

    def critic(audio: Tensor) -> object:
        given.append(audio)
        return playing.models["discriminator"](audio)

    places = set()
    for seed in range(8):
        torch.manual_seed(seed)
        heard = {level: music.clone().requires_grad_() for level in ("top", "bottom")}
        terms: dict[str, dict[str, Term]] = {level: {} for level in heard}
        playing.adversary.play({"discriminator": critic}, music, heard, terms, lambda *_: None)  # pyright: ignore[reportArgumentType]
        first = int(given[-1][0, 0, 0])
        assert torch.equal(given[-1], torch.arange(first, first + 1024.0).expand(6, 1, 1024))
        torch.stack([term.value for own in terms.values() for term in own.values()]).sum().backward()
        for audio in heard.values():
            pulled = audio.grad.abs().sum((0, 1)).nonzero()
            assert first <= pulled.min() and pulled.max() < first + 1024
        places.add(first)
    assert len(places) > 4


@pytest.mark.parametrize("num_samples", [255, 2049])
def test_a_piece_too_short_or_too_long_is_refused(tmp_path: Path, num_samples: int):
    with pytest.raises(InputError, match=rf"task\.adversary\.num_samples={num_samples}"):
        task(tmp_path, start=0, num_samples=num_samples)


def test_a_discriminator_learns_to_tell(tmp_path: Path):
    """After fifty steps on an untrained codec's noise it tells music it has not seen from it."""
    playing = task(tmp_path, start=0)
    critic, codec = playing.models["discriminator"], playing.models["codec"]
    optimizer = torch.optim.AdamW(critic.parameters(), 1e-2)

    def update(name: str, loss: Tensor) -> None:
        if name == "discriminator":
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    for step in range(50):
        playing.step(playing.models, playing.batch("train", step), step, update)
    audio = playing.batch("val", 0)
    with torch.no_grad():
        heard = [reconstruction for reconstruction, _ in codec(audio).values()]
        scores = [features[-1] for features in critic(torch.cat([audio, *heard]))]
    real, fake = (torch.stack([each[part].mean() for each in scores]) for part in (slice(2), slice(2, None)))
    assert real.mean() > 0.6 > 0.4 > fake.mean()
