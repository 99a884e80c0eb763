"""Optimizers beyond torch's own: Muon for the matrices of a transformer's blocks; AdamW at one rate for any width."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn import Parameter
from torch.optim import AdamW, Optimizer


class Muon(Optimizer):
    """Muon (Jordan 2024) where it is meant to be, on the hidden matrices, and AdamW on embeddings, heads, norms.

    Both are torch's. Muon's steps are scaled to the size of AdamW's (Liu et al. 2025, section 2.2), so that one `lr`
    and one `weight_decay` serve both.
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
        rest = [(name, p) for name, p in named if name not in names]
        muon = torch.optim.Muon(hidden, lr, weight_decay, momentum, adjust_lr_fn="match_rms_adamw")
        self._parts: list[Optimizer] = [muon, AdamW(rest, lr, betas, weight_decay=weight_decay)]
        super().__init__([group for part in self._parts for group in part.param_groups], {})

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step of both, on the groups and the state that are this optimizer's: those that are saved and loaded."""
        loss: Any = None if closure is None else closure()
        muon, adamw = self._parts
        hidden, rest = self.param_groups
        if sharded := [parameter for parameter in hidden["params"] if isinstance(parameter, DTensor)]:
            for parameter in sharded:
                self._step_whole(muon, hidden, parameter)
        else:
            muon.param_groups, muon.state = [hidden], self.state
            muon.step()
        adamw.param_groups, adamw.state = [rest], self.state
        adamw.step()
        return loss

    @torch.no_grad()
    def _step_whole(self, muon: Optimizer, group: dict[str, Any], parameter: DTensor) -> None:
        """A step of a matrix in shards: each process takes it with the whole one, and keeps its own shard.

        torch's Muon would sum the shards' products in bfloat16: most of a step of a matrix of low rank is then noise.
        """
        if not isinstance(parameter.grad, DTensor):
            return
        whole = Parameter(parameter.full_tensor())
        whole.grad = parameter.grad.full_tensor()
        state = {name: value.full_tensor() for name, value in self.state[parameter].items()}
        muon.param_groups, muon.state = [{**group, "params": [whole]}], defaultdict(dict, {whole: state})
        muon.step()
        mesh, placements = parameter.device_mesh, parameter.placements
        parameter.copy_(distribute_tensor(whole.detach(), mesh, placements, src_data_rank=None))
        self.state[parameter] = {
            name: distribute_tensor(value, mesh, placements, src_data_rank=None)
            for name, value in muon.state[whole].items()
        }


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
