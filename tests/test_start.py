"""Beginning with another's weights: what is equal at the first step, what stays, and what is refused."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from weights import noise, save_as_openai, shaken

from jukebox_lite.codecs.jukebox_vq import JukeboxVQ
from jukebox_lite.codecs.quantizers import DAC, RVQ, VQ, SimVQ
from jukebox_lite.codecs.vqvae import HierarchicalVQVAE
from jukebox_lite.errors import InputError
from jukebox_lite.interop import openai
from jukebox_lite.interop.openai.place import place_of
from jukebox_lite.interop.openai.priors import keys_of
from jukebox_lite.levels import Facts, Level, Window
from jukebox_lite.nn.transformer import CausalAttention
from jukebox_lite.priors.autoregressive import AutoregressivePrior
from jukebox_lite.priors.base import Prior
from jukebox_lite.priors.conditioning import Labels, LevelAbove, Timing
from jukebox_lite.priors.jukebox_recipe import JukeboxRecipe
from jukebox_lite.training.carry import carry
from jukebox_lite.training.start import freeze

TOP, BOTTOM = Level("top", 12, 1, 32), Level("bottom", 12, 1, 8)
GENRES = {"artist": ["", "ann", "bob"], "genre": ["", "folk", "jazz", "rock"]}
OTHER_GENRES = {"genre": ["", "blues", "jazz", "folk"], "artist": ["", "zoe", "bob", "ann"]}
QUANTIZERS = {
    "vq": partial(VQ, codebook_size=16),
    "jukebox": partial(JukeboxVQ, codebook_size=16),
    "rvq": partial(RVQ, codebook_size=16, num_codebooks=2),
    "dac": partial(DAC, codebook_size=16, num_codebooks=2, codebook_dim=3),
    "simvq": partial(SimVQ, codebook_size=16),
}


def facts_of(vocabulary: dict[str, list[str]], level: Level = TOP) -> Facts:
    vectors = {"top": torch.randn(1, 12, 4, generator=torch.Generator().manual_seed(5))}
    return Facts(level, None if level is TOP else TOP, vocabulary, vectors, 100)


def prior(facts: Facts, seed: int = 0, max_seconds: float = 60.0, length: int = 16, num_bins: int = 16) -> Prior:
    conditioners = {
        "above": partial(LevelAbove, width=8, depth=1),
        "labels": Labels,
        "timing": partial(Timing, max_seconds=max_seconds, num_bins=num_bins),
    }
    return shaken(AutoregressivePrior(16, 2, 2, length, CausalAttention, facts, conditioners), seed)


def recipe(facts: Facts, seed: int = 0, length: int = 16, depth: int = 4, **options: Any) -> JukeboxRecipe:
    rows = (length + options.get("num_characters", 0)) // 4  # of four steps, however long the context is
    options |= {"num_rows": rows, "above_width": 8, "above_depth": 1}
    return shaken(JukeboxRecipe(facts, 16, depth, 2, length, **options), seed)


def window(facts: Facts, told: dict[str, list[str]], length: int = 16) -> Window:
    """Two songs, told these values of their labels."""
    generator = torch.Generator().manual_seed(4)
    codes = {facts.level.name: torch.randint(12, (2, 1, length), generator=generator)}
    if facts.above:
        codes["top"] = torch.randint(12, (2, 1, length // 4), generator=generator)
    start = torch.tensor([0.0, 31.0])
    times = {"start_seconds": start, "end_seconds": start + length * facts.level.samples_per_step / 100}
    return Window(codes, facts.indices(told) | times | {"total_seconds": torch.tensor([50.0, 58.0])})


def assert_equal_logits(ours: Any, theirs: Any, *windows: Window) -> None:
    """Bit for bit, of windows for ours and for theirs."""
    with torch.no_grad():
        assert torch.equal(ours.logits(windows[0]), theirs.logits(windows[-1]))


@pytest.mark.parametrize("make", [prior, recipe], ids=["autoregressive", "jukebox"])
@pytest.mark.parametrize("level", [TOP, BOTTOM], ids=["top", "upsampler"])
def test_a_label_keeps_its_vector_whatever_its_index(make: Callable[..., Prior], level: Level):
    """Labels and values in another order: equal values, equal logits. A new value is heard as none."""
    theirs = make(facts_of(GENRES, level))
    ours = make(facts_of(OTHER_GENRES, level), seed=1)
    carried = carry(ours, theirs.state_dict(), theirs)
    assert not carried.new and len(carried.fitted) == 2 and all("3 rows of" in line for line in carried.fits[:1])
    for told in ({"artist": ["ann", "bob"], "genre": ["jazz", "folk; jazz"]}, {"genre": ["folk", ""]}):
        assert_equal_logits(ours, theirs, window(ours.facts, told), window(theirs.facts, told))
    told, untold = ({"genre": [genre, "jazz"]} for genre in ("blues", ""))
    assert_equal_logits(ours, theirs, window(ours.facts, told), window(theirs.facts, untold))
    jazz, folk = (window(ours.facts, {"genre": [genre] * 2}) for genre in ("jazz", "folk"))
    with torch.no_grad(), pytest.raises(AssertionError):
        assert_equal_logits(ours, ours, jazz, folk)


def test_a_label_that_is_new_is_not_heard_at_first():
    """A source that knew no artists gives equal logits for any of them; their vectors have a gradient."""
    theirs, ours = prior(facts_of({"genre": GENRES["genre"]})), prior(facts_of(OTHER_GENRES), seed=1)
    carry(ours, theirs.state_dict(), theirs)
    told = {"genre": ["folk", "jazz"]}
    heard = window(ours.facts, told | {"artist": ["zoe", "bob"]})
    assert_equal_logits(ours, theirs, heard, window(theirs.facts, told))
    ours.loss(heard).total.backward()
    gradients = {name: p.grad for name, p in ours.named_parameters() if name.startswith("conditioners.labels")}
    assert all(each is not None and each.abs().sum() > 0 for each in gradients.values())


def test_a_longer_context_begins_like_the_shorter():
    """Learnt positions are kept as far as they go, and so are Jukebox's shares of a window that ends with the song."""
    theirs, ours = recipe(facts_of({})), recipe(facts_of({}), seed=1, length=32)
    carried = carry(ours, theirs.state_dict(), theirs)
    assert carried.fitted.keys() == {"transformer.positions"} and "16 rows of 16, 16 begin fresh" in carried.fits[0]
    short, long = (window(theirs.facts, {}, length) for length in (16, 32))
    long.codes["top"][..., :16] = short.codes["top"]
    with torch.no_grad():
        torch.testing.assert_close(ours.logits(long)[:, :16], theirs.logits(short), rtol=1e-5, atol=1e-6)
    assert "context_length 16 -> 32" in " ".join(carried.settings)
    longer = prior(facts_of(GENRES), seed=1, length=64)
    known = prior(facts_of(GENRES))
    assert not carry(longer, known.state_dict(), known).fits
    assert_equal_logits(longer, known, window(known.facts, {}))


def test_characters_keep_their_vectors_and_codes_theirs():
    """Lyrics before the codes, of another alphabet: codes and the letters that stay are heard as before."""
    told = {"num_characters": 4, "length": 20, "depth": 16}
    theirs, ours = (
        recipe(replace(facts_of({}), characters=letters), seed, **told)
        for seed, letters in enumerate((["", "a", "b"], ["", "b", "c", "d", "a"]))
    )
    carried = carry(ours, theirs.state_dict(), theirs)
    assert carried.fitted.keys() == {"transformer.embedding.weight"} and not carried.new
    mine, old = (window(model.facts, {}, 20) for model in (ours, theirs))
    mine.labels["lyrics"], old.labels["lyrics"] = torch.tensor([[1, 4, 4, 0]] * 2), torch.tensor([[2, 1, 1, 0]] * 2)
    with torch.no_grad():
        assert torch.equal(ours.logits(mine)[..., 5:], theirs.logits(old)[..., 3:])
        assert torch.equal(ours.logits(mine)[..., [0, 1, 4]], theirs.logits(old)[..., [0, 2, 1]])


@pytest.mark.parametrize("make", [prior, partial(recipe, min_seconds=0.0)], ids=["autoregressive", "jukebox"])
def test_times_keep_their_vectors_in_other_bins(make: Callable[..., Prior]):
    """Told 120 seconds where there were 60: times in both bins' middles are heard as before, later ones as the last."""
    theirs, ours = make(facts_of(GENRES), max_seconds=64.0), make(facts_of(GENRES), seed=1, max_seconds=128.0)
    carry(ours, theirs.state_dict(), theirs)
    count = 16 if make is prior else 64
    mine, old = (dict(model.named_parameters()) for model in (ours, theirs))
    names = [name for name in mine if name.startswith("conditioners.timing")]
    assert len(names) == 3
    for name, relative in zip(names, (False, False, True), strict=True):
        rows = torch.arange(count) if relative else (2 * torch.arange(count) + 1).clamp(max=count - 1)
        assert torch.equal(mine[name], old[name][rows])


def codec(quantizer: Callable[..., Any] = QUANTIZERS["vq"], seed: int = 0, **options: Any) -> HierarchicalVQVAE:
    """A small one that has heard a batch, so that its codebooks are started."""
    torch.manual_seed(seed)
    shape: dict[str, Any] = {"strides": {"top": [2], "bottom": [2, 2]}, "dim": 8, "depth": 1} | options
    model = HierarchicalVQVAE(sample_rate=100, latent_dim=4, quantizer=quantizer, **shape)
    model(noise(seed))
    return model


@pytest.mark.parametrize("quantizer", QUANTIZERS.values(), ids=QUANTIZERS)
def test_a_codec_begins_as_the_other_is(quantizer: Callable[..., Any]):
    """Whole: the same codes and the same sound. With a level fewer, or another codebook: what fits, as a whole."""
    theirs, ours = codec(quantizer).eval(), codec(quantizer, seed=1).eval()
    assert not carry(ours, theirs.state_dict(), theirs).new
    codes = theirs.encode(noise(2))
    assert all(torch.equal(mine, codes[level]) for level, mine in ours.encode(noise(2)).items())
    assert torch.equal(ours.decode(codes), theirs.decode(codes))
    single = codec(quantizer, seed=1, strides={"bottom": [2, 2]}).eval()
    carried = carry(single, theirs.state_dict(), theirs)
    assert not carried.new and all(".top." in key for key in carried.left)
    assert torch.equal(single.encode(noise(2))["bottom"], codes["bottom"])


def test_a_codebook_goes_with_its_encoder_only():
    """Entries are of no use to another encoder; an encoder is, to other entries, which then start from its latents."""
    theirs = codec()
    deeper = carry(codec(seed=1, strides={"top": [2, 2], "bottom": [2, 2]}), theirs.state_dict(), theirs)
    assert {key.split(".")[0] for key in deeper.new} == {"encoders", "quantizers", "decoders"}
    assert all(".top." in key for key in deeper.new)
    larger = HierarchicalVQVAE(100, {"top": [2], "bottom": [2, 2]}, 8, 1, 4, partial(VQ, codebook_size=32))
    carried = carry(larger, theirs.state_dict(), theirs)
    assert {key.split(".")[0] for key in carried.new} == {"quantizers"} and "vocab_size 16 -> 32" in carried.settings
    larger(noise(3))
    assert larger.quantizers["top"].get_buffer("vq._codebook.embed").std() > 0


@pytest.mark.parametrize("quantizer", QUANTIZERS.values(), ids=QUANTIZERS)
@pytest.mark.parametrize("patterns", [["quantizers.*"], ["encoders.*", "quantizers.*"]], ids=["codebook", "codes"])
def test_what_is_frozen_stays_to_the_bit_and_the_rest_moves(quantizer: Callable[..., Any], patterns: list[str]):
    """Codebooks too, which move by themselves and revive the dead; the encoder hears through a frozen one."""
    model = codec(quantizer)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    frozen = freeze({"codec": model}, patterns)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 0.01)
    for step in range(3):
        output = model(noise(step))
        loss = sum((heard - noise(step)).square().mean() + q.loss for heard, q in output.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert not moved & frozen.keys() and all(key.startswith("quantizers.") for key in frozen if len(patterns) == 1)
    for part in ("encoders", "decoders"):
        names = {name for name, _ in model.named_parameters() if name.startswith(f"{part}.")}
        assert names <= (frozen.keys() if f"{part}.*" in patterns else moved), part


def test_patterns_are_held_to_their_word():
    """Nothing matched, half of what moves as a whole, nothing left to learn: one line each, with what there is."""
    for patterns, says in {
        ("encoder.*",): r"no weight is called encoder\.\*; there are .*encoders\.\*",
        ("*.embed",): r"_codebook.embed moves with .*cluster_size.*freeze quantizers.top.vq._codebook",
        ("*",): "nothing is left of the codec to learn",
    }.items():
        with pytest.raises(InputError, match=says):
            freeze({"codec": codec()}, patterns)


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("level", [TOP, BOTTOM], ids=["top", "upsampler"])
def test_openais_prior_gives_its_logits(level: Level, labelled: bool, tmp_path: Path):
    """From its file, by the numbers of its labels as their names, in another order; its head and times likewise."""
    hps = {
        "levels": 2, "downs_t": [3, 2], "strides_t": [2, 2], "sr": 100, "l_bins": 12, "n_ctx": 16, "prior_width": 16,
        "prior_depth": 4, "heads": 2, "attn_order": 2, "blocks": 4, "cond_depth": 1, "cond_width": 8, "y_bins": [4, 3],
        "cond_dilation_growth_rate": 3, "cond_dilation_cycle": 8, "cond_c_res": 1, "min_duration": 17.0,
        "max_duration": 60.0, "merged_decoder": level is TOP, "level": 1 if level is TOP else 0, "labels": labelled,
    }  # fmt: skip
    options = {"min_seconds": 17.0, "max_seconds": 60.0, "merged": level is TOP, "lyric_weight": 0.1}
    numbers = {"artist": ["", "1", "2"], "genre": ["", "1", "2", "3"]} if labelled else {}
    theirs = recipe(facts_of(numbers, level), **options)
    save_as_openai(tmp_path / "prior.pth.tar", theirs, keys_of(place_of(hps)), hps)
    theirs = openai.read_prior(tmp_path / "prior.pth.tar", {})
    own = {"artist": ["", "2", "new"], "genre": ["", "3", "1"]} if labelled else {}
    ours = recipe(facts_of(own, level), seed=1, **options)
    carried = carry(ours, theirs.state_dict(), theirs)
    assert not carried.new and not carried.settings
    told = {"artist": ["2", ""], "genre": ["1; 3", "3"]} if labelled else {}
    assert_equal_logits(ours, theirs, window(ours.facts, told), window(theirs.facts, told))
