"""How well a codec reconstructs, and how much of its codebooks it uses."""

import math

import torch
from einops import rearrange
from torch import Tensor


def spectral_convergence(prediction: Tensor, target: Tensor) -> Tensor:
    """Audio [B, C, N] twice -> [], the mean over clips of ||S - S'|| / ||S|| of their magnitude spectra.

    Jukebox's definition: Hann window of 1536 in an FFT of 2048, hop 256, channels averaged first; a clip whose norm
    is under 2e-3 counts as 0.
    """
    found, wanted = magnitude_spectrum(prediction), magnitude_spectrum(target)
    norm = wanted.flatten(1).norm(dim=1)
    ratio = (found - wanted).flatten(1).norm(dim=1) / norm.clamp(min=2e-3)
    return torch.where(norm > 2e-3, ratio, 0.0).mean()


def magnitude_spectrum(audio: Tensor) -> Tensor:
    """Audio [B, C, N] -> [B, frequencies, frames]"""
    mono = audio.float().mean(1)
    window = torch.hann_window(1536, device=audio.device)
    return torch.stft(mono, 2048, 256, 1536, window, return_complex=True).abs()


def decibels(ratio: float) -> float:
    """An amplitude ratio in dB: 20 log10."""
    return 20 * math.log10(max(ratio, 1e-10))


def code_histogram(codes: Tensor, vocab_size: int) -> Tensor:
    """Codes [B, K, T] -> how often each entry of each codebook occurs [K, V]."""
    rows = rearrange(codes, "b k t -> k (b t)")
    return rows.new_zeros(len(rows), vocab_size).scatter_add_(1, rows, torch.ones_like(rows))


def code_use(histogram: Tensor) -> Tensor:
    """Histogram [K, V] -> [], the share of entries that occur at all, over all codebooks."""
    return (histogram > 0).float().mean()


def perplexity(histogram: Tensor) -> Tensor:
    """Histogram [K, V] -> [], exp of the entropy, averaged over codebooks: how many entries an even use would need."""
    share = histogram / histogram.sum(-1, keepdim=True).clamp(min=1)
    return torch.special.entr(share).sum(-1).exp().mean()


def bits_per_step(histogram: Tensor) -> Tensor:
    """Histogram [K, V] -> [], the entropy of its codes in bits, summed over codebooks: what a step costs.

    At most K log2 V. Codes are taken one by one; what they tell of each other would save more.
    """
    share = histogram / histogram.sum(-1, keepdim=True).clamp(min=1)
    return torch.special.entr(share).sum() / math.log(2)
