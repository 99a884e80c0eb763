"""A task's models with all that trains them: one step at a time, and one state to save."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import MethodType
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from jukebox_lite.errors import InputError
from jukebox_lite.nn.pooled import Pooled
from jukebox_lite.tasks.base import Models, Task
from jukebox_lite.training import sharding
from jukebox_lite.training.averages import averaged, follow
from jukebox_lite.training.meter import GRAD_NORM, LOSS, Meter
from jukebox_lite.training.processes import over_processes
from jukebox_lite.training.reader import Reader

_ELSEWHERE = 1 << 40  # batches: where a rewound run goes on is none that it has seen


class Learner:
    """Models, optimizers, schedules and averages by the models' names, and how many steps they have taken.

    `rewinds` is how often they went back to a checkpoint since the run began: each leads on to other batches.
    """

    def __init__(
        self,
        task: Task,
        fabric: Fabric,
        optimizer: Callable[..., Optimizer],
        schedule: Callable[[Optimizer], LRScheduler],
        accumulate: int,
        gradient_clip: float,
        ema_decay: float,
        seed: int,
    ) -> None:
        self.task, self.fabric, self.accumulate, self.seed = task, fabric, accumulate, seed
        self.gradient_clip, self.ema_decay = gradient_clip, ema_decay
        self.step, self.rewinds = 0, 0
        self.meter = Meter()
        if sharding.shards(fabric):
            sharding.check(task.models)
        self.averages: Models = {name: sharding.place(fabric, averaged(model)) for name, model in task.models.items()}
        self.models: dict[str, Any] = {}  # wrapped by Fabric, as `task.step` gets them
        for name, model in task.models.items():
            methods = [method for method in task.forward_methods if hasattr(model, method)]
            self.models[name] = fabric.setup_module(model)
            sharding.through_shards(model, methods)
            for method in methods:
                self.models[name].mark_forward_method(method)
        try:
            self.optimizers = {name: optimizer(_learning(model)) for name, model in task.models.items()}
        except ValueError as error:  # PyTorch's word on a learning rate below 0 and the like
            raise InputError(f"optimizer: {error}") from error
        self._fabric_optimizers: dict[str, Any] = {
            name: fabric.setup_optimizers(each) for name, each in self.optimizers.items()
        }
        self.schedules = {name: schedule(optimizer) for name, optimizer in self.optimizers.items()}
        # What a loss descends on; of a model in shards all of it, since the weights of its graph are not its own.
        self._inputs = {
            name: None if sharding.shards(fabric) else [p for _, p in _learning(model)]
            for name, model in task.models.items()
        }
        self._pooled = [part for m in task.models.values() for part in m.modules() if isinstance(part, Pooled)]

    def compile(self) -> None:
        """Compile the models where they stand, so that the keys of their weights stay as they are."""
        for model in self.task.models.values():
            model.compile()
            for name in filter(partial(hasattr, model), self.task.forward_methods):
                setattr(model, name, MethodType(torch.compile(getattr(type(model), name)), model))

    def learn(self, reader: Reader, max_steps: int) -> float:
        """Take one step; returns how much of the task's `rate_unit` this process learnt from."""
        amount = 0.0
        for micro in range(self.accumulate):
            micro_step = self.step * self.accumulate + micro
            more = micro_step + 1 < max_steps * self.accumulate
            index = self._index(micro_step)
            batch = reader.train(index, self._index(micro_step + 1) if more else None)
            amount += self.task.amount(batch)
            last = micro == self.accumulate - 1
            for module in self._pooled:
                module.take(micro, self.accumulate, self.fabric.global_rank, self.fabric.world_size)
            seed_torch(self.seed, index, self.fabric.device)
            with self._communicating(last), self.fabric.autocast():
                update = partial(self._update, last=last)
                metrics = self.task.step(self.models, self.fabric.to_device(batch), self.step, update)
            self.meter.add(self.step, metrics)
        for name, average in self.averages.items():
            follow(average, self.task.models[name], self.step, self.ema_decay)
        self.step += 1
        return amount

    def read_metrics(self) -> dict[str, float]:
        """Means since the last call over steps and processes, and the learning rates now."""
        metrics = self.meter.read(self.fabric.device, lambda values: over_processes(self.fabric, values, "mean"))
        rates = {f"lr/{name}": float(o.param_groups[0]["lr"]) for name, o in self.optimizers.items()}
        return metrics | rates

    def weights(self) -> dict[str, dict[str, Tensor]]:
        """Averaged weights of every model; all processes ask, and the first is told."""
        return self._whole({name: average.state_dict() for name, average in self.averages.items()})

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs besides `weights`, likewise. Random numbers are functions of (seed, step)."""
        parts = {"models": self.task.models, "optimizers": self.optimizers, "schedules": self.schedules}
        states = {part: {name: thing.state_dict() for name, thing in things.items()} for part, things in parts.items()}
        return {"step": self.step, "rewinds": self.rewinds, **self._whole(states)}

    def load_state_dict(self, state: dict[str, Any], weights: dict[str, dict[str, Tensor]]) -> None:
        """Go on from what `state_dict` and `weights` gave."""
        self.step, self.rewinds = state["step"], state.get("rewinds", 0)  # older checkpoints do not count them
        for name, model in self.task.models.items():
            sharding.load_model(model, state["models"][name])
            sharding.load_model(self.averages[name], weights[name])
            sharding.load_optimizer(self.optimizers[name], state["optimizers"][name])
            self.schedules[name].load_state_dict(state["schedules"][name])

    def _whole(self, state: Any) -> Any:
        return sharding.whole_state(state, keep=self.fabric.is_global_zero)

    def _index(self, micro_step: int) -> int:
        """Which batch of the whole training this process reads at a micro-step."""
        return self.rewinds * _ELSEWHERE + micro_step * self.fabric.world_size + self.fabric.global_rank

    def _update(self, name: str, loss: Tensor, last: bool) -> None:
        """Descend one step on `loss` with the model `name`, and with no other that the loss passed through."""
        model, optimizer = self.models[name], self._fabric_optimizers[name]
        measured = {f"{LOSS}{name}": loss}
        with torch.autocast(self.fabric.device.type, enabled=False):
            self.fabric.backward(loss / self.accumulate, inputs=self._inputs[name])
            if last:
                norm = self.fabric.clip_gradients(
                    model,
                    optimizer,
                    max_norm=self.gradient_clip,
                    error_if_nonfinite=False,  # the meter will tell
                )
                assert norm is not None  # as it is when clipping by value
                measured[f"{GRAD_NORM}{name}"] = sharding.whole(norm)
                optimizer.step()
                optimizer.zero_grad()
                self.schedules[name].step()
        self.meter.add(self.step, measured)

    @contextmanager
    def _communicating(self, last: bool) -> Iterator[None]:
        """Gradients are averaged over the processes in the last micro-step only."""
        with ExitStack() as stack:
            for model in self.models.values():
                stack.enter_context(self.fabric.no_backward_sync(model, enabled=not last))
            yield


def _learning(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The parameters that a model learns, with their names."""
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def seed_torch(seed: int, index: int, device: torch.device) -> None:
    """Make what torch draws next a function of the run's seed and an index.

    Not torch.manual_seed: where CUDA is installed and unused, it spends more time on a stack trace than on seeding.
    """
    mixed = int(np.random.SeedSequence((seed, index)).generate_state(1, np.uint64)[0] >> np.uint64(1))
    torch.default_generator.manual_seed(mixed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(mixed)
