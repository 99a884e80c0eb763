"""Where a module's weights are."""

import torch
from torch import nn


def device_of(module: nn.Module) -> torch.device:
    """The device of a module's parameters; the CPU where it has none."""
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
