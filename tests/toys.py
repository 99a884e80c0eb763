"""Tasks that cost nothing and a short training of them, for tests of the trainer."""

import itertools
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from jukebox_lite.tasks.base import Listening, Metrics, Models, Task, Update
from jukebox_lite.training.schedule import warmup_cosine
from jukebox_lite.training.tracking import NoTracker
from jukebox_lite.training.trainer import Trainer


class Toy(nn.Module):
    """A layer, noise, a float buffer that learns and an integer buffer that counts."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.dropout = nn.Linear(4, 4), nn.Dropout(0.3)
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("count", torch.tensor(0))

    def loss(self, x: Tensor) -> Tensor:
        """Mean squared distance of the output from the input [B, 4] doubled."""
        if self.training:
            self.count += 1
            self.mean.lerp_(x.mean(0), 0.1)
        return (self.linear(self.dropout(x)) - 2 * x).square().mean()

    def forward(self, x: Tensor) -> Tensor:
        """[B, 4] -> [B, 4]."""
        return self.linear(self.dropout(x))


class Regression(Task):
    """One model; `spoil(index of the call)` may do harm in any step."""

    forward_methods = ("loss",)
    num_validation_batches, num_clips = 2, 0
    vocabulary: dict[str, list[str]] = {}
    rate_unit = "rows"
    about = "numbers"

    def __init__(self, spoil: Callable[[int], None] = lambda _: None, poisoned: int = -1) -> None:
        torch.manual_seed(0)
        self.models: Models = {"model": Toy()}
        self.spoil, self.poisoned, self.calls = spoil, poisoned, itertools.count()

    def batch(self, split: str, step: int) -> Tensor:
        """[8, 4], drawn for this step; not finite where poisoned."""
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(2 * step + (split == "val")))
        return x / 0 if step == self.poisoned and split == "train" else x

    def amount(self, batch: Tensor) -> float:
        """Rows."""
        return len(batch)

    def step(self, models: Models, batch: Tensor, step: int, update: Update) -> Metrics:  # noqa: ARG002
        """Descend."""
        self.spoil(next(self.calls))
        loss = models["model"].loss(batch)
        update("model", loss)
        return {"doubled": 2 * loss}

    def validate(self, models: Models, batch: Tensor) -> Metrics:
        """The loss, and some noise to prove that drawing it changes nothing."""
        return {"score": models["model"].loss(batch) + 0 * torch.rand(()), "noise": torch.rand(())}

    def listen(self, models: Models) -> Listening:  # noqa: ARG002
        """Never asked, of no clips."""
        raise AssertionError


class Game(Regression):
    """Two players: a critic judges what the model makes; neither may move the other."""

    forward_methods = ()

    def __init__(self, spoil: Callable[[int], None] = lambda _: None) -> None:
        super().__init__(spoil)
        self.models["critic"] = nn.Linear(4, 1)

    def step(self, models: Models, batch: Tensor, step: int, update: Update) -> Metrics:  # noqa: ARG002
        """The model learns to please the critic as it is; then the critic learns from what the model made."""
        self.spoil(next(self.calls))
        made = models["model"](batch)
        update("model", (models["critic"](made) - 1).square().mean() + (made - 2 * batch).square().mean())
        judged = models["critic"](made.detach()).square() + (models["critic"](2 * batch) - 1).square()
        update("critic", judged.mean())
        return {}


def trainer(**changed: Any) -> Trainer:
    """A short training."""
    settings: dict[str, Any] = {
        "max_steps": 6,
        "optimizer": partial(torch.optim.AdamW, lr=0.1),
        "schedule": partial(warmup_cosine, warmup_steps=2),
        "tracker": NoTracker,
        "validate_every": 3,
        "checkpoint_every": 2,
        "log_every": 2,
        "accelerator": "cpu",
    }
    return Trainer(**settings | changed)


def journal(folder: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl without what a clock wrote."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in ("rate", "data_wait")} for line in lines]


class CutOff(Exception):
    """The power goes."""


def cut_at(step: int) -> Callable[[int], None]:
    """Harm that raises in one step."""

    def spoil(call: int) -> None:
        if call == step:
            raise CutOff

    return spoil


gentle = partial(torch.optim.SGD, lr=0.05, momentum=0.9)  # Adam makes much of the last bit of a small gradient


class Poisoned(Regression):
    """Is not finite in a range of training batches, whatever run of batches they are in."""

    def __init__(self, *poisoned: int, spoil: Callable[[int], None] = lambda _: None) -> None:
        super().__init__(spoil)
        self.poison = poisoned

    def batch(self, split: str, step: int) -> Tensor:
        """[8, 4]; not finite where poisoned."""
        return super().batch(split, step) / (0 if split == "train" and step in self.poison else 1)


rewinding = partial(trainer, on_nonfinite="rewind", max_steps=12, checkpoint_every=4, validate_every=6)
