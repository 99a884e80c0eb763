"""OpenAI's priors, number for number: predictions, losses, gradients, greedy samples (openai/jukebox)."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from goldens import FOLDERS, Golden, goldens, gradient_faults
from torch import Tensor

from jukebox_lite.codecs.base import Codec
from jukebox_lite.errors import InputError
from jukebox_lite.generation.complete import complete, samplers
from jukebox_lite.interop import openai
from jukebox_lite.interop.openai.place import place_of
from jukebox_lite.interop.openai.priors import keys_of
from jukebox_lite.levels import Codes, Level, Window
from jukebox_lite.priors import stepwise
from jukebox_lite.priors.base import Sampler
from jukebox_lite.priors.jukebox import JukeboxPrior

GREEDY = Sampler(temperature=0.0)


def prior_of(golden: Golden) -> JukeboxPrior:
    """Ours with the original's weights."""
    return openai.prior(golden.tensors("weights"), golden.hps)


def window_of(golden: Golden, z: Tensor | None = None) -> Window:
    """The original's inputs as ours; other codes than its own where given."""
    tensors = golden.tensors("io")
    return openai.window(golden.hps, tensors["in.z"] if z is None else z, tensors.get("in.y"), tensors.get("in.z_cond"))


@goldens("prior")
def test_predictions_are_the_originals(golden: Golden):
    """Logits of every step of a window, of lyrics in the same sequence too, within 5e-5."""
    wanted = golden.tensors("io")["out.preds"]
    torch.testing.assert_close(openai.logits(prior_of(golden), window_of(golden)), wanted, rtol=0, atol=5e-5)


@goldens("prior")
def test_losses_and_gradients_are_the_originals(golden: Golden):
    """Its loss, and its parts, within 1e-5 relative; the gradient of every parameter. OpenAI's are in bits."""
    prior, wanted = prior_of(golden).train(), golden.figures["metrics"]
    loss, bit = prior.loss(window_of(golden)), math.log(2)
    found = {"loss": loss.total, "gen_loss": loss.metrics["nats_per_token"]}
    found["prime_loss"] = loss.metrics.get("nats_per_lyric_token", torch.zeros(()))
    assert {key: value.item() / bit for key, value in found.items()} == pytest.approx(
        {key: wanted[key] for key in found}, rel=1e-5
    )
    (loss.total / bit).backward()
    gradients = {ours: parameter.grad for ours, parameter in prior.named_parameters()}
    keys = {theirs: ours for theirs, ours in keys_of(place_of(golden.hps)) if theirs in golden.figures["grads"]}
    assert set(keys.values()) == set(gradients)
    assert gradient_faults({theirs: gradients[ours] for theirs, ours in keys.items()}, golden) == []


@pytest.mark.parametrize("kind", ["sample", "ancestral"])
@goldens("prior", lambda golden: "out.sample_greedy" in golden.tensors("io"))
def test_greedy_samples_are_the_originals(golden: Golden, kind: str, monkeypatch: pytest.MonkeyPatch):
    """Token for token, primed and from nothing, in windows shorter than the context; the logits within 5e-5."""
    seen, draw = [], stepwise.draw
    monkeypatch.setattr(stepwise, "draw", lambda logits, *others: (seen.append(logits), draw(logits, *others))[1])
    tensors = golden.tensors("io")
    wanted, logits = tensors[f"out.{kind}_greedy"], tensors[f"out.{kind}_logits"]
    given = tensors["in.prime"][:, : None if kind == "sample" else 0]
    codes = prior_of(golden).sample(window_of(golden, given), GREEDY, torch.zeros(len(wanted), 1, wanted.shape[1]))
    assert torch.equal(codes[:, 0], wanted)
    torch.testing.assert_close(torch.cat(seen, 1), logits, rtol=0, atol=5e-5)


@goldens("prior", lambda golden: golden.path.parent == FOLDERS[0])
def test_what_was_drawn_can_be_gone_through_again(golden: Golden, monkeypatch: pytest.MonkeyPatch):
    """To the bit, logits and all, as a journal needs; where lyrics share the vocabulary, their tokens may be drawn."""
    seen, draw = [], stepwise.draw
    monkeypatch.setattr(stepwise, "draw", lambda logits, *others: (seen.append(logits), draw(logits, *others))[1])
    prior, given = prior_of(golden), golden.tensors("io")["in.z"][:, :3]
    noise = torch.rand(len(given), 1, 24, generator=torch.Generator().manual_seed(0))
    codes = prior.sample(window_of(golden, given), Sampler(), noise)
    first, after = torch.stack(seen), codes[..., 3:]
    for done in (3, 4, 17, 23):
        seen.clear()
        again = prior.draw(window_of(golden, codes[:, 0, :done]), Sampler(), noise, read=3)
        assert torch.equal(torch.stack(list(again), -1), after) and torch.equal(torch.stack(seen), first)


@pytest.mark.parametrize("length", [1, 11, 16, 37])
@goldens("prior", lambda golden: golden.path.parent == FOLDERS[0])
def test_a_shorter_window_begins_like_the_whole(golden: Golden, length: int):
    """What follows, how much of it there is, and where rows end, changes nothing."""
    prior, window = prior_of(golden), window_of(golden)
    shorter = Window(window.codes | {prior.facts.level.name: window.codes[prior.facts.level.name][..., :length]})
    shorter.labels = window.labels
    found, whole = prior.logits(shorter), prior.logits(window)
    torch.testing.assert_close(found, whole[:, : found.shape[1]], rtol=0, atol=2e-5)


def golden_named(name: str) -> Golden:
    return Golden(FOLDERS[0] / f"prior_{name}.json")


class Ladder(Codec):
    """Names the levels that the priors of the fixtures belong to; never asked for audio."""

    sample_rate = 22050
    levels = (Level("top", 24, 1, 32), Level("bottom", 24, 1, 8))

    def encode(self, audio: Tensor) -> Codes:
        raise NotImplementedError

    def decode(self, codes: Codes) -> Tensor:
        raise NotImplementedError


def test_priors_complete_songs():
    """A top prior and an upsampler fill both levels beyond their contexts; artists and genres are told by number."""
    priors = [prior_of(golden_named(name)) for name in ("up", "top")]
    codec, num_steps = Ladder(), {"top": 80, "bottom": 320}
    songs = [
        complete(codec, priors, num_steps, {"artist": [artist], "genre": ["2"]}, samplers(codec.levels, 3.0), 3, 4)
        for artist in ("1", "1", "4")
    ]
    for name, count in num_steps.items():
        assert songs[0][name].shape == (4, 1, count)
        assert torch.equal(songs[0][name], songs[1][name])
        assert not torch.equal(songs[0][name], songs[2][name])


@pytest.mark.parametrize("name", ["lyrics_single", "lyrics_separate"])
def test_lyrics_are_heard(name: str):
    """Other words change the prediction; no words are OpenAI's padding, which is 0."""
    prior, window = prior_of(golden_named(name)), window_of(golden_named(name))
    lyrics, split = window.labels["lyrics"], prior.prefix.num_tokens

    def music(labels: dict[str, Tensor]) -> Tensor:
        return prior.logits(Window(window.codes, labels))[:, split:]

    assert (music(window.labels) - music(window.labels | {"lyrics": (lyrics + 1) % 9})).abs().max() > 1e-3
    silent = {key: values for key, values in window.labels.items() if key != "lyrics"}
    assert torch.equal(music(silent), music(window.labels | {"lyrics": torch.zeros_like(lyrics)}))


def test_genres_are_a_set():
    """Their order, and places for none among them, are no matter; another set is."""
    prior, window = prior_of(golden_named("top")), window_of(golden_named("top"))

    def music(*rows: list[int]) -> Tensor:
        return prior.logits(Window(window.codes, window.labels | {"genre": torch.tensor(rows)}))

    wanted = music([2, 1, -1], [0, -1, -1])
    torch.testing.assert_close(music([1, -1, 2], [-1, 0, -1]), wanted)
    assert (music([2, -1, -1], [0, -1, -1]) - wanted)[0].abs().max() > 1e-3


def test_nats_are_what_the_loss_is_the_mean_of():
    """Of every code; guidance, which such a prior cannot follow, is refused."""
    prior, window = prior_of(golden_named("top")), window_of(golden_named("top"))
    nats = prior.nats(window)
    assert nats.shape == window.codes[prior.facts.level.name].shape
    assert nats.mean().item() == pytest.approx(prior.loss(window).metrics["nats_per_token"].item(), rel=1e-6)
    with pytest.raises(InputError, match="guidance=2"):
        prior.sample(window, Sampler(guidance=2.0), torch.rand(1, 1, 8))


def test_a_prior_is_read_from_openais_file(tmp_path: Path):
    """Weights saved by several processes, and hyperparameters that the file lacks."""
    golden = golden_named("up")
    weights = {f"module.{key}": value for key, value in golden.tensors("weights").items()}
    torch.save({"model": weights, "step": 3, "opt": None}, tmp_path / "prior.pth.tar")
    found = openai.read_prior(tmp_path / "prior.pth.tar", golden.hps).logits(window_of(golden))
    assert torch.equal(found, prior_of(golden).logits(window_of(golden)))


def test_the_callers_weights_stay_as_they_are():
    """Training the prior does not change what it was made of."""
    weights = golden_named("top").tensors("weights")
    before = {key: value.clone() for key, value in weights.items()}
    prior = openai.prior(weights, golden_named("top").hps)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(1)
    assert all(torch.equal(weights[key], before[key]) for key in weights)


def test_misfits_are_named():
    """What is unknown, missing or of another shape is named, in one line; so are two heads where one is expected."""
    golden = golden_named("lyrics_separate")
    weights = golden.tensors("weights")
    weights["prior.nowhere"] = weights.pop("prime_state_proj.b")
    weights["prior.pos_emb.pos_emb"] = weights["prior.pos_emb.pos_emb"][1:]
    with pytest.raises(InputError) as caught:
        openai.prior(weights, golden.hps)
    told = str(caught.value)
    assert "\n" not in told and "unknown: prior.nowhere;" in told and "missing: prime_state_proj.b;" in told
    assert "prior.pos_emb.pos_emb [47, 16] instead of [48, 16]" in told
    weights = golden.tensors("weights")
    weights["prior.x_out.weight"] = weights["prior.x_out.weight"] + 1
    with pytest.raises(InputError, match="merged_decoder"):
        openai.prior(weights, golden.hps)


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("top", {"n_ctx": None}, "n_ctx: missing"),
        ("top", {"min_duration": None}, "min_duration: missing"),
        ("top", {"level": 2}, "level=2: expected 0 to 1"),
        ("top", {"prior_depth": 5}, "unknown: prior.transformer._attn_mods.5"),
        ("top", {"attn_order": 4}, "attn_order=4"),
        ("top", {"attn_order": 8, "prior_depth": 10}, "no lyrics"),
        ("top", {"blocks": 7}, "blocks=7"),
        ("top", {"blocks": None}, "blocks: None"),
        ("top", {"heads": 3}, "heads=3"),
        ("top", {"copy_input": True}, "copy_input"),
        ("top", {"level": None}, "level: missing"),
        ("top", {"level": "1"}, "level: '1'"),
        ("top", {"prior_depth": 10**9}, "prior_depth"),
        ("top", {"attn_order": [2]}, "attn_order"),
        ("top", {"attn_order": False}, "attn_order=False"),
        ("top", {"m_attn": "wide"}, "m_attn: 'wide' given, expected numbers"),
        ("top", {"m_mlp": 0.01}, "m_mlp=0.01: leaves nothing"),
        ("top", {"y_bins": 4}, "y_bins=4: expected two numbers"),
        ("top", {"y_bins": [0, 5]}, "y_bins: 0"),
        ("top", {"max_duration": 0.5}, "max_duration"),
        ("top", {"min_duration": "0.7"}, "min_duration"),
        ("top", {"merged_decoder": "False"}, "merged_decoder: 'False' given, expected True or False"),
        ("top", {"labels": "no"}, "labels: 'no'"),
        ("lyrics_single", {"prime_loss_fraction": "0.4"}, "prime_loss_fraction"),
        ("lyrics_single", {"attn_order": 8}, "attn_order=8: there are no lyrics of an encoder"),
        ("up", {"cond_m_conv": 0}, "cond_m_conv=0"),
        ("top", {"single_enc_dec": True}, "single_enc_dec"),
        ("top", {"n_tokens": 4}, "n_vocab: 0"),
        ("lyrics_separate", {"prime_attn_order": 8, "prime_depth": 10}, "prime_attn_order=8"),
        ("up", {"cond_width": "8"}, "cond_width"),
        ("up", {"cond_c_res": 0}, "unknown: conditioner_blocks.0.cond.model.1.0.blocks.0"),
    ],
)
def test_hyperparameters_that_cannot_be_are_refused(name: str, change: dict[str, Any], told: str):
    """One line names the hyperparameter, or the tensors it does not fit.

    No level was once a KeyError, no number a TypeError, "False" was taken for True; and a prior with its lyrics before
    the codes was made with layers that attend to an encoder's, which then failed an assertion.
    """
    golden = golden_named(name)
    hps = {key: value for key, value in (golden.hps | change).items() if value is not None or key == "blocks"}
    with pytest.raises(InputError, match=told) as caught:
        openai.prior(golden.tensors("weights"), hps)
    assert "\n" not in str(caught.value)


def test_labels_that_do_not_fit_are_refused():
    """Rows too short or of another level's window, no rows, no codes above: one line each."""
    top, up = golden_named("top"), golden_named("up")
    z, y = (top.tensors("io")[f"in.{name}"] for name in "zy")
    with pytest.raises(InputError, match="rows of 4"):
        openai.window(top.hps, z, y[:, :4])
    with pytest.raises(InputError, match="y: missing"):
        openai.window(top.hps, z)
    with pytest.raises(InputError, match="z_above: missing; expected the codes of level top"):
        openai.window(up.hps, z, y)
    with pytest.raises(InputError, match=r"384.* samples; expected this level's 1536"):
        openai.window(top.hps, z, torch.cat([y[:, :2], y[:, 2:3] // 4, y[:, 3:]], 1))
    num_genres, num_artists = top.hps["y_bins"]
    for column, number, says in (
        (3, num_artists, f"y: artist {num_artists}; expected 0 to {num_artists - 1}"),
        (3, -1, "y: artist -1; expected 0"),
        (4, num_genres, f"y: genre {num_genres}; expected -1 to {num_genres - 1}"),
    ):
        with pytest.raises(InputError, match=says):
            openai.window(top.hps, z, y.index_fill(1, torch.tensor([column]), number))


def test_codes_that_do_not_fit_are_refused():
    """Codes beyond the codebook, too many of them or too few above, of other songs; one line each, no IndexError.

    Lyric tokens that a prior does not read were once taken for genres.
    """
    top, up = golden_named("top"), golden_named("up")
    z, y = (top.tensors("io")[f"in.{name}"] for name in "zy")
    below, labels, above = (up.tensors("io")[f"in.{name}"] for name in ("z", "y", "z_cond"))
    for says, given in (
        ("z: code 24; expected 0 to 23", (top.hps, z + 24 - z.max(), y)),
        ("z: code -1; expected 0 to 23", (top.hps, z - 1 - z.min(), y)),
        ("z: 96 codes; expected 48", (top.hps, z.repeat(1, 2), y)),
        (r"z: torch.float32 \[2, 48\]", (top.hps, z.float(), y)),
        (r"z: torch.int64 \[48\]", (top.hps, z[0], y)),
        (r"y: \[1, 7\] numbers; expected 2 rows", (top.hps, z, y[:1])),
        (
            r"y: \[2, 10\] numbers; expected 2 rows of 4, 3 genres, 0 lyric tokens",
            (top.hps, z, y[:, [*range(7), 4, 4, 4]]),
        ),
        ("y: torch.float32 given", (top.hps, z, y.float())),
        ("z_above: code 24; expected 0 to 23", (up.hps, below, labels, above + 24 - above.max())),
        ("z_above: 11 codes; expected 12, those above the 48 of z", (up.hps, below, labels, above[:, 1:])),
        (
            r"z_above: torch.int64 \[1, 12\]; expected the codes of level top \[2, T\]",
            (up.hps, below, labels, above[:1]),
        ),
    ):
        with pytest.raises(InputError, match=says):
            openai.window(*given)
    assert openai.window(top.hps | {"n_tokens": None}, z[:, :0], y).codes["top"].shape == (2, 1, 0)


def test_numbers_by_numpy_and_weights_of_other_kinds_are_as_good():
    """Hyperparameters as numpy's numbers, and weights in double precision or as parameters, change nothing."""
    golden = golden_named("up")
    kinds = {int: np.int32, float: np.float64, bool: np.bool_, list: np.array}
    hps = {key: kinds[type(value)](value) if type(value) in kinds else value for key, value in golden.hps.items()}
    weights = golden.tensors("weights")
    wanted = openai.logits(prior_of(golden), window_of(golden))
    for kind in (torch.nn.Parameter, torch.Tensor.double):
        prior = openai.prior({key: kind(value) for key, value in weights.items()}, hps)
        assert torch.equal(openai.logits(prior, window_of(golden)), wanted)
        assert all(parameter.is_leaf and parameter.dtype == torch.float32 for parameter in prior.parameters())
