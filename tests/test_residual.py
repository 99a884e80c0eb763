"""Residual stacks in pieces of time: the same numbers as convolution after convolution, forward and backward.

So are single convolutions, by either library.
"""

import copy

import pytest
import torch
from torch import Tensor, nn

from jukebox_lite.nn import conv, convolution, residual
from jukebox_lite.nn.conv import ResidualStack


@pytest.fixture(autouse=True, params=[True, False], ids=["by oneDNN", "by products"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    """Every test both ways, whichever is the faster on this machine."""
    monkeypatch.setattr(convolution, "_FASTER", request.param)


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
    monkeypatch.setattr(conv, "_LITTLE", 0)
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


@pytest.mark.parametrize(
    ("shape", "out_dim", "kernel", "padding", "dilation"),
    [
        ((2, 3, 1, 500), 5, 3, 1, 1),
        ((2, 1, 1, 33), 4, 2, 0, 1),
        ((1, 6, 1, 20), 1, 2, 1, 1),
        ((3, 4, 1, 7), 4, 3, 9, 9),  # the outer taps see nothing but zeros
        ((1, 4, 1, 7), 2, 1, 0, 1),
    ],
)
@pytest.mark.parametrize("biased", [False, True])
def test_a_convolution_is_torchs(
    shape: tuple[int, ...], out_dim: int, kernel: int, padding: int, dilation: int, biased: bool
):
    torch.manual_seed(0)
    inputs = [torch.randn(shape), torch.randn(out_dim, shape[1], 1, kernel), torch.randn(out_dim)]
    found = []
    for function, dtype in ((convolution.convolution, torch.float32), (_torchs, torch.float64)):
        leaves = [each.to(dtype, copy=True).requires_grad_() for each in (inputs if biased else inputs[:2])]
        y = function(leaves[0], leaves[1], leaves[2] if biased else None, padding, dilation)
        found.append(
            [y.detach(), *torch.autograd.grad(y, leaves, torch.linspace(-1, 1, y.numel()).view_as(y).to(dtype))]
        )
    for ours, exact in zip(*found, strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-4, atol=1e-4)


def _torchs(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int, dilation: int) -> Tensor:
    return nn.functional.conv2d(x, weight, bias, padding=(0, padding), dilation=(1, dilation))
