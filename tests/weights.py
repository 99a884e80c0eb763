"""Weights that all matter, and files as OpenAI saved them."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def shaken(model: Any, seed: int) -> Any:
    """With weights that all matter: nothing starts at zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def noise(seed: int) -> Tensor:
    return torch.randn(2, 1, 256, generator=torch.Generator().manual_seed(seed))


def save_as_openai(path: Path, model: Any, keys: Any, hps: dict[str, Any]) -> None:
    """A checkpoint file of its weights under OpenAI's keys and in OpenAI's shapes."""
    state = model.state_dict()
    found = {key: state[ours] for key, ours in keys}
    shaped = {k: v.T if k.endswith(".w") else v.squeeze(2) if v.ndim == 4 else v for k, v in found.items()}
    torch.save({"model": shaped, "hps": hps}, path)
