"""What a run will take, told by a few of its steps before it begins."""

import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch.utils.flop_counter import FlopCounterMode

from jukebox_lite.nn.device import bytes_of
from jukebox_lite.training.learner import Learner
from jukebox_lite.training.reader import Reader

_TIMED_STEPS = 2


@dataclass(frozen=True)
class Rehearsal:
    """What was measured on one device, after the step that warms up."""

    flop: int  # of a step: matrix products, convolutions and attention, there and back
    step_seconds: float
    validation_seconds: float
    memory_bytes: int  # the most that was held: by the whole process, or of an accelerator's memory
    checkpoint_bytes: int

    def lines(self, max_steps: int, num_validations: int, num_checkpoints: int) -> list[str]:
        """For people; `num_checkpoints` are kept."""
        training = timedelta(seconds=round(max_steps * self.step_seconds))
        validating = timedelta(seconds=round(num_validations * self.validation_seconds))
        return [
            f"a step: {self.flop / 1e9:,.1f} GFLOP in {self.step_seconds:.3g} s, "
            f"{self.flop / self.step_seconds / 1e9:,.0f} GFLOP/s on each device",
            f"time: {training} for {max_steps:,} steps like the last ones, "
            f"{validating} for {num_validations:,} validations",
            f"memory: {self.memory_bytes / 2**30:.2f} GiB at most in these steps",
            f"disk: {num_checkpoints * self.checkpoint_bytes / 2**20:,.0f} MiB, for {num_checkpoints} checkpoints; "
            "samples beside them",
        ]


def rehearse(learner: Learner, reader: Reader, max_steps: int, validate: Callable[[], object]) -> Rehearsal:
    """Takes a few steps of a learner that is not used again; nothing is written. `validate` does so once.

    They are the last of the `max_steps`: what joins in late, as an adversary does, is there by then.
    """
    learner.step = max(0, max_steps - 1 - _TIMED_STEPS)
    with FlopCounterMode(display=False) as counter:
        learner.learn(reader, max_steps)
    learner.read_metrics()  # waits for the device, and raises if the first step is not finite
    began = time.perf_counter()
    for _ in range(_TIMED_STEPS):
        learner.learn(reader, max_steps)
    learner.read_metrics()
    step_seconds = (time.perf_counter() - began) / _TIMED_STEPS
    began = time.perf_counter()
    validate()
    return Rehearsal(
        counter.get_total_flops(),
        step_seconds,
        time.perf_counter() - began,
        _peak_bytes(learner.fabric.device),
        bytes_of([learner.weights(), learner.state_dict()]),
    )


def _peak_bytes(device: torch.device) -> int:
    """The most memory held so far: on an accelerator by tensors, else by this process."""
    if device.type != "cpu":
        return torch.accelerator.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
