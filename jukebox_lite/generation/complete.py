"""Sampling: whatever codes are given are kept, whatever is missing is filled in, coarse to fine.

The modes of Jukebox (section 4.4) are gifts: nothing (ancestral), the first seconds of every level
(primed, continued), or the whole top level (upsampling).
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from jukebox_lite.codecs.base import Codec
from jukebox_lite.errors import InputError
from jukebox_lite.generation.checks import (
    by_level,
    check_guidance,
    check_labels,
    check_lengths,
    check_lyrics,
)
from jukebox_lite.generation.filling import Cost, Filling, fitting, step_seconds
from jukebox_lite.generation.journal import Journal, Steps
from jukebox_lite.generation.windows import Sequential, Windows, windows
from jukebox_lite.levels import Codes, Level
from jukebox_lite.lyrics import normalised
from jukebox_lite.priors.base import Prior, Sampler

_OVERLAP = 0.5  # of two neighbouring windows, where nothing else is asked
_WINDOW_AFTER_WINDOW = Sequential()


@torch.no_grad()
def complete(
    codec: Codec,
    priors: Sequence[Prior],
    num_steps: Mapping[str, int],
    labels: Mapping[str, Sequence[str]],
    samplers: Mapping[str, Sampler],
    seed: int,
    num_songs: int,
    given: Codes | None = None,
    overlap: float | Mapping[str, float] = _OVERLAP,
    total_seconds: float | None = None,
    lyrics: Sequence[str] = (),
    order: Windows = _WINDOW_AFTER_WINDOW,
    journal: Journal | None = None,
    tell: Callable[[Mapping[str, Cost]], None] | None = None,
    on_level: Callable[[str, float], object] = lambda _name, _seconds: None,
) -> Codes:
    """Codes [num_songs, K, num_steps[level]] on the CPU, of every level that is complete in the end.

    `num_steps` and `samplers` are by level name; `labels` holds one text for all songs, or one a song, of one value or
    several: "piano; organ". `given` codes [1 or num_songs, K, T] stand as they are at the beginning of their level; a
    level that they leave unfinished and that has no prior is left out of the result. `overlap` is the share of a window
    that the next one sees again. `total_seconds` is how long the priors are told the song is: by default, as long as it
    gets. `lyrics` are one text for all songs, or one a song, for the priors that hear lyrics. `on_level` is told each
    level that is done, and the seconds its steps took, whichever process took them.

    `order` says which windows are sampled side by side. With a `journal`, what is drawn is on the disk a few seconds
    later, and what an earlier process left there stays. `tell` hears what each level will cost, measured on a few steps
    of its prior, before anything is sampled; nothing is measured without it.

    Song i depends on (seed, i) and not on num_songs, nor, but for rounding, on what is sampled beside it. Raises
    InputError where the parts do not fit together.
    """
    ordered = _coarse_to_fine(codec, priors)
    if seed < 0 or num_songs < 1:
        raise InputError(f"seed={seed} and num_songs={num_songs}: expected 0 or more, and 1 or more")
    codes = _spread_over_songs(codec, given or {}, num_steps, num_songs)
    check_lengths(codec, ordered, num_steps, codes)
    check_labels(ordered, labels, num_songs)
    check_lyrics(ordered, lyrics, num_songs)
    check_guidance(samplers, [*labels, *lyrics])
    texts = [normalised(text) for text in lyrics or [""]]
    texts = texts * num_songs if len(texts) == 1 else texts
    overlaps = by_level("overlap", overlap, codec.levels)
    steps = Steps() if journal is None else journal
    fillings = []  # settled for all levels before hours go into the first
    for prior in ordered:
        name = prior.facts.level.name
        known = _song_labels(codec, prior, labels, num_steps[name], num_songs, total_seconds)
        have = codes[name].shape[-1] if name in codes else 0
        spans = windows(num_steps[name], prior.context_length, overlaps[name], prior.facts.ratio)
        waves = order.waves([span for span in spans if span[1] > have], have, prior.facts.above is not None)
        fillings.append(Filling(codec, prior, samplers[name], seed, known, texts, waves))
        codes[name] = _with_room(prior.facts.level, num_songs, num_steps[name], codes.get(name))
    batch_sizes = [order.batch_size or int(steps.step(partial(fitting, filling))) for filling in fillings]
    if tell is not None and not steps.reading:
        costs = [filling.cost(codes, size) for filling, size in zip(fillings, batch_sizes, strict=True)]
        tell({filling.level.name: cost for filling, cost in zip(fillings, costs, strict=True) if cost.seconds})
    for filling, batch_size in zip(fillings, batch_sizes, strict=True):
        before = steps.seconds
        filling.fill(codes, batch_size, steps)
        on_level(filling.level.name, steps.seconds - before)
    names = [level.name for level in codec.levels if level.name in codes]
    return {name: codes[name] for name in names if codes[name].shape[-1] == num_steps[name]}


def samplers(
    levels: Sequence[Level],
    temperature: float | Mapping[str, float] = 1.0,
    top_k: int | Mapping[str, int | None] | None = None,
    top_p: float | Mapping[str, float | None] | None = None,
    guidance: float | Mapping[str, float] = 1.0,
) -> dict[str, Sampler]:
    """A sampler by level name; each setting is one value for all levels, or values by level name."""
    temperatures = by_level("temperature", temperature, levels)
    top_ks = by_level("top_k", top_k, levels)
    top_ps = by_level("top_p", top_p, levels)
    guidances = by_level("guidance", guidance, levels)
    for name in temperatures:
        if not 0 <= temperatures[name] < float("inf"):
            raise InputError(f"temperature={temperatures[name]} of level {name}: expected 0 or more")
        if (k := top_ks[name]) is not None and k < 1:
            raise InputError(f"top_k={k} of level {name}: expected 1 or more, or null for every code")
        if (p := top_ps[name]) is not None and not 0 < p <= 1:
            raise InputError(f"top_p={p} of level {name}: expected more than 0 and at most 1, or null for every code")
        if not 0 <= guidances[name] < float("inf"):
            raise InputError(f"guidance={guidances[name]} of level {name}: expected 0 or more, or 1 for none")
    return {name: Sampler(temperatures[name], top_ks[name], top_ps[name], guidances[name]) for name in temperatures}


def _coarse_to_fine(codec: Codec, priors: Sequence[Prior]) -> list[Prior]:
    """The priors in the order of the codec's levels; InputError if they are not one a level of this codec."""
    of_level: dict[str, Prior] = {}
    for prior in priors:
        level, above = prior.facts.level, prior.facts.above
        if not {level, above or level} <= set(codec.levels):
            raise InputError(f"the prior of level {level.name} was trained on another codec, whose levels differ")
        if level.name in of_level:
            raise InputError(f"two priors model level {level.name}: give one for each level")
        of_level[level.name] = prior
    return [of_level[level.name] for level in codec.levels if level.name in of_level]


def _song_labels(
    codec: Codec,
    prior: Prior,
    labels: Mapping[str, Sequence[str]],
    num_steps: int,
    num_songs: int,
    total_seconds: float | None,
) -> dict[str, Tensor]:
    """What holds for whole songs: indices [num_songs, M] of the labels this prior knows, and "total_seconds"."""
    mine = {name: values for name, values in labels.items() if name in prior.facts.vocabulary}
    indices = {name: index.expand(num_songs, -1) for name, index in prior.facts.indices(mine).items()}
    seconds = step_seconds(codec, prior.facts.level)
    if seconds is None:
        return indices
    total = num_steps * seconds if total_seconds is None else total_seconds
    return {**indices, "total_seconds": torch.full((num_songs,), float(total))}


def _spread_over_songs(codec: Codec, given: Codes, num_steps: Mapping[str, int], num_songs: int) -> Codes:
    """The given codes, [num_songs, K, T]; InputError if they are no such codes or longer than what is asked for."""
    spread = {}
    for name, codes in given.items():
        codec.level(name).check(codes, "given codes")
        batch, _, have = codes.shape
        if batch not in (1, num_songs):
            raise InputError(f"given codes: {batch} songs on level {name}, expected 1 or num_songs={num_songs}")
        if have > (asked := num_steps.get(name, 0)):
            raise InputError(f"given codes: {have} steps on level {name}, {asked} are asked for: ask for longer songs")
        spread[name] = codes.cpu().expand(num_songs, -1, -1)
    return spread


def _with_room(level: Level, num_songs: int, num_steps: int, given: Tensor | None) -> Tensor:
    """Codes [num_songs, K, num_steps] that begin with the `given` ones."""
    codes = torch.zeros(num_songs, level.channels, num_steps, dtype=torch.int64 if level.vocab_size else torch.float32)
    if given is not None:
        codes[..., : given.shape[-1]] = given
    return codes
