"""Time per code and memory of sampling songs of any length. `python -m benchmarks.long_songs`

A tiny prior of random weights draws one level of hop 8 at 44.1 kHz, each length in a process of its own, with a
journal: 3.3 million codes in ten minutes of song. To draw all of them takes hours, so only the last `--drawn` are drawn
and the others are given, which are so held twice. Memory is the most that the process held above what it held before,
and as a share of the codes themselves (int64): beside them only what a batch needs is held, whatever the length.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.turns import memory
from jukebox_lite.codecs.base import Codec
from jukebox_lite.generation.complete import complete, samplers
from jukebox_lite.generation.journal import Journal
from jukebox_lite.generation.windows import Parallel, Sequential
from jukebox_lite.levels import Codes, Facts, Level
from jukebox_lite.nn.transformer import CausalAttention
from jukebox_lite.priors.autoregressive import AutoregressivePrior
from jukebox_lite.priors.conditioning import LevelAbove

LENGTHS = (30.0, 120.0, 600.0)
ORDERS = {"sequential": Sequential, "parallel": Parallel}
LEVELS = (Level("above", 512, 1, 32), Level("own", 512, 1, 8))


class Silent(Codec):
    """Levels without sound: nothing is encoded or decoded here."""

    sample_rate, channels, levels = 44_100, 1, LEVELS

    def encode(self, audio: Tensor) -> Codes:
        raise NotImplementedError

    def decode(self, codes: Codes) -> Tensor:
        raise NotImplementedError


def main() -> None:
    """Prints a row for each length and order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, nargs="+", default=LENGTHS)
    parser.add_argument("--drawn", type=int, default=16_384)
    parser.add_argument("--context-length", type=int, default=512)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--child", choices=ORDERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(arguments, arguments.seconds[0])))
        return
    table = Table("song", "codes", "windows", "CPU ms a code drawn", "memory, MiB", "of the codes'", "journal, MiB")
    for seconds in arguments.seconds:
        for order in ORDERS:
            told = [f"--{name}={getattr(arguments, name.replace('-', '_'))}" for name in ("drawn", "dim", "depth")]
            sizes = [f"--context-length={arguments.context_length}", f"--batch-size={arguments.batch_size}"]
            line = [sys.executable, "-m", "benchmarks.long_songs", "--child", order, "--seconds", str(seconds)]
            done = subprocess.run([*line, *told, *sizes], stdout=subprocess.PIPE, text=True, check=True)
            row = json.loads(done.stdout)
            numbers = (f"{row[name]:,.2f}" for name in ("milliseconds", "memory", "share", "journal"))
            table.add_row(f"{seconds:g} s", f"{row['codes']:,}", order, *numbers)
    Console(width=120).print(table)


def measure(arguments: argparse.Namespace, seconds: float) -> dict[str, float]:
    """One length in this process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dim, depth = arguments.dim, arguments.depth
    facts = Facts(LEVELS[1], LEVELS[0])
    told = {"above": LevelAbove}
    prior = AutoregressivePrior(dim, depth, 2, arguments.context_length, CausalAttention, facts, told).eval()
    above = round(seconds * 44_100 / 32)
    steps = {"above": above, "own": 4 * above}
    order = ORDERS[arguments.child](arguments.batch_size)
    how = samplers(LEVELS)

    def run(seconds_above: int, drawn: int, folder: Path) -> Path:
        steps = {"above": seconds_above, "own": 4 * seconds_above}
        given = {"above": torch.zeros(1, 1, steps["above"], dtype=torch.int64)}
        given["own"] = torch.zeros(1, 1, steps["own"] - drawn, dtype=torch.int64)
        with Journal(folder / "journal", {}) as journal:
            complete(Silent(), [prior], steps, {}, how, 0, 1, given, order=order, journal=journal)
        return folder / "journal"

    with tempfile.TemporaryDirectory() as folder:
        run(arguments.context_length, arguments.context_length, Path(folder) / "warm")
        Path("/proc/self/clear_refs").write_text("5")  # starts the peak anew
        before, began = memory("VmRSS"), time.process_time()
        journal = run(above, arguments.drawn, Path(folder) / "measured")
        elapsed, held = time.process_time() - began, memory("VmHWM") - before
        return {
            "codes": steps["own"],
            "milliseconds": 1e3 * elapsed / arguments.drawn,
            "memory": held / 2**20,
            "share": held / (8 * sum(steps.values())),
            "journal": journal.stat().st_size / 2**20,
        }


if __name__ == "__main__":
    main()
