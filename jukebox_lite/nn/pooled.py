"""Modules that learn by counting, once a step, over all the parts in which its batch comes."""

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Pooled(nn.Module):
    """Sums what it counts over a step's parts: the micro-batches that each process accumulates, and the processes.

    Part `micro_batch * processes + process`: so two processes count what one does that accumulates two. Who trains the
    module tells it by `take` which part comes; left alone, a step has one.
    """

    part: Tensor | int = 0  # []; a tensor, since a compiled graph would be made anew for every number
    parts: int = 1
    first: bool = True  # of the step's parts
    begins: bool = True  # the step, in this process
    ends: bool = True  # the step, in every process
    _sums: tuple[Tensor, ...] = ()  # over this process's micro-batches so far

    def take(self, micro_batch: int, accumulate: int, process: int, processes: int) -> None:
        """Tells which part of a step's batch the next forward in training mode sees."""
        index = micro_batch * processes + process
        self.part, self.parts = torch.tensor(index), accumulate * processes
        self.first, self.begins, self.ends = index == 0, micro_batch == 0, micro_batch == accumulate - 1

    def pooled(self, *values: Tensor) -> tuple[Tensor, ...] | None:
        """The values summed over all parts, once the last has come; None before. To be called once in a forward."""
        sums = values if self.begins else tuple(map(torch.add, self._sums, values))
        self._sums = () if self.ends else sums
        if not self.ends:
            return None
        if dist.is_available() and dist.is_initialized():
            for value in sums:
                dist.all_reduce(value)
        return sums

    def dealt(self, rows: Tensor) -> Tensor:
        """This part's share of rows [V, D], the rest being 0: summed over the parts, each row is of one of them."""
        turns = torch.arange(len(rows), device=rows.device) % self.parts
        return torch.where((turns == self.part)[:, None], rows, 0.0)


def from_first_process(*tensors: Tensor) -> None:
    """Every process takes the first one's values, in place."""
    if dist.is_available() and dist.is_initialized():
        for tensor in tensors:
            dist.broadcast(tensor, 0)
