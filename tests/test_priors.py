"""Priors: learn by heart and say it again, keep what is given, draw from the right distribution."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch

from jukebox_lite.errors import InputError
from jukebox_lite.levels import Facts, Level, Window
from jukebox_lite.nn.transformer import CausalAttention
from jukebox_lite.priors.autoregressive import AutoregressivePrior
from jukebox_lite.priors.base import Sampler
from jukebox_lite.priors.codes import CodeEmbedding, CodeVectors
from jukebox_lite.priors.conditioning import Label, Labels, LevelAbove, Timing
from jukebox_lite.priors.patterns import Delay, Flatten, Parallel
from jukebox_lite.priors.stepwise import draw

TOP = Level("top", vocab_size=5, channels=1, hop_length=16)
BOTTOM = Level("bottom", vocab_size=7, channels=2, hop_length=4)
VOCABULARY = {"genre": ["", "jazz", "rock"], "artist": [""]}
SOUNDS = torch.Generator().manual_seed(9)
VECTORS = {"top": torch.randn(1, 5, 3, generator=SOUNDS), "bottom": torch.randn(2, 7, 3, generator=SOUNDS)}
FACTS = {"top": Facts(TOP, None, VOCABULARY), "bottom": Facts(BOTTOM, TOP, VOCABULARY, VECTORS)}
CONDITIONERS = {
    "above": partial(LevelAbove, width=8, depth=2),
    "labels": Labels,
    "timing": Timing,
}


PATTERNS = {"parallel": Parallel(), "delay": Delay(), "flatten": Flatten()}
KINDS = [("top", "parallel"), *(("bottom", pattern) for pattern in PATTERNS)]


def prior(level: str, pattern: str = "parallel") -> AutoregressivePrior:
    torch.manual_seed(0)
    return AutoregressivePrior(16, 2, 2, 8, CausalAttention, FACTS[level], CONDITIONERS, pattern=PATTERNS[pattern])


def window(level: str, batch: int = 2, seed: int = 0) -> Window:
    generator = torch.Generator().manual_seed(seed)
    codes = {"top": torch.randint(5, (batch, 1, 8), generator=generator)}
    if level == "bottom":
        codes["bottom"] = torch.randint(7, (batch, 2, 8), generator=generator)
        codes["top"] = codes["top"][..., :2]
    seconds = {f"{name}_seconds": torch.full((batch,), value) for name, value in (("start", 3.0), ("end", 4.0))}
    labels = {"genre": torch.ones(batch, 1, dtype=torch.int64), "artist": torch.zeros(batch, 1, dtype=torch.int64)}
    return Window(codes, labels | seconds | {"total_seconds": torch.full((batch,), 60.0)})


def asked(whole: Window, level: str, given: int = 0) -> Window:
    """The same window with only the first `given` steps of its level."""
    codes = {name: codes for name, codes in whole.codes.items() if name != level}
    return Window(codes | ({level: whole.codes[level][..., :given]} if given else {}), whole.labels)


@pytest.mark.parametrize(("level", "pattern"), KINDS)
def test_a_prior_learns_a_window_by_heart_and_says_it_again(level: str, pattern: str):
    """After some steps on one window the loss is near zero, and at temperature 0 the window comes back."""
    model, whole = prior(level, pattern), window(level, batch=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(150):
        loss = model.loss(whole).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05
    noise = torch.rand(whole.codes[level].shape)
    said = model.eval().sample(asked(whole, level), Sampler(temperature=0.0), noise)
    assert torch.equal(said, whole.codes[level])


@pytest.mark.parametrize(("level", "pattern"), KINDS)
def test_training_starts_at_the_chance_line(level: str, pattern: str):
    """A new prior is exactly as surprised as a die: ln of the codebook size."""
    loss = prior(level, pattern).loss(window(level))
    assert loss.total.item() == pytest.approx(math.log(FACTS[level].level.vocab_size), rel=1e-5)
    assert loss.metrics["chance"].item() == pytest.approx(loss.metrics["nats_per_token"].item(), rel=1e-5)


def shaken(level: str, pattern: str = "parallel") -> AutoregressivePrior:
    """A prior whose every parameter matters."""
    model = prior(level, pattern).eval()
    for index, parameter in enumerate(model.parameters()):
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(index))
    return model


@pytest.mark.parametrize("given", [1, 5, 8])
@pytest.mark.parametrize(("level", "pattern"), KINDS)
def test_what_is_given_is_kept(level: str, pattern: str, given: int):
    """Sampling begins with the codes it is given, and fills the rest of the window."""
    whole, model = window(level), shaken(level, pattern)
    codes = model.sample(asked(whole, level, given), Sampler(), torch.rand(whole.codes[level].shape))
    assert torch.equal(codes[..., :given], whole.codes[level][..., :given])
    assert codes.shape == whole.codes[level].shape
    assert codes.min() >= 0 and codes.max() < FACTS[level].level.vocab_size


@pytest.mark.parametrize("given", [0, 3, 7])
@pytest.mark.parametrize("sampler", [Sampler(temperature=0.0), Sampler()])
@pytest.mark.parametrize(("level", "pattern"), KINDS)
def test_sampling_sees_what_training_sees(level: str, pattern: str, sampler: Sampler, given: int):
    """Sampling, which goes position by position, draws what the all-at-once logits of its codes give by its noise."""
    model, whole = shaken(level, pattern), window(level)
    noise = torch.rand(whole.codes[level].shape)
    codes = model.sample(asked(whole, level, given), sampler, noise)
    with torch.no_grad():
        logits = model.logits(Window({**whole.codes, level: codes}, whole.labels))
    assert torch.equal(draw(logits, sampler, noise)[..., given:], codes[..., given:])


def test_sampling_is_a_function_of_its_noise():
    """Equal noise, equal codes; a shorter window, and another batch size, begin with the same codes."""
    model, whole = shaken("top"), window("top", batch=3)
    noise = torch.rand(3, 1, 8)
    codes = model.sample(asked(whole, "top"), Sampler(), noise)
    assert torch.equal(model.sample(asked(whole, "top"), Sampler(), noise), codes)
    assert not torch.equal(model.sample(asked(whole, "top"), Sampler(), 1 - noise), codes)
    one = Window({}, {name: values[1:2] for name, values in whole.labels.items()})
    assert torch.equal(model.sample(one, Sampler(), noise[1:2]), codes[1:2])


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize(("level", "pattern"), KINDS)
def test_what_was_drawn_can_be_gone_through_again_to_the_bit(level: str, pattern: str, guidance: float):
    """Codes given and not read at once leave the same logits as where they were drawn; a pause between changes none."""
    model, whole, told = shaken(level, pattern), window(level), []
    model.predict = lambda *arguments: told.append(type(model).predict(model, *arguments)) or told[-1]
    sampler, noise = Sampler(guidance=guidance), torch.rand(whole.codes[level].shape)
    drawn = torch.stack(list(model.draw(asked(whole, level, 2), sampler, noise)), -1)
    codes, first = torch.cat([whole.codes[level][..., :2], drawn], -1), torch.stack(told)
    told.clear()
    for done in range(2, 8):
        again = torch.stack(
            list(
                model.draw(
                    asked(Window({**whole.codes, level: codes}, whole.labels), level, done), sampler, noise, read=2
                )
            ),
            -1,
        )
        assert torch.equal(again, drawn) and torch.equal(torch.stack(told), first)
        told.clear()


# --- patterns ------------------------------------------------------------------------------------------------------

Place = tuple[int, int]  # time step, codebook
BEFORE: dict[str, Callable[[Place, Place], bool]] = {  # whether the code at one place is before that at the other
    "parallel": lambda one, other: one[0] < other[0],
    "delay": lambda one, other: sum(one) < sum(other),
    "flatten": lambda one, other: one < other,
}


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize(("num_codebooks", "num_steps"), [(1, 1), (1, 5), (4, 1), (3, 7), (8, 2)])
def test_a_sequence_holds_every_code_once(pattern: str, num_codebooks: int, num_steps: int):
    """Reverting gives back what was applied; nothing else is in the sequence, and no position is empty."""
    codes = torch.arange(2 * num_codebooks * num_steps).view(2, num_codebooks, num_steps)
    sequence = PATTERNS[pattern].apply(codes)
    assert torch.equal(PATTERNS[pattern].revert(sequence, num_steps), codes)
    assert torch.equal(sequence[sequence >= 0].sort().values, codes.flatten())
    assert (sequence >= 0).any(1).all() and (sequence >= -1).all()
    steps = PATTERNS[pattern].steps(num_codebooks, num_steps)
    assert torch.equal(PATTERNS[pattern].apply(torch.arange(num_steps).expand(1, num_codebooks, -1))[0], steps)
    if num_codebooks == 1:
        assert torch.equal(sequence, codes)


def test_patterns_are_those_of_the_paper():
    """As in MusicGen's figure 1, of three steps and two codebooks."""
    codes = torch.tensor([[[11, 12, 13], [21, 22, 23]]])
    assert PATTERNS["parallel"].apply(codes).tolist() == [[[11, 12, 13], [21, 22, 23]]]
    assert PATTERNS["delay"].apply(codes).tolist() == [[[11, 12, 13, -1], [-1, 21, 22, 23]]]
    assert PATTERNS["flatten"].apply(codes).tolist() == [[[11, -1, 12, -1, 13, -1], [-1, 21, -1, 22, -1, 23]]]


@torch.no_grad()
@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_code_is_heard_by_those_after_it_and_by_no_other(pattern: str):
    """Any code of two codebooks, changed, changes the logits of all that the pattern puts after it, and no bit else."""
    model, whole = shaken("bottom", pattern), window("bottom", batch=1)
    plain = model.logits(whole)
    for j in range(2):
        for u in range(8):
            other = whole.codes["bottom"].clone()
            other[0, j, u] = (other[0, j, u] + 1) % 7
            changed = (model.logits(Window({**whole.codes, "bottom": other}, whole.labels)) != plain).any(-1)[0]
            expected = [[BEFORE[pattern]((u, j), (t, k)) for t in range(8)] for k in range(2)]
            assert changed.tolist() == expected, f"codebook {j}, step {u}"


@torch.no_grad()
@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_probabilities_of_all_songs_add_up_to_one(pattern: str):
    """Every window of two steps of two codebooks of three codes: the chain rule leaves nothing out or in twice."""
    level, conditioners = Level("x", vocab_size=3, channels=2, hop_length=4), {"labels": Labels}
    torch.manual_seed(0)
    facts = Facts(level, None, VOCABULARY)
    model = AutoregressivePrior(16, 2, 2, 2, CausalAttention, facts, conditioners, pattern=PATTERNS[pattern])
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    codes = torch.cartesian_prod(*[torch.arange(3)] * 4).view(81, 2, 2)
    logits = model.logits(Window({"x": codes}, window("top", batch=81).labels))
    chosen = logits.log_softmax(-1).gather(-1, codes[..., None])[..., 0].sum((1, 2))
    assert chosen.exp().sum().item() == pytest.approx(1, abs=1e-5)
    assert chosen.exp().std() > 1e-3, "some songs are likelier than others"


@pytest.mark.parametrize("pattern", ["delay", "flatten"])
def test_with_one_codebook_all_patterns_are_the_same(pattern: str):
    """Bit for bit: what is learnt and what is drawn."""
    one, other, whole = shaken("top"), shaken("top", pattern), window("top")
    noise = torch.rand(whole.codes["top"].shape)
    assert torch.equal(one.logits(whole), other.logits(whole)) and one.loss(whole).total == other.loss(whole).total
    songs = [model.sample(asked(whole, "top", 2), Sampler(), noise) for model in (one, other)]
    assert torch.equal(*songs)


def test_only_a_pattern_that_knows_can_learn_how_codebooks_agree():
    """Of two codebooks that are always equal, and else random, the second is free to who knows the first."""
    level = Level("x", vocab_size=4, channels=2, hop_length=4)
    found = {}
    for name, pattern in PATTERNS.items():
        torch.manual_seed(0)
        model = AutoregressivePrior(16, 1, 2, 8, CausalAttention, Facts(level), {}, pattern=pattern)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(150):
            loss = model.loss(Window({"x": torch.randint(4, (16, 1, 8)).expand(-1, 2, -1)})).total
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        found[name] = loss.item()
    assert found["parallel"] > 0.95 * math.log(4)
    assert found["delay"] < 0.6 * math.log(4) and found["flatten"] < 0.6 * math.log(4)


# --- guidance ------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("guidance", [0.0, 0.5, 2.0, 5.0])
@pytest.mark.parametrize(("level", "pattern"), KINDS)
def test_guidance_is_its_formula_on_two_logits(level: str, pattern: str, guidance: float):
    """Greedy songs are the likeliest codes by without + g (with - without), each computed alone; g of 0 is without."""
    model, whole = shaken(level, pattern), window(level)
    noise = torch.rand(whole.codes[level].shape)
    codes = model.sample(asked(whole, level, 2), Sampler(temperature=0.0, guidance=guidance), noise)
    said = Window({**whole.codes, level: codes}, whole.labels)
    silent = Window(said.codes, {**said.labels, "genre": torch.zeros(2, 1, dtype=torch.int64)})
    told, untold = model.logits(said), model.logits(silent)
    expected = (untold + guidance * (told - untold)).argmax(-1)
    assert torch.equal(codes[..., 2:], expected[..., 2:]) and torch.equal(codes[..., :2], whole.codes[level][..., :2])
    assert not torch.equal(expected, told.argmax(-1)), "the labels should matter"


@pytest.mark.parametrize("level", ["top", "bottom"])
def test_guidance_of_one_is_none_and_costs_nothing(level: str):
    """Bit for bit the same codes, from a transformer that sees no larger batch."""
    model, whole, noise = shaken(level), window(level), torch.rand(window(level).codes[level].shape)
    sizes = []
    model.transformer.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    plain = model.sample(asked(whole, level), Sampler(), noise)
    assert torch.equal(model.sample(asked(whole, level), Sampler(guidance=1.0), noise), plain) and set(sizes) == {2}
    assert not torch.equal(model.sample(asked(whole, level), Sampler(guidance=4.0), noise), plain)
    assert set(sizes) == {2, 4}


@pytest.mark.parametrize("level", ["top", "bottom"])
def test_guidance_by_nothing_changes_nothing(level: str):
    """Where the labels are unknown anyway, both logits are the same, and so are the songs at any guidance."""
    model, whole, noise = shaken(level), window(level), torch.rand(window(level).codes[level].shape)
    silent = asked(model.facts.untold(whole), level)
    plain = model.sample(silent, Sampler(), noise)
    assert torch.equal(model.sample(silent, Sampler(guidance=7.0), noise), plain)


def test_a_guided_song_is_the_same_in_any_company():
    """Song 1 of three, each with another genre and level above, is what it is alone."""
    model, whole, noise = shaken("bottom"), window("bottom", batch=3), torch.rand(3, 2, 8)
    whole.labels["genre"] = torch.tensor([[0], [1], [2]])
    codes = model.sample(asked(whole, "bottom"), Sampler(guidance=3.0), noise)
    for song in range(3):
        one = slice(song, song + 1)
        alone = Window({"top": whole.codes["top"][one]}, {name: values[one] for name, values in whole.labels.items()})
        assert torch.equal(model.sample(alone, Sampler(guidance=3.0), noise[one]), codes[one])


# --- conditions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["above", "genre", "start_seconds", "total_seconds"])
def test_every_condition_is_heard(change: str):
    """Another level above, label or time changes what is predicted; the unknown label is a value like others."""
    level = "bottom" if change == "above" else "top"
    model, whole = shaken(level), window(level)
    other = Window(dict(whole.codes), dict(whole.labels))
    if change == "above":
        other.codes["top"] = (whole.codes["top"] + 1) % 5
    elif change == "genre":
        other.labels["genre"] = torch.zeros(2, 1, dtype=torch.int64)
    else:
        other.labels[change] = whole.labels[change] * 0.2
    assert model.loss(whole).total != model.loss(other).total


def test_unlabelled_data_needs_no_labels():
    """A data set without genres and artists leaves only the unknown; nothing is learnt of it and nothing fails."""
    facts = Facts(TOP, None, {"genre": [""], "artist": [""]})
    model = AutoregressivePrior(16, 2, 2, 8, CausalAttention, facts, CONDITIONERS)
    assert not [name for name, _ in model.named_parameters() if "labels" in name]
    model.loss(window("top")).total.backward()


def test_every_label_of_the_vocabulary_has_a_conditioner_of_its_own():
    """Whatever the column is called, and as many as there are; its values are told apart from those of the others."""
    vocabulary = {"type": ["", "a"], "key.signature": ["", "a", "b"], "forward": ["", "a"], "artist": [""]}
    conditioner = Labels(8, Facts(TOP, None, vocabulary))
    assert [tuple(weight.shape) for weight in conditioner.parameters()] == [(2, 8), (3, 8), (2, 8)]
    told = {name: torch.zeros(1, 1, dtype=torch.int64) for name in vocabulary}
    changed = [told | {name: torch.ones(1, 1, dtype=torch.int64)} for name in ("type", "key.signature", "forward")]
    heard = [conditioner(Window({}, labels), 4).start for labels in (told, *changed)]
    assert len({tuple(x[0].tolist()) for x in heard}) == 4


def test_several_values_are_summed():
    """Of jazz and rock the sum of their vectors, in whatever order and company; unknown is a value with a vector."""
    facts = FACTS["top"]
    label = Label(8, facts, "genre")
    indices = facts.indices({"genre": ["rock; jazz", " jazz;rock;jazz ", "rock", "", ";"]})["genre"]
    assert indices.tolist() == [[1, 2], [1, 2], [2, -1], [0, -1], [0, -1]]
    heard = label(Window({}, {"genre": indices}), 3)
    unknown, jazz, rock = label.embedding.weight
    assert torch.equal(heard.start, torch.stack([jazz + rock, jazz + rock, rock, unknown, unknown]))
    assert torch.equal(heard.aligned, heard.start[:, None].expand(-1, 3, -1))
    alone = label(Window({}, facts.indices({"genre": ["rock"]})), 3)
    assert torch.equal(alone.start[0], heard.start[2])
    with pytest.raises(InputError, match="labels.genre=polka: .* knows jazz, rock"):
        facts.indices({"genre": ["jazz; polka"]})


def test_a_conditioner_without_its_label_is_named():
    """A Label of something that windows.labels leaves out is a one-line error."""
    with pytest.raises(InputError, match="conditioner mood"):
        AutoregressivePrior(16, 1, 2, 8, CausalAttention, FACTS["top"], {"mood": partial(Label, name="mood")})


@pytest.mark.parametrize(
    "sampler", [Sampler(), Sampler(temperature=0.5), Sampler(top_k=3), Sampler(top_p=0.8), Sampler(1.5, 4, 0.9)]
)
def test_draws_follow_the_distribution(sampler: Sampler):
    """100,000 draws of 6 codes agree with the probabilities worked out by hand, and never leave top_k or top_p."""
    logits = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -2.0])
    expected = (logits / sampler.temperature).softmax(-1)
    if sampler.top_k:
        expected[sampler.top_k :] = 0
        expected /= expected.sum()
    if sampler.top_p:
        before = expected.cumsum(-1) - expected
        expected[before >= sampler.top_p] = 0
        expected /= expected.sum()
    noise = (torch.arange(100_000) + 0.5) / 100_000
    drawn = draw(logits.expand(100_000, -1), sampler, noise[torch.randperm(100_000)])
    found = torch.bincount(drawn, minlength=6) / 100_000
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def test_the_extremes_of_the_noise_are_codes():
    """Noise of 0 takes the first code that is possible, and the largest below 1 the last that is."""
    logits = torch.tensor([-torch.inf, 0.0, 0.0, -torch.inf])
    noise = torch.tensor([0.0, torch.nextafter(torch.tensor(1.0), torch.tensor(0.0))])
    assert draw(logits.expand(2, -1), Sampler(), noise).tolist() == [1, 2]


def test_a_head_can_rank_codes_by_their_distance_to_any_point():
    """With the squared lengths as a feature, a linear map gives the log density of a Gaussian at every code."""
    vectors = torch.randn(50, 4, generator=torch.Generator().manual_seed(3))
    features = CodeVectors(vectors).features
    wanted = -torch.cdist(torch.randn(20, 4, generator=torch.Generator().manual_seed(4)), vectors).square()
    wanted = wanted - wanted.mean(1, keepdim=True)  # logits matter up to a constant
    centred = features - features.mean(0)
    solution = torch.linalg.lstsq(centred, wanted.T).solution
    torch.testing.assert_close(centred @ solution, wanted.T, rtol=1e-3, atol=1e-3)


def test_codes_that_sound_alike_are_embedded_alike():
    """Two codes with the same vector differ by what is learnt of each only, two others by their vectors as well."""
    vectors = torch.randn(6, 3, generator=torch.Generator().manual_seed(5))
    vectors[1] = vectors[0]
    embedding = CodeEmbedding(6, 8, CodeVectors(vectors))
    torch.nn.init.zeros_(embedding.table.weight)
    x = embedding(torch.arange(6)[None])[0]
    torch.testing.assert_close(x[0], x[1])
    assert (x[0] - x[2]).abs().max() > 1e-3
