"""Every mixer: step by step equals all at once, and the future does not matter."""

from functools import partial

import pytest
import torch
from torch import Tensor

from jukebox_lite.nn.transformer import CausalAttention, Rotary, Transformer

MIXERS = {"causal": CausalAttention}
LENGTH = 12


@pytest.fixture(params=MIXERS.values(), ids=MIXERS.keys())
def transformer(request) -> Transformer:
    torch.manual_seed(0)
    model = Transformer(16, 3, 2, LENGTH, partial(request.param)).eval()
    for parameter in model.parameters():  # the zero-initialised matrices would hide everything
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def sequence(requires_grad: bool = False) -> Tensor:
    return torch.randn(2, LENGTH, 16, generator=torch.Generator().manual_seed(1)).requires_grad_(requires_grad)


@pytest.mark.parametrize("pieces", [[1] * LENGTH, [5, 1, 1, 4, 1], [LENGTH], [1, LENGTH - 1]])
def test_piece_by_piece_equals_all_at_once(transformer: Transformer, pieces: list[int]):
    """Any division of a sequence into pieces gives what the whole gives, through the state alone."""
    x = sequence()
    with torch.no_grad():
        whole, _ = transformer(x)
        states, parts = transformer.empty_state(2, LENGTH), []
        for part in x.split(pieces, dim=1):
            y, states = transformer(part, states)
            parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("step", [0, 4, LENGTH - 1])
def test_the_gradient_from_the_future_is_exactly_zero(transformer: Transformer, step: int):
    """What a step predicts depends on every step up to it and on none after."""
    x = sequence(requires_grad=True)
    transformer(x)[0][:, step].square().sum().backward()
    assert torch.count_nonzero(x.grad[:, step + 1 :]) == 0
    assert (x.grad[:, : step + 1].abs().amax(-1) > 0).all()


def test_a_new_transformer_is_the_identity():
    """The last matrix of every block starts at zero, so that depth costs nothing at the start."""
    model, x = Transformer(16, 3, 2, LENGTH, CausalAttention), sequence()
    torch.testing.assert_close(model(x)[0], torch.nn.functional.rms_norm(x, (16,)))


def test_rotary_products_depend_on_distance_only():
    """The product of a query and a key is the same wherever the pair stands (Su et al. 2021, equation 16)."""
    rotary = Rotary(8, 100)
    q, k = torch.randn(2, 1, 1, 1, 8)
    products = [(rotary(q, start + 7) * rotary(k, start)).sum() for start in (0, 3, 50)]
    torch.testing.assert_close(products[1:], products[:1] * 2)
