"""The whole job through the commands, as a user types them: what they leave, how they resume, what they refuse."""

import importlib.util
import json
import re
import shlex
import shutil
import signal
import time
from collections.abc import Iterator
from functools import partial

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from tiny import (
    BROKEN,
    ROOT,
    World,
    assert_same,
    broken,
    child,
    codes_of,
    command,
    finish,
    music,
    same,
    signalled,
    start,
    tensors,
)
from tiny import song as write_song

from jukebox_lite import config
from jukebox_lite.training import checkpoint, table


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


def test_a_dry_run_counts_what_joins_in_late(world: World):
    """A run of four steps is rehearsed by its last three; of these an adversary plays, which begins with the second."""
    gflop = []
    for first in (1, 9):
        settings = (
            f"name=dry-{first}",
            "trainer.dry_run=true",
            "discriminator.dim=32",
            f"task.adversary.start={first}",
        )
        done = command("train.py", *world.adversarial(*settings))
        assert done.code == 0, done.err
        gflop.append(float(re.search(r"a step: ([\d.,]+) GFLOP", done.out)[1].replace(",", "")))
    assert gflop[0] > gflop[1]


def test_a_start_that_failed_leaves_its_name_free(world: World):
    """A misspelt folder of music was refused, and then so was the right one: its config was already another."""
    refused = command("train.py", *world.codec("name=retried", data=world.folder / "musik"))
    assert "there is no such folder" in refused.error
    done = command("train.py", *world.codec("name=retried", "trainer.max_steps=1"))
    assert done.code == 0, done.err


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


def test_help_and_the_composed_config_can_be_asked_for():
    """--help and --cfg job print and exit with 0."""
    for script in ("train.py", "sample.py"):
        done = command(script, "--help")
        assert done.code == 0 and f"{script} " in done.out and "python" in done.out
    done = command("train.py", "experiment=vqvae", "data.root=x", "codec.dim=7", "--cfg", "job")
    assert done.code == 0 and OmegaConf.create(done.out).codec.dim == 7


def test_a_sweep_is_a_folder_of_runs_and_a_table(world: World, capsys: pytest.CaptureFixture[str]):
    """Four jobs side by side by joblib; the table is sorted by score and shows what differs, and nothing else."""
    arguments = world.codec("name=wide", "codec.dim=8,16", "seed=0,1", "launcher=joblib")
    done = finish(start("train.py", "-m", *arguments))
    assert done.code == 0, done.err
    assert all(re.search(rf"^{job}: step 4/4 ", done.err, re.MULTILINE) for job in range(4))  # it is told whose
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
