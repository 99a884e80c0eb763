"""Sampling under kill -9, at random moments, to the end. `python -m benchmarks.kills runs/top runs/middle runs/bottom`

For each order of windows and each way of sampling: once without a kill, then the same command, killed after a random
share of the time that this took and started again, over and over. When it comes to its end before a kill, its codes are
compared, and another folder is begun. Prints each outcome, and at the end how many there were.
"""

import argparse
import multiprocessing
import random
import runpy
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file

SAMPLE = Path(__file__).parents[1] / "sample.py"
WAYS = {  # what each is given, of the song that the first way has made
    "ancestral": (),
    "continued": ("given.codes={first}/codes.safetensors", "seconds={twice}"),
    "primed": ("given.audio={first}/01-01-{finest}.wav", "seconds={twice}"),
    "upsampled": ("given.codes={first}/codes.safetensors", "given.levels=[{top}]", "seed=1"),
}


def main() -> None:
    """Kills and compares; exit status 1 if any codes differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="run folders of a codec's priors")
    parser.add_argument("--kills", type=int, default=50, help="for each order of windows, over all ways")
    parser.add_argument("--orders", nargs="+", default=["sequential", "parallel"])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--stretch", type=int, default=32)
    parser.add_argument("--folder", type=Path, default=Path("runs/kills"), help="made anew")
    arguments = parser.parse_args()
    shutil.rmtree(arguments.folder, ignore_errors=True)
    outcomes: Counter[str] = Counter()
    for order in arguments.orders:
        common = (f"priors=[{','.join(arguments.runs)}]", f"runs={arguments.folder}", "num_songs=1", "overlap=0.25")
        common = (*common, f"windows={order}", f"windows.stretch={arguments.stretch}", "windows.batch_size=3")
        run((*common, f"seconds={arguments.seconds}", f"name=first-{order}"))
        first = arguments.folder / f"first-{order}"
        levels = sorted(path.stem.split("-", 2)[2] for path in first.glob("01-*.wav"))
        finest, top = (next(first.glob(f"01-{number:02}-*.wav")).stem.split("-", 2)[2] for number in (1, len(levels)))
        told = {"first": first, "finest": finest, "top": top, "twice": 2 * arguments.seconds}
        for way in arguments.ways:
            words = (f"seconds={arguments.seconds}", *(word.format(**told) for word in WAYS[way]))
            kills = arguments.kills // len(arguments.ways) + (way == arguments.ways[0]) * (
                arguments.kills % len(arguments.ways)
            )
            outcomes += torment((*common, *words), arguments.folder, f"{order}-{way}", kills)
    print(", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items())))
    sys.exit(outcomes["with OTHER codes"] + outcomes["failed"] > 0)


def torment(words: Sequence[str], folder: Path, name: str, kills: int) -> Counter[str]:
    """Kills one command so many times, in as many folders as it takes; what came of it."""
    began = time.monotonic()
    run((*words, f"name={name}"))
    seconds, whole = time.monotonic() - began, load_file(folder / name / "codes.safetensors")
    dice, outcomes, attempt = random.Random(name), Counter(), 0
    while kills > 0:
        attempt, moments = attempt + 1, []
        command = (*words, f"name={name}-{attempt}")
        while kills > 0 and run(command, moment := dice.uniform(0, seconds)) is None:
            moments.append(moment)
            kills -= 1
        code = run(command)
        codes = load_file(folder / f"{name}-{attempt}" / "codes.safetensors") if code == 0 else {}
        same = codes.keys() == whole.keys() and all(torch.equal(codes[level], whole[level]) for level in whole)
        outcome = "failed" if code else "with the same codes" if same else "with OTHER codes"
        outcomes += Counter({"kills": len(moments), outcome: 1})
        told = ", ".join(f"{moment:.2f}" for moment in moments)
        print(f"{name} ({seconds:.2f} s), killed after {told or 'nothing'}: ended {outcome}", flush=True)
    return outcomes


def run(words: Sequence[str], kill_after: float | None = None) -> int | None:
    """The exit code of sample.py in a process of its own; None if it was killed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["jukebox_lite.training.load", "jukebox_lite.generation.songs"])
    process = context.Process(target=command, args=(tuple(words),))
    process.start()
    process.join(kill_after)
    if process.exitcode is None:
        process.kill()
        process.join()
        return None
    return process.exitcode


def command(words: Sequence[str]) -> None:
    """`python sample.py ...`, on one thread."""
    torch.set_num_threads(1)
    sys.argv = [str(SAMPLE), *words]
    runpy.run_path(str(SAMPLE), run_name="__main__")


if __name__ == "__main__":
    main()
