"""Losses and metrics against hand-computed numbers and scipy."""

import math

import numpy as np
import pytest
import scipy.signal
import torch

from jukebox_lite.losses import MultiResolutionSTFT, Term, WaveformL2, WeightedTerms, balanced_sum, weighted_sum
from jukebox_lite.metrics.codecs import code_histogram, code_use, decibels, perplexity, spectral_convergence


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.1


def test_waveform_l2_is_a_share_of_the_targets_power():
    """Silence for a prediction loses exactly 1; half the amplitude loses a quarter."""
    target = noise(2, 1, 1000)
    assert WaveformL2()(torch.zeros_like(target), target).item() == pytest.approx(1)
    assert WaveformL2()(target / 2, target).item() == pytest.approx(0.25)


def test_stft_loss_equals_scipys():
    """One resolution, by scipy's STFT: the relative norm plus the mean distance of log magnitudes."""
    found, wanted = noise(1, 1, 4096, seed=1), noise(1, 1, 4096, seed=2)
    size, floor = 512, 1e-3

    def magnitude(audio: torch.Tensor) -> np.ndarray:
        padded = np.pad(audio[0, 0].double().numpy(), size // 2, mode="reflect")
        window = scipy.signal.get_window("hann", size)
        frames = np.lib.stride_tricks.sliding_window_view(padded, size)[:: size // 4] * window
        return np.maximum(np.abs(np.fft.rfft(frames)).T / math.sqrt(size), floor)

    a, b = magnitude(found), magnitude(wanted)
    expected = np.linalg.norm(a - b) / np.linalg.norm(b) + np.abs(np.log(a) - np.log(b)).mean()
    assert MultiResolutionSTFT([size])(found, wanted).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_losses_and_their_gradients_are_finite_on_silence(scale: float):
    """Digital silence, in the target or everywhere, gives no infinite loss or gradient."""
    prediction = (scale * noise(1, 1, 4096)).requires_grad_()
    loss = WeightedTerms({"l2": WaveformL2(), "stft": MultiResolutionSTFT([512, 128])}, {"l2": 1.0, "stft": 1.0})
    terms = loss({"top": prediction}, torch.zeros(1, 1, 4096))["top"]
    total = weighted_sum(terms)
    total.backward()
    assert total.isfinite() and prediction.grad.isfinite().all()
    assert set(terms) == {"l2", "stft"}


def test_a_weighted_sum_weighs():
    """Each term comes with its weight, and the sum heeds it."""
    loss = WeightedTerms({"l2": WaveformL2(), "stft": MultiResolutionSTFT([128])}, {"l2": 2.0, "stft": 0.5})
    terms = loss({"top": noise(1, 1, 2048, seed=1)}, noise(1, 1, 2048, seed=2))["top"]
    expected = 2 * terms["l2"].value.item() + 0.5 * terms["stft"].value.item()
    assert weighted_sum(terms).item() == pytest.approx(expected)


def test_balanced_gradients_are_shares_of_the_weights():
    """A term in other units pulls as before; the sum is still the weighted sum; nothing else is left a gradient."""
    target, gradients = noise(1, 1, 2048, seed=2), []
    for unit in (1.0, 1000.0):
        latent = noise(1, 1, 2048, seed=1).requires_grad_()
        output = 1 * latent
        prediction = output.detach().requires_grad_()
        away = (prediction - target).abs().mean() * unit
        terms = {"l2": Term((prediction - target).square().mean(), 1.0), "l1": Term(away, 3.0)}
        total = balanced_sum(terms, prediction, output)
        assert total.item() == pytest.approx(weighted_sum(terms).item())
        total.backward()
        gradients.append(latent.grad)
    torch.testing.assert_close(gradients[0], gradients[1])
    error = prediction.detach() - target
    expected = 0.25 * error / error.norm() + 0.75 * error.sign() / error.sign().norm()
    torch.testing.assert_close(gradients[0], expected)


def test_weights_may_differ_by_level():
    """A level is judged by its own weights; what weighs nothing there is not computed."""
    loss = WeightedTerms(
        {"l2": WaveformL2(), "stft": MultiResolutionSTFT([128])}, {"l2": {"top": 0.0, "bottom": 1.0}, "stft": 1.0}
    )
    found, wanted = noise(1, 1, 2048, seed=1), noise(1, 1, 2048, seed=2)
    top, bottom = loss({"top": found, "bottom": found}, wanted).values()
    assert set(top) == {"stft"} and set(bottom) == {"l2", "stft"}
    assert weighted_sum(bottom).item() == pytest.approx(weighted_sum(top).item() + bottom["l2"].value.item())


def test_spectral_convergence_by_hand():
    """Half the amplitude is half the spectrum: 0.5, which is -6.02 dB; a clip of silence counts as 0."""
    target = noise(1, 1, 22050)
    assert spectral_convergence(target / 2, target).item() == pytest.approx(0.5, rel=1e-5)
    assert decibels(0.5) == pytest.approx(-6.0206, abs=1e-4)
    silent = torch.cat([target, torch.zeros_like(target)])
    assert spectral_convergence(silent / 2, silent).item() == pytest.approx(0.25, rel=1e-5)


def test_codebook_figures_by_hand():
    """Two entries of four used evenly: use 0.5, perplexity 2; one entry alone: perplexity 1."""
    even = code_histogram(torch.tensor([[[0, 1, 0, 1]]]), 4)
    assert even.tolist() == [[2, 2, 0, 0]]
    assert code_use(even).item() == 0.5 and perplexity(even).item() == pytest.approx(2)
    assert perplexity(code_histogram(torch.zeros(1, 1, 9, dtype=torch.int64), 4)).item() == pytest.approx(1)
    two_codebooks = code_histogram(torch.tensor([[[0, 1], [2, 2]]]), 4)
    assert perplexity(two_codebooks).item() == pytest.approx(1.5)
