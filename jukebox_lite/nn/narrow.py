"""Linear maps whose weights are kept in fewer bits, for sampling: a step reads every weight, and does little else."""

import torch
from torch import Tensor, nn

from jukebox_lite.errors import InputError
from jukebox_lite.nn.dense import are_few_compiled_vectors, compiled_product, linear


class BFloat16Linear(nn.Module):
    """[..., D] -> [..., D'] by a weight, and of inputs, in bfloat16; gives what type it is given."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.weight, self.bias = nn.Buffer(layer.weight.detach().bfloat16()), layer.bias

    def forward(self, x: Tensor) -> Tensor:
        y = linear(x.bfloat16(), self.weight).to(x.dtype)
        return y if self.bias is None else y + self.bias


class Int8Linear(nn.Module):
    """[..., D] -> [..., D'] by a weight in 8 bits, a scale for each row, and of inputs in bfloat16.

    The weight alone is rounded, each row to 127 steps of its largest number to either side; torch's kernel multiplies.
    """

    def __init__(self, layer: nn.Linear):
        super().__init__()
        weight = layer.weight.detach().float()
        scale = (weight.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127).bfloat16()  # as the kernel takes it
        self.weight = nn.Buffer((weight / scale.float()).round().clamp(-127, 127).to(torch.int8))
        self.scale, self.bias = nn.Buffer(scale[:, 0]), layer.bias

    def forward(self, x: Tensor) -> Tensor:
        rows = x.bfloat16().reshape(-1, x.shape[-1])
        if are_few_compiled_vectors(x):
            y = (compiled_product(rows.float(), self.weight.float()) * self.scale.float()).bfloat16()
        else:
            y = torch.ops.aten._weight_int8pack_mm(rows, self.weight, self.scale)
        y = y.to(x.dtype).reshape(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias


_WHOLE = 32  # features that torch's kernel takes at once; of other widths it reads beyond its rows, and may crash
_KINDS = {"bf16": BFloat16Linear, "int8": Int8Linear}


def narrow(model: nn.Module, precision: str) -> None:
    """Makes the model's linear maps "bf16" or "int8", or leaves them "fp32"; all else stays as it is.

    Maps of a number of features that is no multiple of 32 stay as they are too; those of a transformer are wide.
    """
    if precision == "fp32":
        return
    if precision not in _KINDS:
        raise InputError(f"precision={precision}: expected one of fp32, {', '.join(_KINDS)}")
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear) and child.in_features % _WHOLE == 0:
                setattr(module, name, _KINDS[precision](child))
