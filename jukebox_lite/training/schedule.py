"""How the learning rate goes: closed forms of the step, so that a resumed run meets the same rates."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler


def constant(optimizer: Optimizer, max_steps: int, warmup_steps: int = 0) -> LRScheduler:  # noqa: ARG001
    """A straight rise over `warmup_steps`, then the optimizer's own rate."""
    return LambdaLR(optimizer, lambda step: _rise(step, warmup_steps))


def warmup_cosine(optimizer: Optimizer, max_steps: int, warmup_steps: int = 0, final: float = 0.1) -> LRScheduler:
    """A straight rise over `warmup_steps`, then half a cosine down to `final` of the rate at `max_steps`."""

    def factor(step: int) -> float:
        done = _share(step, warmup_steps, max_steps)
        return _rise(step, warmup_steps) * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done)))

    return LambdaLR(optimizer, factor)


def warmup_stable_decay(
    optimizer: Optimizer, max_steps: int, warmup_steps: int = 0, decay_steps: int | None = None, final: float = 0.0
) -> LRScheduler:
    """A straight rise, the optimizer's own rate, and in the last `decay_steps` a straight fall to `final` of it.

    Runs of any length share their beginning, so that a long one can be ended early (Hu et al. 2024, MiniCPM, section
    4); without `decay_steps` the fall begins where the rise ends, which is linear decay.
    """
    begin = warmup_steps if decay_steps is None else max(max_steps - decay_steps, warmup_steps)

    def factor(step: int) -> float:
        return _rise(step, warmup_steps) * (1 - (1 - final) * _share(step, begin, max_steps))

    return LambdaLR(optimizer, factor)


def _rise(step: int, warmup_steps: int) -> float:
    """Straight up to 1; the first step is one already."""
    return min(1.0, (step + 1) / (warmup_steps + 1))


def _share(step: int, begin: int, end: int) -> float:
    """How much of the way from `begin` to `end` lies behind."""
    return min(1.0, max(0.0, (step - begin) / max(1, end - begin)))
