"""The sampling command: a seed is a song, what is given is kept, and what it leaves can be heard."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from tiny import (
    HOPS,
    LEVELS,
    ROOT,
    SAMPLE_RATE,
    STEPS,
    World,
    codes_of,
    command,
    same,
)

from jukebox_lite.generation.songs import encode_given
from jukebox_lite.training.load import load_codec

PICTURES = ("wave", "mels", "codes")


@pytest.fixture(scope="module")
def sampled(world: World) -> Path:
    """The folder of one call of sample.py: two songs, ancestral."""
    done = command("sample.py", *world.sample("name=sampled", "labels.genre=[piano,organ]"))
    assert done.code == 0, done.err
    assert done.out == f"listen: {world.runs / 'sampled' / 'index.html'}\n"
    return world.runs / "sampled"


def test_sampling_leaves_a_page_and_songs_that_can_be_heard(sampled: Path):
    """Per song and level a wav of the codec's rate and of the asked length, finite; codes; what was asked."""
    page = (sampled / "index.html").read_text()
    assert "Song 1: piano" in page and "Song 2: organ" in page
    wavs = sorted(sampled.glob("*.wav"))
    assert [wav.stem for wav in wavs] == [
        f"0{n}-0{i}-{level}" for n in (1, 2) for i, level in enumerate(LEVELS[::-1], 1)
    ]
    for wav in wavs:
        audio, sample_rate = soundfile.read(wav)
        assert wav.name in page and all(wav.with_name(f"{wav.stem}-{kind}.png").exists() for kind in PICTURES)
        assert sample_rate == SAMPLE_RATE and audio.shape == (0.32 * SAMPLE_RATE,) and np.isfinite(audio).all()
    codes = load_file(sampled / "codes.safetensors")
    assert {level: list(values.shape) for level, values in codes.items()} == {
        level: [2, 1, STEPS[level]] for level in LEVELS
    }
    assert OmegaConf.load(sampled / "config.yaml").labels.genre == ["piano", "organ"]


def test_a_seed_is_a_song(world: World, sampled: Path):
    """Equal settings give equal codes, in another folder; another seed gives others on every level."""
    first = load_file(sampled / "codes.safetensors")
    assert same(first, codes_of(world, "name=again", "labels.genre=[piano,organ]"), *LEVELS)
    other = codes_of(world, "name=other", "labels.genre=[piano,organ]", "seed=1")
    assert not any(same(first, other, level) for level in LEVELS)


def test_what_is_given_is_kept(world: World, sampled: Path):
    """The codes of an audio file, the beginning of earlier songs, or their top level alone."""
    intro = world.folder / "music" / "01.flac"
    primed = codes_of(world, "name=primed", f"given.audio={intro}", "given.audio_seconds=0.128")
    for level, values in encode_given(load_codec(str(world.runs / "codec")), intro, 0.128).items():
        assert values.shape[-1] == 0.128 * SAMPLE_RATE / HOPS[level]
        assert torch.equal(primed[level][..., : values.shape[-1]], values.expand(2, -1, -1))
    first, given = load_file(sampled / "codes.safetensors"), f"given.codes={sampled / 'codes.safetensors'}"
    longer = codes_of(world, "name=longer", given, "seconds=0.48", "seed=1")
    for level in LEVELS:
        assert longer[level].shape[-1] == STEPS[level] * 3 // 2
        assert torch.equal(longer[level][..., : STEPS[level]], first[level])
    upsampled = codes_of(world, "name=upsampled", given, "given.levels=[top]", "seed=1", levels=("middle", "bottom"))
    assert same(first, upsampled, "top") and not same(first, upsampled, "bottom")


def test_a_temperature_can_be_told_per_level(world: World):
    """At 0 a level no longer follows the seed, and the others still do."""
    cold = "sampler.temperature={top: 0, middle: 0.9, bottom: 1}"
    first, other = (codes_of(world, f"name=cold{seed}", cold, f"seed={seed}") for seed in (0, 1))
    assert same(first, other, "top") and not same(first, other, "middle")


def test_guidance_can_be_told_per_level(world: World, sampled: Path):
    """At 1 a level is as it was without; where it is more, it is another, and so is what lies below."""
    first = load_file(sampled / "codes.safetensors")
    labels = "labels.genre=[piano,organ]"
    assert same(first, codes_of(world, "name=unguided", labels, "sampler.guidance=1"), *LEVELS)
    guided = codes_of(world, "name=guided", labels, "sampler.guidance={top: 1, middle: 400, bottom: 1}")
    assert same(first, guided, "top") and not same(first, guided, "middle")


def test_a_sweep_of_sampling_leaves_a_page_that_compares_its_jobs(world: World):
    """Each job rewrites it, and the times that it took are told by level."""
    done = command("sample.py", "-m", *world.sample("name=warmth", "num_songs=1", "sampler.temperature=0.5,1.0"))
    assert done.code == 0, done.err
    sweep = world.runs / "sweeps" / "warmth"
    assert done.out.splitlines()[-1] == f"compare: {sweep / 'index.html'}"
    page = (sweep / "index.html").read_text()
    assert page.count("<audio") == 2 and "sampler.temperature" in page
    assert all(f'src="{job}/01-01-bottom.wav"' in page for job in (0, 1))
    record = json.loads((sweep / "1" / "page.json").read_text())
    assert list(record["took"]) == list(LEVELS) and all(seconds > 0 for seconds in record["took"].values())


def test_the_lines_of_python_that_sample_do_so(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As the README has them, but for the length and for where runs are."""
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    (lines,) = (block for block in blocks if "complete(" in block)
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    exec(lines.replace('"runs/', f'"{world.runs}/').replace("seconds=20", "seconds=0.32"), scope)
    audio, sample_rate = soundfile.read(tmp_path / "song.wav")
    assert sample_rate == SAMPLE_RATE and len(audio) == 0.32 * SAMPLE_RATE and np.abs(audio).max() > 0
    assert {name: codes.shape[-1] for name, codes in scope["codes"].items()} == STEPS
