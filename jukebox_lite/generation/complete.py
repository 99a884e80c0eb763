"""Sampling: whatever codes are given are kept, whatever is missing is filled in, coarse to fine.

The modes of Jukebox (section 4.4) are gifts: nothing (ancestral), the first seconds of every level
(primed, continued), or the whole top level (upsampling).
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from jukebox_lite.codecs.base import Codec
from jukebox_lite.errors import InputError
from jukebox_lite.generation.checks import by_level, check_codes, check_guidance, check_labels, check_lengths
from jukebox_lite.levels import Codes, Level, Window
from jukebox_lite.nn.device import device_of
from jukebox_lite.priors.base import Prior, Sampler
from jukebox_lite.progress import progress

_OVERLAP = 0.5  # of two neighbouring windows, where nothing else is asked
_NOISE_CHUNK = 4096  # time steps drawn at once; another number is other music for the same seed


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
    on_level: Callable[[str, float], object] = lambda _name, _seconds: None,
) -> Codes:
    """Codes [num_songs, K, num_steps[level]] on the CPU, of every level that is complete in the end.

    `num_steps` and `samplers` are by level name; `labels` holds one text for all songs, or one a song, of one value or
    several: "piano; organ". `given` codes [1 or num_songs, K, T] stand as they are at the beginning of their level; a
    level that they leave unfinished and that has no prior is left out of the result. `overlap` is the share of a window
    that the next one sees again. `total_seconds` is how long the priors are told the song is: by default, as long as it
    gets. `on_level` is told each level that is done, and the seconds it took.

    Song i depends on (seed, i) and not on num_songs. Raises InputError where the parts do not fit together.
    """
    ordered = _coarse_to_fine(codec, priors)
    if seed < 0 or num_songs < 1:
        raise InputError(f"seed={seed} and num_songs={num_songs}: expected 0 or more, and 1 or more")
    codes = _spread_over_songs(codec, given or {}, num_steps, num_songs)
    check_lengths(codec, ordered, num_steps, codes)
    check_labels(ordered, labels, num_songs)
    check_guidance(samplers, labels)
    overlaps = by_level("overlap", overlap, codec.levels)
    spans, known = {}, {}  # settled for all levels before hours go into the first
    for prior in ordered:
        name = prior.facts.level.name
        spans[name] = list(windows(num_steps[name], prior.context_length, overlaps[name], prior.facts.ratio))
        known[name] = _song_labels(codec, prior, labels, num_steps[name], num_songs, total_seconds)
    for prior in ordered:
        name = prior.facts.level.name
        own = codes.get(name, _nothing(prior.facts.level, num_songs))
        noise = _noise(codec, name, num_steps[name], seed, num_songs)
        missing = [(start, end) for start, end in spans[name] if end > own.shape[-1]]
        began = time.monotonic()
        with progress(f"sampling {name}", noise[..., own.shape[-1] :].numel(), "codes") as advance:
            for index, (start, end) in enumerate(missing, 1):
                window = _window(codec, prior, {**codes, name: own}, known[name], start, end)
                sampled = _sample(prior, window, samplers[name], noise[..., start:end])
                new = sampled[..., own.shape[-1] - start :]
                own = torch.cat([own, new], -1)
                advance(new.numel(), f"window {index} of {len(missing)}")
        codes[name] = own
        on_level(name, time.monotonic() - began)
    names = [level.name for level in codec.levels if level.name in codes]
    return {name: codes[name] for name in names if codes[name].shape[-1] == num_steps[name]}


def windows(length: int, context_length: int, overlap: float, multiple: int = 1) -> Iterator[tuple[int, int]]:
    """Spans (start, end) that cover `length` steps in order, each sharing `overlap` of itself with the last.

    Spans begin and end on a `multiple`, so that each has a whole number of steps above it. They are as long as
    `context_length` allows, or the one span is `length` where that is less; the last is shifted back to end at `length`
    (Jukebox, section 4.4).
    """
    if length % multiple:
        raise ValueError(f"a length of {length} steps is not a multiple of {multiple}")
    if not 0 <= overlap < 1:
        raise InputError(f"overlap={overlap}: windows can share from 0 to less than 1 of themselves")
    if context_length < multiple:
        raise InputError(f"context_length={context_length}: fewer than the {multiple} steps under one step above")
    size = min(context_length // multiple * multiple, length)
    hop = min(max(round(context_length * (1 - overlap) / multiple), 1) * multiple, size)
    for start in range(0, length - size + hop, hop):
        start = min(start, length - size)
        yield start, start + size


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


def _sample(prior: Prior, window: Window, sampler: Sampler, noise: Tensor) -> Tensor:
    """Codes [B, K, T] of a whole window on the CPU, made wherever the prior is."""
    device = device_of(prior)
    codes = prior.sample(window.to(device), sampler, noise.to(device)).cpu()
    assert codes.shape == noise.shape, f"{type(prior).__name__} gave {list(codes.shape)}, not {list(noise.shape)}"
    return codes


def _window(codec: Codec, prior: Prior, codes: Codes, labels: dict[str, Tensor], start: int, end: int) -> Window:
    """What is known of steps `start` to `end`: the level above, the beginning of the prior's own, labels and times."""
    level, above, ratio = prior.facts.level, prior.facts.above, prior.facts.ratio
    within = {above.name: codes[above.name][..., start // ratio : end // ratio]} if above else {}
    if codes[level.name].shape[-1] > start:
        within[level.name] = codes[level.name][..., start:end]
    if (step_seconds := _step_seconds(codec, level)) is None:
        return Window(within, labels)
    num_songs = len(codes[level.name])
    times = {"start_seconds": start * step_seconds, "end_seconds": end * step_seconds}
    return Window(within, {**labels, **{name: torch.full((num_songs,), time) for name, time in times.items()}})


def _noise(codec: Codec, name: str, num_steps: int, seed: int, num_songs: int) -> Tensor:
    """Uniform [num_songs, K, num_steps] in [0, 1); more songs or more steps begin with the same numbers."""
    level = codec.level(name)
    songs = []
    for song in range(num_songs):
        mixed = np.random.SeedSequence([seed, codec.levels.index(level), song]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(mixed[0]))
        chunks = [
            torch.rand(level.channels, _NOISE_CHUNK, generator=generator) for _ in range(0, num_steps, _NOISE_CHUNK)
        ]
        songs.append(torch.cat(chunks, -1)[:, :num_steps])
    return torch.stack(songs)


def _nothing(level: Level, num_songs: int) -> Tensor:
    """No codes yet: [num_songs, K, 0]."""
    return torch.zeros(num_songs, level.channels, 0, dtype=torch.int64 if level.vocab_size else torch.float32)


def _step_seconds(codec: Codec, level: Level) -> float | None:
    """Seconds of one time step; None where time is symbolic."""
    return level.hop_length / codec.sample_rate if level.hop_length else None


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
    step_seconds = _step_seconds(codec, prior.facts.level)
    if step_seconds is None:
        return indices
    total = num_steps * step_seconds if total_seconds is None else total_seconds
    return {**indices, "total_seconds": torch.full((num_songs,), float(total))}


def _spread_over_songs(codec: Codec, given: Codes, num_steps: Mapping[str, int], num_songs: int) -> Codes:
    """The given codes, [num_songs, K, T]; InputError if they are no such codes or longer than what is asked for."""
    spread = {}
    for name, codes in given.items():
        check_codes(codec.level(name), codes, "given codes")
        batch, _, have = codes.shape
        if batch not in (1, num_songs):
            raise InputError(f"given codes: {batch} songs on level {name}, expected 1 or num_songs={num_songs}")
        if have > (asked := num_steps.get(name, 0)):
            raise InputError(f"given codes: {have} steps on level {name}, {asked} are asked for: ask for longer songs")
        spread[name] = codes.cpu().expand(num_songs, -1, -1)
    return spread
