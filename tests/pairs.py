"""Two processes on one machine, which meet as torchrun's do."""

import os
import socket
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess

from lightning_fabric.utilities.rank_zero import rank_zero_only
from tiny import forkserver

SECONDS = 30  # in which a run is to end after one of its processes has


def meet(rank: int, port: int) -> None:
    """What torchrun tells a process of the two, which is to find the other one at `port`."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "tests"}
    rank_zero_only.rank = rank  # it was read when the forkserver imported it


def begin(function: Callable[..., None], *arguments: object) -> list[ForkServerProcess]:
    """Starts two processes that run function(rank, port, *arguments)."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    members = [forkserver().Process(target=function, args=(rank, port, *arguments)) for rank in (0, 1)]
    for process in members:
        process.start()
    return members


def end(members: list[ForkServerProcess]) -> list[int | None]:
    """How the two ended, None for one that had to be killed."""
    members[1].join(240)
    members[0].join(SECONDS)
    codes = [process.exitcode for process in members]
    for process in members:
        process.kill()
    return codes


def two(function: Callable[..., None], *arguments: object) -> list[int | None]:
    """How two processes ended that ran function(rank, port, *arguments)."""
    return end(begin(function, *arguments))
