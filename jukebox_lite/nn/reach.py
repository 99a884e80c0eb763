"""Which steps of the past a step attends to: all of them, or few enough that a long context costs little.

A sequence laid out in rows of equal length is attended to along its rows, along its columns, or over the row before,
in turn (Jukebox, section 4.1, after the Sparse Transformer, Child et al. 2019). All at once this takes one small
product per row or column and never a matrix of T by T; step by step, each kind remembers only what later steps can
still see.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from jukebox_lite.errors import InputError


class Place(NamedTuple):
    """Where one single step is: told by a tensor, so that one compiled graph serves every step."""

    step: Tensor  # [1] int64
    room: int  # how far a memory of the whole past is read: past the step, within the sequence; of few values


At = int | Place  # the first of several steps, or one step


def steps_at(at: At, count: int) -> slice | Tensor:
    """What picks the steps at, at + 1, ... out of a table."""
    return at.step if isinstance(at, Place) else slice(at, at + count)


class Reach(ABC):
    """The steps that a step's queries meet, itself or earlier ones. E is the width of a head.

    A memory [2, B, H, S, E] holds the keys and values of earlier steps as far as later ones can still meet them.
    """

    @abstractmethod
    def empty(self, like: Tensor, batch_size: int, num_heads: int, length: int, head_dim: int) -> Tensor:
        """Nothing remembered yet, with room for what counts of `length` steps; of the kind of `like`."""

    @abstractmethod
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """All at once, from step 0 on: three times [B, H, T, E] -> [B, H, T, E]."""

    def go_on(self, q: Tensor, k: Tensor, v: Tensor, memory: Tensor, at: At) -> Tensor:
        """The same of the steps from `at` on, after those that the memory has seen. Writes into the memory."""
        return self._one(q, k, v, memory, at) if isinstance(at, Place) else self._several(q, k, v, memory, at)

    @abstractmethod
    def _one(self, q: Tensor, k: Tensor, v: Tensor, memory: Tensor, place: Place) -> Tensor: ...

    @abstractmethod
    def _several(self, q: Tensor, k: Tensor, v: Tensor, memory: Tensor, start: int) -> Tensor: ...


class _Recent(Reach):
    """A reach of which the memory holds the last steps."""

    @abstractmethod
    def size(self, length: int) -> int:
        """How many of `length` steps need to be kept."""

    @abstractmethod
    def first(self, step: int) -> int:
        """The first step that `step` or a later one can meet; attending can begin there as at 0."""

    @abstractmethod
    def met(self, memory: Tensor, place: Place) -> tuple[Tensor, Tensor | None]:
        """What one step may meet of the memory [2, B, H, M, E], and which of it [1, M] it does: None is all."""

    def slots(self, steps: Tensor, size: int) -> Tensor:
        """Where each of the steps is in a memory of that size."""
        return steps % size

    def empty(self, like: Tensor, batch_size: int, num_heads: int, length: int, head_dim: int) -> Tensor:
        return like.new_zeros(2, batch_size, num_heads, self.size(length), head_dim)

    def _one(self, q: Tensor, k: Tensor, v: Tensor, memory: Tensor, place: Place) -> Tensor:
        _keep(memory, self.slots(place.step, memory.shape[3]), k, v)
        (k, v), met = self.met(memory, place)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=met)

    def _several(self, q: Tensor, k: Tensor, v: Tensor, memory: Tensor, start: int) -> Tensor:
        first, end, size = self.first(start), start + q.shape[2], memory.shape[3]
        whole = torch.cat([memory[:, :, :, self.slots(_steps(first, start, q), size)], torch.stack([k, v])], 3)
        y = self.attend(F.pad(q, (0, 0, start - first, 0)), whole[0], whole[1])[:, :, start - first :]
        recent = max(first, end - size)
        memory[:, :, :, self.slots(_steps(recent, end, q), size)] = whole[:, :, :, recent - first :]
        return y


class Past(_Recent):
    """Everything up to the step itself."""

    def size(self, length: int) -> int:
        return length

    def first(self, step: int) -> int:
        del step
        return 0

    def met(self, memory: Tensor, place: Place) -> tuple[Tensor, Tensor | None]:
        return memory[:, :, :, : place.room], _up_to(place.step, place.room)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)


class LastSteps(_Recent):
    """The last `window` steps, the step itself included: Longformer's local attention (Beltagy et al. 2020, 3.1)."""

    def __init__(self, window: int):
        if window < 1:
            raise InputError(f"mixer.window={window}: a step sees itself at least, give 1 or more")
        self.window = window

    def size(self, length: int) -> int:
        return min(self.window, length)

    def first(self, step: int) -> int:
        return max(0, step - self.window + 1)

    def met(self, memory: Tensor, place: Place) -> tuple[Tensor, Tensor | None]:
        return memory, _up_to(place.step, memory.shape[3])  # in any order: softmax does not ask

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """In blocks of `window` steps, each of which looks at itself and at the block before."""
        window, (batch_size, _, length, _) = self.window, q.shape
        first = F.scaled_dot_product_attention(q[:, :, :window], k[:, :, :window], v[:, :, :window], is_causal=True)
        if length <= window:
            return first
        q, k, v = (F.pad(each, (0, 0, 0, -length % window)) for each in (q, k, v))
        q = rearrange(q[:, :, window:], "b h (n w) e -> (b n) h w e", w=window)
        k, v = (rearrange(each.unfold(2, 2 * window, window), "b h n e w -> (b n) h w e") for each in (k, v))
        band = torch.ones(window, 2 * window, dtype=torch.bool, device=q.device).tril(window).triu(1)
        rest = F.scaled_dot_product_attention(q, k, v, attn_mask=band)
        return torch.cat([first, rearrange(rest, "(b n) h w e -> b h (n w) e", b=batch_size)], 2)[:, :, :length]


class _InRows(_Recent):
    """A reach that is told by rows of `row_length` steps."""

    def __init__(self, row_length: int):
        self.row_length = _checked(row_length)


class Row(_InRows):
    """The step's own row, up to itself."""

    def size(self, length: int) -> int:
        del length
        return self.row_length

    def first(self, step: int) -> int:
        return step - step % self.row_length

    def met(self, memory: Tensor, place: Place) -> tuple[Tensor, Tensor | None]:
        return memory, _up_to(place.step % self.row_length, self.row_length)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        batch_size, _, length, _ = q.shape
        q, k, v = (rearrange(_rows(x, self.row_length), "b h r c e -> (b r) h c e") for x in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return rearrange(y, "(b r) h c e -> b h (r c) e", b=batch_size)[:, :, :length]


class Column(_InRows):
    """The steps at the same place of this row and of every row before, which lie side by side in the memory."""

    def size(self, length: int) -> int:
        return length + -length % self.row_length

    def first(self, step: int) -> int:
        del step
        return 0

    def slots(self, steps: Tensor, size: int) -> Tensor:
        return steps % self.row_length * (size // self.row_length) + steps // self.row_length

    def met(self, memory: Tensor, place: Place) -> tuple[Tensor, Tensor | None]:
        columns = memory.unflatten(3, (self.row_length, -1))
        column = columns.index_select(3, place.step % self.row_length)[:, :, :, 0]
        return column, _up_to(place.step // self.row_length, column.shape[3])

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        batch_size, _, length, _ = q.shape
        q, k, v = (rearrange(_rows(x, self.row_length), "b h r c e -> (b c) h r e") for x in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return rearrange(y, "(b c) h r e -> b h (r c) e", b=batch_size)[:, :, :length]


class PreviousRow(_InRows):
    """All of the row before; the first row meets nothing, which is zero."""

    def size(self, length: int) -> int:
        del length
        return 2 * self.row_length

    def first(self, step: int) -> int:
        return max(0, step - step % self.row_length - self.row_length)

    def met(self, memory: Tensor, place: Place) -> tuple[Tensor, Tensor | None]:
        rows = memory.unflatten(3, (2, self.row_length))
        return rows.index_select(3, (place.step // self.row_length + 1) % 2)[:, :, :, 0], None

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        batch_size, _, length, _ = q.shape
        q, k, v = (_rows(x, self.row_length) for x in (q, k, v))
        q, k, v = (rearrange(x, "b h r c e -> (b r) h c e") for x in (q[:, :, 1:], k[:, :, :-1], v[:, :, :-1]))
        y = rearrange(F.scaled_dot_product_attention(q, k, v), "(b r) h c e -> b h (r c) e", b=batch_size)
        return F.pad(y, (0, 0, self.row_length, 0))[:, :, :length]


class RowEnds(Reach):
    """The last steps of rows up to the step itself, and a zero; of `num_rows` rows the last one's end is left out."""

    def __init__(self, row_length: int, num_rows: int):
        self.row_length, self.num_rows = _checked(row_length), _checked(num_rows)

    def empty(self, like: Tensor, batch_size: int, num_heads: int, length: int, head_dim: int) -> Tensor:
        del length
        return like.new_zeros(2, batch_size, num_heads, self.num_rows + 1, head_dim)  # the last is met by none

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        batch_size, num_heads, length, head_dim = q.shape
        return self._several(q, k, v, self.empty(q, batch_size, num_heads, length, head_dim), 0)

    def _one(self, q: Tensor, k: Tensor, v: Tensor, memory: Tensor, place: Place) -> Tensor:
        row = place.step // self.row_length  # its end so far is the step, met only once it is the end
        _keep(memory, (1 + row).clamp(max=self.num_rows), k, v)
        k, v = memory[:, :, :, :-1]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self._met(place.step))

    def _several(self, q: Tensor, k: Tensor, v: Tensor, memory: Tensor, start: int) -> Tensor:
        ends = torch.stack([k, v])[:, :, :, self.row_length - 1 - start % self.row_length :: self.row_length]
        slot = 1 + start // self.row_length  # after the zero
        whole = torch.cat([memory[:, :, :, :slot], ends], 3)[:, :, :, : self.num_rows]
        memory[:, :, :, : whole.shape[3]] = whole
        k, v = whole
        met = self._met(_steps(start, start + q.shape[2], q))[:, : k.shape[2]]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=met)

    def _met(self, steps: Tensor) -> Tensor:
        """Which of the zero and the rows' ends each of the steps [T] meets: [T, R]."""
        return torch.arange(self.num_rows, device=steps.device) * self.row_length <= steps[:, None] + 1


class Beginning(Reach):
    """The first `length` steps of the sequence, up to the step itself."""

    def __init__(self, length: int):
        self.length = _checked(length)

    def empty(self, like: Tensor, batch_size: int, num_heads: int, length: int, head_dim: int) -> Tensor:
        del length
        return like.new_zeros(2, batch_size, num_heads, self.length + 1, head_dim)  # the last is met by none

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        batch_size, num_heads, length, head_dim = q.shape
        return self._several(q, k, v, self.empty(q, batch_size, num_heads, length, head_dim), 0)

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        """How `attend` shares each step's attention out: [B, H, T, S] of the first S = `length` steps, of sum 1."""
        alike = q.float() @ k[:, :, : self.length].float().mT * q.shape[-1] ** -0.5
        return alike.masked_fill(~self._met(q, 0, alike.shape[-1]), -torch.inf).softmax(-1)

    def _one(self, q: Tensor, k: Tensor, v: Tensor, memory: Tensor, place: Place) -> Tensor:
        _keep(memory, place.step.clamp(max=self.length), k, v)
        k, v = memory[:, :, :, :-1]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=_up_to(place.step, self.length))

    def _several(self, q: Tensor, k: Tensor, v: Tensor, memory: Tensor, start: int) -> Tensor:
        whole = torch.cat([memory[:, :, :, : min(start, self.length)], torch.stack([k, v])], 3)[:, :, :, : self.length]
        memory[:, :, :, : whole.shape[3]] = whole
        k, v = whole
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self._met(q, start, k.shape[2]))

    def _met(self, q: Tensor, start: int, count: int) -> Tensor:
        """Which of the first `count` steps each of the queries from `start` on meets: [T, count]."""
        return torch.arange(count, device=q.device) <= _steps(start, start + q.shape[2], q)[:, None]


def _checked(length: int) -> int:
    if length < 1:
        raise InputError(f"a row of {length} steps: expected 1 or more")
    return length


def _keep(memory: Tensor, slot: Tensor, k: Tensor, v: Tensor) -> None:
    """Writes one step's keys and values [B, H, 1, E], which autocast may have made narrower, into a slot [1]."""
    memory.index_copy_(3, slot, torch.stack([k, v]).to(memory.dtype))


def _steps(start: int, end: int, like: Tensor) -> Tensor:
    return torch.arange(start, end, device=like.device)


def _up_to(step: Tensor, count: int) -> Tensor:
    """Which of the steps 0 to `count` - 1 are not after the `step` [1]: [1, count]."""
    return (torch.arange(count, device=step.device) <= step)[None]


def _rows(x: Tensor, row_length: int) -> Tensor:
    """[B, H, T, E] -> [B, H, R, C, E]; the last row is filled up with zeros, a single one is as long as it is."""
    row_length = min(row_length, x.shape[2])
    if missing := -x.shape[2] % row_length:
        x = F.pad(x, (0, 0, 0, missing))
    return rearrange(x, "b h (r c) e -> b h r c e", c=row_length)
