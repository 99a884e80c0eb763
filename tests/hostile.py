"""Files of other people: mutations of every kind of file that the commands read, and what comes of reading them.

`python tests/hostile.py --count 500` prints how many were read and how many refused, by kind of file; exit status 1 if
any ended in another error than an InputError of one line, hung, ran a command or wrote outside its folder.
"""

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import yaml
from mutations import mutated
from tiny import World, build_world, song
from toys import Regression, trainer

from jukebox_lite import config
from jukebox_lite.codecs.base import Codec
from jukebox_lite.datasets.audio_windows import AudioWindows
from jukebox_lite.datasets.code_cache import codec_fingerprint
from jukebox_lite.datasets.songs import Songs
from jukebox_lite.errors import InputError
from jukebox_lite.generation.complete import complete, samplers
from jukebox_lite.generation.journal import Journal
from jukebox_lite.generation.report import Clip, Section, write_comparison, write_page
from jukebox_lite.generation.songs import read_codes, save_codes, steps_for
from jukebox_lite.levels import Codes
from jukebox_lite.priors.base import Prior
from jukebox_lite.training import checkpoint, run, table
from jukebox_lite.training.load import load_codec, load_prior

SECONDS = 0.064  # sampled: four steps of the top level
PATIENCE = 60  # seconds of this process; what takes longer hangs
FORBIDDEN = ("os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "subprocess.Popen", "pickle.find_class")
WRITES = ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.truncate")


@dataclass(frozen=True)
class Case:
    """A folder that is read, its files that get mutated, and the reading; `sign` makes a damage look intended."""

    origin: Path
    files: Sequence[str]
    read: Callable[[Path], object]
    sign: Callable[[Path], None] | None = None


def cases(world: World, folder: Path) -> dict[str, Case]:
    """One for each kind of file; `folder` is for what the world lacks."""
    files = ("model.safetensors", "trainer.safetensors", "trainer.json", "manifest.json")
    saved = [f"checkpoints/00000004/{name}" for name in files]
    learnt = toy_run(folder / "toy")
    music_, heard = music(folder / "music"), Sampled(world, folder / "sampled")
    return {
        "checkpoint of a codec": Case(world.runs / "codec", saved, lambda path: load_codec(str(path)), signed),
        "checkpoint of a prior": Case(world.runs / "top", saved, heard.sing, signed),
        "checkpoint to resume from": Case(learnt, [f"checkpoints/00000003/{name}" for name in files], fit_on, signed),
        "what a run tells of itself": Case(learnt, ["metrics.jsonl", "config.yaml"], fit_on),
        "config.yaml of a codec": Case(world.runs / "codec", ["config.yaml"], enter),
        "config.yaml of a prior": Case(world.runs / "top", ["config.yaml"], heard.sing),
        "vocabulary.json": Case(world.runs / "top", ["vocabulary.json"], heard.sing),
        "provenance.json": Case(world.runs / "top", ["provenance.json"], enter),
        "metadata": Case(music_ / "csv", ["metadata.csv"], listen),
        "metadata in lines": Case(music_ / "jsonl", ["metadata.jsonl"], listen),
        "lyrics": Case(music_ / "csv", ["a.txt"], listen),
        "audio": Case(music_ / "csv", ["a.wav", "b.flac", "c.ogg"], listen),
        "journal": Case(heard.folder / "journal", ["journal"], heard.go_on),
        "codes": Case(heard.folder / "codes", ["codes.safetensors"], heard.take_codes),
        "page.json": Case(heard.folder / "pages", ["0/page.json", "1/page.json"], compare),
    }


def signed(path: Path) -> None:
    """Makes the manifest agree with the files."""
    for manifest in path.glob("checkpoints/*/manifest.json"):
        told = json.loads(manifest.read_text())
        for name in told["files"]:
            told["files"][name] = checkpoint._fingerprint(manifest.with_name(name))
        manifest.write_text(json.dumps(told))


def toy_run(folder: Path) -> Path:
    """A run that was cut off after its third step of six."""
    run.open_run(folder, "{seed: 3}")
    run.record_start(folder, {})

    def spoil(call: int) -> None:
        if call == 4:
            raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        trainer(checkpoint_every=1).fit(Regression(spoil), folder, seed=3)
    shutil.rmtree(folder / "checkpoints" / "00000004")
    return folder


def fit_on(path: Path) -> None:
    """Resume, and show the table of runs."""
    run.open_run(path, "{seed: 3}")
    trainer().fit(Regression(), path, seed=3)
    table.read_rows(path)


def enter(path: Path) -> None:
    """Load what the run learnt, and enter it as train.py does."""
    (load_prior if path.name.startswith("top") else load_codec)(str(path))
    cfg = config.read(path / "config.yaml")
    run.open_run(path, config.OmegaConf.to_yaml(cfg, resolve=True))
    run.record_start(path, {"fingerprints": run.read_fingerprints(path)})


def music(folder: Path) -> Path:
    """Three songs, with lyrics and labels in either form."""
    for kind in ("csv", "jsonl"):
        for index, name in enumerate(("a.wav", "b.flac", "c.ogg")):
            song(folder / kind / name, 0.5, 8_000 * (index + 1), index % 2 + 1)
    (folder / "csv" / "a.txt").write_text("Wir essen Brot\nund Käse\n")
    rows = [("a.wav", "jazz; polka", "val"), ("b.flac", "=1+1", "train"), ("c.ogg", "", "train")]
    table_ = "\n".join(",".join(row) for row in [("file_name", "genre", "split"), *rows])
    (folder / "csv" / "metadata.csv").write_text(table_ + "\n")
    records = [{"file_name": name, "genre": [genre], "split": split, "year": 1999} for name, genre, split in rows]
    (folder / "jsonl" / "metadata.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def listen(path: Path) -> None:
    """Everything that training asks of a folder of music."""
    songs = Songs(str(path))
    windows = AudioWindows(songs, 4, 2048, 8_000, channels=1)
    for split in ("train", "val"):
        assert windows.batch(split, 0).isfinite().all()
    texts = [songs.summary(), songs.fingerprint(), *songs.characters(), json.dumps(songs.vocabulary(["genre", "year"]))]
    print(*(text.encode().decode() for text in texts))
    run.save_vocabulary(path, songs.vocabulary(["genre", "artist"]) | {"lyrics": songs.characters()})


def compare(path: Path) -> None:
    """The page that compares a sweep's jobs."""
    page = write_comparison(path, path).read_text()
    assert "<script>alert" not in page


class Sampled:
    """What sampling from the world's top level reads and leaves."""

    def __init__(self, world: World, folder: Path) -> None:
        self.folder = folder
        self.prior, self.codec = load_prior(str(world.runs / "top"))
        self.fingerprint = codec_fingerprint(self.codec)
        self.codes = self.sample(self.prior, self.codec, folder / "whole" / "journal")
        (folder / "journal").mkdir()
        shutil.copy(folder / "whole" / "journal", folder / "journal" / "journal")
        save_codes(folder / "codes" / "codes.safetensors", self.codes, self.codec, self.fingerprint) if (
            folder / "codes"
        ).mkdir() is None else None
        clip = Clip("top", [torch.zeros(1, 400)], 400, 8_000, torch.zeros(1, 4, dtype=torch.int64))
        for job in range(2):
            settings = yaml.safe_dump({"seed": job, "labels": {"genre": "<script>alert(1)</script>"}})
            write_page(folder / "pages" / str(job), "<script>alert(1)</script>", [Section("a", [clip])], settings)

    def sample(self, prior: Prior, codec: Codec, journal: Path) -> Codes:
        """Four steps of the top level, in two stretches."""
        how = samplers(codec.levels)
        with Journal(journal, {"seed": 0}) as kept:
            return complete(codec, [prior], steps_for(codec, SECONDS), {}, how, 0, 1, journal=kept)

    def sing(self, path: Path) -> None:
        """Load a prior and sample from it; it sings codes that the codec knows, or is refused."""
        prior, codec = load_prior(str(path))
        self.sample(prior, codec, path / "journal")

    def go_on(self, path: Path) -> None:
        """The same codes come of a damaged journal, or it is refused."""
        codes = self.sample(self.prior, self.codec, path / "journal")
        assert all(torch.equal(codes[level], self.codes[level]) for level in self.codes)

    def take_codes(self, path: Path) -> None:
        """Read codes to continue from."""
        read_codes(path / "codes.safetensors", self.codec, self.fingerprint)


class Fault(Exception):
    """Something happened that must not."""


class Guard:
    """While entered: no hang, no command, no write outside of `allowed`."""

    _installed: "Guard | None" = None

    def __init__(self, allowed: Path) -> None:
        self.allowed, self.active = allowed.resolve(), False
        sys.addaudithook(self._watch)

    def __enter__(self) -> None:
        self._before = signal.signal(signal.SIGALRM, self._ring)
        signal.alarm(PATIENCE)
        self.active = True

    def __exit__(self, *_: object) -> None:
        self.active = False
        signal.alarm(0)
        signal.signal(signal.SIGALRM, self._before)

    def _ring(self, _number: int, _frame: FrameType | None) -> None:
        raise Fault(f"hangs for {PATIENCE} s")

    def _watch(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.active:
            return
        writes = event in WRITES or (event == "open" and isinstance(arguments[2], int) and arguments[2] & 0o3)
        if event in FORBIDDEN:
            raise Fault(f"{event} {arguments}")
        if writes and isinstance(arguments[0], str | os.PathLike) and Path(arguments[0]).is_absolute():
            path = Path(os.path.realpath(os.fsdecode(arguments[0])))
            if not path.is_relative_to(self.allowed) and not path.is_relative_to("/dev"):
                raise Fault(f"{event} {path}, outside of {self.allowed}")


def trial(name: str, case: Case, dice: random.Random, folder: Path, guard: Guard) -> tuple[str, str]:
    """What came of one mutated file: "read", "refused" or "FAULT", and why."""
    place = folder / f"{case.origin.name}-tried"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(case.origin, place, ignore=shutil.ignore_patterns("samples", "tensorboard"))
    target = place / dice.choice(case.files)
    target.write_bytes(mutated(target.read_bytes(), dice, target.suffix))
    if case.sign and target.name != "manifest.json" and dice.random() < 0.7:
        case.sign(place)
    said = io.StringIO()
    try:
        with guard, contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            case.read(place)
    except InputError as error:
        return ("refused", str(error)) if "\n" not in str(error) else ("FAULT", f"{name}: two lines: {error}")
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return "FAULT", f"{name}, {target.name}: {''.join(traceback.format_exception(error))}"
    return "read", said.getvalue()


def trials(world: World, folder: Path, count: int, seed: int) -> tuple[Counter[tuple[str, str]], list[str]]:
    """`count` mutated files, in turn of every kind; outcomes by kind, and what is wrong."""
    outcomes: Counter[tuple[str, str]] = Counter()
    faults = []
    known, guard = cases(world, folder), Guard(folder)
    for number in range(count):
        name = list(known)[number % len(known)]
        outcome, why = trial(name, known[name], random.Random(f"{seed}/{number}"), folder, guard)
        outcomes[name, outcome] += 1
        if outcome == "FAULT":
            faults.append(f"number {number}: {why}")
    return outcomes, faults


def main() -> None:
    """Builds a world, or takes one that is there, and tries."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--world", type=Path, help="a folder that holds one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        world = World(arguments.world or Path(folder) / "world")
        for name, done in build_world(world.folder) if not arguments.world else ():
            assert done.code == 0, f"{name}: {done.err}"
        outcomes, faults = trials(world, Path(folder), arguments.count, arguments.seed)
    for name in dict.fromkeys(name for name, _ in outcomes):
        told = ", ".join(f"{outcomes[name, o]} {o}" for o in ("read", "refused", "FAULT") if outcomes[name, o])
        print(f"{name}: {told}")
    total = Counter({outcome: 0 for outcome in ("read", "refused", "FAULT")})
    for (_, outcome), number in outcomes.items():
        total[outcome] += number
    print("all:", ", ".join(f"{number} {outcome}" for outcome, number in total.items()))
    print(*faults, sep="\n")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
