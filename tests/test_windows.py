"""Songs longer than the context are drawn from exactly the distribution that their windows' order says."""

import itertools

import pytest
import torch
from torch import Tensor

from jukebox_lite.codecs.base import Codec
from jukebox_lite.generation.complete import complete, samplers
from jukebox_lite.generation.windows import Parallel, Sequential, Windows
from jukebox_lite.levels import Codes, Facts, Level, Window
from jukebox_lite.nn.transformer import CausalAttention
from jukebox_lite.priors.autoregressive import AutoregressivePrior
from jukebox_lite.priors.conditioning import LevelAbove
from tests.chances import fit

LEVELS = Level("top", 2, 1, 2), Level("bottom", 2, 1, 1)
ABOVE = torch.tensor([[[0, 1, 1, 0]]])  # so that each window is told something else
NUM_SONGS, LENGTH, CONTEXT_LENGTH = 3_000, 8, 4
DRAWN_TWICE = 2  # steps that side by side the third window draws first, and then the second once more


class NoAudio(Codec):
    """Two levels of two codes, the lower with two steps for one of the upper."""

    sample_rate, channels, levels = 8000, 1, LEVELS

    def encode(self, audio: Tensor) -> Codes:
        raise NotImplementedError

    def decode(self, codes: Codes) -> Tensor:
        raise NotImplementedError


def prior() -> AutoregressivePrior:
    """The lower level's, with random weights, large enough to matter."""
    facts = Facts(LEVELS[1], LEVELS[0])
    model = AutoregressivePrior(16, 2, 2, CONTEXT_LENGTH, CausalAttention, facts, {"above": LevelAbove}).eval()
    torch.manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.6)
    return model


def noise_of(model: AutoregressivePrior, start: int, codes: Tensor) -> Tensor:
    """From where to where a step's noise draws its code, for codes [N, T] of the window at `start`: [2, N, T]."""
    above = ABOVE[..., start // 2 : (start + CONTEXT_LENGTH) // 2].expand(len(codes), -1, -1)
    chances = model.logits(Window({"top": above, "bottom": codes[:, None]}))[:, 0].double().softmax(-1)
    upper, own = (each.gather(-1, codes[..., None])[..., 0] for each in (chances.cumsum(-1), chances))
    return torch.stack([upper - own, upper])


def chance(noise: Tensor) -> Tensor:
    """How likely noise falls between these bounds [2, N, T] at every step: [N]."""
    return (noise[1] - noise[0]).clamp(min=0).prod(-1)


def sequential(model: AutoregressivePrior) -> Tensor:
    """The chance [256] of each song: each window goes on from the end of the last."""
    songs = torch.tensor(list(itertools.product(range(2), repeat=LENGTH)))
    first, second, third = (noise_of(model, start, songs[:, start : start + CONTEXT_LENGTH]) for start in (0, 2, 4))
    return chance(first) * chance(second[..., 2:]) * chance(third[..., 2:])


def parallel(model: AutoregressivePrior, same_noise: bool = True) -> Tensor:
    """The chance [256] of each song: the first and the third window alone, then the second up to its end.

    So the third window's last steps follow on others than those that stay, drawn from the `same_noise` or from its own.
    """
    drawn = torch.tensor(list(itertools.product(range(2), repeat=LENGTH + DRAWN_TWICE)))  # the steps that go come last
    songs, gone = drawn[:, :LENGTH], drawn[:, LENGTH:]
    first, second = noise_of(model, 0, songs[:, :4]), noise_of(model, 2, songs[:, 2:6])[..., 2:]
    third = noise_of(model, 4, torch.cat([gone, songs[:, 6:]], 1))
    before, after = third[..., :DRAWN_TWICE], third[..., DRAWN_TWICE:]
    both = chance(torch.stack([torch.maximum(before[0], second[0]), torch.minimum(before[1], second[1])]))
    both = both if same_noise else chance(before) * chance(second)
    return (chance(first) * both * chance(after)).unflatten(0, (-1, 2**DRAWN_TWICE)).sum(1)


@torch.no_grad()
@pytest.mark.parametrize(("order", "exact"), [(Sequential(NUM_SONGS), sequential), (Parallel(NUM_SONGS), parallel)])
def test_long_songs_are_as_frequent_as_their_windows_make_them(order: Windows, exact):
    """Of 3,000 songs of three windows each of the 256 comes as often as it is likely: chi-squared.

    The other order's chances do not fit, nor do those of windows side by side if what is drawn twice were drawn apart:
    the noise of a step is the same both times, so that what stays is often what the next window saw.
    """
    model = prior()
    how = {"samplers": samplers(LEVELS), "seed": 0, "num_songs": NUM_SONGS, "order": order}
    codes = complete(NoAudio(), [model], {"top": 4, "bottom": LENGTH}, {}, given={"top": ABOVE}, **how)
    powers = 2 ** torch.arange(LENGTH - 1, -1, -1)
    counts = torch.bincount((codes["bottom"][:, 0] * powers).sum(1), minlength=2**LENGTH).double()
    others = [sequential(model), parallel(model), parallel(model, same_noise=False)]
    torch.testing.assert_close(torch.stack(others).sum(1), torch.ones(3, dtype=torch.float64))
    assert fit(counts, exact(model) * NUM_SONGS) > 0.001
    assert all(fit(counts, each * NUM_SONGS) < 1e-6 for each in others if not each.equal(exact(model)))
