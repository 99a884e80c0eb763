"""Codebooks by one word of the command line, their patterns, and their health."""

import re

import pytest
import torch
from tiny import (
    HOPS,
    LEVELS,
    SAMPLE_RATE,
    STEPS,
    World,
    codes_of,
    command,
)

from jukebox_lite.training import table


def test_a_run_tells_the_health_of_its_codebooks(world: World):
    """From the first step on, level by level; in its log what they can hold, on its page how they are used."""
    first = table.metrics(world.runs / "codec")[0]
    names = ("use", "perplexity", "dead", "revived", "age", "bits_per_second")
    assert first.keys() >= {f"{name}/{level}" for name in names for level in LEVELS}
    assert 0 < first["bits_per_second/bottom"] <= 4 * SAMPLE_RATE / HOPS["bottom"]
    log = (world.runs / "codec" / "train.log").read_text()
    assert "level bottom: a step of 8 samples, 16 codes, 4,000 bits/s" in log
    page = (world.runs / "codec" / "samples" / "00000004" / "index.html").read_text()
    assert all(f"codes, {level}" in page for level in LEVELS) and "of 4,000 bits/s; in training" in page


def test_a_codec_that_collapses_is_stopped_with_what_to_change(world: World):
    """Entries drawn far from the latents, and none revived: one line, before its codes are saved or learnt."""
    collapsing = ("quantizer.kmeans_init=false", "quantizer.dead_below=0", "quantizer.codebook_size=256")
    settings = (
        "name=collapsed",
        *collapsing,
        "trainer.max_steps=6",
        "task.collapse_after=3",
        "task.collapse_below=0.2",
    )
    refused = command("train.py", *world.codec(*settings, "trainer.validate_every=2", "trainer.checkpoint_every=2"))
    last = refused.err.splitlines()[-1]
    assert refused.code == 1 and re.fullmatch(
        r"error: step 4: level top has collapsed: its held-out codes are as varied as \d\.\d of 256 would be "
        r"\(task\.collapse_below=0\.2\), too few for a prior; start again under another name with "
        r"quantizer\.kmeans_init=true, a higher quantizer\.dead_below, a lower optimizer\.lr or a smaller codebook",
        last,
    )
    run = world.runs / "collapsed"
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["00000002"]
    assert "has collapsed" in (run / "train.log").read_text() and table.metrics(run)[-1]["step"] == 4


@pytest.mark.parametrize("quantizer", ["rvq", "dac", "fsq", "lfq", "simvq"])
def test_every_quantizer_is_one_word(world: World, quantizer: str):
    """Its codec trains; of two kinds, two codebooks a level reach the priors and what they sample."""
    arguments = world.codec(f"name={quantizer}/codec", f"quantizer={quantizer}", "trainer.max_steps=1")
    if several := quantizer in ("rvq", "fsq"):
        arguments = (*arguments, "quantizer.num_codebooks=2")
    if quantizer == "fsq":
        arguments = (*(a for a in arguments if not a.startswith("quantizer.codebook_size")), "quantizer.axes=[4,4]")
    done = command("train.py", *arguments)
    assert done.code == 0, done.err
    assert table.metrics(world.runs / quantizer / "codec")[0]["perplexity/top"] >= 1
    for level in ("top", "middle") if several else ():
        codec = f"codec.run={world.runs}/{quantizer}/codec"
        done = command("train.py", *world.prior(level, f"name={quantizer}/{level}", codec, "trainer.max_steps=1"))
        assert done.code == 0, done.err
    if several:
        codes = codes_of(world, f"name={quantizer}/sample", levels=(f"{quantizer}/top", f"{quantizer}/middle"))
        shapes = {level: list(values.shape) for level, values in codes.items()}
        assert shapes == {level: [2, 2, STEPS[level]] for level in ("top", "middle")}


@pytest.fixture(scope="module")
def several_codebooks(world: World) -> str:
    """The setting that names a codec of three residual codebooks a level."""
    codec = ("quantizer=rvq", "quantizer.num_codebooks=3", "name=several_codebooks", "trainer.max_steps=1")
    done = command("train.py", *world.codec(*codec))
    assert done.code == 0, done.err
    return f"codec.run={world.runs}/several_codebooks"


@pytest.mark.parametrize("pattern", ["delay", "flatten"])
def test_every_pattern_is_one_word(world: World, several_codebooks: str, pattern: str):
    """From the code cache through two levels' priors to songs past their context, continued and guided."""
    names = (f"{pattern}/top", f"{pattern}/middle")
    for name in names:
        level = name.partition("/")[2]
        settings = (f"name={name}", f"pattern={pattern}", "trainer.max_steps=1", "prior.context_length=32")
        done = command("train.py", *world.prior(level, several_codebooks, *settings))
        assert done.code == 0, done.err
    first = codes_of(
        world, f"name={pattern}/sample", "sampler.temperature={top: 1, middle: 1, bottom: 1}", levels=names
    )
    assert {level: list(codes.shape) for level, codes in first.items()} == {
        level: [2, 3, STEPS[level]] for level in ("top", "middle")
    }
    assert STEPS["middle"] > 32 and not torch.equal(first["top"][:, 0], first["top"][:, 1])
    given = f"given.codes={world.runs / pattern / 'sample' / 'codes.safetensors'}"
    guided = ("labels.genre=organ", "sampler.guidance=2", "seconds=0.48")
    longer = codes_of(world, f"name={pattern}/longer", given, *guided, levels=names)
    for level in ("top", "middle"):
        assert longer[level].shape[-1] == STEPS[level] * 3 // 2
        assert torch.equal(longer[level][..., : STEPS[level]], first[level])
