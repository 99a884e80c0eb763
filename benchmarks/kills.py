"""The commands under kill -9, at random moments, to the end.

python -m benchmarks.kills training                                       a toy's codec, code cache and prior
python -m benchmarks.kills sampling runs/top runs/middle runs/bottom      in each order of windows, each way of sampling

Each work is done once without a kill, then by the same command, killed after a random share of the time that this took
and started again, over and over. When it comes to its end before a kill, what it made is compared, tensor by tensor,
and another folder is begun. Prints each outcome, and at the end how many there were.
"""

import argparse
import multiprocessing
import random
import runpy
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from jukebox_lite.audio import write
from jukebox_lite.training import checkpoint

ROOT = Path(__file__).parents[1]
WAYS = {  # what each is given, of the song that the first way has made
    "ancestral": (),
    "continued": ("given.codes={first}/codes.safetensors", "seconds={twice}"),
    "primed": ("given.audio={first}/01-01-{finest}.wav", "seconds={twice}"),
    "upsampled": ("given.codes={first}/codes.safetensors", "given.levels=[{top}]", "seed=1"),
}
TOY_SONGS, SONG_SECONDS, TOY_RATE = 24, 20.0, 8_000  # whose codes take as long to make as the toys take to learn
TOY = (
    "trainer.checkpoint_every=2",
    "trainer.validate_every=20",
    "trainer.log_every=5",
    "trainer.accelerator=cpu",
    "task.num_validation_batches=1",
    "task.num_clips=1",
    "windows.batch_size=4",
)
TOY_CODEC = (
    "experiment=vqvae",
    f"codec.sample_rate={TOY_RATE}",
    "codec.dim=8",
    "codec.depth=2",
    "quantizer.codebook_size=64",
    "windows.num_samples=4096",
    "loss.terms.stft.fft_sizes=[512,128]",
)
TOY_PRIOR = ("experiment=prior", "task.level=middle", "prior.dim=32", "prior.depth=2", "prior.context_length=128")


@dataclass(frozen=True)
class Work:
    """A command, of a script and its words, that makes whatever name stands for "{name}"; and the tensors it made."""

    script: str
    words: Sequence[str]
    made: Callable[[str], Mapping[str, Tensor]]

    def run(self, name: str, kill_after: float | None = None) -> int | None:
        """The command's exit code, in a process of its own; None if it was killed after so many seconds."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["jukebox_lite.training.trainer", "jukebox_lite.tasks.prior", "hydra"])
        words = [word.replace("{name}", name) for word in self.words]
        process = context.Process(target=command, args=(self.script, words))
        process.start()
        process.join(kill_after)
        if process.exitcode is None:
            process.kill()
            process.join()
            return None
        return process.exitcode


def command(script: str, words: Sequence[str]) -> None:
    """`python train.py ...`, on one thread."""
    torch.set_num_threads(1)
    sys.argv = [str(ROOT / script), *words]
    runpy.run_path(str(ROOT / script), run_name="__main__")


def main() -> None:
    """Kills and compares; exit status 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    training_, sampling_ = commands.add_parser("training"), commands.add_parser("sampling")
    for command_ in (training_, sampling_):
        command_.add_argument("--kills", type=int, default=50, help="over all works, or all ways of an order")
        command_.add_argument("--folder", type=Path, default=Path("runs/kills"), help="made anew")
    training_.add_argument("--steps", type=int, default=40, help="of the codec and of the prior")
    sampling_.add_argument("priors", nargs="+", help="run folders of a codec's priors")
    sampling_.add_argument("--orders", nargs="+", default=["sequential", "parallel"])
    sampling_.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    sampling_.add_argument("--seconds", type=float, default=2.0)
    arguments = parser.parse_args()
    shutil.rmtree(arguments.folder, ignore_errors=True)
    outcomes: Counter[str] = Counter()
    for works in training(arguments) if arguments.command == "training" else sampling(arguments):
        for index, (name, work) in enumerate(works.items()):
            kills = arguments.kills // len(works) + (index < arguments.kills % len(works))
            outcomes += torment(work, name, kills)
    print(", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items())))
    sys.exit(outcomes["with OTHER tensors"] + outcomes["failed"] > 0)


def torment(work: Work, name: str, kills: int) -> Counter[str]:
    """Kills one command so many times, under as many names as it takes; what came of it."""
    began = time.monotonic()
    if work.run(name):
        raise SystemExit(f"{name} fails without a kill")
    seconds, whole = time.monotonic() - began, work.made(name)
    dice, outcomes, attempt = random.Random(name), Counter(), 0
    while kills > 0:
        attempt, moments = attempt + 1, []
        again = f"{name}-{attempt}"
        began = time.monotonic()
        while kills > 0 and work.run(again, moment := dice.uniform(0, seconds)) is None:
            moments.append(moment)
            kills -= 1
        if kills and not moments:
            seconds = min(seconds, time.monotonic() - began)  # the first time, the machine was busier
        code = work.run(again)
        made = work.made(again) if code == 0 else {}
        same = made.keys() == whole.keys() and all(torch.equal(made[key], whole[key]) for key in whole)
        outcome = "failed" if code else "with the same tensors" if same else "with OTHER tensors"
        outcomes += Counter({"kills": len(moments), outcome: 1})
        told = ", ".join(f"{moment:.2f}" for moment in moments)
        print(f"{name} ({seconds:.2f} s), killed after {told or 'nothing'}: ended {outcome}", flush=True)
    return outcomes


def training(arguments: argparse.Namespace) -> Iterator[dict[str, Work]]:
    """A codec of noisy tones; a cache of its codes, each time in a folder of its own; a prior of the first cache."""
    runs, music = arguments.folder, arguments.folder / "music"
    time_ = torch.arange(round(SONG_SECONDS * TOY_RATE)) / TOY_RATE
    for number in range(TOY_SONGS):
        noise = torch.randn(len(time_), generator=torch.Generator().manual_seed(number))
        write(music / f"{number:02}.wav", 0.3 * torch.sin(2000 * 1.1**number * time_)[None] + 0.02 * noise, TOY_RATE)
    common = (*TOY, f"data.root={music}", f"runs={runs}", "name={name}")
    prior = (*common, *TOY_PRIOR, f"codec.run={runs}/codec")
    steps = f"trainer.max_steps={arguments.steps}"

    def learnt(name: str) -> dict[str, Tensor]:
        path = checkpoint.latest(runs / name)
        assert path is not None
        numbers = torch.tensor(list((path / "trainer.json").read_bytes()))
        return {**load_file(path / "model.safetensors"), **load_file(path / "trainer.safetensors"), "numbers": numbers}

    def cached(name: str) -> dict[str, Tensor]:
        (manifest,) = (runs / name / "cache").rglob("manifest.json")
        arrays = {path.stem: torch.from_numpy(np.load(path)) for path in manifest.parent.glob("*.npy")}
        return {**arrays, "manifest": torch.tensor(list(manifest.read_bytes()))}

    yield {
        "codec": Work("train.py", (*common, *TOY_CODEC, steps), learnt),
        "cache": Work("train.py", (*prior, f"cache={runs}/{{name}}/cache", "trainer.max_steps=1"), cached),
        "prior": Work("train.py", (*prior, f"cache={runs}/cache/cache", steps), learnt),
    }


def sampling(arguments: argparse.Namespace) -> Iterator[dict[str, Work]]:
    """For each order of windows, each way of sampling."""
    for order in arguments.orders:
        common = (f"priors=[{','.join(arguments.priors)}]", f"runs={arguments.folder}", "num_songs=1", "overlap=0.25")
        common = (*common, f"windows={order}", "windows.batch_size=3")
        common = (*common, f"seconds={arguments.seconds}", "name={name}")

        def sampled(name: str) -> dict[str, Tensor]:
            return load_file(arguments.folder / name / "codes.safetensors")

        Work("sample.py", common, sampled).run(f"first-{order}")
        first = arguments.folder / f"first-{order}"
        levels = sorted(path.stem.split("-", 2)[2] for path in first.glob("01-*.wav"))
        finest, top = (next(first.glob(f"01-{number:02}-*.wav")).stem.split("-", 2)[2] for number in (1, len(levels)))
        told = {"first": first, "finest": finest, "top": top, "twice": 2 * arguments.seconds}
        words = {way: tuple(word.format(**told) for word in WAYS[way]) for way in arguments.ways}
        yield {f"{order}-{way}": Work("sample.py", replacing(common, words[way]), sampled) for way in arguments.ways}


def replacing(words: Sequence[str], others: Sequence[str]) -> tuple[str, ...]:
    """Settings, of which `others` take the place of those of the same key."""
    told = {word.partition("=")[0] for word in others}
    return (*(word for word in words if word.partition("=")[0] not in told), *others)


if __name__ == "__main__":
    main()
