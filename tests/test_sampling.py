"""The step that samples: in fewer bits, compiled, and under every sampler it draws what it should."""

import itertools
import shutil
import sysconfig
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from jukebox_lite.errors import InputError
from jukebox_lite.levels import Facts, Level, Window
from jukebox_lite.nn.linear import GatedDeltaRule
from jukebox_lite.nn.reach import Place
from jukebox_lite.nn.transformer import CausalAttention, FactoredAttention, Mixer, SlidingAttention
from jukebox_lite.priors import stepwise
from jukebox_lite.priors.autoregressive import AutoregressivePrior
from jukebox_lite.priors.base import Sampler
from jukebox_lite.priors.conditioning import Labels
from jukebox_lite.priors.patterns import Delay
from jukebox_lite.priors.stepwise import for_sampling
from tests.chances import fit

TOLERANCES = {"fp32": 1e-5, "bf16": 0.05, "int8": 0.05}  # of logits of about 1: sums of bfloat16's 8 bits
SAMPLERS = {
    "temperature": Sampler(temperature=0.8),
    "top_k": Sampler(top_k=3),
    "top_p": Sampler(top_p=0.7),
    "guidance": Sampler(guidance=2.0),
}
MIXERS = {
    "causal": CausalAttention,
    "factored": partial(FactoredAttention, row_length=4),
    "sliding": partial(SlidingAttention, window=5),
    "linear": partial(GatedDeltaRule, chunk_length=5),
}
NUM_SONGS, LENGTH, VOCAB_SIZE = 20_000, 3, 5


def prior(mixer: Callable[..., Mixer], length: int, num_codebooks: int = 1, depth: int = 3) -> AutoregressivePrior:
    """A prior with random weights, large enough to matter.

    The codec's vectors have 16 features: torch's kernel of 8 bits crashed on the prior's view of them.
    """
    torch.manual_seed(0)
    level, vectors = Level("top", VOCAB_SIZE, num_codebooks, None), torch.randn(num_codebooks, VOCAB_SIZE, 16)
    facts = Facts(level, vocabulary={"genre": ("", "jazz")}, vectors={"top": vectors})
    model = AutoregressivePrior(32, depth, 2, length, mixer, facts, {"labels": Labels}, pattern=Delay()).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def window(num_songs: int, genre: int = 1, codes: Tensor | None = None) -> Window:
    return Window({} if codes is None else {"top": codes}, {"genre": torch.full((num_songs, 1), genre)})


def uniform(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


def by_hand(logits: Tensor, sampler: Sampler) -> Tensor:
    """The distribution [V] that a sampler makes of logits [V], one code after the other in order of likelihood."""
    ordered = sorted(range(VOCAB_SIZE), key=lambda code: -float(logits[code]))
    shares = (logits.double() / sampler.temperature).exp()
    shares, kept, held = shares / shares.sum(), torch.zeros_like(shares), 0.0
    for rank, code in enumerate(ordered):
        if rank < (sampler.top_k or VOCAB_SIZE) and held < (sampler.top_p or 1.0):
            kept[code] = shares[code]
        held += float(shares[code])
    return kept / kept.sum()


@torch.no_grad()
@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("name", SAMPLERS)
def test_songs_are_as_frequent_as_they_are_likely(name: str, precision: str):
    """Of 20,000 songs each of the 125 comes as often as the exact product of its codes' probabilities: chi-squared."""
    model, sampler = for_sampling(prior(CausalAttention, LENGTH), precision), SAMPLERS[name]
    songs = torch.tensor(list(itertools.product(range(VOCAB_SIZE), repeat=LENGTH)))
    assert isinstance(model, AutoregressivePrior)
    told, untold = (model.logits(window(len(songs), genre, songs[:, None]))[:, 0] for genre in (1, 0))
    logits = untold + sampler.guidance * (told - untold)
    steps = [
        torch.stack([by_hand(row, sampler)[code] for row, code in zip(logits[:, step], songs[:, step], strict=True)])
        for step in range(LENGTH)
    ]
    expected = torch.stack(steps).prod(0) * NUM_SONGS
    sampled = model.sample(window(NUM_SONGS), sampler, uniform(NUM_SONGS, 1, LENGTH))[:, 0]
    powers = VOCAB_SIZE ** torch.arange(LENGTH - 1, -1, -1)
    counts = torch.bincount((sampled * powers).sum(1), minlength=len(songs)).double()
    assert fit(counts, expected) > 0.001


@torch.no_grad()
@pytest.mark.parametrize("precision", [*TOLERANCES, "autocast"])
@pytest.mark.parametrize("mixer", MIXERS.values(), ids=MIXERS)
def test_step_by_step_equals_all_at_once(mixer: Callable[..., Mixer], precision: str):
    """The logits of every position, within the precision's rounding.

    A task under bf16 samples what it shows under autocast: keys in bfloat16 met a memory in float32, and stopped it.
    """
    autocast = precision == "autocast"
    model, tolerance = prior(mixer, 12), TOLERANCES["bf16" if autocast else precision]
    model = model if autocast else for_sampling(model, precision)
    assert isinstance(model, AutoregressivePrior)
    codes = torch.randint(VOCAB_SIZE, (2, 1, 12), generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        known, states = model._conditioning(window(2), 12), model.transformer.empty_state(2, 12)
        found = [model.predict(codes[..., :0], known, states, 0)]
        found += [
            model.predict(codes[..., step - 1 : step], known, states, Place(torch.tensor([step]), 12))
            for step in range(1, 12)
        ]
        wanted = model.logits(window(2, codes=codes))
    torch.testing.assert_close(torch.stack(found, 2), wanted, rtol=tolerance, atol=tolerance)


@torch.no_grad()
@pytest.mark.parametrize(("precision", "largest"), [("bf16", 0.01), ("int8", 0.01)])
def test_fewer_bits_cost_little(precision: str, largest: float):
    """Nats per code of the prior's own songs, above its entropy: more than none, and under a hundredth."""
    model = prior(CausalAttention, LENGTH)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    narrow = for_sampling(model, precision)
    assert isinstance(narrow, AutoregressivePrior)
    songs = window(512, codes=model.sample(window(512), Sampler(), uniform(512, 1, LENGTH)))
    p, q = (each.logits(songs).double().log_softmax(-1) for each in (model, narrow))
    assert 0 < (p.exp() * (p - q)).sum(-1).mean() < largest
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("mixer", "precision", "num_codebooks", "num_songs"), [("causal", "fp32", 1, 3), ("factored", "int8", 2, 1)]
)
def test_a_compiled_step_draws_the_same(
    mixer: str, precision: str, num_codebooks: int, num_songs: int, monkeypatch: pytest.MonkeyPatch
):
    """Code for code, of one song or of a few, given the first steps, while the memory that is read grows.

    Where there is no compiler, that is what a user is told.
    """
    monkeypatch.setattr(stepwise, "_ROOM", 4)
    model = prior(MIXERS[mixer], 12, num_codebooks, depth=3 if mixer == "factored" else 1)
    before = torch.ones(num_songs, num_codebooks, 2, dtype=torch.int64)
    noise, given = uniform(num_songs, num_codebooks, 12), window(num_songs, codes=before)
    plain = for_sampling(model, precision).sample(given, Sampler(), noise)
    assert len(plain.unique()) > 2
    try:
        compiled = for_sampling(model, precision, compiled=True)
    except InputError as error:
        has_headers = Path(sysconfig.get_path("include"), "Python.h").exists()
        assert "compile=true: " in str(error) and not (shutil.which("g++") and has_headers)
    else:
        assert torch.equal(compiled.sample(given, Sampler(), noise), plain)


def test_what_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch):
    """One line tells what was given, and what to do."""
    with pytest.raises(InputError, match="precision=fp8: expected one of fp32, bf16, int8"):
        for_sampling(prior(CausalAttention, LENGTH), "fp8")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(InputError, match="no C\\+\\+ compiler no-such-compiler"):
        for_sampling(prior(CausalAttention, LENGTH), compiled=True)
