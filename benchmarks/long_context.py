"""What each mixer of conf/mixer still knows of a melody heard 4,096 steps ago. `python -m benchmarks.long_context`

A song is A B A B. A and B are melodies of 4 notes each, new in every song, none twice, and each is followed by 2,044
rests, so that the period is long and what there is to remember is small: which note follows which. The first time
nothing tells a note. The second time the first note of a melody tells the others, to a mixer that remembers the period
before. What sees less than the period pays for the second A B what it paid for the first.

So this tests recall by content over a distance, of what a state of constant size can hold. It does not test recall of
thousands of random codes, which no such state can, nor how much a state holds (tests/test_long_mixers.py shows that a
head of the delta rule holds as many pairs as its keys have features).

Factored attention has one way from one period to the next: a layer binds a note to the one before it along the row, a
layer above it carries the pair down its column, and a third finds it there from the row below. Those in the middle do
not know what will be asked, so that a column should hold one melody: a row is of a length that lays A and B into
different columns (20; at 32 they share them), and shorter than the period of the first songs, so that these ask for
the row before. There are four layers, the last of which recalls within a row.

All priors have one shape, one optimiser and one rate, and see the same songs, whose rests are of random length, so that
a distance learnt by heart is no help: short songs first, then of up to 64 rests, over few rows, where columns are
learnt, then longer and longer ones. A step's loss is per melody and not per token: of long songs nearly all tokens are
rests, and their gradient was a thirtieth of that of the short ones beside them. The columns are what held-out songs
cost: in nats per token of a whole A B, and in nats per note that a melody's first note could tell (chance: ln 32 is
3.47). Short songs have 8 rests after a melody: a mixer that fails there has not learnt to recall at all, and its long
songs say nothing of its reach. One seed; the recipe was chosen by trying it on factored.
"""

import argparse
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import reduce
from rich.console import Console
from rich.table import Table
from torch import Tensor

from jukebox_lite import config
from jukebox_lite.levels import Facts, Level, Window
from jukebox_lite.priors.autoregressive import AutoregressivePrior
from jukebox_lite.training.optimizers import Muon

MIXERS = Path(__file__).parents[1] / "conf" / "mixer"
NOTES = 32  # codes that are notes; one more is the rest
MELODY = 4  # notes
SHORT, MIDDLE, LONG = 2 * MELODY, 64, 2048 - MELODY  # rests after a melody
REPEATS = 6  # of A B at most in a song to learn from
TOKENS = 1536  # about a step's


def main() -> None:
    """Trains a prior for each mixer and prints a table of what the second time costs beside the first."""
    names = sorted(path.stem for path in MIXERS.glob("*.yaml"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mixers", nargs="+", choices=names, default=names)
    parser.add_argument("--steps", type=int, default=1600, help="of training")
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--num-heads", type=int, default=4)
    parser.add_argument("--row-length", type=int, default=20, help="of the mixer that lays the sequence in rows")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    title = f"songs A B A B of {4 * (MELODY + LONG):,} steps (dim {arguments.dim}, depth {arguments.depth})"
    table = Table("", "nats per token: first A B", "second", "per note: first", "second", "in short songs", title=title)
    for name in arguments.mixers:
        began = time.process_time()
        prior = build(arguments, name)
        train(prior, arguments)
        row = *judge(prior, LONG), judge(prior, SHORT)[3]
        table.add_row(name, *(f"{nats:.4f}" for nats in row[:2]), *(f"{nats:.2f}" for nats in row[2:]))
        print(f"{name}: {time.process_time() - began:.0f} s of CPU time", flush=True)
    Console(width=120).print(table)


def build(arguments: argparse.Namespace, name: str) -> AutoregressivePrior:
    """An untrained prior with the mixer of conf/mixer/<name>.yaml; notes are random vectors, as a codec's codes are."""
    settings = config.read(MIXERS / f"{name}.yaml")
    if "row_length" in settings:
        settings.row_length = arguments.row_length
    mixer = config.build(settings, config.ROOMS)
    torch.manual_seed(0)
    vectors = torch.block_diag(torch.randn(NOTES, 16), torch.ones(1, 1))
    facts = Facts(Level("top", NOTES + 1), vectors={"top": vectors[None]})
    dim, depth, num_heads = arguments.dim, arguments.depth, arguments.num_heads
    return AutoregressivePrior(dim, depth, num_heads, 4 * (MELODY + LONG), mixer, facts, {})


def train(prior: AutoregressivePrior, arguments: argparse.Namespace) -> None:
    """Short songs, then longer and longer ones among them; every song is seen once."""
    optimizer = Muon(prior.named_parameters(), arguments.lr, betas=(0.9, 0.95))
    generator = torch.Generator().manual_seed(1)
    for step, (rests, repeats) in enumerate(lessons(arguments.steps)):
        for group in optimizer.param_groups:
            group["lr"] = arguments.lr * min(1, (step + 1) / 30, 4 * (1 - step / arguments.steps))
        batch_size = max(1, TOKENS // (2 * repeats * (MELODY + rests)))
        loss = surprise(prior, songs(batch_size, rests, repeats, generator)).mean() * (MELODY + rests)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(prior.parameters(), 1.0)
        optimizer.step()


def lessons(steps: int) -> Iterator[tuple[int, int]]:
    """Rests after a melody, and repeats of A B, of each training step; rests grow from 55 to 85 % of the steps."""
    draw = random.Random(0)
    for step in range(steps):
        grown = min(1, max(0, step / steps - 0.55) / 0.3)
        most = SHORT if step < 0.16 * steps else MIDDLE * (LONG / MIDDLE) ** grown
        among = math.exp(draw.uniform(0, math.log(most)))  # short ones too, lest they be forgotten
        rests = round(draw.choice([among, draw.uniform(most / 2, most)]))
        yield rests, max(2, min(REPEATS, TOKENS // (4 * (MELODY + rests))))


def songs(batch_size: int, rests: int, repeats: int, generator: torch.Generator) -> Tensor:
    """Codes [B, 1, T] of A B, `repeats` times over."""
    notes = torch.rand(batch_size, NOTES, generator=generator).argsort(1)[:, : 2 * MELODY]
    sections = F.pad(notes.unflatten(1, (2, MELODY)), (0, rests), value=NOTES)
    return sections.flatten(1).repeat(1, repeats)[:, None]


def surprise(prior: AutoregressivePrior, codes: Tensor) -> Tensor:
    """Nats [B, T] of every token."""
    return prior.nats(Window({"top": codes}))[:, 0]


@torch.no_grad()
def judge(prior: AutoregressivePrior, rests: int, num_songs: int = 16) -> list[float]:
    """Nats per token of the first A B and of the second, then per note after a melody's first, likewise."""
    generator = torch.Generator().manual_seed(2)
    nats = torch.cat([surprise(prior, songs(1, rests, 2, generator)) for _ in range(num_songs)])
    times = nats.unflatten(1, (2, 2, -1))  # [B, first or second, A or B, T]
    return [
        *reduce(times, "b time melody t -> time", "mean").tolist(),
        *reduce(times[..., 1:MELODY], "b time melody t -> time", "mean").tolist(),
    ]


if __name__ == "__main__":
    main()
