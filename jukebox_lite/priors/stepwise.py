"""Codes drawn one position after the other: the loop that all autoregressive priors share, and how it is made fast."""

import copy
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from jukebox_lite.nn.device import check_compiler
from jukebox_lite.nn.narrow import narrow
from jukebox_lite.nn.reach import At, Place
from jukebox_lite.nn.transformer import State
from jukebox_lite.priors.base import Prior, Sampler
from jukebox_lite.priors.conditioning import Conditioning

_ONCE = {  # what many read, as each row of a weight reads a norm, the compiler makes once: not again for each of them
    "realize_acc_reads_threshold": 2,
    "realize_reads_threshold": 1,
    "max_pointwise_cat_inputs": 0,
}
_ROOM = 256  # positions by which the part of a memory that a step reads grows; each is a graph on a GPU


class Stepwise(Prior):
    """A prior that predicts a sequence of codes [B, K, S], position by position, from the codes before."""

    @abstractmethod
    def predict(self, past: Tensor, known: Conditioning, states: list[State], at: At) -> Tensor:
        """Logits [B, K, V] of the position after the codes `past` [B, K, S]; goes on from the states.

        `past` is all before that position, with `at` 0 and new states; or with a Place the one code before it.
        """

    def untie(self) -> None:
        """Gives a head that is the embedding a linear map of its own, to be replaced; here there is no such head."""

    def fill(
        self,
        sequence: Tensor,
        first: int,
        wanted: Tensor,
        noise: Tensor,
        known: Conditioning,
        states: list[State],
        sampler: Sampler,
    ) -> Iterator[int]:
        """Goes through `sequence` [B, K, S] from position `first` on, and gives each position once it is done.

        The codes that are `wanted` [K, S] are drawn with `noise` [B, K, S] and written; the others stay. What comes
        before `first` is read all at once. The states are new; what is known, and they, are of as many songs, or with
        guidance of twice as many: told their labels, and not.
        """
        length = sequence.shape[-1]
        steps, wanted = torch.arange(length, device=sequence.device), wanted.to(sequence.device)
        logits = self.predict(_copies(sequence[..., :first], sampler), known, states, 0)
        _write(sequence, wanted, noise, logits, sampler, steps[first : first + 1])
        yield first
        for position in range(first + 1, length):
            place = Place(steps[position : position + 1], min(position // _ROOM * _ROOM + _ROOM, length))
            self.step(sequence, wanted, noise, known, states, place, sampler)
            yield position

    def step(
        self,
        sequence: Tensor,
        wanted: Tensor,
        noise: Tensor,
        known: Conditioning,
        states: list[State],
        place: Place,
        sampler: Sampler,
    ) -> None:
        """Draws the codes of one position after the first, in tensors alone: one graph for all steps."""
        past = _copies(sequence.index_select(2, place.step - 1), sampler)
        _write(sequence, wanted, noise, self.predict(past, known, states, place), sampler, place.step)


def for_sampling(prior: Prior, precision: str = "fp32", compiled: bool = False) -> Prior:
    """The prior, or a copy that samples with weights of a lower `precision`, or with its step as one compiled graph.

    The first window compiles. Compiled sums are added in another order: a draw may fall to a neighbour by rounding.
    Raises InputError on an unknown precision, or where there is nothing to compile with.
    """
    if precision == "fp32" and not compiled:
        return prior
    prior = copy.deepcopy(prior)
    assert isinstance(prior, Stepwise)
    if precision != "fp32":
        prior.untie()
    narrow(prior, precision)
    if compiled:
        check_compiler("compile=true")
        options = {"guard_filter_fn": _of_arguments, **_ONCE}
        make: Any = torch.compile  # whose overloads lack isolate_recompiles
        prior.step = make(prior.step, fullgraph=True, isolate_recompiles=True, options=options)
    return prior


def _of_arguments(guards: Sequence[Any]) -> list[bool]:
    """Which guards of a graph are looked at before every step: none of the prior's, a copy that nobody changes.

    There are more than a thousand, which take a fifth of the step's time.
    """
    return [not guard.is_global and not guard.name.startswith("self") for guard in guards]


def guided(logits: Tensor, guidance: float) -> Tensor:
    """Logits [2 B, ..., V], first with labels and then without -> [B, ..., V] beyond the first; at 1, as they are.

    Classifier-free guidance (Ho and Salimans 2022), in logits as MusicGen has it: without + guidance (with - without).
    """
    if guidance == 1:
        return logits
    told, untold = logits.float().chunk(2)
    return untold + guidance * (told - untold)


def draw(logits: Tensor, sampler: Sampler, noise: Tensor) -> Tensor:
    """Logits [..., V] and noise [...] in [0, 1) -> indices [...], by inverting the distribution function."""
    if sampler.temperature == 0:
        return logits.argmax(-1)
    logits = logits.float() / sampler.temperature
    if sampler.top_k:
        smallest = logits.topk(min(sampler.top_k, logits.shape[-1]), -1).values[..., -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    if sampler.top_p is not None:
        logits, order = logits.sort(descending=True, dim=-1)
        before = logits.softmax(-1).cumsum(-1) - logits.softmax(-1)  # the likeliest one always stays
        chosen = _invert(logits.masked_fill(before >= sampler.top_p, -torch.inf).softmax(-1), noise)
        return order.gather(-1, chosen[..., None])[..., 0]
    return _invert(logits.softmax(-1), noise)


def _invert(probabilities: Tensor, noise: Tensor) -> Tensor:
    """The first index where the cumulative probability exceeds `noise`; never one of probability 0."""
    cumulative = probabilities.cumsum(-1)
    target = noise[..., None] * cumulative[..., -1:]
    return torch.searchsorted(cumulative, target, right=True)[..., 0].clamp(max=probabilities.shape[-1] - 1)


def _copies(codes: Tensor, sampler: Sampler) -> Tensor:
    """[B, K, S] -> the same, or with guidance [2 B, K, S]: for songs told their labels, and for those that are not."""
    return codes if sampler.guidance == 1 else codes.repeat(2, 1, 1)


def _write(sequence: Tensor, wanted: Tensor, noise: Tensor, logits: Tensor, sampler: Sampler, position: Tensor) -> None:
    """Draws from the logits [B, K, V] of a `position` [1] and writes what is wanted there."""
    drawn = draw(guided(logits, sampler.guidance), sampler, noise.index_select(2, position)[..., 0])
    there = torch.where(wanted.index_select(1, position), drawn[..., None], sequence.index_select(2, position))
    sequence.index_copy_(2, position, there)
