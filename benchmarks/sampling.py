"""Codes a second at each precision, beside transformers' JukeboxPrior. `python -m benchmarks.sampling`

    python -m pip install --target DIR transformers==4.46.3 && PYTHONPATH=DIR python -m benchmarks.sampling

The shape and weights of `benchmarks.prior`, for both; and a causal AutoregressivePrior of ours of as many weights. Each
side lives in a process of its own, they take turns, and time is the median, without compiling. At the window's end the
codes before are read first: the time of a run that stops after one code is taken off, a difference that few codes
leave to noise. The roofline is the bandwidth of a long sum over the bytes of weights that a step reads. The cost of a
precision is the mean divergence of its distributions from those of full precision, in nats per code, over a window that
full precision draws: what its loss would be above. Random weights.
"""

import argparse
import os
import tempfile
import time
from abc import ABC, abstractmethod
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.prior import SHAPE, Theirs, prepare
from benchmarks.turns import Child, take_turns
from jukebox_lite.interop import openai
from jukebox_lite.levels import Facts, Level, Window
from jukebox_lite.nn.transformer import CausalAttention
from jukebox_lite.priors.autoregressive import AutoregressivePrior
from jukebox_lite.priors.base import Sampler
from jukebox_lite.priors.jukebox import JukeboxPrior
from jukebox_lite.priors.stepwise import for_sampling

PRECISIONS = ("fp32", "bf16", "int8")
BATCH_SIZES = (1, 8)
LENGTH, VOCAB_SIZE = SHAPE["n_ctx"], SHAPE["l_bins"]


class Side(ABC):
    """What is timed: `count` codes of each song at the start and at the end of the window."""

    def __init__(self, folder: Path):
        self.count = len(load_file(folder / "given.safetensors")["sampled"][0])

    @abstractmethod
    def draw(self, batch_size: int, given: int, count: int) -> Tensor:
        """Codes [B, given + count], of which the first are given: zeros."""

    def start_1(self) -> dict[str, Tensor]:
        return {"codes": self.draw(1, 0, self.count)}

    def start_8(self) -> dict[str, Tensor]:
        return {"codes": self.draw(8, 0, self.count)}

    def end_1(self) -> dict[str, Tensor]:
        return {"codes": self.draw(1, LENGTH - self.count, self.count)}

    def end_8(self) -> dict[str, Tensor]:
        return {"codes": self.draw(8, LENGTH - self.count, self.count)}

    def first_1(self) -> dict[str, Tensor]:
        return {"codes": self.draw(1, LENGTH - self.count, 1)}

    def first_8(self) -> dict[str, Tensor]:
        return {"codes": self.draw(8, LENGTH - self.count, 1)}


class TheirSide(Side):
    """transformers' JukeboxPrior."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.model = Theirs(folder).model.eval()

    def draw(self, batch_size: int, given: int, count: int) -> Tensor:
        before = torch.zeros(batch_size, given, dtype=torch.int64) if given else None
        return self.model.sample(batch_size, before, [], None, sample_tokens=given + count)


class OurSide(Side):
    """A prior of ours, at a precision, compiled or not: a copy for each batch size."""

    def __init__(self, folder: Path, kind: str, precision: str, compiled: bool):
        super().__init__(folder)
        self.priors = {size: for_sampling(load(folder, kind), precision, compiled) for size in BATCH_SIZES}
        if compiled:
            began = time.perf_counter()
            for size in BATCH_SIZES:
                self.draw(size, 0, 2)
            print(f"{kind} {precision}: compiled for both batch sizes in {time.perf_counter() - began:.0f} s")

    def draw(self, batch_size: int, given: int, count: int) -> Tensor:
        noise = torch.rand(batch_size, 1, given + count, generator=torch.Generator().manual_seed(0))
        prior = self.priors[batch_size]
        before = torch.zeros(batch_size, 1, given, dtype=torch.int64)
        return prior.sample(Window({prior.facts.level.name: before}), Sampler(), noise)[:, 0]


def load(folder: Path, kind: str) -> JukeboxPrior | AutoregressivePrior:
    """A prior of ours of that kind, with the weights of the folder or, causal, with random ones."""
    if kind == "jukebox":
        return openai.prior(load_file(folder / "weights.safetensors"), SHAPE).eval()
    torch.manual_seed(0)
    facts = Facts(Level("top", VOCAB_SIZE, 1, None))
    model = AutoregressivePrior(256, SHAPE["prior_depth"], SHAPE["heads"], LENGTH, CausalAttention, facts, {}).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return model


def step_bytes(model: JukeboxPrior | AutoregressivePrior) -> int:
    """Of the weights that every step reads whole: the blocks' and the head's."""
    head = (model.head or model.transformer.embedding) if isinstance(model, JukeboxPrior) else model.heads
    modules = [model.transformer.blocks, head]
    return sum(each.nbytes for module in modules for each in (*module.parameters(), *module.buffers()))


def bandwidth() -> float:
    """Bytes a second that the threads read, at best of ten."""
    long, best = torch.ones(1 << 26), float("inf")
    for _ in range(10):
        began = time.perf_counter()
        long.sum()
        best = min(best, time.perf_counter() - began)
    return long.nbytes / best


@torch.no_grad()
def cost(folder: Path, kind: str, precision: str, length: int = 512) -> float:
    """Nats per code that the precision loses on a song of full precision."""
    whole = load(folder, kind)
    codes = whole.sample(Window({}), Sampler(), torch.rand(1, 1, length, generator=torch.Generator().manual_seed(0)))
    narrow = for_sampling(whole, precision)
    assert isinstance(narrow, JukeboxPrior | AutoregressivePrior)
    p, q = (each.logits(Window({whole.facts.level.name: codes})).double().log_softmax(-1) for each in (whole, narrow))
    return float((p.exp() * (p - q)).sum(-1).mean())


def main() -> None:
    """Times all sides and prints a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-sampled", type=int, default=128, help="codes of every song that are timed")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--precisions", nargs="+", default=PRECISIONS)
    parser.add_argument("--kinds", nargs="+", default=("jukebox", "causal"))
    arguments = parser.parse_args()
    os.environ["TQDM_DISABLE"] = "1"  # transformers' progress bars
    torch.set_num_threads(arguments.threads)
    ours = [(kind, each, compiled) for kind in arguments.kinds for each in arguments.precisions for compiled in (0, 1)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, 1, arguments.num_sampled)
        children = {"theirs": Child("theirs", TheirSide, folder, arguments.threads)}
        for side in ours:
            kind, precision, compiled = side
            make = partial(OurSide, kind=kind, precision=precision, compiled=bool(compiled))
            children[title(*side)] = Child(title(*side), make, folder, arguments.threads)
        speeds, held = {}, dict.fromkeys(children, 0)
        for batch_size in BATCH_SIZES:
            runs = {
                action: take_turns(children, f"{action}_{batch_size}", arguments.repeats)
                for action in ("start", "end", "first")
            }
            for side in children:
                seconds = {action: run[side][0] for action, run in runs.items()}
                held[side] = max(held[side], *(run[side][1] for run in runs.values()))
                count = batch_size * arguments.num_sampled
                speeds[side, batch_size, "start"] = count / seconds["start"]
                speeds[side, batch_size, "end"] = (count - batch_size) / (seconds["end"] - seconds["first"])
        for child in children.values():
            child.stop()
        print(f"{arguments.threads} threads, torch {torch.__version__}, {bandwidth() / 1e9:.1f} GB/s")
        print(
            "codes a second of 1 song at the window's start, end, of 8 songs at its start, end; x theirs; peak memory"
        )
        columns = [(size, place) for size in BATCH_SIZES for place in ("start", "end")]
        print(line("theirs", [speeds["theirs", *column] for column in columns], held["theirs"]))
        for side in ours:
            kind, precision, _ = side
            own = [speeds[title(*side), *column] for column in columns]
            ratios = [speed / speeds["theirs", *column] for speed, column in zip(own, columns, strict=True)]
            narrow = for_sampling(load(folder, kind), precision)
            assert isinstance(narrow, JukeboxPrior | AutoregressivePrior)
            roofline = bandwidth() / step_bytes(narrow)
            print(
                line(title(*side), own, held[title(*side)]),
                f" x {' '.join(f'{ratio:5.2f}' for ratio in ratios)}; {own[0] / roofline:.0%} of the roofline at 1 song"
                f", {cost(folder, kind, precision):.5f} nats per code",
            )


def title(kind: str, precision: str, compiled: int) -> str:
    """What a side is called."""
    return f"{kind}-{precision}{'-compiled' if compiled else ''}"


def line(side: str, speeds: list[float], held: int) -> str:
    """A side's speeds and bytes."""
    return f"  {side:22} {' '.join(f'{speed:6.0f}' for speed in speeds)} {held / 2**20:5.0f} MiB"


if __name__ == "__main__":
    main()
