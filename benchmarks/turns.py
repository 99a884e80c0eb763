"""Sides of a comparison in processes of their own, which take turns: seconds, and bytes above what was held before."""

import multiprocessing
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file


def serve(make: Callable[[Path], Any], name: str, folder: Path, threads: int, connection: Connection) -> None:
    """The child: does what it is told, and answers with seconds and bytes."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    side = make(folder)
    connection.send("ready")
    while action := connection.recv():
        Path("/proc/self/clear_refs").write_text("5")  # starts the peak anew
        before = memory("VmRSS")
        began = time.perf_counter()
        made = getattr(side, action)()
        seconds = time.perf_counter() - began
        connection.send((seconds, memory("VmHWM") - before))
        save_file({key: value.contiguous() for key, value in made.items()}, folder / f"{name}.{action}.safetensors")
        del made
        connection.send("saved")


def memory(kind: str) -> int:
    """Bytes that this process holds, or the most it held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(f"{kind}:")))


class Child:
    """A side's process, seen from here."""

    def __init__(self, name: str, make: Callable[[Path], Any], folder: Path, threads: int):
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=serve, args=(make, name, folder, threads, other), daemon=True)
        self.process.start()
        self.connection.recv()

    def run(self, action: str) -> tuple[float, int]:
        """Seconds and bytes of one action."""
        self.connection.send(action)
        result = self.connection.recv()
        self.connection.recv()
        return result

    def stop(self) -> None:
        """Ends the process."""
        self.connection.send(None)
        self.process.join()


def take_turns(children: dict[str, Child], action: str, repeats: int) -> dict[str, tuple[float, int]]:
    """Each child's median seconds and greatest bytes; the first turn warms up."""
    runs: dict[str, list[tuple[float, int]]] = {name: [] for name in children}
    for _ in range(repeats + 1):
        for name, child in children.items():
            runs[name].append(child.run(action))
    return {
        name: (statistics.median(seconds for seconds, _ in each[1:]), max(held for _, held in each))
        for name, each in runs.items()
    }
