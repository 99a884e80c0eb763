"""A little world for end-to-end tests: a folder of short songs, tiny settings, the commands as a user types them."""

import contextlib
import csv
import io
import itertools
import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import soundfile
import torch
from hydra.core.global_hydra import GlobalHydra
from safetensors.torch import load_file

from jukebox_lite.tasks.base import Metrics, Models, Task, Update
from jukebox_lite.tasks.codec import CodecTask
from jukebox_lite.tasks.prior import PriorTask
from jukebox_lite.training import checkpoint

ROOT = Path(__file__).parents[1]
SAMPLE_RATE = 8_000  # Hz of the tiny codec
HOPS = {"top": 128, "middle": 32, "bottom": 8}
LEVELS = tuple(HOPS)
STEPS = {level: round(0.32 * SAMPLE_RATE) // hop_length for level, hop_length in HOPS.items()}  # of a third of a second
CODEC = (
    "experiment=vqvae",
    f"codec.sample_rate={SAMPLE_RATE}",
    "codec.dim=8",
    "codec.depth=1",
    "codec.latent_dim=4",
    "quantizer.codebook_size=16",
    "windows.num_samples=2048",
    "windows.batch_size=2",
    "loss.terms.stft.fft_sizes=[256,64]",
)
PRIOR = (
    "experiment=prior",
    "prior.dim=16",
    "prior.depth=1",
    "prior.num_heads=2",
    "prior.context_length=64",
    "windows.batch_size=2",
)
SHORT = (
    "trainer.max_steps=4",
    "trainer.validate_every=4",
    "trainer.checkpoint_every=4",
    "trainer.log_every=1",
    "trainer.accelerator=cpu",
    "trainer.ema_decay=0.5",
    "schedule.warmup_steps=2",
    "task.num_validation_batches=1",
    "task.num_clips=1",
)
FORMS = [(44_100, 1, "wav"), (48_000, 2, "flac"), (22_050, 1, "ogg"), (8_000, 1, "wav"), (16_000, 2, "flac")]


@dataclass(frozen=True)
class Done:
    """What came of a command."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line of a command that was refused."""
        line = self.err.removesuffix("\n")
        assert self.code == 1, f"exit status {self.code}: {self.err}"
        assert line.startswith("error: ") and "\n" not in line, f"not one line of error: {self.err}"
        return line.removeprefix("error: ")


def song(path: Path, seconds: float, sample_rate: int = SAMPLE_RATE, channels: int = 1, pitch: float = 220.0) -> Path:
    """A tone that swells and fades over some noise, of the format that the suffix says."""
    time = np.arange(round(seconds * sample_rate))[:, None] / sample_rate
    noise = np.random.default_rng(round(pitch)).normal(0, 0.02, (len(time), channels))
    audio = 0.3 * np.sin(2 * np.pi * pitch * time) * np.abs(np.sin(2 * time)) + noise
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, audio, sample_rate)
    return path


def music(folder: Path, count: int = 5, labelled: bool = True) -> Path:
    """`count` songs of 2 to 3 seconds, of differing rates, channels and formats; the first by name is held out."""
    rows = []
    for index in range(count):
        sample_rate, channels, suffix = FORMS[index % len(FORMS)]
        name = f"{index:02}.{suffix}"
        song(folder / name, 2 + index / 5, sample_rate, channels, 220 * 1.2**index)
        rows.append({"file_name": name, "genre": ("piano", "organ")[index % 2]})
    if labelled:
        with (folder / "metadata.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["file_name", "genre"])
            writer.writeheader()
            writer.writerows(rows)
    return folder


def command(script: str, *arguments: str) -> Done:
    """`python train.py ...`, in this process, which has imported PyTorch already; on one thread, so that bits agree."""
    out, err, code, threads = io.StringIO(), io.StringIO(), 0, torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with (
            mock.patch.object(sys, "argv", [str(ROOT / script), *arguments]),
            mock.patch.dict(os.environ),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            try:
                runpy.run_path(str(ROOT / script), run_name="__main__")
            except SystemExit as exit:
                code = exit.code if isinstance(exit.code, int) else 1
                if isinstance(exit.code, str):
                    print(exit.code, file=sys.stderr)
    finally:
        torch.set_num_threads(threads)
        GlobalHydra.instance().clear()
    return Done(code, out.getvalue(), err.getvalue())


def start(script: str | Path, *arguments: str) -> subprocess.Popen[str]:
    """The same command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / script), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def finish(process: subprocess.Popen[str], timeout: float = 120) -> Done:
    """What comes of a process."""
    out, err = process.communicate(timeout=timeout)
    return Done(process.returncode, out, err)


@dataclass(frozen=True)
class World:
    """A folder of music, and what was learnt from it: runs/codec, and runs/<level> of each level's prior."""

    folder: Path

    @property
    def runs(self) -> Path:
        """The folder of runs."""
        return self.folder / "runs"

    @property
    def places(self) -> tuple[str, ...]:
        """Settings that keep what a command writes inside."""
        return (f"runs={self.runs}", f"cache={self.folder / 'cache'}")

    def codec(self, *arguments: str, data: Path | None = None) -> tuple[str, ...]:
        """Arguments of train.py for a codec."""
        return (*CODEC, *SHORT, *self.places, f"data.root={data or self.folder / 'music'}", *arguments)

    def adversarial(self, *arguments: str) -> tuple[str, ...]:
        """Arguments of train.py for a codec that has a discriminator from its third step on."""
        return self.codec(
            "task=adversarial_codec",
            "task.adversary.start=2",
            "task.adversary.num_samples=1024",
            "task.balance_gradients=true",
            "discriminator.dim=1",
            "discriminator.fft_sizes=[256]",
            *arguments,
        )

    def prior(self, level: str, *arguments: str, data: Path | None = None) -> tuple[str, ...]:
        """Arguments of train.py for a prior of the world's codec."""
        root = f"data.root={data or self.folder / 'music'}"
        return (*PRIOR, *SHORT, *self.places, root, f"task.level={level}", f"codec.run={self.runs}/codec", *arguments)

    def sample(self, *arguments: str, levels: tuple[str, ...] = LEVELS) -> tuple[str, ...]:
        """Arguments of sample.py for a third of a second of the world's music."""
        priors = ",".join(str(self.runs / level) for level in levels)
        return (f"priors=[{priors}]", "seconds=0.32", f"runs={self.runs}", *arguments)


def build_world(folder: Path) -> Iterator[tuple[str, Done]]:
    """Makes the music and trains all there is; yields what each command came to."""
    world = World(folder)
    music(folder / "music")
    yield "codec", command("train.py", *world.codec("name=codec"))
    for level in LEVELS:
        yield level, command("train.py", *world.prior(level))


def forkserver() -> ForkServerContext:
    """Makes processes that are forked from one that has imported what is slow."""
    context = multiprocessing.get_context("forkserver")
    rooms = ("training.trainer", "config", "tasks.adversarial", "tasks.prior")
    context.set_forkserver_preload([*(f"jukebox_lite.{room}" for room in rooms), "pytest"])
    return context


def child(function: Callable[..., object], *arguments: object) -> int:
    """The exit code of a fresh process that runs `function`."""
    process = forkserver().Process(target=function, args=arguments)
    process.start()
    process.join(60)
    assert process.exitcode is not None, "still running after a minute"
    return process.exitcode


def signalled(arguments: tuple[str, ...], call: int, number: int) -> None:
    """train.py, sending itself a signal in the middle of a step: the weights have moved, their averages have not."""
    calls = itertools.count()
    for task in (CodecTask, PriorTask):

        def step(self: Task, models: Models, batch: Any, step: int, update: Update, plain: Any = task.step) -> Metrics:
            metrics = plain(self, models, batch, step, update)
            if next(calls) == call:
                os.kill(os.getpid(), number)
            return metrics

        task.step = step
    sys.exit(command("train.py", *arguments).code)


def tensors(run: Path) -> dict[str, torch.Tensor]:
    """All tensors of a run's last checkpoint, the averaged weights and the trainer's; its numbers as one more."""
    path = checkpoint.latest(run)
    assert path is not None, f"{run} has no checkpoint"
    numbers = torch.tensor(list((path / "trainer.json").read_bytes()))
    return {**load_file(path / "model.safetensors"), **load_file(path / "trainer.safetensors"), "numbers": numbers}


def assert_same(run: Path, other: Path) -> None:
    """Two runs ended with the same bits."""
    a, b = tensors(run), tensors(other)
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def codes_of(world: World, *arguments: str, levels: tuple[str, ...] = LEVELS) -> dict[str, torch.Tensor]:
    """The codes that one call of sample.py makes."""
    done = command("sample.py", *world.sample(*arguments, levels=levels))
    assert done.code == 0, done.err
    name = next((a.removeprefix("name=") for a in arguments if a.startswith("name=")), "sample")
    return load_file(world.runs / name / "codes.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], *levels: str) -> bool:
    """Whether the codes of these levels are equal."""
    return all(torch.equal(a[level], b[level]) for level in levels)


BROKEN = {"cut.mp3": "ends after", "empty.wav": "0 bytes", "text.flac": "not readable", "click.wav": "10 ms of audio"}


def broken(folder: Path) -> Path:
    """A folder with four files that are no songs."""
    song(folder / "cut.mp3", 3, 44_100)
    (folder / "cut.mp3").write_bytes((folder / "cut.mp3").read_bytes()[:9_000])
    (folder / "empty.wav").touch()
    (folder / "text.flac").write_text("not music")
    song(folder / "click.wav", 0.01)
    return folder
