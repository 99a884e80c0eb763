"""Computing blocks twice instead of keeping them changes memory only."""

from functools import partial

import pytest
import torch

from jukebox_lite.levels import Facts, Level, Window
from jukebox_lite.nn.linear import GatedDeltaRule
from jukebox_lite.nn.transformer import CausalAttention, FactoredAttention, Mixer, SlidingAttention
from jukebox_lite.priors.autoregressive import AutoregressivePrior

MIXERS = {
    "causal": CausalAttention,
    "factored": partial(FactoredAttention, row_length=5),
    "sliding": partial(SlidingAttention, window=5),
    "linear": partial(GatedDeltaRule, chunk_length=5),
}


def learn(mixer: type[Mixer], checkpointing: bool, dropout: float) -> tuple[torch.Tensor, list[torch.Tensor], int]:
    """The loss, every gradient, and the elements that the step kept for the way back."""
    torch.manual_seed(0)
    prior = AutoregressivePrior(16, 3, 2, 32, mixer, Facts(Level("top", 7)), {}, dropout, checkpointing=checkpointing)
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        loss = prior.loss(Window({"top": torch.randint(7, (2, 1, 32))})).total
    elements = sum(kept)
    loss.backward()
    return loss.detach(), [parameter.grad for parameter in prior.parameters()], elements


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("mixer", MIXERS.values(), ids=MIXERS.keys())
def test_checkpointing_is_the_same_step_with_less_memory(mixer: type[Mixer], dropout: float):
    """Loss and gradients are equal to the last bit, with dropout too, and less than a third is kept."""
    loss, gradients, kept = learn(mixer, False, dropout)
    again, gradients_again, kept_again = learn(mixer, True, dropout)
    assert torch.equal(loss, again)
    assert all(torch.equal(*pair) for pair in zip(gradients, gradients_again, strict=True))
    assert kept_again < kept / 3
