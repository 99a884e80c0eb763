"""The processes of one run: how they start or meet, what they share, and what they have to agree on."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.utilities.rank_zero import rank_zero_only
from torch import Tensor

from jukebox_lite.errors import InputError, one_line
from jukebox_lite.training import sharding

STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_true", "fsdp")


def is_first() -> bool:
    """Whether this is the first of the run's processes. Known before any of them has been joined."""
    return getattr(rank_zero_only, "rank", None) in (None, 0) and os.environ.get("NODE_RANK", "0") == "0"


def start(accelerator: str, devices: int, num_nodes: int, strategy: str, precision: str) -> Fabric:
    """Starts this machine's other processes, unless torchrun or Slurm did, and waits for all machines'.

    Raises InputError where these started another number than asked for.
    """
    asked = f"trainer.devices={devices} and trainer.num_nodes={num_nodes}"
    world, local = (int(os.environ.get(name, 1)) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if dist.is_torchelastic_launched() and world != devices * num_nodes:
        raise InputError(
            f"{asked}: torchrun started {world} {'process' if world == 1 else 'processes'}; "
            f"give trainer.devices={local} trainer.num_nodes={world // local}"
        )
    fabric = Fabric(
        accelerator=accelerator,
        strategy=sharding.strategy(devices * num_nodes) if strategy == "fsdp" else strategy,
        devices=devices,
        num_nodes=num_nodes,
        precision=precision,  # pyright: ignore[reportArgumentType]  a plain str, checked by the trainer
    )
    try:
        fabric.launch()
    except ValueError as error:  # Fabric's word on what Slurm started
        raise InputError(f"{asked}: {str(error).splitlines()[0]}") from error
    return fabric


@contextmanager
def agreement(fabric: Fabric) -> Iterator[None]:
    """An InputError or OSError of one process, as over songs that only its machine lacks, or over a folder that only
    the first one writes to, is raised in all as an InputError: none waits for it, and one tells it.
    """
    if fabric.world_size == 1:
        yield
        return
    mine = None
    try:
        yield
    except (InputError, OSError) as error:
        mine = one_line(error)
    errors: list[str | None] = [None] * fabric.world_size
    dist.all_gather_object(errors, mine)
    if told := [error for error in errors if error is not None]:
        raise InputError(told[0])


def check_same(fabric: Fabric, told: object) -> None:
    """Raises InputError in all processes where they begin with different things, as with a run that is still trained,
    whose last checkpoint one of them read before the next was there, or with other copies of the songs.
    """
    if fabric.world_size == 1:
        return
    all_told: list[object] = [None] * fabric.world_size
    dist.all_gather_object(all_told, told)
    for process, other in enumerate(all_told):
        if other != all_told[0]:
            raise InputError(
                f"process {process} of {fabric.world_size} begins with {other}, and the first one with {all_told[0]}: "
                "expected the same; start when nothing of that is written any more"
            )


def over_processes(fabric: Fabric, values: Tensor, operation: str) -> Tensor:
    """Each value reduced over the processes, which all must ask: "mean", "max"."""
    reduced = fabric.all_reduce(values, reduce_op=operation)
    assert isinstance(reduced, torch.Tensor)
    return reduced
