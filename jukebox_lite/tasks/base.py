"""What a training run learns. A task owns its models, its data and the shape of one step."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from jukebox_lite.errors import InputError

Metrics = dict[str, Tensor]  # name -> []
Models = dict[str, Any]  # modules, perhaps in a wrapper whose type does not know their methods
Update = Callable[[str, Tensor], None]  # update("codec", loss): one descent step of that model


@dataclass
class Listening:
    """Something to hear of a model in training: clips of equal rank, the codes behind them, and figures about them."""

    clips: dict[str, Tensor]  # title -> audio [C, N]
    sample_rate: int
    figures: dict[str, str] = field(default_factory=dict)
    codes: dict[str, Tensor] = field(default_factory=dict)  # title -> [K, T] that the clip was decoded from


class Task(ABC):
    """What is learnt, and from what. The trainer hands `step`, `validate` and `listen` the models to use:
    wrapped for several devices, or averaged; `models` are the bare ones, as built.
    """

    models: Models  # what is learnt, by name; each gets an optimizer of its own
    forward_methods: tuple[str, ...] = ()  # methods besides forward that compute gradients
    num_validation_batches: int
    num_clips: int  # to listen to after a validation
    vocabulary: dict[str, list[str]]  # what the indices of labels and lyrics mean; saved with the run
    rate_unit: str  # what `amount` counts, for the progress line: "audio s", "tokens"
    about: str  # lines for people: the songs, what was set aside, what the codes are like
    fingerprints: dict[str, str]  # of the songs, and of the codec that a prior speaks for

    @abstractmethod
    def batch(self, split: str, step: int) -> Any:
        """The batch of a step, "train" or "val", on the CPU: a pure function of (seed, split, step)."""

    @abstractmethod
    def amount(self, batch: Any) -> float:
        """How much of `rate_unit` a batch holds."""

    @abstractmethod
    def step(self, models: Models, batch: Any, step: int, update: Update) -> Metrics:
        """One training step, counted from 0, written as the algorithm is: losses, and an `update` for each model.

        A model that a step does not update keeps its weights, and its place in its schedule.
        """

    @abstractmethod
    def validate(self, models: Models, batch: Any) -> Metrics:
        """Metrics of a held-out batch; "score" is what sweeps compare, lower is better."""

    @abstractmethod
    def listen(self, models: Models) -> Listening:
        """Something to hear: the first held-out clips and what the models make of them."""

    def judge(self, step: int, values: Mapping[str, float]) -> None:
        """Raises InputError where the `values` logged at a validation tell that there is no use in going on."""
        del step, values


def check_counts(num_validation_batches: int, num_clips: int) -> None:
    """Raises InputError on what a task cannot validate with, or let hear."""
    if num_validation_batches < 1:
        raise InputError(f"task.num_validation_batches={num_validation_batches}: expected 1 or more")
    if num_clips < 0:
        raise InputError(f"task.num_clips={num_clips}: expected 0, for none, or more")
