"""Sliding and linear attention: the same as their plain definitions, and nothing that grows faster than the song."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from jukebox_lite.errors import InputError
from jukebox_lite.nn.linear import GatedDeltaRule, delta_rule
from jukebox_lite.nn.reach import LastSteps
from jukebox_lite.nn.transformer import Mixer, SlidingAttention

LONG = {
    "sliding": partial(SlidingAttention, window=8),
    "linear": partial(GatedDeltaRule, chunk_length=8),
}


class Largest(TorchDispatchMode):
    """Notes the most elements of any tensor that is made."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        sizes = (each.numel() for each in tree_leaves(made) if isinstance(each, Tensor))
        self.elements = max(self.elements, *sizes, 0)
        return made


@pytest.fixture(params=LONG.values(), ids=LONG.keys())
def mixer(request) -> Mixer:
    torch.manual_seed(0)
    mixer = request.param(dim=16, num_heads=2, max_length=1024)
    for parameter in mixer.parameters():  # the zero-initialised matrix would hide everything
        torch.nn.init.normal_(parameter, std=0.3)
    return mixer


def test_no_tensor_of_a_training_step_grows_faster_than_the_song(mixer: Mixer):
    """Twice the steps make no tensor, passing or kept, more than twice as large; a T x T one would be four times."""
    largest = []
    for length in (512, 1024):
        with Largest() as mode:
            mixer(torch.randn(1, length, 16))[0].sum().backward()
        largest.append(mode.elements)
    assert largest[1] <= 2 * largest[0]


def test_what_sampling_remembers_does_not_grow(mixer: Mixer):
    """After 40 steps, or 1,000, and with room for whatever number, the state has one size."""
    with torch.no_grad():
        sizes = set()
        for length in (40, 1000):
            _, state = mixer(torch.randn(1, length, 16), mixer.empty_state(1, 1024))
            _, state = mixer(torch.randn(1, 1, 16), state, length)
            sizes.add(sum(each.numel() for each in tree_leaves(state) if isinstance(each, Tensor)))
    assert len(sizes) == 1


@pytest.mark.parametrize("window", [1, 3, 8, 64])
@pytest.mark.parametrize("length", [1, 7, 16, 33])
def test_blocks_are_attention_with_a_band_mask(window: int, length: int):
    """Blocks of a window give what one attention over the whole gives, with a mask of the last `window` steps."""
    q, k, v = torch.randn(3, 2, 2, length, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    band = torch.ones(length, length, dtype=torch.bool).tril().triu(1 - window)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=band)
    torch.testing.assert_close(LastSteps(window).attend(q, k, v), expected)


@pytest.mark.parametrize("step", [0, 10, 39])
def test_a_sliding_step_sees_its_window_and_nothing_before(step: int):
    """The gradient is non-zero at exactly the last `window` steps."""
    mixer = SlidingAttention(16, 2, 64, window=8)
    torch.nn.init.normal_(mixer.heads.out.weight)
    x = torch.randn(1, 40, 16, requires_grad=True)
    mixer(x)[0][:, step].square().sum().backward()
    assert x.grad[0].any(-1).nonzero()[:, 0].tolist() == list(range(max(0, step - 7), step + 1))


def rule(length: int, dtype: torch.dtype = torch.float64, slow: bool = False) -> tuple[Tensor, ...]:
    """Queries, keys, values, strengths, logarithms of the decay, and a memory to begin with."""
    generator = torch.Generator().manual_seed(length)
    q, k, v = torch.randn(3, 2, 3, length, 8, dtype=torch.float64, generator=generator)
    strength, forgetting = torch.rand(2, 2, 3, length, dtype=torch.float64, generator=generator)
    memory = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=generator)
    forgetting = forgetting * (1e-4 if slow else 3)
    parts = F.normalize(q, dim=-1), F.normalize(k, dim=-1), v, strength, -forgetting, memory
    return tuple(each.to(dtype) for each in parts)


def step_by_step(
    q: Tensor, k: Tensor, v: Tensor, strength: Tensor, log_decay: Tensor, memory: Tensor
) -> tuple[Tensor, Tensor]:
    """The gated delta rule as its equation stands (Yang et al. 2024, equation 10)."""
    read = []
    for t in range(q.shape[2]):
        memory = memory * log_decay[:, :, t, None, None].exp()
        recalled = torch.einsum("bhkv,bhk->bhv", memory, k[:, :, t])
        change = strength[:, :, t, None] * (v[:, :, t] - recalled)
        memory = memory + torch.einsum("bhk,bhv->bhkv", k[:, :, t], change)
        read.append(torch.einsum("bhkv,bhk->bhv", memory, q[:, :, t]))
    return torch.stack(read, 2), memory


@pytest.mark.parametrize("chunk_length", [1, 4, 16, 64])
@pytest.mark.parametrize("length", [1, 16, 37])
def test_chunks_are_the_delta_rule(length: int, chunk_length: int):
    """Chunks of any size give what the recurrence gives, and so do their gradients."""
    ours, plain = ([each.requires_grad_() for each in rule(length)] for _ in range(2))
    got, expected = delta_rule(*ours, chunk_length), step_by_step(*plain)
    torch.testing.assert_close(got, expected)
    for y, memory in (got, expected):
        (y.square().sum() + memory.square().sum()).backward()
    for ours_, plain_ in zip(ours, plain, strict=True):
        torch.testing.assert_close(ours_.grad, plain_.grad)


def test_single_precision_holds_over_16384_steps():
    """With a memory of 10,000 steps nothing adds up: float32 in chunks stays near the recurrence in float64."""
    y, memory = delta_rule(*rule(16_384, torch.float32, slow=True), 64)
    expected, expected_memory = step_by_step(*rule(16_384, slow=True))
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(memory.double(), expected_memory, rtol=0, atol=1e-4)


@pytest.mark.parametrize("repeated", [False, True])
def test_the_worst_keys_are_safe(repeated: bool):
    """Equal keys, or keys and their opposites, written at full strength and never forgotten: all that is read is v."""
    _, _, v, *_ = rule(512, torch.float32)
    k = torch.zeros_like(v)
    k[..., 0] = 1.0 if repeated else torch.tensor([1.0, -1.0]).repeat(256)
    zero = torch.zeros_like(v[..., 0])
    y, _ = delta_rule(k, k, v, torch.ones_like(zero), zero, torch.zeros(2, 3, 8, 8), 64)
    torch.testing.assert_close(y, v, rtol=1e-4, atol=1e-4)


def test_linear_attention_recalls_what_a_key_was_last_given():
    """Values written under orthogonal keys come back exactly, the newer in place of the older (arXiv 2102.11174)."""
    keys, values = torch.eye(8).repeat(3, 1), torch.randn(24, 8)  # each key is given three values, one after another
    k, v = torch.cat([keys, torch.zeros(8, 8)])[None, None], torch.cat([values, torch.zeros(8, 8)])[None, None]
    q = torch.cat([torch.zeros(24, 8), torch.eye(8)])[None, None]
    y, _ = delta_rule(q, k, v, torch.ones(1, 1, 32), torch.zeros(1, 1, 32), torch.zeros(1, 1, 8, 8), 5)
    torch.testing.assert_close(y[0, 0, 24:], values[16:])


def test_autocast_to_bfloat16_does_not_add_up(mixer: Mixer):
    """bfloat16 around the mixer costs a few percent, and no more at the end of 1,024 steps than at the beginning."""
    x = torch.randn(1, 1024, 16)
    with torch.no_grad():
        expected, _ = mixer(x)
        with torch.autocast("cpu", torch.bfloat16):
            got, _ = mixer(x)
    errors = ((got.float() - expected) / expected.std()).square().mean(2)[0]
    assert errors.mean() < 0.05**2
    assert errors[-256:].mean() < 2 * errors[:256].mean()


@pytest.mark.parametrize(
    ("make", "wrong"),
    [(partial(SlidingAttention, window=0), "window=0"), (partial(GatedDeltaRule, chunk_length=0), "chunk_length=0")],
)
def test_no_steps_at_once_are_refused(make: partial, wrong: str):
    """A window or chunk of no steps is a one-line error that names the setting."""
    with pytest.raises(InputError, match=wrong):
        make(dim=16, num_heads=2, max_length=8)
