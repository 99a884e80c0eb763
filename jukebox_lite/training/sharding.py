"""Models whose weights, gradients, averages and moments are each held once over all processes (FSDP2).

Checkpoints know nothing of it: they hold whole tensors, and any number of processes goes on from them.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.model_parallel import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from jukebox_lite.errors import InputError
from jukebox_lite.nn.pooled import Pooled
from jukebox_lite.tasks.base import Models


def strategy(num_processes: int) -> ModelParallelStrategy:
    """For Fabric: what it sets up is sharded over all processes, of all machines."""
    return ModelParallelStrategy(
        lambda model, mesh: _shard(model, mesh["data_parallel"]),
        data_parallel_size=num_processes,
        tensor_parallel_size=1,
    )


def shards(fabric: Fabric) -> bool:
    """Whether this is what the processes do with a model."""
    return isinstance(fabric.strategy, ModelParallelStrategy)


def check(models: Models) -> None:
    """Raises InputError where a task's models cannot be sharded."""
    if len(models) > 1:
        raise InputError(
            f"trainer.strategy=fsdp: the task has {len(models)} models that learn from each other "
            f"({', '.join(models)}), and only one can be sharded; give trainer.strategy=ddp"
        )
    for name, module in next(iter(models.values())).named_modules():
        if isinstance(module, Pooled) and next(module.parameters(recurse=False), None) is not None:
            raise InputError(
                f"trainer.strategy=fsdp: {name} both descends on its entries and sets them, as quantizer=dac does, "
                "which shards cannot; give trainer.strategy=ddp or another quantizer"
            )


def place(fabric: Fabric, average: nn.Module) -> nn.Module:
    """A model's average, held as the model is."""
    if not isinstance(fabric.strategy, ModelParallelStrategy):
        return fabric.to_device(average)
    return _shard(average, fabric.strategy.device_mesh["data_parallel"], reshard_after_forward=False)


@contextmanager
def gathered(models: Iterable[nn.Module]) -> Iterator[None]:
    """Every process holds all of these averages' weights for a while, and may compute with them by itself."""
    parts = [module for model in models for module in model.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()


def through_shards(model: nn.Module, methods: Iterable[str]) -> None:
    """Lets methods besides forward find a sharded model's weights; of other models it changes nothing."""
    for method in methods:
        register_fsdp_forward_method(model, method)


def whole(tensor: Tensor) -> Tensor:
    """A tensor of which each process may have a shard; for all to call."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_state(state: Any, keep: bool) -> Any:
    """A state dict with whole tensors for shards, on the CPU, or empty ones where not to `keep`; for all to call."""
    if isinstance(state, DTensor):  # one after the other: all at once may be more than a device holds
        tensor = whole(state).detach()
        return tensor.cpu() if keep else tensor.new_empty(0)
    if isinstance(state, Mapping):
        return {key: whole_state(value, keep) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(whole_state(value, keep) for value in state)
    return state


def load_model(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Loads a state dict of whole tensors."""
    own = model.state_dict()
    model.load_state_dict({name: _as(value, own.get(name)) for name, value in state.items()})


def load_optimizer(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Loads an optimizer's state dict of whole tensors."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments = {
        index: {name: _as(value, parameters[index]) for name, value in values.items()}
        for index, values in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": moments})


def _shard(model: nn.Module, mesh: DeviceMesh, reshard_after_forward: bool = True) -> nn.Module:
    """Shards a model in place: each block of a transformer by itself, so that one at a time is whole, and the rest.

    A block that looks at a memory belongs to the rest, as it hears it before it is called.
    """
    for name, module in list(model.named_modules()):
        in_blocks = name.rpartition(".")[0].endswith("blocks")
        if in_blocks and not any(hasattr(part, "hear") for part in module.modules()):
            fully_shard(module, mesh=mesh, reshard_after_forward=reshard_after_forward)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    return model


def _as(value: Any, like: Any) -> Any:
    """A whole tensor in the shards of another of its shape; anything else as it is."""
    if not isinstance(like, DTensor) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    with torch.no_grad():
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
