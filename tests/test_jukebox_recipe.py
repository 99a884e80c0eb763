"""What `prior=jukebox` trains is the published prior: under OpenAI's keys it gives the same logits."""

import pytest
import torch
from torch import Tensor

from jukebox_lite.errors import InputError
from jukebox_lite.interop import openai
from jukebox_lite.interop.openai.place import place_of
from jukebox_lite.interop.openai.priors import keys_of
from jukebox_lite.levels import LYRICS, NO_VALUE, Facts, Level, Window
from jukebox_lite.nn.narrow import Int8Linear
from jukebox_lite.priors.alignment import attention
from jukebox_lite.priors.jukebox import JukeboxPrior
from jukebox_lite.priors.jukebox_recipe import JukeboxRecipe
from jukebox_lite.priors.stepwise import for_sampling

TOP, BOTTOM = Level("top", 24, 1, 32), Level("bottom", 24, 1, 8)
VOCABULARY = {"artist": ["", "a", "b"], "genre": ["", "c", "d", "e"]}
HPS = {  # of the two levels above, and of the priors below
    "levels": 2,
    "downs_t": [3, 2],
    "strides_t": [2, 2],
    "sr": 22050,
    "l_bins": 24,
    "n_ctx": 64,
    "prior_width": 32,
    "prior_depth": 4,
    "heads": 2,
    "attn_order": 2,
    "blocks": 8,
    "cond_depth": 10,
    "cond_width": 12,
    "cond_dilation_growth_rate": 3,
    "cond_dilation_cycle": 8,
    "cond_c_res": 1,
    "y_bins": [4, 3],
    "min_duration": 0.0,
    "max_duration": 600.0,
}


def recipe(level: Level, vocabulary: dict[str, list[str]] = VOCABULARY) -> JukeboxRecipe:
    torch.manual_seed(3)
    facts = Facts(level, None if level is TOP else TOP, vocabulary, {}, 22050)
    return JukeboxRecipe(facts, 32, 4, 2, 64, num_rows=8, above_width=12, above_depth=10)


def singer() -> JukeboxRecipe:
    """Of four characters and their unknown; layer 16 looks at them."""
    torch.manual_seed(3)
    facts = Facts(TOP, None, VOCABULARY, {}, 22050, ["", "a", "b", "c", "d"])
    return JukeboxRecipe(facts, 32, 16, 2, 64, num_rows=8, num_characters=16).eval()


def window(level: Level) -> Window:
    generator = torch.Generator().manual_seed(4)
    codes = {level.name: torch.randint(24, (2, 1, 64), generator=generator)}
    if level is not TOP:
        codes["top"] = torch.randint(24, (2, 1, 16), generator=generator)
    start, span = torch.tensor([0.0, 31.0]), 64 * level.samples_per_step / 22050
    labels = {"artist": torch.tensor([[1], [2]]), "genre": torch.tensor([[3, 1], [2, -1]])}
    times = {"start_seconds": start, "end_seconds": start + span, "total_seconds": torch.tensor([90.0, 31.05])}
    return Window(codes, labels | times)


def as_openai(prior: JukeboxPrior, hps: dict) -> dict[str, Tensor]:
    """Its weights under OpenAI's keys and in OpenAI's shapes."""
    state = prior.state_dict()
    found = {key: state[ours] for key, ours in keys_of(place_of(hps))}
    return {k: v.T if k.endswith(".w") else v.squeeze(2) if v.ndim == 4 else v for k, v in found.items()}


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("level", [TOP, BOTTOM], ids=["top", "upsampler"])
def test_it_is_openais(level: Level, labelled: bool):
    """Every parameter has its place there, and the logits are equal: conditions, layout, order of attention."""
    hps = HPS | {"level": 1 if level is TOP else 0, "labels": labelled}
    prior = recipe(level, VOCABULARY if labelled else {}).eval()
    theirs = openai.prior(as_openai(prior, hps), hps)
    assert len(theirs.state_dict()) == len(prior.state_dict())
    torch.testing.assert_close(prior.logits(window(level)), theirs.logits(window(level)), rtol=0, atol=0)


def test_with_lyrics_it_is_the_published_one_that_sings():
    """One sequence of characters and codes: the logits of both are OpenAI's; a text that ends early ends in unknown."""
    hps = HPS | {"level": 1, "labels": True, "prior_depth": 16, "attn_order": 12, "single_enc_dec": True}
    hps |= {"n_tokens": 16, "n_vocab": 5, "prime_loss_fraction": 0.4}
    prior, whole = singer(), window(TOP)
    theirs = openai.prior(as_openai(prior, hps), hps)
    assert len(theirs.state_dict()) == len(prior.state_dict())
    told = sung(whole)
    tokens = Window(whole.codes, whole.labels | {LYRICS: told.labels[LYRICS].clamp(min=0)})
    torch.testing.assert_close(prior.logits(told), theirs.logits(tokens), rtol=0, atol=0)
    torch.testing.assert_close(prior.loss(told).total, theirs.loss(tokens).total, rtol=0, atol=0)
    assert not torch.allclose(prior.logits(told)[:, 16:], prior.logits(whole)[:, 16:], atol=1e-5), "it hears none"


def sung(whole: Window) -> Window:
    """The window with characters, of which the second song has three."""
    tokens = torch.randint(1, 5, (2, 16), generator=torch.Generator().manual_seed(5))
    tokens[1, 3:] = NO_VALUE
    return Window(whole.codes, whole.labels | {LYRICS: tokens})


@torch.no_grad()
def test_where_it_looks_is_what_its_layer_uses():
    """Of the sixteenth layer, of which a character's place is that of the input that has just read it."""
    prior, told, seen = singer(), sung(window(TOP)), []
    mixer = prior.transformer.blocks[15].mixer
    hook = mixer.register_forward_hook(lambda _, arguments, y: seen.append((arguments[0], y[0])))
    ((layer, found),) = attention(prior, told).items()
    hook.remove()
    ((x, y),) = seen
    weights = mixer.weights(x)
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    values = mixer.qkv(x).chunk(3, -1)[2].unflatten(-1, (2, -1)).transpose(1, 2)[:, :, : weights.shape[-1]]
    torch.testing.assert_close(mixer.out((weights @ values).transpose(1, 2).flatten(2)), y)
    assert layer == 15
    torch.testing.assert_close(found, weights[:, :, 16:, 1:17])
    assert not mixer._forward_pre_hooks, "a hook that stays would note every later window"


def test_its_first_weights_have_the_published_spread():
    """0.02 for matrices and codes, 0.01 for places and labels, times the scale; biases are 0."""
    torch.manual_seed(0)
    prior = JukeboxRecipe(Facts(TOP, None, VOCABULARY, {}, 22050), 256, 3, 4, 64, num_rows=8, init_scale=0.5)
    spreads = {
        "transformer.blocks.1.mixer.qkv.weight": 0.01,
        "transformer.blocks.2.narrow.weight": 0.01,
        "transformer.embedding.weight": 0.01,
        "transformer.positions": 0.005,
        "conditioners.labels.genre.weight": 0.005,
        "conditioners.timing.absolute.weight": 0.005,
    }
    found = {name: prior.get_parameter(name).std().item() for name in spreads}
    assert found == pytest.approx(spreads, rel=0.1)
    assert all((p == 0).all() for name, p in prior.named_parameters() if name.endswith("bias"))


def test_what_it_cannot_be_is_refused():
    with pytest.raises(InputError, match="level top has 2"):
        JukeboxRecipe(Facts(Level("top", 24, 2, 32)), 32, 3, 2, 64)
    with pytest.raises(InputError, match=r"divisor of 60, prior.num_characters \+ context_length"):
        JukeboxRecipe(Facts(TOP), 32, 3, 2, 60, num_rows=8)
    with pytest.raises(InputError, match="divisor of 8, the width of attention"):
        JukeboxRecipe(Facts(TOP), 32, 3, 3, 64, num_rows=8)
    with pytest.raises(InputError, match="no training song has any"):
        JukeboxRecipe(Facts(TOP), 32, 16, 2, 64, num_rows=8, num_characters=16)
    with pytest.raises(InputError, match="depth=12: only layer 16 looks at lyrics"):
        JukeboxRecipe(Facts(TOP, characters=["", "a"]), 32, 12, 2, 64, num_rows=8, num_characters=16)
    with pytest.raises(InputError, match="num_characters=-8: expected 0"):
        JukeboxRecipe(Facts(TOP), 32, 3, 2, 64, num_rows=8, num_characters=-8)


@torch.no_grad()
@pytest.mark.parametrize("level", [TOP, BOTTOM], ids=["top", "upsampler"])
def test_in_fewer_bits_the_head_goes_its_own_way(level: Level):
    """It is the embedding, which stays whole: what it tells of a step is rounded, what is told to it is not."""
    prior = recipe(level).eval()
    torch.nn.init.normal_(prior.transformer.embedding.weight)
    narrow = for_sampling(prior, "int8")
    assert isinstance(narrow, JukeboxPrior) and isinstance(narrow.head, Int8Linear)
    assert torch.equal(narrow.transformer.embedding.weight, prior.transformer.embedding.weight)
    assert prior.head is None
    found, wanted = narrow.logits(window(level)), prior.logits(window(level))
    assert not torch.equal(found, wanted)
    torch.testing.assert_close(found, wanted, rtol=0.02, atol=0.02 * wanted.abs().max().item())
