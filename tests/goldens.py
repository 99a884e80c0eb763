"""What OpenAI's models gave for certain inputs: sets of tensors to compare ours with.

The committed ones are made by fixtures/make_openai*.py from the Apache-2.0 implementation in transformers. Those that
OpenAI's own code made are under another licence: JUKEBOX_GOLDEN names their folder where there is one.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

FOLDERS = [Path(__file__).parent / "fixtures" / "openai"]
if "JUKEBOX_GOLDEN" in os.environ:
    FOLDERS.append(Path(os.environ["JUKEBOX_GOLDEN"]))


@dataclass
class Golden:
    """One model as the original has it: weights, inputs and outputs, figures."""

    path: Path  # of its JSON

    @property
    def figures(self) -> dict[str, Any]:
        """Scalars, hyperparameters among them."""
        return json.loads(self.path.read_text())

    @property
    def hps(self) -> dict[str, Any]:
        """OpenAI's hyperparameters."""
        return self.figures["hps"]

    def tensors(self, kind: str) -> dict[str, Tensor]:
        """Its "weights", or its "io"."""
        return load_file(self.path.with_suffix(f".{kind}.safetensors"))


def goldens(kind: str, wanted: Callable[[Golden], bool] = lambda _: True) -> pytest.MarkDecorator:
    """The test runs once for every set of this kind, "vqvae" or "prior", that is `wanted`."""
    cases = [Golden(path) for folder in FOLDERS for path in sorted(folder.glob(f"{kind}_*.json"))]
    cases = [case for case in cases if wanted(case)]
    return pytest.mark.parametrize("golden", cases, ids=[f"{case.path.parent.name}-{case.path.stem}" for case in cases])


def gradient_faults(found: dict[str, Tensor], golden: Golden) -> list[str]:
    """Keys of parameters whose gradient is another than the original's, by norm and sum."""
    wanted = golden.figures["grads"]
    assert found.keys() == wanted.keys()
    return [key for key, gradient in found.items() if not _same(gradient, wanted[key])]


def _same(gradient: Tensor, wanted: dict[str, float]) -> bool:
    if gradient.norm().item() != pytest.approx(wanted["l2"], rel=1e-4):
        return False
    slack = 1e-5 * gradient.abs().sum().item()
    return gradient.sum().item() == pytest.approx(wanted["sum"], rel=1e-4, abs=slack)
