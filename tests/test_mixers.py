"""Every mixer: step by step equals all at once, and the future does not matter."""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import accumulate

import pytest
import torch
from torch import Tensor

from jukebox_lite.errors import InputError
from jukebox_lite.nn.linear import GatedDeltaRule
from jukebox_lite.nn.reach import At, Beginning, Column, Past, Place, PreviousRow, Reach, Row, RowEnds
from jukebox_lite.nn.transformer import CausalAttention, FactoredAttention, Rotary, SlidingAttention, Transformer

MIXERS = {
    "causal": CausalAttention,
    "factored": partial(FactoredAttention, row_length=4),
    "factored, the last row short": partial(FactoredAttention, row_length=5),
    "sliding": partial(SlidingAttention, window=5),  # three blocks of which see all of LENGTH
    "linear": partial(GatedDeltaRule, chunk_length=5),
}
LENGTH = 12
ROW = 4
REACHES = {  # and whether a step, the second, meets another, the first
    "past": (Past(), lambda step, other: other <= step),
    "row": (Row(ROW), lambda step, other: (other <= step) & (step // ROW == other // ROW)),
    "column": (Column(ROW), lambda step, other: (other <= step) & (step % ROW == other % ROW)),
    "previous row": (PreviousRow(ROW), lambda step, other: step // ROW == other // ROW + 1),
    "row ends": (
        RowEnds(ROW, 5),
        lambda step, other: (other <= step) & (other % ROW == ROW - 1) & (other < 5 * ROW - 1),
    ),
    "beginning": (Beginning(6), lambda step, other: (other <= step) & (other < 6)),
}


def places(pieces: list[int], room: int, parts: Sequence[Tensor]) -> Iterator[tuple[At, Tensor]]:
    """Where each part begins, and the part; a single step, but for the first, as the graph of one step takes it."""
    for start, count, part in zip(accumulate(pieces, initial=0), pieces, parts, strict=False):
        yield Place(torch.tensor([start]), min(start + 2, room)) if count == 1 and start else start, part


@pytest.fixture(params=MIXERS.values(), ids=MIXERS.keys())
def transformer(request) -> Transformer:
    torch.manual_seed(0)
    model = Transformer(16, 3, 2, LENGTH, request.param).eval()
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
        for at, part in places(pieces, LENGTH, x.split(pieces, dim=1)):
            y, states = transformer(part, states, at)
            parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("step", [0, 4, LENGTH - 1])
def test_the_gradient_from_the_future_is_exactly_zero(transformer: Transformer, step: int):
    """What a step predicts depends on every step up to it and on none after."""
    x = sequence(requires_grad=True)
    transformer(x)[0][:, step].square().sum().backward()
    assert torch.count_nonzero(x.grad[:, step + 1 :]) == 0
    assert (x.grad[:, : step + 1].abs().amax(-1) > 0).all()


def heads(length: int, requires_grad: bool = False) -> Tensor:
    """Queries, keys and values [3, B, H, T, E]."""
    generator = torch.Generator().manual_seed(length)
    return torch.randn(3, 2, 3, length, 8, generator=generator, dtype=torch.float64, requires_grad=requires_grad)


@pytest.mark.parametrize("length", [1, 3, 4, 5, 8, 19, 24])
@pytest.mark.parametrize(("reach", "meets"), REACHES.values(), ids=REACHES.keys())
def test_a_reach_is_dense_attention_under_a_mask(reach: Reach, meets, length: int):
    """Values and gradients; a step that meets nothing gets zero. Row ends have a zero key and value beside them."""
    q, k, v = x = heads(length, requires_grad=True)
    steps = torch.arange(length)
    scores = (q @ k.mT / 8**0.5).masked_fill(~meets(steps[:, None], steps), -torch.inf)
    if isinstance(reach, RowEnds):
        scores, v = torch.cat([scores, torch.zeros_like(scores[..., :1])], -1), torch.cat([v, v[:, :, :1] * 0], 2)
    wanted = scores.softmax(-1).nan_to_num() @ v
    found = reach.attend(*x)
    torch.testing.assert_close(found, wanted)
    weights = torch.randn(wanted.shape, dtype=torch.float64)
    wanted_gradient, gradient = (
        torch.autograd.grad((y * weights).sum(), x, allow_unused=True, materialize_grads=True)[0]
        for y in (wanted, found)
    )
    torch.testing.assert_close(gradient, wanted_gradient.nan_to_num())


@pytest.mark.parametrize("pieces", [[1] * 19, [7, 1, 1, 2, 8], [3, 5, 11], [4, 4, 4, 4, 3], [18, 1]])
@pytest.mark.parametrize("reach", [reach for reach, _ in REACHES.values()], ids=REACHES.keys())
def test_a_reach_goes_on_from_its_memory(reach: Reach, pieces: list[int]):
    """In any pieces what it gives at once, and as well with more room than is needed."""
    x = heads(19)
    for room in (19, 40):
        memory, parts = reach.empty(x, 2, 3, room, 8), []
        for at, part in places(pieces, room, x.split(pieces, 3)):
            parts.append(reach.go_on(*part, memory, at))
        torch.testing.assert_close(torch.cat(parts, 2), reach.attend(*x))


@pytest.mark.parametrize(
    ("reach", "kept"), [(Row(ROW), ROW), (PreviousRow(ROW), 2 * ROW), (RowEnds(ROW, 5), 6), (Beginning(6), 7)]
)
def test_a_reach_remembers_only_what_can_be_met(reach: Reach, kept: int):
    """Of any length a row, two rows, four ends and a zero, or the beginning; the latter two with a place to spare."""
    assert reach.empty(torch.zeros(()), 2, 3, 1900, 8).shape == (2, 2, 3, kept, 8)


def test_layers_of_factored_attention_differ():
    """Row, column, the row before, and again."""
    model = Transformer(16, 5, 2, LENGTH, partial(FactoredAttention, row_length=4))
    kinds = [type(block.mixer.reach) for block in model.blocks]
    assert kinds == [Row, Column, PreviousRow, Row, Column]


def test_rows_without_steps_are_refused():
    """One line tells what was given."""
    with pytest.raises(InputError, match="row of 0 steps"):
        Transformer(16, 1, 2, LENGTH, partial(FactoredAttention, row_length=0))


def test_any_length_is_the_beginning_of_a_longer_one(transformer: Transformer):
    """A sequence of every length, a multiple of a mixer's blocks or not, gives what it gives as a beginning."""
    x = sequence()
    with torch.no_grad():
        whole, _ = transformer(x)
        for length in range(1, LENGTH):
            torch.testing.assert_close(transformer(x[:, :length])[0], whole[:, :length], rtol=1e-5, atol=1e-5)


def test_songs_of_a_batch_do_not_see_each_other(transformer: Transformer):
    """The gradient of one row's outputs is exactly zero at the other row."""
    x = sequence(requires_grad=True)
    transformer(x)[0][0].square().sum().backward()
    assert torch.count_nonzero(x.grad[1]) == 0
    assert (x.grad[0].abs().amax(-1) > 0).all()


def test_a_new_transformer_is_the_identity():
    """The last matrix of every block starts at zero, so that depth costs nothing at the start."""
    model, x = Transformer(16, 3, 2, LENGTH, CausalAttention), sequence()
    torch.testing.assert_close(model(x)[0], torch.nn.functional.rms_norm(x, (16,)))


def test_rotary_products_depend_on_distance_only():
    """The product of a query and a key is the same wherever the pair stands (Su et al. 2021, equation 16)."""
    rotary = Rotary(8, 100, 10_000)
    q, k = torch.randn(2, 1, 1, 1, 8)
    products = [(rotary(q, start + 7) * rotary(k, start)).sum() for start in (0, 3, 50)]
    torch.testing.assert_close(products[1:], products[:1] * 2)


@pytest.mark.parametrize(("base", "known"), [(10_000, 0.28), (1_000_000, 1.0)])
def test_a_larger_base_knows_a_far_key_by_what_it_is(base: float, known: float):
    """4,096 steps on, what the slowest pair holds has turned by 1.3 radians in a head of 16, or by hardly any."""
    rotary, key = Rotary(16, 4097, base), torch.zeros(1, 1, 1, 16)
    key[..., [7, 15]] = 0.5**0.5  # a pair is a feature of the first half and one of the second
    assert (rotary(key, 4096) * rotary(key, 0)).sum() == pytest.approx(known, abs=0.01)


@pytest.mark.parametrize("mixer", [value for name, value in MIXERS.items() if name != "linear"])
def test_a_base_that_is_not_told_is_that_of_older_runs(mixer):
    """A run's config from before there was a choice rebuilds the prior it was."""
    old, told, other = (
        Transformer(16, 3, 2, LENGTH, make).blocks[1].mixer.heads.rotary
        for make in (mixer, partial(mixer, rotary_base=10_000), partial(mixer, rotary_base=1_000_000))
    )
    assert torch.equal(old.cos, told.cos) and torch.equal(old.sin, told.sin)
    assert not torch.equal(old.cos, other.cos)


@pytest.mark.parametrize("base", [0, 0.5, -1, math.inf, math.nan])
def test_a_base_that_is_none_is_refused(base: float):
    """One line tells what was given."""
    with pytest.raises(InputError, match="rotary_base"):
        CausalAttention(16, 2, LENGTH, rotary_base=base)
