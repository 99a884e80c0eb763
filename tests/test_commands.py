"""The whole job through the commands, as a user types them: what they leave, how they resume, what they refuse."""

import importlib.util
import json
import os
import pickle
import re
import shlex
import shutil
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file
from tiny import (
    HOPS,
    LEVELS,
    ROOT,
    SAMPLE_RATE,
    World,
    assert_same,
    child,
    command,
    finish,
    music,
    signalled,
    start,
    tensors,
)
from tiny import song as write_song

from jukebox_lite import config
from jukebox_lite.generation.songs import encode_given
from jukebox_lite.training import checkpoint, table
from jukebox_lite.training.load import load_codec

PICTURES = ("wave", "mels", "codes")
STEPS = {level: round(0.32 * SAMPLE_RATE) // hop_length for level, hop_length in HOPS.items()}


@pytest.fixture(scope="module")
def sampled(world: World) -> Path:
    """The folder of one call of sample.py: two songs, ancestral."""
    done = command("sample.py", *world.sample("name=sampled", "labels.genre=[piano,organ]"))
    assert done.code == 0, done.err
    assert done.out == f"listen: {world.runs / 'sampled' / 'index.html'}\n"
    return world.runs / "sampled"


def codes_of(world: World, *arguments: str, levels: tuple[str, ...] = LEVELS) -> dict[str, torch.Tensor]:
    """The codes that one call of sample.py makes."""
    done = command("sample.py", *world.sample(*arguments, levels=levels))
    assert done.code == 0, done.err
    name = next((a.removeprefix("name=") for a in arguments if a.startswith("name=")), "sample")
    return load_file(world.runs / name / "codes.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], *levels: str) -> bool:
    """Whether the codes of these levels are equal."""
    return all(torch.equal(a[level], b[level]) for level in levels)


# --- what is left --------------------------------------------------------------------------------------------------


def test_a_run_leaves_what_the_house_lists(world: World):
    """Config, provenance, log, metrics, curves, checkpoints, samples to hear and see: for a codec and for a prior."""
    for name, clips in {"codec": 4, "top": 2, "bottom": 2}.items():
        run = world.runs / name
        (start_,) = json.loads((run / "provenance.json").read_text())
        assert {"time", "commit", "uncommitted", "packages", "device", "seed", "command"} <= start_.keys()
        assert start_["packages"]["torch"] and start_["fingerprints"].keys() >= {"songs"}
        assert "step 4/4" in (run / "train.log").read_text()
        lines = table.metrics(run)
        assert [line["step"] for line in lines] == [1, 2, 3, 4] and "score" in lines[-1]
        assert list((run / "tensorboard").glob("events.*"))
        page = run / "samples" / "00000004"
        assert len(list(page.glob("*.wav"))) == len(list(page.glob("*-mels.png"))) == clips
        assert len(list(page.glob("*-codes.png"))) == (3 if name == "codec" else 2), "all but the original's"
        assert (page / "index.html").read_text().count("<audio") == clips
        assert {path.name for path in (run / "checkpoints" / "00000004").iterdir()} == {
            "model.safetensors",
            "trainer.safetensors",
            "trainer.json",
            "manifest.json",
        }
        assert not [path for path in run.rglob("*") if ".tmp" in path.name or ".part" in path.name]


def test_a_finished_run_is_left_alone_by_the_same_command(world: World):
    """It takes no step and changes no number; another setting under the same name is refused by its key."""
    before, metrics = tensors(world.runs / "codec"), (world.runs / "codec" / "metrics.jsonl").read_text()
    assert command("train.py", *world.codec("name=codec")).code == 0
    assert metrics == (world.runs / "codec" / "metrics.jsonl").read_text()
    assert all(torch.equal(before[name], value) for name, value in tensors(world.runs / "codec").items())
    refused = command("train.py", *world.codec("name=codec", "optimizer.lr=0.5"))
    assert re.search(r"config: optimizer\.lr was \S+, is now 0\.5;", refused.error)


def test_a_dry_run_leaves_its_name_free(world: World):
    """It says what the run would take; a run of that name with other settings is then the first."""
    done = command("train.py", *world.codec("name=dry", "trainer.dry_run=true"))
    assert done.code == 0, done.err
    assert re.search(r"a step: .* GFLOP .*\ntime: .*\nmemory: .*\ndisk: ", done.out)
    assert not list((world.runs / "dry").iterdir())  # Hydra makes the folder


def test_a_start_that_failed_leaves_its_name_free(world: World):
    """A misspelt folder of music was refused, and then so was the right one: its config was already another."""
    refused = command("train.py", *world.codec("name=retried", data=world.folder / "musik"))
    assert "there is no such folder" in refused.error
    done = command("train.py", *world.codec("name=retried", "trainer.max_steps=1"))
    assert done.code == 0, done.err


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


def test_a_folder_without_labels_works_everywhere(world: World):
    """Codec, prior and sampling; a label then has no value to ask for."""
    data = music(world.folder / "plain", 3, labelled=False)
    assert command("train.py", *world.codec("name=plain/codec", "seed=1", data=data)).code == 0
    codec = f"codec.run={world.runs}/plain/codec"
    done = command("train.py", *world.prior("top", "name=plain/top", codec, data=data))
    assert done.code == 0, done.err
    assert codes_of(world, "name=plain/sample", levels=("plain/top",)).keys() == {"top"}
    refused = command("sample.py", *world.sample("labels.genre=piano", levels=("plain/top",)))
    assert "labels.genre=piano: the prior of level top knows no value of it" in refused.error
    refused = command("sample.py", *world.sample(levels=("plain/top", "middle")))
    assert "were trained on different codecs" in refused.error


def test_any_column_is_a_label_and_a_song_may_have_several_values(world: World):
    """Named by windows.labels and nowhere else; values are told in the log, kept with the run, and asked for alike."""
    data = music(world.folder / "columns", 4, labelled=False)
    rows = ["file_name,genre,key signature,split", "00.wav,jazz; polka,A,val", "01.flac,rock;jazz,B,train"]
    (data / "metadata.csv").write_text("\n".join([*rows, "02.ogg,jazz,,train", "03.wav,,A,train"]) + "\n")
    done = command("train.py", *world.prior("top", "name=columns", "windows.labels=[genre,key signature]", data=data))
    assert done.code == 0 and "label genre: 2 values (jazz, rock)" in done.err, done.err
    vocabulary = json.loads((world.runs / "columns" / "vocabulary.json").read_text())
    assert vocabulary == {"genre": ["", "jazz", "rock"], "key signature": ["", "A", "B"]}
    weights = checkpoint.read_weights(world.runs / "columns" / "checkpoints" / "00000004", "prior")
    assert [tuple(w.shape) for name, w in weights.items() if ".labels." in name] == [(3, 16), (3, 16)]
    several = codes_of(world, "name=several", 'labels.genre="rock; jazz"', levels=("columns",))
    assert same(several, codes_of(world, "name=turned", 'labels.genre="jazz;rock"', levels=("columns",)), "top")
    assert "Song 1: rock; jazz" in (world.runs / "several" / "index.html").read_text()
    refused = command("sample.py", *world.sample('labels.genre="rock; polka"', levels=("columns",)))
    assert "labels.genre=polka: the prior of level top knows jazz, rock" in refused.error


def test_a_single_song_is_enough_for_a_prior(world: World):
    """It is trained on and held out; the code windows once found it in one split only."""
    data = music(world.folder / "single", 1)
    done = command("train.py", *world.prior("middle", "name=single", data=data))
    assert done.code == 0, done.err


def test_odd_files_are_listed_with_their_reason_and_the_rest_trains(world: World):
    """Cut, empty, mislabelled and too short ones are set aside; eight channels at 96 kHz are not odd."""
    data = music(world.folder / "odd", 2)
    broken(data)
    write_song(data / "eight.wav", 0.5, 96_000, 8)
    done = command("train.py", *world.codec("name=odd", data=data))
    assert done.code == 0 and "96 kHz x 8 (1)" in done.err and "set aside: 4" in done.err
    for name, reason in BROKEN.items():
        assert re.search(f"^ +{name}: .*{reason}", done.err, re.MULTILINE), f"{name} not told in {done.err}"


BROKEN = {"cut.mp3": "ends after", "empty.wav": "0 bytes", "text.flac": "not readable", "click.wav": "10 ms of audio"}


def broken(folder: Path) -> Path:
    """A folder with four files that are no songs."""
    write_song(folder / "cut.mp3", 3, 44_100)
    (folder / "cut.mp3").write_bytes((folder / "cut.mp3").read_bytes()[:9_000])
    (folder / "empty.wav").touch()
    (folder / "text.flac").write_text("not music")
    write_song(folder / "click.wav", 0.01)
    return folder


def test_a_codec_that_has_gone_on_is_not_taken_for_the_one_that_was_learnt(world: World):
    """A prior's codes would be heard through other weights, as noise; sampling and resuming refuse."""
    shutil.copytree(world.runs / "codec", world.runs / "moving")
    arguments = world.prior("top", "name=moved", f"codec.run={world.runs}/moving")
    assert command("train.py", *arguments).code == 0
    weights = checkpoint.read_weights(world.runs / "moving" / "checkpoints" / "00000004", "codec")
    moved = {name: value + 0.1 if value.is_floating_point() else value for name, value in weights.items()}
    checkpoint.save(world.runs / "moving", 5, {"codec": moved}, {})
    refused = command("sample.py", *world.sample(levels=("moved",)))
    assert re.search("moved learnt codes that its codec .*moving no longer writes", refused.error)
    refused = command("train.py", *arguments)
    assert refused.code == 1 and re.search(r"error: .*fingerprints.codec was \w+, is now", refused.err)


def test_songs_that_have_changed_are_another_run(world: World):
    """The same command would not end with the same bits; the refusal comes before a step."""
    data = music(world.folder / "changing", 2)
    assert command("train.py", *world.codec("name=changing", data=data)).code == 0
    write_song(data / "more.wav", 1)
    refused = command("train.py", *world.codec("name=changing", data=data))
    assert refused.code == 1 and re.search(r"error: .*fingerprints.songs was \w+, is now", refused.err)


# --- codebooks -----------------------------------------------------------------------------------------------------


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


# --- sampling ------------------------------------------------------------------------------------------------------


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


# --- stopped and resumed -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["codec", "adversarial", "prior"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_run_cut_off_in_a_step_resumes_to_the_same_bits(world: World, kind: str, number: int, code: int):
    """By the same command, after SIGTERM as after kill -9; the metrics are those of a run never stopped."""
    settings = ("trainer.max_steps=5", "trainer.checkpoint_every=2")
    make = {"codec": world.codec, "adversarial": world.adversarial, "prior": partial(world.prior, "middle")}[kind]
    whole, cut = f"whole-{kind}", f"cut-{kind}-{number}"
    assert command("train.py", *make(f"name={whole}", *settings)).code == 0
    assert child(signalled, make(f"name={cut}", *settings), 2, number) == code
    assert (world.runs / cut / "checkpoints" / "00000003").exists() == (number == signal.SIGTERM)
    done = command("train.py", *make(f"name={cut}", *settings))
    assert done.code == 0 and f"from step {3 if number == signal.SIGTERM else 2}" in done.err
    assert_same(world.runs / whole, world.runs / cut)
    assert [line["step"] for line in table.metrics(world.runs / cut)] == [1, 2, 3, 4, 5]
    assert len(json.loads((world.runs / cut / "provenance.json").read_text())) == 2


def test_sigterm_from_outside_stops_a_training_that_resumes(world: World):
    """As a real process: it says where it saved, exits with 143, and goes on to the bits of a run never stopped."""
    settings = [f"trainer.{name}=100" for name in ("max_steps", "validate_every", "checkpoint_every")]
    process = start("train.py", *world.codec("name=stopped", *settings))
    metrics = world.runs / "stopped" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (metrics.exists() and metrics.stat().st_size) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    stopped = finish(process)
    assert stopped.code == 143 and "the same command resumes" in stopped.err, stopped.err
    resumed = command("train.py", *world.codec("name=stopped", *settings))
    assert resumed.code == 0 and "from step" in resumed.err, resumed.err
    assert command("train.py", *world.codec("name=unstopped", *settings)).code == 0
    assert_same(world.runs / "unstopped", world.runs / "stopped")


def test_a_compiled_training_learns_the_same(world: World, monkeypatch: pytest.MonkeyPatch):
    """A prior's losses, gradients and score within float round-off of eager ones; without a compiler, one line."""
    plain = ("trainer.precision=32-true", "trainer.max_steps=3")
    compiled = world.prior("top", "name=compiled", "trainer.compile=true", *plain)
    with monkeypatch.context() as context:
        context.setenv("CXX", "no-such-compiler")
        assert "trainer.compile=true: no C++ compiler no-such-compiler" in command("train.py", *compiled).error
    done = command("train.py", *compiled)
    if done.code == 1:
        assert "trainer.compile=true: " in done.error and not shutil.which("g++")
        return
    assert command("train.py", *world.prior("top", "name=eager", *plain)).code == 0
    pairs = zip(table.metrics(world.runs / "compiled"), table.metrics(world.runs / "eager"), strict=True)
    for found, wanted in pairs:
        for name in ("loss/prior", "grad_norm/prior", *(["score"] if "score" in wanted else [])):
            assert found[name] == pytest.approx(wanted[name], rel=1e-4), name


# --- mistakes ------------------------------------------------------------------------------------------------------


def mistakes() -> Iterator[tuple[str, str, str]]:
    """(script and arguments, with {world} and {bad} for folders; what the line says), by name."""
    codec, prior = "train.py codec", "train.py prior"
    yield "no music folder", f"{codec} data.root=/nowhere", "/nowhere: there is no such folder"
    yield "an empty folder", f"{codec} data.root={{bad}}/empty", "empty: no readable music"
    yield "a file for a folder", f"{codec} data.root={{world}}/music/00.wav", "is a file, expected a folder"
    yield "broken files only", f"{codec} data.root={{bad}}/broken", "no readable music, of 4 set aside click.wav: 10 ms"
    yield "a setting of no part", f"{codec} codec.dimm=3", "HierarchicalVQVAE takes no 'dimm'; it takes .*dim"
    yield "several at once", f"{codec} codec.dimm=3 trainer.max_step=2", "'dimm'.*Trainer takes no 'max_step'"
    yield "a wrong type", f"{codec} codec.dim=wide", "codec: 'dim' should be int, not 'wide'"
    yield "half an optimizer", f"{codec} trainer.optimizer.lr=3", "'optimizer' should be .*Callable.*not {'lr': 3}"
    yield "another level", f"{codec} codec.multipliers.botom=2", "codec.multipliers: .*botom.*top, middle, bottom"
    yield "another loss", f"{codec} loss.weights.l1=1", "terms .* and weights .* must name the same"
    yield "a length that no hop divides", f"{codec} windows.num_samples=1000", "num_samples=1000.*multiple of 128"
    yield "a length too short to judge", f"{codec} windows.num_samples=1024", "num_samples=1024.* 2048 or more"
    yield "clips that cannot be", f"{codec} task.num_clips=-1", "task.num_clips=-1: expected 0, for none, or more"
    yield "nothing to judge by", f"{prior} task.num_validation_batches=0", "num_validation_batches=0: expected 1"
    yield "a foreign target", f"{codec} codec._target_=os.system", "codec._target_=os.system is not allowed"
    yield "an unknown group", f"{codec} experimnt=vqvae", "no setting 'experimnt'; did you mean experiment"
    yield "an unknown setting", f"{codec} sed=1", "no setting 'sed'; did you mean seed"
    yield "an unknown option", f"{codec} quantizer=vqq", "quantizer=vqq does not exist; did you mean vq"
    yield "an unknown experiment", "train.py experiment=nope", "experiment=nope does not exist; there are demo_prior"
    yield "an open bracket", f"{codec} codec.dim=[3", r"codec.dim=\[3 cannot be read"
    yield "values unquoted", "sample.py priors 'labels.genre=piano; organ'", "cannot be read.*quote odd signs twice"
    yield "no level", "train.py experiment=prior data.root=x codec.run=y", "'task.level' is not set: give task.level="
    yield "no data", "train.py experiment=vqvae", "data: 'root' is not set"
    yield "no such level", f"{prior} task.level=middel", "level 'middel': this codec has top, middle, bottom"
    yield "no such codec", f"{prior} codec.run={{world}}/runs/nope", "runs/nope is no run: it has no config.yaml"
    yield "a prior for a codec", f"{prior} codec.run={{world}}/runs/top", "runs/top trained no codec"
    yield "a codec not yet saved", f"{prior} codec.run={{bad}}/unsaved", "no finished checkpoint yet"
    yield "a long context", f"{prior} prior.context_length=40000", "context_length=40000 is 640.0 s of level top"
    yield "a codec for a prior", "sample.py runs seconds=1 priors=[{world}/runs/codec]", "runs/codec trained no prior"
    yield "a prior not yet saved", "sample.py runs priors=[{bad}/unsaved-prior]", "no finished checkpoint yet"
    yield "no priors", "sample.py runs priors=[]", r"priors=\[\]: expected the folder"
    yield "priors untold", "sample.py runs", "'priors' is not set"
    yield "a missing run", "sample.py runs priors=[{world}/runs/nope]", "nope is no run: it has no config.yaml"
    yield "a run from a stranger", "sample.py runs priors=[{bad}/hostile]", "_target_=os.system is not allowed"
    yield "an unknown value", "sample.py priors labels.genre=polka", "labels.genre=polka.*knows organ, piano"
    yield (
        "an unknown label",
        "sample.py priors labels.mood=x",
        "labels.mood: these priors .* with artist, genre",
    )
    yield (
        "labels for other songs",
        "sample.py priors labels.genre=[piano,organ,piano]",
        "one value, or of 2",
    )
    yield "no time", "sample.py priors seconds=0", "seconds=0.*: expected more than 0"
    yield "no songs", "sample.py priors num_songs=0", "num_songs=0: expected 0 or more, and 1 or more"
    yield "a misspelt gift", "sample.py priors given.audo=x.wav", "given takes no 'audo'; it takes audio"
    yield "no audio there", "sample.py priors given.audio=/nowhere.wav", "/nowhere.wav: cannot be opened"
    yield "no codes there", "sample.py priors given.codes=/nowhere", "/nowhere: no such file"
    yield "codes that would run code", "sample.py priors given.codes={bad}/pickled", "not a whole safetensors file"
    yield "two gifts", "sample.py priors given.codes=x given.audio=y", "given.audio and given.codes: expected one"
    yield "levels as a word", "sample.py priors given.levels=top", "'levels' should be .*, not 'top'"
    yield "a level gone", "sample.py runs priors=[{world}/runs/middle]", "level middle needs 20 steps of level top"
    yield "a hot level", "sample.py priors sampler.temperature={tip:1}", "temperature.tip: the codec has the levels top"
    yield "an overlap of all", "sample.py priors overlap=1", "overlap=1"
    yield "half and more, side by side", "sample.py priors windows=parallel overlap=0.6", "give 0.5 or less"
    yield "no stretch", "sample.py priors windows.stretch=0", "windows.stretch=0: expected 1 or more"
    yield "guidance by nothing", "sample.py priors sampler.guidance=3", "guidance=3 of level top: no labels are given"
    yield "one level of three", "sample.py priors sampler.temperature={top:1}", "temperature.middle is not set"


@pytest.fixture(scope="module")
def bad(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders and files that are not what they should be."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "empty").mkdir()
    (folder / "broken").mkdir()
    broken(folder / "broken")
    for name, run in (("unsaved", "codec"), ("unsaved-prior", "top"), ("hostile", "top")):
        shutil.copytree(world.runs / run, folder / name, ignore=shutil.ignore_patterns("samples", "tensorboard"))
    for name in ("unsaved", "unsaved-prior"):
        shutil.rmtree(folder / name / "checkpoints")
    cfg = OmegaConf.load(folder / "hostile" / "config.yaml")
    cfg.prior = {"_target_": "os.system", "command": f"touch {folder / 'harm'}"}
    OmegaConf.save(cfg, folder / "hostile" / "config.yaml")
    (folder / "pickled").write_bytes(pickle.dumps({"top": Harm(str(folder / "harm"))}))
    return folder


class Harm:
    """Makes a folder where it is unpickled."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.path,)  # noqa: PTH102  to be pickled by name


@pytest.mark.parametrize(("line", "says"), [pytest.param(*rest, id=name) for name, *rest in mistakes()])
def test_a_mistake_is_one_line(world: World, bad: Path, tmp_path: Path, line: str, says: str):
    """Exit status 1, exactly one line on stderr that begins with "error: ", nothing done."""
    script, *words = shlex.split(line.replace("{world}", str(world.folder)).replace("{bad}", str(bad)))
    before = {
        "codec": world.codec("name=mistake"),
        "prior": world.prior("top", "name=mistake"),
        "priors": world.sample(),
        "runs": ("seconds=0.32",),
    }
    arguments = before.get(words[0])
    told = {word.split("=")[0] for word in words[1:]}
    kept = [word for word in arguments or () if word.split("=")[0] not in told]
    words = words[1:] if arguments is not None else words
    done = command(script, *kept, *words, f"runs={tmp_path}")
    assert re.search(says, done.error), done.error
    assert not done.out and not (bad / "harm").exists()
    assert not list(tmp_path.rglob("checkpoints")) and not list(tmp_path.rglob("*.wav"))


def test_songs_do_not_go_into_a_training_runs_folder(world: World):
    """sample.py under the name of a run is refused, and the run's config stays."""
    config = (world.runs / "top" / "config.yaml").read_text()
    done = command("sample.py", *world.sample("name=top"))
    assert re.search("name=top: .*top is a training run; give another name", done.error)
    assert (world.runs / "top" / "config.yaml").read_text() == config


def test_a_rate_that_pytorch_refuses_is_one_line_too(world: World):
    """It comes up when the optimizer meets the weights, after the songs were told of."""
    done = command("train.py", *world.codec("name=negative", "optimizer.lr=-1"))
    assert done.code == 1 and done.err.endswith("error: optimizer: Invalid learning rate: -1\n")


def test_a_real_process_ends_with_one_line(world: World):
    """What the shell sees: status 1, one line on stderr, nothing on stdout; for either command."""
    processes = [
        start("train.py", *world.codec("name=mistake", "codec.dimm=3")),
        start("sample.py", "priors=[nowhere]", f"runs={world.runs}"),
    ]
    for process, says in zip(processes, ("takes no 'dimm'", "nowhere is no run"), strict=True):
        done = finish(process)
        assert says in done.error and done.out == ""


def test_help_and_the_composed_config_can_be_asked_for():
    """--help and --cfg job print and exit with 0."""
    for script in ("train.py", "sample.py"):
        done = command(script, "--help")
        assert done.code == 0 and f"{script} " in done.out and "python" in done.out
    done = command("train.py", "experiment=vqvae", "data.root=x", "codec.dim=7", "--cfg", "job")
    assert done.code == 0 and OmegaConf.create(done.out).codec.dim == 7


# --- sweeps --------------------------------------------------------------------------------------------------------


def test_a_sweep_is_a_folder_of_runs_and_a_table(world: World, capsys: pytest.CaptureFixture[str]):
    """Four jobs side by side by joblib; the table is sorted by score and shows what differs, and nothing else."""
    arguments = world.codec("name=wide", "codec.dim=8,16", "seed=0,1", "launcher=joblib")
    done = finish(start("train.py", "-m", *arguments))
    assert done.code == 0, done.err
    folder = world.runs / "sweeps" / "wide"
    rows = table.read_rows(folder)
    assert sorted(row.name for row in rows) == ["0", "1", "2", "3"]
    assert [row.score for row in rows] == sorted(row.score for row in rows) and rows[-1].score < float("inf")
    assert all({"codec.dim", "seed"} <= own.keys() for own in table.remarkable(rows))
    assert {(row.settings["codec.dim"], row.settings["seed"]) for row in rows} == {(8, 0), (8, 1), (16, 0), (16, 1)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["table", str(folder)])
        patch.setenv("COLUMNS", "200")
        table.main()
    shown = capsys.readouterr().out
    assert "dim" in shown and "seed" in shown
    assert [shown.index(f"{row.score:.4f}") for row in rows] == sorted(shown.index(f"{row.score:.4f}") for row in rows)


def test_a_job_that_fails_does_not_take_the_sweep_along(world: World):
    """It is told in one line and scores infinity; the other jobs run."""
    roots = f"data.root=/nowhere,{world.folder / 'music'}"
    kept = [word for word in world.codec("name=half") if not word.startswith("data.root")]
    done = command("train.py", "-m", *kept, roots)
    assert done.code == 0, done.err
    assert "error: /nowhere: there is no such folder" in done.err
    assert [row.name for row in table.read_rows(world.runs / "sweeps" / "half")] == ["1"]


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


# --- what is written about the commands ----------------------------------------------------------------------------


def written() -> Iterator[str]:
    """Every command line in the README's code blocks, in the help and in the experiments."""
    readme = ROOT / "README.md"
    blocks = re.findall(
        r"^```[^\n]*\n(.*?)^```", readme.read_text() if readme.exists() else "", re.DOTALL | re.MULTILINE
    )
    pages = [
        path.read_text() for folder in ("hydra/help", "experiment") for path in (ROOT / "conf" / folder).glob("*.yaml")
    ]
    for text in (*blocks, *pages):
        joined = re.sub(r"\\\n\s*", "", text)
        yield from (found.strip() for found in re.findall(r"(?:python|make) [^\n#]+", joined))


@pytest.mark.parametrize("line", sorted(set(written())))
def test_what_is_written_can_be_typed(line: str):
    """Every train.py and sample.py line composes and fits the code; every make target and module exists."""
    words = [word for word in shlex.split(line) if word not in ("-m", "--multirun")]
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), f"no target {words[1]}"
    elif words[1] in ("train.py", "sample.py") and not any(word.startswith("--") for word in words):
        settings = [re.sub(r"=([^,\[{]+),.*", r"=\1", word) for word in words[2:]]  # of a sweep, the first job
        done = command(words[1], *settings, "--cfg", "job", "--resolve")
        assert done.code == 0, done.err
        schema = config.TrainConfig if words[1] == "train.py" else config.SampleConfig
        composed = OmegaConf.create(done.out)
        assert isinstance(composed, DictConfig)
        config.check(composed, schema)
    elif words[1].startswith("jukebox_lite."):
        assert importlib.util.find_spec(words[1])


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
