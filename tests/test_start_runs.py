"""Runs that begin with the weights of another run, or of OpenAI's files."""

import json
import re
import shutil
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file
from tiny import ROOT, World, assert_same, child, command, signalled
from weights import noise, save_as_openai, shaken

from jukebox_lite import config
from jukebox_lite.codecs.jukebox_vq import JukeboxVQ
from jukebox_lite.codecs.vqvae import HierarchicalVQVAE
from jukebox_lite.errors import InputError
from jukebox_lite.interop import openai
from jukebox_lite.interop.openai import vqvae
from jukebox_lite.interop.openai.place import place_of
from jukebox_lite.interop.openai.priors import keys_of
from jukebox_lite.levels import Facts
from jukebox_lite.priors.jukebox_recipe import JukeboxRecipe
from jukebox_lite.training import checkpoint, table
from jukebox_lite.training.carry import carry
from jukebox_lite.training.load import load_prior
from jukebox_lite.training.start import Start


def task_of(*arguments: str) -> Any:
    """What train.py would learn."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return config.build(compose("train", list(arguments)).task)


def first_loss(run: Path) -> float:
    """Of the weights that a run began with, on its first batch."""
    return table.metrics(run)[0]["loss/prior"]


def test_a_run_from_another_resumes_to_the_same_bits(world: World):
    """Its first loss is the other's; resumed, it asks nothing of it. What is frozen has no state and the same bits."""
    shutil.copytree(world.runs / "top", source := world.runs / "source")
    settings = (f"start.run={source}", "start.freeze=[transformer.*]", "optimizer=adamw", "trainer.precision=32-true")
    task, (theirs, _) = task_of(*world.prior("top")), load_prior(str(source))
    expected = theirs.loss(task.batch("train", 0)).total
    done = command("train.py", *world.prior("top", "name=tuned", *settings))
    assert done.code == 0, done.err
    assert first_loss(world.runs / "tuned") == pytest.approx(expected.item(), rel=3e-6)
    assert child(signalled, world.prior("top", "name=cut", *settings), 1, signal.SIGTERM) == 128 + signal.SIGTERM
    shutil.rmtree(source)
    assert command("train.py", *world.prior("top", "name=cut", *settings)).code == 0
    assert_same(world.runs / "tuned", world.runs / "cut")
    first, second = json.loads((world.runs / "cut" / "provenance.json").read_text())
    assert first["start"]["from"] == str(source) and re.fullmatch("[0-9a-f]{12}", first["start"]["fingerprint"])
    assert "start" not in second
    log = (world.runs / "tuned" / "train.log").read_text()
    assert re.search(r"begins with .*source.*\n *taken over: \d+ tensors, [\d,]+ numbers", log) and "frozen: " in log
    path = checkpoint.latest(world.runs / "tuned")
    assert path is not None
    weights, state = load_file(path / "model.safetensors"), checkpoint.read_trainer(path)["learner"]
    moved = {name for name, value in theirs.state_dict().items() if not torch.equal(weights[f"prior/{name}"], value)}
    assert moved and not any(name.startswith("transformer.") for name in moved)
    learnt = [name for name, _ in theirs.named_parameters() if not name.startswith("transformer.")]
    assert len(state["optimizers"]["prior"]["state"]) == len(learnt) < len(dict(theirs.named_parameters()))


def test_a_codec_trained_on_keeps_its_codes_where_they_are_frozen(world: World):
    """Priors of the one can then be trained on with the other; without that, they are refused."""
    codec, frozen = f"start.run={world.runs}/codec", "start.freeze=[encoders.*,quantizers.*]"
    for name, *settings in (("kept", codec, frozen), ("drifted", codec)):
        assert command("train.py", *world.codec(f"name={name}", *settings)).code == 0
    start = Start(run=str(world.runs / "top"))
    kept, drifted = (
        task_of(*world.prior("top", f"codec.run={world.runs}/{name}"), f"codec.run={world.runs}/{name}")
        for name in ("kept", "drifted")
    )
    assert start.begin(kept, world.folder / "nowhere")
    theirs, _ = load_prior(str(world.runs / "top"))
    batch = kept.batch("train", 0)
    assert torch.equal(kept.models["prior"].loss(batch).total, theirs.loss(batch).total)
    with pytest.raises(InputError, match=r"another codec.*start\.freeze=\[quantizers\.\*\]"):
        start.begin(drifted, world.folder / "nowhere")


def test_openais_codec_and_prior_are_trained_on(world: World, tmp_path: Path):
    """From tiny files as OpenAI's: a prior's first loss is that of its weights, a codec's codes likewise."""
    shape = {"levels": 2, "downs_t": [2, 2], "strides_t": [2, 2], "sr": 8000, "l_bins": 12, "emb_width": 4}
    shape |= {"width": 4, "depth": 1}
    sizes = (8000, {"top": [2, 2], "bottom": [2, 2]}, 4, 1, 4)
    codec = shaken(HierarchicalVQVAE(*sizes, partial(JukeboxVQ, codebook_size=12)), 0)
    for quantizer in codec.quantizers.values():
        quantizer.set_entries(torch.randn(12, 4, generator=torch.Generator().manual_seed(1)))
    keys = vqvae.keys_of(vqvae.shape_of(shape))
    save_as_openai(tmp_path / "vqvae.pth.tar", codec, keys, shape)
    hps = shape | {
        "level": 1,
        "n_ctx": 64,
        "prior_width": 16,
        "prior_depth": 3,
        "heads": 2,
        "attn_order": 2,
        "blocks": 8,
    }
    hps |= {"y_bins": [3, 2], "min_duration": 0.0, "max_duration": 600.0}
    facts = Facts(codec.levels[0], None, {"artist": ["", "1"], "genre": ["", "1", "2"]}, {}, 8000)
    save_as_openai(
        tmp_path / "prior.pth.tar",
        shaken(JukeboxRecipe(facts, 16, 3, 2, 64, num_rows=8), 2),
        keys_of(place_of(hps)),
        {},
    )
    told = (
        "codec=openai",
        f"codec.path={tmp_path}/vqvae.pth.tar",
        "prior=jukebox",
        "prior.depth=3",
        "prior.num_rows=8",
    )
    arguments = [
        word for word in world.prior("top", "name=openai", *told) if not word.startswith(("codec.run", "prior.depth=1"))
    ]
    start = (f"start.openai={tmp_path}/prior.pth.tar", f"start.hps={hps}".replace("'", ""), "trainer.precision=32-true")
    done = command("train.py", *arguments, *start)
    assert done.code == 0, done.err
    theirs, task = openai.read_prior(tmp_path / "prior.pth.tar", hps), task_of(*arguments)
    untold = task.facts.untold(task.batch("train", 0))  # no song's genre is called as one of OpenAI's numbers
    assert first_loss(world.runs / "openai") == pytest.approx(theirs.loss(untold).total.item(), rel=3e-6)
    assert torch.equal(task.codec.encode(noise(1))["top"], codec.encode(noise(1))["top"])
    assert load_prior(str(world.runs / "openai"))[0].facts.level == theirs.facts.level
    own = HierarchicalVQVAE(*sizes, partial(JukeboxVQ, codebook_size=12)).eval()
    read = openai.read(tmp_path / "vqvae.pth.tar")
    assert not carry(own, read.state_dict(), read).new
    assert torch.equal(own.encode(noise(1))["bottom"], codec.encode(noise(1))["bottom"])


def test_the_published_codec_has_a_place_for_every_weight(tmp_path: Path):
    """Of OpenAI's file with its published hyperparameters in experiment=jukebox_5b: nothing new, no other setting."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        node = compose("train", ["experiment=jukebox_5b", "data.root=music"]).codec
    save_as_openai(tmp_path / "vqvae.pth.tar", config.build(node), vqvae.keys_of(vqvae.shape_of({})), {})
    theirs, ours = openai.read(tmp_path / "vqvae.pth.tar"), config.build(node)
    carried = carry(ours, theirs.state_dict(), theirs)
    assert not carried.new and not carried.left and not carried.settings
    weights = theirs.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in ours.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ("start.run={runs}/nope", "runs/nope is no run: it has no config.yaml"),
        ("start.run={runs}/codec", "runs/codec trained no prior"),
        ("start.run={runs}/middle", "is a prior of .*middle.*this run learns .*top.*: expected the same level"),
        ("start.run={runs}/top start.freeze=[transformer]", r"no weight is called transformer; .* transformer\.\*"),
        ("start.freeze=[transformer.*]", "nothing is known of it yet; give start.run="),
        ("start.run={runs}/top start.openai=x", "expected one; leave out the other"),
        ("start.openai={runs}/nope", "runs/nope: cannot be opened"),
        ("start.run={runs}/top prior.dim=32", "no matrix of it fits this prior; start from one of its shape"),
        ("start.run={runs}/top prior.depth=2 start.freeze=[transformer.*]", "transformer.blocks.1.* is new here"),
        ("start.runn=x", "Start takes no 'runn'; it takes run"),
    ],
)
def test_what_cannot_be_begun_with_is_one_line(world: World, settings: str, says: str):
    done = command("train.py", *world.prior("top", "name=mistake", *settings.format(runs=world.runs).split()))
    assert re.search(says, done.error), done.error
