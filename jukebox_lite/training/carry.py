"""What one model can take over of another's weights: tensors by name and shape, and rows by what they stand for."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from jukebox_lite.codecs.health import Health
from jukebox_lite.codecs.vqvae import HierarchicalVQVAE
from jukebox_lite.nn.reach import Reach
from jukebox_lite.priors.base import Prior
from jukebox_lite.priors.conditioning import Label, Timing
from jukebox_lite.priors.jukebox import JukeboxLabels, JukeboxPrior, JukeboxTiming
from jukebox_lite.priors.lyrics import Lyrics

Weights = Mapping[str, Tensor]  # a state dict
_NAMED = 4  # of many tensors or settings, so many are named


@dataclass(frozen=True)
class Table:
    """A tensor whose rows each stand for something: a value of a label, a character, a stretch of time, a step."""

    key: str  # of the tensor
    rows: Sequence[Any]  # what each stands for
    find: Callable[[Any], int | None]  # the row that stands for it; None where none does
    unknown: int | None = None  # the row that is heard in the place of what none stands for
    silent: bool = False  # whether it begins at zero where the other model has no such table


@dataclass
class Carried:
    """What was taken over, and what was not."""

    taken: dict[str, Tensor] = field(default_factory=dict)  # as the other model has them
    fitted: dict[str, Tensor] = field(default_factory=dict)  # rows in another order, or another number of them
    fits: list[str] = field(default_factory=list)  # for people, how each of these was fitted
    new: dict[str, Tensor] = field(default_factory=dict)
    left: dict[str, Tensor] = field(default_factory=dict)  # the other model's, of no use to this one
    settings: list[str] = field(default_factory=list)  # in which modules of equal names differ

    def lines(self) -> list[str]:
        """For people."""
        told = [f"  taken over: {counted(self.taken)}"]
        told += [f"  fitted: {line}" for line in self.fits]
        told += [f"  new: {counted(self.new)}"] if self.new else []
        told += [f"  left behind: {counted(self.left)}"] if self.left else []
        return told + ([f"  other settings: {', '.join(_some(self.settings))}"] if self.settings else [])


def carry(model: nn.Module, weights: Weights, other: nn.Module | None = None) -> Carried:
    """Gives `model` what it can take over of `weights`, those of `other` where that is known.

    A tensor of equal name and shape is taken as it is. Vectors of a label's values go by the value, whatever its index,
    and so do those of characters; a value that is new begins as the unknown one, a label that is new unheard. Bins of
    time go by the time, learnt positions by the step. Of a codec an encoder, a decoder or a quantizer is taken whole or
    not at all, and a quantizer with its encoder only: entries mean nothing to another.
    """
    health = tuple(f"{name}." for name, each in model.named_modules() if isinstance(each, Health))  # of their training
    ours, theirs = (
        {key: value for key, value in state.items() if not key.startswith(health)}
        for state in (model.state_dict(), weights)
    )
    tables, their_tables = dict(_tables(model)), dict(_tables(other)) if other is not None else {}
    useless = _broken(model, theirs)
    carried, used = Carried(), set()
    for name, table in tables.items():
        if (source := their_tables.get(name)) and ours[table.key].shape[1:] == theirs[source.key].shape[1:]:
            _fit(carried, ours[table.key], table, theirs[source.key], source)
            used.add(source.key)
        elif table.silent:
            ours[table.key].zero_()
    by_meaning = {table.key for table in tables.values()}
    for key, value in ours.items():
        if key in carried.taken or key in carried.fitted:
            continue
        if key in by_meaning or key in useless or key not in theirs or theirs[key].shape != value.shape:
            carried.new[key] = value
        else:
            carried.taken[key] = theirs[key]
            used.add(key)
    carried.left = {key: value for key, value in theirs.items() if key not in used}
    carried.settings = [] if other is None else list(_differences(model, other))
    model.load_state_dict(model.state_dict() | carried.taken | carried.fitted)
    return carried


def counted(tensors: Weights) -> str:
    """For people: how many there are, of how many numbers, and the first of their names."""
    noun = "tensor" if len(tensors) == 1 else "tensors"
    shapes = [f"{key} {list(value.shape)}" for key, value in tensors.items()]
    numbers = sum(value.numel() for value in tensors.values())
    return f"{len(tensors)} {noun}, {numbers:,} numbers ({', '.join(_some(shapes))})"


def _some(names: Sequence[str]) -> list[str]:
    return [*names[:_NAMED], *([f"and {len(names) - _NAMED} more"] if len(names) > _NAMED else [])]


def _fit(carried: Carried, ours: Tensor, table: Table, theirs: Tensor, source: Table) -> None:
    """Notes our table as taken, or with its rows filled by what they stand for."""
    rows = [source.find(each) for each in table.rows]
    if rows == list(range(len(theirs))):
        carried.taken[table.key] = theirs
        return
    known = len(rows) - rows.count(None)
    spare = [source.unknown if row is None else row for row in rows]
    filled = [(place, row) for place, row in enumerate(spare) if row is not None]
    places, chosen = torch.tensor(filled, dtype=torch.int64).reshape(-1, 2).unbind(1)
    carried.fitted[table.key] = ours.clone().index_copy_(0, places, theirs[chosen])
    fresh = f", {len(rows) - known} begin {'as unknown' if source.unknown is not None else 'fresh'}"
    carried.fits.append(
        f"{table.key} {list(ours.shape)}: {known} rows of {len(theirs)}{fresh if known < len(rows) else ''}"
    )


def _tables(model: nn.Module) -> Iterator[tuple[str, Table]]:
    """A prior's tables by a name that does not depend on the order of its labels."""
    if not isinstance(model, Prior):
        return
    vocabulary = model.facts.vocabulary
    for path, module in model.named_modules():
        match module:
            case Label(embedding=nn.Embedding()):
                yield f"label {module.name}", _named(f"{path}.embedding.weight", vocabulary[module.name], 0, True)
            case JukeboxLabels():
                for name in ("artist", "genre"):
                    yield f"label {name}", _named(f"{path}.{name}.weight", vocabulary[name], 0, True)
            case Lyrics():
                yield path, _named(f"{path}.embedding.weight", model.facts.characters, 0)
            case Timing():
                ends = (module.max_seconds, module.max_seconds, 1.0)
                for index, (end, _) in enumerate(zip(ends, module.embeddings, strict=False)):
                    key = f"{path}.embeddings.{index}.weight"
                    yield key, _bins(key, 0.0, end, module.num_bins)
            case JukeboxTiming():
                spans = {"total": (module.min_seconds, module.max_seconds), "absolute": (0.0, module.max_seconds)}
                for name, span in {**spans, "relative": (0.0, 1.0)}.items():
                    yield f"{path}.{name}.weight", _bins(f"{path}.{name}.weight", *span, module.num_bins)
            case JukeboxPrior():
                yield from _sequence_tables(module)


def _sequence_tables(prior: JukeboxPrior) -> Iterator[tuple[str, Table]]:
    """Of tokens and steps: those of the lyrics, where they go before the codes in one sequence, and of the codes."""
    prefix, characters = prior.prefix, prior.facts.characters
    letters = characters if len(characters) == prefix.vocab_size else range(prefix.vocab_size)  # OpenAI's have numbers
    tokens = [("character", each) for each in letters]
    tokens += [("code", index) for index in range(prior.facts.level.codebook_size)]
    steps = [("character", index) for index in range(prefix.num_tokens)]
    steps += [("code", index) for index in range(prior.context_length)]
    yield "positions", _named("transformer.positions", steps)
    unknown = 0 if prefix.vocab_size else None
    for key in ("transformer.embedding.weight", *(["head.weight"] if prior.head is not None else [])):
        yield key, _named(key, tokens, unknown)


def _named(key: str, values: Sequence[Any], unknown: int | None = None, silent: bool = False) -> Table:
    return Table(key, values, {value: index for index, value in enumerate(values)}.get, unknown, silent)


def _bins(key: str, low: float, high: float, count: int) -> Table:
    """Equal bins from `low` to `high`; what lies outside is in the first or the last."""
    width = (high - low) / count

    def find(value: float) -> int:
        return min(max(int((value - low) / width), 0), count - 1)

    return Table(key, [low + (index + 0.5) * width for index in range(count)], find)


def _broken(model: nn.Module, theirs: Weights) -> set[str]:
    """A codec's keys that are of no use alone: their encoder, decoder or quantizer does not fit as a whole."""
    if not isinstance(model, HierarchicalVQVAE):
        return set()
    ours, broken = model.state_dict(), set()
    for level in model.quantizers:
        for part in ("encoders", "quantizers", "decoders"):
            prefix = f"{part}.{level}."
            shapes, their_shapes = (
                {key: value.shape for key, value in weights.items() if key.startswith(prefix)}
                for weights in (ours, theirs)
            )
            orphaned = part == "quantizers" and any(key.startswith(f"encoders.{level}.") for key in broken)
            if shapes != their_shapes or orphaned:
                broken |= shapes.keys()
    return broken


def _differences(model: nn.Module, other: nn.Module) -> Iterator[str]:
    """Settings in which modules of equal names differ though their weights may fit, each once: "heads 2 -> 4"."""
    theirs, seen = dict(other.named_modules()), set()
    for path, module in model.named_modules():
        if path not in theirs or isinstance(module, nn.Embedding | Label):
            continue
        before, now = _settings(theirs[path]), _settings(module)
        if not isinstance(module, type(theirs[path])):
            before["kind"], now["kind"] = type(theirs[path]).__name__, type(module).__name__
        for name in before.keys() & now.keys():
            line = f"{name} {before[name]} -> {now[name]}"
            if before[name] != now[name] and line not in seen:
                seen.add(line)
                yield line


def _settings(module: nn.Module) -> dict[str, Any]:
    """A module's plain attributes, but for those that the shapes of its weights tell."""
    found: dict[str, Any] = {}
    for name, value in vars(module).items():
        if isinstance(value, Reach):
            found[name] = f"{type(value).__name__}{tuple(vars(value).values())}"
        elif name[0] != "_" and name != "training" and isinstance(value, int | float | str | tuple):
            found[name] = value
    return found
