"""A user's mistake is one line: what was given, what was expected, what to do."""

import os
import pickle
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from tiny import (
    World,
    broken,
    command,
    finish,
    start,
)


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
    yield (
        "an unknown experiment",
        "train.py experiment=nope",
        "experiment=nope does not exist; there are demo_bottom, demo_middle",
    )
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
