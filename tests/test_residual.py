"""Residual stacks in pieces of time: the same numbers as convolution after convolution, forward and backward."""

import copy

import pytest
import torch
from torch import Tensor, nn

from jukebox_lite.nn import residual
from jukebox_lite.nn.conv import ResidualStack


@pytest.mark.parametrize(
    ("dim", "inner_dim", "length", "dilations"),
    [
        (16, 16, 3001, [1, 3, 9, 27, 81, 243]),
        (8, 12, 40, [1, 5, 39, 40, 100]),  # the last two see nothing but what lies outside
        (32, 32, 5000, [729, 1]),
        (4, 4, 1, [1, 1]),
    ],
)
@pytest.mark.parametrize("piece", [1 << 10, 1 << 15, 1 << 19])
def test_pieces_are_the_whole(
    monkeypatch: pytest.MonkeyPatch, dim: int, inner_dim: int, length: int, dilations: list[int], piece: int
):
    """Output and gradients are those of float64, whatever a piece's length; pieces of few numbers go another way."""
    monkeypatch.setattr(residual, "_PIECE", piece)
    monkeypatch.setattr(residual, "_PIECE_BACK", piece)
    torch.manual_seed(0)
    stack = ResidualStack(dim, inner_dim, dilations)
    x, gradient = torch.randn(2, 2, dim, 1, length)
    exact = copy.deepcopy(stack).double()

    def run(module: nn.Module, forward, dtype: torch.dtype) -> list[Tensor]:
        leaf = x.to(dtype, copy=True).requires_grad_()
        y = forward(leaf)
        return [y.detach(), *torch.autograd.grad(y, [leaf, *module.parameters()], gradient.to(dtype))]

    wanted = run(exact, lambda leaf: nn.Sequential.forward(exact, leaf), torch.float64)
    for ours, theirs in zip(run(stack, stack, torch.float32), wanted, strict=True):
        assert (ours - theirs).abs().max() <= 2e-5 * theirs.abs().max()
    with torch.no_grad():
        before = x.clone()
        torch.testing.assert_close(stack(x).double(), wanted[0], rtol=1e-4, atol=1e-5)
        assert torch.equal(x, before), "the input is left alone"
