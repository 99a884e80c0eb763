"""What `complete` refuses, said in one line before anything is sampled."""

from collections.abc import Collection, Mapping, Sequence
from typing import TypeVar

from jukebox_lite.codecs.base import Codec
from jukebox_lite.errors import InputError
from jukebox_lite.levels import Codes, Level
from jukebox_lite.priors.base import Prior, Sampler

Value = TypeVar("Value")


def by_level(setting: str, value: Value | Mapping[str, Value], levels: Sequence[Level]) -> dict[str, Value]:
    """A setting by level name, from one value for all levels or from a mapping that names each."""
    names = [level.name for level in levels]
    if not isinstance(value, Mapping):
        return dict.fromkeys(names, value)
    if unknown := [name for name in value if name not in names]:
        raise InputError(f"{setting}.{unknown[0]}: the codec has the levels {', '.join(names)}")
    if missing := [name for name in names if name not in value]:
        raise InputError(f"{setting}.{missing[0]} is not set: give one value for all levels, or one for each")
    return dict(value)


def check_lengths(codec: Codec, priors: Sequence[Prior], num_steps: Mapping[str, int], given: Codes) -> None:
    """Raises InputError unless every level has a length, all lengths are the same time, and each prior will find the
    whole level above it, given or sampled; `priors` run coarse to fine.
    """
    names = [*given, *(prior.facts.level.name for prior in priors)]
    for name in names:
        if num_steps.get(name, 0) < 1:
            raise InputError(f"num_steps.{name}={num_steps.get(name)}: expected 1 or more time steps")
    hops = {name: codec.level(name).hop_length or 0 for name in names}
    spans = {name: num_steps[name] * hop for name, hop in hops.items() if hop}
    if len(set(spans.values())) > 1:
        listed = ", ".join(f"{name} {span}" for name, span in spans.items())
        raise InputError(f"num_steps: the levels would span different numbers of audio samples: {listed}")
    lengths = {name: codes.shape[-1] for name, codes in given.items()}
    for prior in priors:
        name, above = prior.facts.level.name, prior.facts.above
        need = num_steps[name] // prior.facts.ratio
        if above and (have := lengths.get(above.name, 0)) < need:
            raise InputError(
                f"level {name} needs {need} steps of level {above.name} above it and would have {have}: "
                f"add a prior of level {above.name}, or give its codes"
            )
        lengths[name] = num_steps[name]


def check_labels(priors: Sequence[Prior], labels: Mapping[str, Sequence[str]], num_songs: int) -> None:
    """Raises InputError on a label that no prior knows, or that has neither one value nor one a song."""
    known = sorted({name for prior in priors for name in prior.facts.vocabulary})
    for name, values in labels.items():
        if name not in known:
            raise InputError(f"labels.{name}: these priors were trained with {', '.join(known) or 'no labels'}")
        if isinstance(values, str) or len(values) not in (1, num_songs):
            raise InputError(f"labels.{name}: expected a list of one value, or of {num_songs}: one a song")


def check_lyrics(priors: Sequence[Prior], lyrics: Sequence[str], num_songs: int) -> None:
    """Raises InputError on lyrics that no prior hears, on empty ones, and on neither one text nor one a song."""
    if not lyrics:
        return
    if not any(prior.num_characters for prior in priors):
        raise InputError("lyrics: none of these priors hears any; train one with conditioner=lyrics, or give none")
    if isinstance(lyrics, str) or len(lyrics) not in (1, num_songs):
        raise InputError(f"lyrics: expected a list of one text, or of {num_songs}: one a song")
    if not all(text.strip() for text in lyrics):
        raise InputError("lyrics: a text without a character; give one to sing, or none for all songs")


def check_guidance(samplers: Mapping[str, Sampler], told: Collection[str]) -> None:
    """Raises InputError on guidance where songs are `told` neither labels nor lyrics to be guided by."""
    for name, sampler in samplers.items():
        if sampler.guidance != 1 and not told:
            raise InputError(
                f"guidance={sampler.guidance:g} of level {name}: no labels are given to be guided by: "
                "give labels, such as labels.genre=jazz, or lyrics, or leave it at 1"
            )
