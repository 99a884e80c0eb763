"""A training step of our codebook beside vector-quantize-pytorch's own. `python -m benchmarks.codebook`

Both see the same latents, alternating, in one run; the ratio is of the medians. Peak memory is of new tensors.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from vector_quantize_pytorch import VectorQuantize

from jukebox_lite.codecs.quantizers import VQ


def main() -> None:
    """Times both at the shape asked for and prints one line each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vectors", type=int, default=16384, help="latents a step")
    parser.add_argument("--codebook-size", type=int, default=2048)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=10)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    latents = torch.randn(1, arguments.dim, arguments.vectors)
    ours = VQ(arguments.dim, arguments.codebook_size, decay=0.99, dead_below=0.0, kmeans_init=False)
    theirs = VectorQuantize(arguments.dim, arguments.codebook_size, decay=0.99, rotation_trick=False)
    theirs.load_state_dict(ours.vq.state_dict())
    steps: dict[str, Callable[[Tensor], object]] = {
        "library": lambda x: theirs(x.transpose(1, 2)),
        "ours": lambda x: ours(x),
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(arguments.repeats):
        for name, step in steps.items():
            began = time.perf_counter()
            step(latents)
            seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    peaks = {name: peak_bytes(lambda step=step: step(latents)) for name, step in steps.items()}
    shape = f"{arguments.vectors} vectors of {arguments.dim}, {arguments.codebook_size} entries"
    print(f"a codebook's training step, {shape}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for name in steps:
        spread = f"{min(seconds[name]) * 1e3:.1f} to {max(seconds[name]) * 1e3:.1f}"
        print(f"  {name:8} {medians[name] * 1e3:7.1f} ms ({spread}), peak {peaks[name] / 2**20:7.1f} MiB")
    print(
        f"  time {medians['library'] / medians['ours']:.1f}x less, memory {peaks['library'] / peaks['ours']:.1f}x less"
    )


def peak_bytes(run: Callable[[], object]) -> int:
    """The most memory that tensors made by `run` held at once, by the profiler's log of allocations."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as log:
        run()
    held = peak = 0
    for event in sorted(log.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


if __name__ == "__main__":
    main()
