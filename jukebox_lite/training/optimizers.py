"""Optimizers beyond torch's own: Muon for the matrices of a transformer's blocks; AdamW at one rate for any width."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn import Parameter
from torch.optim import AdamW, Optimizer

from jukebox_lite.nn.device import multiplies_bf16

_QUINTIC = (3.4445, -4.775, 2.0315)  # of Newton-Schulz: steepest at 0, so that five rounds bring any value near to 1
_ROUNDS = 5


class Muon(Optimizer):
    """Muon (Jordan 2024) where it is meant to be, on the hidden matrices; AdamW on embeddings, heads and norms.

    Muon's steps are scaled to the size of AdamW's (Liu et al. 2025, section 2.2), so that one `lr` and one
    `weight_decay` serve both. torch.optim.Muon, whose numbers these are, multiplies in bfloat16 anywhere, which takes
    thirty times as long as float32 on processors that know no bfloat16.
    """

    def __init__(
        self,
        params: Iterable[tuple[str, Parameter]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.98),
        weight_decay: float = 0.01,
        momentum: float = 0.95,
    ):
        """`params` with their names; those of two axes below a module called blocks are the hidden matrices."""
        named = list(params)
        hidden = [(name, p) for name, p in named if p.ndim == 2 and "blocks" in name.split(".")]
        if not hidden:
            raise ValueError("Muon is for the matrices of a transformer's blocks, and the model has none: use adamw")
        names = {name for name, _ in hidden}
        self._adamw = AdamW([each for each in named if each[0] not in names], lr, betas, weight_decay=weight_decay)
        matrices = {"params": hidden, "lr": lr, "weight_decay": weight_decay, "momentum": momentum}
        super().__init__([matrices, *self._adamw.param_groups], {})
        self._multiplied_as = torch.bfloat16 if multiplies_bf16() else torch.float32

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step of both, on the groups and the state that are this optimizer's: those that are saved and loaded."""
        loss: Any = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        hidden, rest = self.param_groups
        for matrix in hidden["params"]:
            if matrix.grad is not None:
                self._step(matrix, matrix.grad, hidden["lr"], hidden["weight_decay"], hidden["momentum"])
        self._adamw.param_groups, self._adamw.state = [rest], self.state
        self._adamw.step()
        return loss

    def _step(self, matrix: Parameter, gradient: Tensor, lr: float, weight_decay: float, momentum: float) -> None:
        """Nesterov's momentum made orthogonal. Of a matrix in shards each process makes the whole and keeps its own."""
        state = self.state[matrix]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        average = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
        change = gradient.lerp(average, momentum)
        if isinstance(change, DTensor):
            whole = orthogonal(change.full_tensor(), self._multiplied_as)
            change = distribute_tensor(whole, change.device_mesh, change.placements, src_data_rank=None)
        else:
            change = orthogonal(change, self._multiplied_as)
        matrix.mul_(1 - lr * weight_decay)
        matrix.add_(change, alpha=-lr * 0.2 * math.sqrt(max(matrix.shape)))


def orthogonal(matrix: Tensor, multiplied_as: torch.dtype) -> Tensor:
    """[M, N] with its singular values near to 1, but for the least, by Newton-Schulz in a type (Jordan 2024)."""
    a, b, c = _QUINTIC
    x = matrix.to(multiplied_as)
    tall = x.shape[0] > x.shape[1]
    x = x.mT if tall else x
    x = x / x.norm().clamp(min=1e-7)  # no singular value is above 1
    for _ in range(_ROUNDS):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class WidthScaledAdamW(AdamW):
    """AdamW at `lr` times `base_width` / `width` for matrices that are fed features (Yang et al. 2022, table 3).

    What a step changes in their outputs is then of one size at any width, so that a rate found for a narrow prior
    serves a wide one. At `base_width` it is AdamW.
    """

    def __init__(
        self,
        params: Iterable[tuple[str, Parameter]],
        width: int,
        base_width: int = 64,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.98),
        weight_decay: float = 0.01,
    ):
        """`params` with their names; those of two axes below a module called blocks or heads are the matrices."""
        named = list(params)
        matrices = [
            (name, p) for name, p in named if p.ndim == 2 and not {"blocks", "heads"}.isdisjoint(name.split("."))
        ]
        if not matrices:
            raise ValueError("adamw_width is for a prior's blocks and heads, and the model has none: use adamw")
        names = {name for name, _ in matrices}
        rest = {"params": [(name, p) for name, p in named if name not in names]}
        groups = [rest, {"params": matrices, "lr": lr * base_width / width}]
        super().__init__(groups, lr, betas, weight_decay=weight_decay)
