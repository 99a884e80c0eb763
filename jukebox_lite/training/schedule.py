"""How the learning rate goes: closed forms of the step, so that a resumed run meets the same rates."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler


def constant(optimizer: Optimizer, max_steps: int, warmup_steps: int = 0) -> LRScheduler:  # noqa: ARG001
    """A straight rise over `warmup_steps`, then the optimizer's own rate."""
    return LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / (warmup_steps + 1)))


def warmup_cosine(optimizer: Optimizer, max_steps: int, warmup_steps: int = 0, final: float = 0.1) -> LRScheduler:
    """A straight rise over `warmup_steps`, then half a cosine down to `final` of the rate at `max_steps`."""

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        done = min(1.0, (step - warmup_steps) / max(1, max_steps - warmup_steps))
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done))

    return LambdaLR(optimizer, factor)
