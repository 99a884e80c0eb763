"""Linear maps on a CPU: the same numbers and gradients as torch's in double precision, and as much work counted."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from jukebox_lite.nn import dense
from jukebox_lite.nn.dense import linear

SHAPES = [
    ((3, 1000), 7, 5),
    ((2, 517), 64, 192),
    ((4096,), 96, 33),
    ((1, 1), 8, 8),
    ((0,), 16, 4),
]  # few and many vectors


@pytest.fixture(autouse=True, params=[True, False], ids=["by oneDNN", "by torch"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    """Every test both ways, whichever is the faster on this machine."""
    monkeypatch.setattr(dense, "_FASTER", request.param and dense._ONEDNN)


def products(shape: tuple[int, ...], dim: int, out_dim: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """x, weight, bias and what the output's gradient shall be."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(*shape, dim), (out_dim, dim), (out_dim,), (*shape, out_dim)]
    return [torch.randn(each, generator=generator).to(dtype) for each in shapes]


@pytest.mark.parametrize(("shape", "dim", "out_dim"), SHAPES)
@pytest.mark.parametrize("biased", [False, True])
def test_it_is_what_double_precision_makes(shape: tuple[int, ...], dim: int, out_dim: int, biased: bool):
    found = []
    for function, dtype in ((linear, torch.float32), (F.linear, torch.float64)):
        *inputs, gradient = products(shape, dim, out_dim, dtype)
        inputs = [each.requires_grad_() for each in (inputs if biased else inputs[:2])]
        y = function(*inputs)
        found.append([y.detach(), *torch.autograd.grad(y, inputs, gradient)])
    for ours, exact in zip(*found, strict=True):
        torch.testing.assert_close(
            ours.double(), exact, rtol=1e-5, atol=1e-5 * max(1.0, exact.abs().max().item()) if exact.numel() else 0.0
        )


@pytest.mark.parametrize("shape", [(1, 1), (2, 4), (3, 1000)], ids=["one", "few", "many"])
def test_in_a_compiled_graph_it_is_the_same(shape: tuple[int, ...]):
    """Whatever form it takes there, and its gradients; without making code, which needs a compiler."""
    *inputs, gradient = products(shape, 64, 48)
    inputs = [each.requires_grad_() for each in inputs]
    compiled = torch.compile(linear, backend="aot_eager", fullgraph=True)
    for found, wanted in zip(
        (compiled(*inputs), *torch.autograd.grad(compiled(*inputs), inputs, gradient)),
        (F.linear(*inputs), *torch.autograd.grad(F.linear(*inputs), inputs, gradient)),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("transposed", [False, True])
def test_the_layout_in_memory_does_not_matter(transposed: bool):
    """Gradients of what is summed are expanded, of what is transposed strided."""
    x, weight, _, _ = products((300,), 64, 48)
    x.requires_grad_(), weight.requires_grad_()
    strided = x.T.contiguous().T if transposed else x
    of_x, of_weight = torch.autograd.grad(linear(strided, weight).sum(), (x, weight))
    torch.testing.assert_close(of_x, weight.sum(0).expand_as(x))
    torch.testing.assert_close(of_weight, x.sum(0).expand_as(weight), rtol=1e-4, atol=1e-4)


def test_a_gradient_with_gaps_is_copied_first(monkeypatch: pytest.MonkeyPatch):
    """A training step of mixer=linear on one long song took 18 s, not 1: oneDNN was given a gradient with gaps."""
    x, weight, _, gradient = products((1, 2016), 64, 192)
    dense_gradient, seen = dense._weight_gradient, []
    monkeypatch.setattr(dense, "_FASTER", dense._ONEDNN)
    monkeypatch.setattr(
        dense, "_weight_gradient", lambda x, g: (seen.append(g.is_contiguous()), dense_gradient(x, g))[1]
    )
    with_gaps = F.pad(gradient.mT, (0, 3))[..., :-3].mT
    (found,) = torch.autograd.grad(linear(x, weight.requires_grad_()), weight, with_gaps)
    torch.testing.assert_close(found, gradient[0].T @ x[0], rtol=1e-4, atol=1e-3)
    assert all(seen) and len(seen) == dense._ONEDNN


def test_what_is_frozen_gets_no_gradient():
    x, weight, bias, gradient = products((600,), 32, 16)
    bias.requires_grad_()
    (of_bias,) = torch.autograd.grad(linear(x, weight, bias), bias, gradient)
    torch.testing.assert_close(of_bias, gradient.sum(0))


def test_as_much_work_is_counted_as_of_torchs_own():
    """By torch's counter, which a rehearsal asks: two more products on the way back."""
    x, weight, bias, gradient = products((600,), 32, 16)
    inputs = [each.requires_grad_() for each in (x, weight, bias)]
    with FlopCounterMode(display=False) as counter:
        torch.autograd.grad(linear(*inputs), inputs, gradient)
    assert counter.get_total_flops() == 3 * 2 * 600 * 32 * 16
