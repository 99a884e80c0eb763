"""Whatever a file holds, and whatever the disk does: one line, no code run, nothing written elsewhere, no hang."""

import json
import os
import resource
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile import trials
from pairs import meet, two
from tiny import World, child, command, song, tensors
from torch import Tensor
from toys import Regression, trainer

from jukebox_lite.audio import write
from jukebox_lite.datasets.songs import Songs
from jukebox_lite.errors import InputError
from jukebox_lite.levels import Level
from jukebox_lite.training import checkpoint
from jukebox_lite.training.load import load_codec, load_prior


def test_mutated_files_are_read_or_refused(world: World, tmp_path: Path):
    """Of every kind that the commands read; `python tests/hostile.py` tries more."""
    outcomes, faults = trials(world, tmp_path, count=75, seed=2)
    assert not faults, faults[0]
    total = {outcome: sum(n for (_, what), n in outcomes.items() if what == outcome) for outcome in ("read", "refused")}
    assert min(total.values()) > 10, "mutations that are all seen, or none, prove nothing"


class Harm:
    """Makes a folder where it is unpickled."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.path,)  # noqa: PTH102  to be pickled by name


@pytest.fixture
def stranger(world: World, tmp_path: Path) -> Path:
    """Somebody else's copy of the world's top prior."""
    shutil.copytree(world.runs / "top", tmp_path / "top", ignore=shutil.ignore_patterns("samples", "tensorboard"))
    return tmp_path / "top"


def test_a_pickle_in_place_of_weights_is_not_opened(stranger: Path, tmp_path: Path):
    """Nor where the manifest vouches for it."""
    path = stranger / "checkpoints" / "00000004"
    torch.save({"weight": Harm(tmp_path / "harm")}, path / "model.safetensors")
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["model.safetensors"] = checkpoint._fingerprint(path / "model.safetensors")
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="model.safetensors cannot be read"):
        load_prior(str(stranger))
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("jukebox_lite.priors.patterns.Parallel", "os.system", "_target_=os.system is not allowed"),
        ("dim: 16", "dim: !!python/object/apply:os.mkdir [{harm}]", "could not determine a constructor"),
        ("dim: 16", "dim: ${{oc.env:HOME}}", "dim holds an interpolation"),
        ("seed: 0", "a: &a [1]\nseed: *a", "without aliases"),
        ("depth: 1", "depth: 1" + "0" * 400, "prior.depth=10+: expected 0 to 1000"),
        ("num_heads: 2", "num_heads: 0", "no prior can be made of it"),
        ("level: top", "level: ../../top", "level '../../top': this codec has"),
        ("runs/codec", "runs/../../../../../../../nowhere", "nowhere is no run"),
    ],
)
def test_a_config_is_data(stranger: Path, tmp_path: Path, old: str, new: str, says: str):
    """It builds parts of this project with plain settings, or nothing."""
    path = stranger / "config.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new.format(harm=tmp_path / "harm")))
    with pytest.raises(InputError, match=says):
        load_prior(str(stranger))
    assert not (tmp_path / "harm").exists()


def test_a_depth_without_end_is_refused_at_once(world: World, tmp_path: Path):
    """3 to the power of a billion was being computed."""
    shutil.copytree(world.runs / "codec", tmp_path / "codec")
    path = tmp_path / "codec" / "config.yaml"
    path.write_text(path.read_text().replace("depth: 1\n", "depth: 1000000000\n"))
    with pytest.raises(InputError, match="codec.depth=1000000000 times 1 of level .*: expected 0 to"):
        load_codec(str(tmp_path / "codec"))


def test_a_weight_that_is_not_finite_is_named(world: World, tmp_path: Path):
    shutil.copytree(world.runs / "codec", tmp_path / "codec")
    weights = checkpoint.read_weights(tmp_path / "codec" / "checkpoints" / "00000004", "codec")
    name = next(name for name in weights if name.endswith("weight"))
    checkpoint.save(tmp_path / "codec", 5, {"codec": weights | {name: weights[name] / 0}}, {})
    with pytest.raises(InputError, match=f"{name} is not finite"):
        load_codec(str(tmp_path / "codec"))


@pytest.mark.parametrize("name", ["../top", "/etc/top", "a/b", "a.b", "", "..", "a\n", "\0"])
def test_a_level_cannot_be_named_like_a_path(name: str):
    """Its name becomes part of files' names."""
    with pytest.raises(InputError, match="expected a name of letters"):
        Level(name, 16)


def test_a_run_stays_below_its_folder(world: World, tmp_path: Path):
    for arguments in (("train.py", *world.codec()), ("sample.py", *world.sample())):
        done = command(*arguments, "name=../escaped", f"runs={tmp_path / 'runs'}")
        assert "name=../escaped: expected a folder below runs=" in done.error
    assert not list(tmp_path.rglob("*.yaml"))


@pytest.mark.parametrize("name", ["manifest.json", "trainer.json"])
@pytest.mark.parametrize(
    "text", ["[]", "3", '{"files": {}}', '{"files": {"/dev/zero": 1}}', '{"learner": 3}', "[" * 10**5]
)
def test_json_of_another_structure_is_one_line_or_passed_over(tmp_path: Path, name: str, text: str):
    """The manifest vouches for it, or is it."""
    trainer(checkpoint_every=3).fit(Regression(), tmp_path, seed=3)
    path = tmp_path / "checkpoints" / "00000006"
    (path / name).write_text(text)
    if name == "trainer.json":
        manifest = json.loads((path / "manifest.json").read_text())
        manifest["files"][name] = checkpoint._fingerprint(path / name)
        (path / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(InputError, match="00000006"):
            trainer().fit(Regression(), tmp_path, seed=3)
    else:
        trainer(checkpoint_every=3).fit(Regression(), tmp_path, seed=3)
        assert "skipping a damaged checkpoint" in (tmp_path / "train.log").read_text()
        assert "00000006" in str(checkpoint.latest(tmp_path))


def test_a_folder_of_traps_is_read(tmp_path: Path):
    """Loops of links, a pipe, a device; labels that a spreadsheet or a page would run stay text."""
    for name in ("a.wav", "b.wav"):
        song(tmp_path / name, 0.5)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "loop").symlink_to(tmp_path)
    (tmp_path / "self").symlink_to(tmp_path / "self")
    (tmp_path / "self.wav").symlink_to(tmp_path / "self.wav")
    (tmp_path / "zero.wav").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.wav")
    rows = ["file_name,genre,split", 'a.wav,"=HYPERLINK(""x"")",train', "b.wav,<script>,val"]
    (tmp_path / "metadata.csv").write_text("\n".join(rows) + "\n")
    songs = Songs(str(tmp_path))
    assert [song.labels["genre"] for song in songs.all] == ['=HYPERLINK("x")', "<script>"]
    assert {name: reason.split(" (")[0] for name, reason in songs.set_aside} == {
        "pipe.wav": "not a file",
        "self.wav": "cannot be opened",
        "zero.wav": "not a file",
    }
    (tmp_path / "metadata.csv").write_text("file_name,genre\n../a.wav,x\n")
    with pytest.raises(InputError, match="expected a path inside the folder"):
        Songs(str(tmp_path))


def test_a_label_is_text_on_the_page(stranger: Path, world: World):
    """Through the vocabulary of somebody else's run, and through sample.py."""
    path = stranger / "vocabulary.json"
    vocabulary = json.loads(path.read_text())
    vocabulary["genre"][1] = "<script>alert(1)</script>"
    path.write_text(json.dumps(vocabulary))
    words = [word for word in world.sample("name=labelled") if not word.startswith("priors=")]
    done = command("sample.py", *words, f"priors=[{stranger}]", 'labels.genre="<script>alert(1)</script>"')
    assert done.code == 0, done.err
    page = (world.runs / "labelled" / "index.html").read_text()
    assert "<script>alert" not in page and "&lt;script&gt;alert(1)" in page


# --- the disk --------------------------------------------------------------------------------------------------------


def limited(limit: int, function: Any, *arguments: Any) -> None:
    """Runs a function in a process whose files can have `limit` bytes each; ends with 1 after an OSError."""
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        function(*arguments)
    except OSError:
        sys.exit(1)


def fit(folder: Path) -> None:
    """A short training that keeps every file it can keep."""
    trainer(checkpoint_every=1, validate_every=2).fit(Regression(), folder, seed=3)


def test_a_disk_that_is_full_costs_nothing_that_was_saved(tmp_path: Path):
    """Whichever file it refuses first, in whichever step: what is there is whole, and goes on to the same bits."""
    fit(tmp_path / "whole")
    sizes = sorted({path.stat().st_size for path in (tmp_path / "whole").rglob("*") if path.is_file()})
    limits, refused = (0, *sizes[:-1:2]), 0
    for limit in limits:
        folder = tmp_path / str(limit)
        refused += child(limited, limit, fit, folder) == 1
        warnings: list[str] = []
        checkpoint.latest(folder, warnings.append)
        assert not warnings and not list(folder.rglob(".tmp*"))
        fit(folder)
        assert all(
            torch.equal(a, b)
            for a, b in zip(tensors(folder).values(), tensors(tmp_path / "whole").values(), strict=True)
        )
    assert refused == len(limits)


def held(path: Path, audio: Tensor) -> None:
    """A file of each kind, in one process."""
    write(path, audio, 8_000)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
def test_audio_that_does_not_fit_leaves_the_file_that_was_there(tmp_path: Path, suffix: str):
    """libsndfile says nothing of what it could not write when it closed a file; half a song was moved into place."""
    path, audio = tmp_path / f"a.{suffix}", torch.rand(1, 20_000, generator=torch.Generator().manual_seed(0)) - 0.5
    write(path, audio, 8_000)
    before = path.read_bytes()
    for limit in (0, 40, len(before) // 2, len(before) - 9):
        assert child(limited, limit, held, path, audio) == 1
        assert path.read_bytes() == before and [each.name for each in tmp_path.iterdir()] == [path.name]
    assert child(limited, len(before), held, path, audio) == 0


def command_limited(limit: int, said: Path, *arguments: str) -> None:
    """A command in a process whose files can have `limit` bytes each; what it says on stderr goes to `said`."""
    file = os.open(said, os.O_CREAT | os.O_WRONLY)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    done = command(*arguments)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    os.write(file, done.err.encode())
    sys.exit(done.code)


@pytest.mark.parametrize(
    ("kind", "limit"),
    [("codec", 100), ("codec", 30_000), ("prior", 100), ("prior", 3_000), ("sample", 100), ("sample", 3_000)],
)
def test_a_command_tells_of_a_full_disk_in_one_line(world: World, tmp_path: Path, kind: str, limit: int):
    """Whatever it was writing: settings, codes, checkpoints, samples, songs; where there is room it ends well."""
    places = (f"runs={tmp_path}", "name=full")
    arguments = {
        "codec": ("train.py", *world.codec(*places)),
        "prior": ("train.py", *world.prior("top", *places, f"cache={tmp_path / 'cache'}")),
        "sample": ("sample.py", *world.sample(*places, levels=("top",))),
    }[kind]
    assert child(command_limited, limit, tmp_path / "said", *arguments) == 1
    said = (tmp_path / "said").read_text()
    assert said.count("error: ") == 1 and "Traceback" not in said and said.endswith("give the same command again\n"), (
        said
    )
    done = command(*arguments)
    assert done.code == 0, done.err


def test_a_folder_that_cannot_be_made_is_one_line(world: World, tmp_path: Path):
    """As below one that may not be written to; Hydra makes it, before any word of ours."""
    (tmp_path / "runs").write_text("a file")
    for arguments in (("train.py", *world.codec("name=x")), ("sample.py", *world.sample("name=x"))):
        assert "Not a directory" in command(*arguments, f"runs={tmp_path / 'runs'}").error


def command_limited_by_two(rank: int, port: int, limit: int, folder: Path, *arguments: str) -> None:
    """A command by two processes, of which the first one's files can have `limit` bytes each."""
    meet(rank, port)
    command_limited(limit if rank == 0 else resource.RLIM_INFINITY, folder / f"said-{rank}", *arguments)


def test_two_processes_tell_of_the_firsts_full_disk_in_one_line(world: World, tmp_path: Path):
    """It was a line, and from the other one a traceback or another line."""
    arguments = ("train.py", *world.codec(f"runs={tmp_path}", "name=full", "trainer.devices=2"))
    assert two(command_limited_by_two, 10_000, tmp_path, *arguments) == [1, 0]
    said = [(tmp_path / f"said-{rank}").read_text() for rank in (0, 1)]
    assert said[0].count("error: ") == 1 and said[0].endswith("give the same command again\n"), said
    assert "Traceback" not in said[0] + said[1] and "error" not in said[1], said


def test_two_processes_end_where_the_first_may_not_write(world: World, tmp_path: Path):
    """To the run's own files: the other one went on, and met a traceback."""
    folder = tmp_path / "runs" / "full"
    (folder / "train.log").mkdir(parents=True)
    arguments = ("train.py", *world.codec(f"runs={folder.parent}", "name=full", "trainer.devices=2"))
    assert two(command_limited_by_two, resource.RLIM_INFINITY, tmp_path, *arguments) == [1, 0]
    said = [(tmp_path / f"said-{rank}").read_text() for rank in (0, 1)]
    assert "Is a directory" in said[0].splitlines()[-1] and "Traceback" not in said[0] + said[1], said
    assert "error" not in said[1], said
