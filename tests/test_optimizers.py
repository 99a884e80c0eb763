"""Muon and AdamW by width: each parameter is stepped as it is meant to be, and what is saved is all there is."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from jukebox_lite.nn.transformer import CausalAttention, Transformer
from jukebox_lite.training.optimizers import Muon, WidthScaledAdamW, orthogonal


class Small(nn.Module):
    """An embedding, a block and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 8)
        self.transformer = Transformer(8, 1, 2, 6, CausalAttention)
        nn.init.normal_(self.transformer.blocks[0].feed_forward.narrow.weight)  # pyright: ignore

    def loss(self, codes: torch.Tensor) -> torch.Tensor:
        return (self.transformer(self.embedding(codes))[0] - 1).square().mean()


def small() -> Small:
    torch.manual_seed(0)
    return Small()


def learn(model: Small, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        model.loss(torch.tensor([[step % 5, 1, 2, 3]])).backward()
        optimizer.step()


def test_hidden_matrices_go_to_muon_and_the_rest_to_adamw(monkeypatch: pytest.MonkeyPatch):
    """Bit for bit what torch's own two give on their shares, decided by hand, with products in bfloat16 as torch's."""
    monkeypatch.setattr("jukebox_lite.training.optimizers.multiplies_bf16", lambda: True)
    ours, theirs = small(), small()
    matrices = ("heads.qkv.weight", "heads.out.weight", "widen.weight", "narrow.weight")
    hidden = [p for name, p in theirs.named_parameters() if name.endswith(matrices)]
    rest = [p for name, p in theirs.named_parameters() if not name.endswith(matrices)]
    assert len(hidden) == 4 and len(rest) > 4
    both = [
        torch.optim.Muon(hidden, 0.01, 0.1, 0.9, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, 0.01, (0.9, 0.95), weight_decay=0.1),
    ]
    learn(ours, Muon(ours.named_parameters(), 0.01, (0.9, 0.95), 0.1, 0.9), 4)
    for step in range(4):
        theirs.zero_grad()
        theirs.loss(torch.tensor([[step % 5, 1, 2, 3]])).backward()
        for optimizer in both:
            optimizer.step()
    for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other), name
        assert not torch.equal(one, small().get_parameter(name)), name


@pytest.mark.parametrize("shape", [(12, 12), (30, 7), (7, 30), (5, 1)])
def test_singular_values_go_through_the_quintic_and_vectors_stay(shape: tuple[int, int]):
    """Against an SVD in float64; in bfloat16 as near as its 8 bits are."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, values, vh = torch.linalg.svd(x, full_matrices=False)
    values = values / values.norm()
    for _ in range(5):
        values = 3.4445 * values - 4.775 * values**3 + 2.0315 * values**5
    assert ((values > 0.6) & (values < 1.3)).all()
    for dtype, atol in ((torch.float32, 1e-4), (torch.bfloat16, 5e-2)):
        torch.testing.assert_close(orthogonal(x.float(), dtype).double(), u * values @ vh, rtol=0.0, atol=atol)


def test_a_saved_state_goes_on_as_if_never_saved():
    """Momenta and moments of both shares; a schedule's rate, too."""
    model, twin = small(), small()
    whole, half = (Muon(each.named_parameters(), 0.01) for each in (model, twin))
    learn(model, whole, 4)
    learn(twin, half, 4)
    for group in whole.param_groups:
        group["lr"] = 0.002
    resumed = Muon(twin.named_parameters(), 0.5)
    resumed.load_state_dict(deepcopy(whole.state_dict()))
    learn(model, whole, 3)
    learn(twin, resumed, 3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_a_model_without_blocks_is_refused():
    with pytest.raises(ValueError, match="use adamw"):
        Muon(nn.Linear(2, 2).named_parameters())


@pytest.mark.parametrize("module", ["blocks", "heads"])
@pytest.mark.parametrize("width", [32, 64, 512])
def test_a_step_changes_an_output_as_much_at_any_width(module: str, width: int):
    """Inputs of 1 move it by `base_width` times the rate; AdamW's by `width` times."""
    layer, x = nn.Linear(width, 3, bias=False), torch.ones(1, width)
    before = layer(x)
    before.sum().backward()
    named = nn.ModuleDict({module: layer, "norm": nn.RMSNorm(3)}).named_parameters()
    WidthScaledAdamW(named, width, base_width=64, lr=1e-3, weight_decay=0.0).step()
    torch.testing.assert_close(before - layer(x), torch.full((1, 3), 0.064), rtol=1e-3, atol=0.0)


@pytest.mark.parametrize("width", [8, 16])
def test_at_its_base_width_it_is_adamw_and_elsewhere_but_for_the_matrices(width: int):
    """Bit for bit: embeddings and norms at any width, the blocks' matrices where `width` is `base_width`."""
    ours, theirs = small(), small()
    learn(ours, WidthScaledAdamW(ours.named_parameters(), width, base_width=8, lr=0.01), 1)
    learn(theirs, torch.optim.AdamW(theirs.parameters(), 0.01, (0.9, 0.98)), 1)
    for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        matrix = one.ndim == 2 and "blocks" in name
        assert torch.equal(one, other) == (width == 8 or not matrix), name


def test_a_model_without_matrices_to_scale_is_told():
    with pytest.raises(ValueError, match="use adamw"):
        WidthScaledAdamW(nn.ModuleDict({"stem": nn.Linear(4, 4)}).named_parameters(), 4)
