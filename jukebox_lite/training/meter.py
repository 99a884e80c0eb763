"""Metrics that stay on the device until a log line needs them, so that no step waits for the one before."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

LOSS, GRAD_NORM = "loss/", "grad_norm/"  # what must be finite


class TrainingDiverged(RuntimeError):
    """A loss or a gradient is not finite. Its text is one line for the user, like InputError's."""


class Meter:
    """Metrics of the steps since it was last read."""

    def __init__(self) -> None:
        self._values: defaultdict[str, list[Tensor]] = defaultdict(list)
        self._steps: defaultdict[str, list[int]] = defaultdict(list)

    def add(self, step: int, metrics: Mapping[str, Tensor]) -> None:
        """Note metrics [] of a step; a step may add a name more than once."""
        for name, value in metrics.items():
            self._values[name].append(value.detach())
            self._steps[name].append(step)

    def read(self, device: torch.device, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Means over the steps by name, after `reduce` over the processes; one transfer. Empties the meter.

        Raises TrainingDiverged for the first step whose loss or gradient is not finite.
        """
        if not self._values:
            return {}
        names = sorted(self._values)
        flat = torch.stack([value.to(device, torch.float32) for name in names for value in self._values[name]])
        numbers = iter(reduce(flat).tolist())
        steps = {name: self._steps[name] for name in names}
        values = {name: [next(numbers) for _ in steps[name]] for name in names}
        self._values.clear()
        self._steps.clear()
        _check_finite(values, steps)
        return {name: math.fsum(series) / len(series) for name, series in values.items()}


def _check_finite(values: Mapping[str, list[float]], steps: Mapping[str, list[int]]) -> None:
    watched = [name for name in values if name.startswith((LOSS, GRAD_NORM))]
    bad = [
        (step, name)
        for name in watched
        for step, value in zip(steps[name], values[name], strict=True)
        if not math.isfinite(value)
    ]
    if not bad:
        return
    first = min(step for step, _ in bad)
    reading = {
        name: value for name in values for step, value in zip(steps[name], values[name], strict=True) if step == first
    }
    listed = ", ".join(f"{name} {value:.4g}" for name, value in reading.items())
    raise TrainingDiverged(
        f"step {first}: {' and '.join(sorted({name for step, name in bad if step == first}))} not finite ({listed}); "
        "a lower learning rate or a longer warm-up may help, and the last checkpoint is from before"
    )
