"""What every mixer of conf/mixer costs as the context grows: training and sampling. `python -m benchmarks.mixers`

Time is the CPU's, of one thread, so that what else the machine does counts little: the median training step of a prior
(loss and gradients, batch 1). Memory is the most that the process held above what it held before the step, each figure
in a process of its own. Sampling goes on from a prompt that fills the context but for the steps that are timed. Random
codes and weights: what a mixer learns is another question (`python -m benchmarks.long_context`).
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils._pytree import tree_leaves

from benchmarks.turns import memory
from jukebox_lite import config
from jukebox_lite.levels import Facts, Level, Window
from jukebox_lite.nn.reach import Place
from jukebox_lite.priors.autoregressive import AutoregressivePrior

CONTEXTS = (512, 1024, 2048, 4096, 8192, 16384)
MIXERS = Path(__file__).parents[1] / "conf" / "mixer"
LINEAR = 2.1  # times the memory at the last doubling; a quadratic share would exceed it
VOCAB_SIZE = 512
NEW_STEPS = 32  # sampled one by one after a prompt


def main() -> None:
    """Prints a table of training and one of sampling, and how memory grows."""
    names = sorted(path.stem for path in MIXERS.glob("*.yaml"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mixers", nargs="+", choices=names, default=names)
    parser.add_argument(
        "--contexts", nargs="+", type=int, default=CONTEXTS, help="steps, two or more, each twice the last"
    )
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--num-heads", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--checkpointing", action="store_true", help="compute blocks twice instead of keeping them")
    parser.add_argument("--child", nargs=2, metavar=("MIXER", "CONTEXT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.child:
        print(json.dumps(measure(build(arguments, *arguments.child), arguments.repeats)))
        return
    shape = f"dim {arguments.dim}, depth {arguments.depth}, one thread, torch {torch.__version__}"
    training = Table("context", *arguments.mixers, title=f"a training step ({shape})")
    sampling = Table("context", *arguments.mixers, title="a sampled step, and the state it goes on from")
    memories: dict[str, list[float]] = {name: [] for name in arguments.mixers}
    for context in arguments.contexts:
        facts = {name: in_a_process(name, context) for name in arguments.mixers}
        for name, each in facts.items():
            memories[name].append(each["memory"])
        training.add_row(
            f"{context:,}", *(f"{each['seconds']:.2f} s {each['memory'] / 2**20:6,.0f} MiB" for each in facts.values())
        )
        sampling.add_row(
            f"{context:,}",
            *(f"{each['step_seconds'] * 1e3:.2f} ms {each['state'] / 2**20:6.2f} MiB" for each in facts.values()),
        )
    for table in (training, sampling):
        Console(width=140).print(table)
    for name, each in memories.items():
        ratios = [after / before for before, after in zip(each, each[1:], strict=False)]
        growth = "linear" if ratios[-1] < LINEAR else "NOT linear"
        print(f"{name}: memory times {', '.join(f'{ratio:.2f}' for ratio in ratios)} as the context doubles: {growth}")


def build(arguments: argparse.Namespace, name: str, context: str) -> AutoregressivePrior:
    """A prior of this shape with the mixer of conf/mixer/<name>.yaml."""
    mixer = config.build(config.read(MIXERS / f"{name}.yaml"), config.ROOMS)
    facts, (dim, depth, num_heads) = (
        Facts(Level("top", VOCAB_SIZE)),
        (arguments.dim, arguments.depth, arguments.num_heads),
    )
    torch.manual_seed(0)
    return AutoregressivePrior(
        dim, depth, num_heads, int(context), mixer, facts, {}, checkpointing=arguments.checkpointing
    )


def in_a_process(name: str, context: int) -> dict[str, float]:
    """What `measure` finds in a fresh process with this one's settings."""
    line = [sys.executable, "-m", "benchmarks.mixers", *sys.argv[1:], "--child", name, str(context)]
    return json.loads(subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True).stdout)


def measure(prior: AutoregressivePrior, repeats: int) -> dict[str, float]:
    """Seconds and bytes of a training step, seconds of a sampled step, bytes of the state."""
    codes = torch.randint(VOCAB_SIZE, (1, 1, prior.context_length))
    learn(prior, codes[..., :128])  # whatever is set up once
    Path("/proc/self/clear_refs").write_text("5")  # starts the peak anew
    before = memory("VmRSS")
    seconds = [learn(prior, codes)]
    peak = memory("VmHWM") - before
    seconds += [learn(prior, codes) for _ in range(repeats)]
    step_seconds, state = sample(prior, codes)
    return {
        "seconds": statistics.median(seconds[1:]),
        "memory": peak,
        "step_seconds": step_seconds,
        "state": state,
    }


def learn(prior: AutoregressivePrior, codes: Tensor) -> float:
    """Seconds of a loss and its gradients."""
    began = time.process_time()
    prior.loss(Window({"top": codes})).total.backward()
    return time.process_time() - began


@torch.no_grad()
def sample(prior: AutoregressivePrior, codes: Tensor) -> tuple[float, int]:
    """Median seconds of a step of the transformer after a prompt, and the bytes it goes on from."""
    x = prior.embeddings[0](codes[:, 0])
    _, states = prior.transformer(x[:, :-NEW_STEPS], prior.transformer.empty_state(1, x.shape[1]))
    seconds = []
    length = x.shape[1]
    for step in range(length - NEW_STEPS, length):
        place = Place(torch.tensor([step]), length)
        began = time.process_time()
        _, states = prior.transformer(x[:, step : step + 1], states, place)
        seconds.append(time.process_time() - began)
    return statistics.median(seconds), sum(each.nbytes for each in tree_leaves(states) if isinstance(each, Tensor))


if __name__ == "__main__":
    main()
