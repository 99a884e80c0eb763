"""Exponential moving averages of models: the weights that are validated, saved and used."""

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


def averaged(model: nn.Module) -> nn.Module:
    """A copy of a model in evaluation mode, to be moved by `follow`."""
    return deepcopy(model).eval().requires_grad_(False)


@torch.no_grad()
def follow(average: nn.Module, model: nn.Module, step: int, decay: float) -> None:
    """Move the average towards the model after its `step`, counted from 0.

    The decay rises to `decay` as (1 + step) / (10 + step), so that a short run is not mostly its random start. Integers
    and booleans are copied. torch's AveragedModel has neither: its count is a tensor, which a decay that rises would
    have to fetch from the GPU at every step.
    """
    lerp = get_ema_multi_avg_fn(min(decay, (1 + step) / (10 + step)))
    parameters, buffers = (average.parameters(), model.parameters()), (average.buffers(), model.buffers())
    for ours, theirs in (parameters, buffers):  # apart, since parameters may be in shards, and buffers never are
        floats: tuple[list[Tensor], list[Tensor]] = ([], [])
        for our, their in zip(ours, theirs, strict=True):
            if our.is_floating_point():
                floats[0].append(our)
                floats[1].append(their)
            else:
                our.copy_(their)
        if floats[0]:
            lerp(*floats, step)
