"""When each character is sung, read from where a trained prior looks while it predicts codes (Jukebox, section 4.2).

Some heads of a prior that hears lyrics follow the text as it is sung. Jukebox shows them in plots and names one layer
and head for each model by hand; here each is scored, and the best is taken.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from jukebox_lite.errors import InputError
from jukebox_lite.levels import LYRICS, NO_VALUE, Window
from jukebox_lite.lyrics import first_character
from jukebox_lite.nn.cross import CrossAttention
from jukebox_lite.nn.reach import Beginning
from jukebox_lite.priors.autoregressive import AutoregressivePrior
from jukebox_lite.priors.jukebox import JukeboxAttention, JukeboxPrior

Listener = AutoregressivePrior | JukeboxPrior  # a prior that may hear lyrics
Looking = Callable[..., Tensor]  # what a layer's forward takes -> its attention [B, H, T, 1 + S]

_FRAME_SECONDS = 0.02  # a song is aligned in frames of about this


@dataclass(frozen=True)
class Head:
    """One of a prior's heads that look at lyrics, both counted from 0."""

    layer: int  # block of the transformer
    head: int


@torch.no_grad()
def attention(prior: Listener, window: Window) -> dict[int, Tensor]:
    """How each step's attention is shared out among the window's characters: by layer, [B, H, T, S].

    What of it goes to something else, or to nothing sung, is missing from a sum of 1. A step of several codebooks looks
    when its first is predicted. Raises InputError on a prior that hears no lyrics.
    """
    layers: dict[int, Tensor] = {}

    def note(layer: int, weights: Looking) -> Callable[[nn.Module, tuple], None]:
        def hook(_: nn.Module, arguments: tuple) -> None:
            layers[layer] = weights(*arguments)

        return hook

    looking = list(_looking(prior))
    if not looking:
        raise InputError(
            f"the prior of level {prior.facts.level.name} hears no lyrics: train one of conditioner=lyrics"
        )
    hooks = [module.register_forward_pre_hook(note(layer, weights)) for layer, module, weights in looking]
    try:
        codes = window.codes[prior.facts.level.name]
        prior.logits(window)
    finally:
        for hook in hooks:
            hook.remove()
    if isinstance(prior, AutoregressivePrior):
        steps = prior.pattern.positions(codes.shape[1], codes.shape[2], codes.device)[0]
    else:  # the codes stand behind the characters
        steps = torch.arange(codes.shape[2], device=codes.device) + prior.num_characters
    # The first place is nothing sung, or what the sequence begins with, from which the first character is predicted.
    return {layer: weights[:, :, steps, 1 : 1 + prior.num_characters] for layer, weights in layers.items()}


def _looking(prior: Listener) -> Iterator[tuple[int, nn.Module, Looking]]:
    """The layers that look at lyrics and little else, by number."""
    if isinstance(prior, AutoregressivePrior):
        for layer, block in enumerate(prior.transformer.blocks):
            if isinstance(block.cross, CrossAttention):
                yield layer, block.cross, block.cross.weights
    elif prior.num_characters:
        for layer, block in enumerate(prior.transformer.blocks):
            mixer = block.mixer
            if isinstance(mixer, JukeboxAttention) and isinstance(mixer.reach, Beginning):
                yield layer, mixer, lambda x, *_, mixer=mixer: mixer.weights(x)


def progress_of(weights: Tensor) -> Tensor:
    """How well attention [..., T, S] goes through the text from its beginning to its end: [...], 1 at best.

    The mean, along the best path that never goes back, of how much more than at other times is looked at a character.
    A head that always looks at the same ones, or at all of them, has 0; one that goes backwards has next to nothing.
    """
    return best_path(weights - weights.mean(-2, keepdim=True))[0]


def best_path(gains: Tensor) -> tuple[Tensor, Tensor]:
    """Gains [..., T, S] -> the greatest mean gain of a path that never goes back [...], and its places [..., T]."""
    total, came_from = gains[..., 0, :], []
    for gain in gains.unbind(-2)[1:]:
        best, place = total.cummax(-1)
        total = best + gain
        came_from.append(place)
    value, place = total.max(-1)
    path = [place]
    for places in reversed(came_from):
        path.append(places.gather(-1, path[-1][..., None])[..., 0])
    return value / gains.shape[-2], torch.stack(path[::-1], -1)


def rank_heads(prior: Listener, windows: Iterable[Window]) -> dict[Head, float]:
    """`progress_of` each head, the mean over all windows that are told lyrics, the best first.

    Raises InputError where there is no such window.
    """
    totals, count = Counter[Head](), 0
    for window in windows:
        sung = (window.labels[LYRICS] != NO_VALUE).any(1)
        count += int(sung.sum())
        for layer, weights in attention(prior, window).items():
            for head, total in enumerate(progress_of(weights[sung]).sum(0).tolist()):
                totals[Head(layer, head)] += total
    if not count:
        raise InputError("there is no text to align: give songs with lyrics")
    return {head: total / count for head, total in totals.most_common()}


def align(
    prior: Listener,
    head: Head,
    windows: Iterable[tuple[int, Window]],
    length: int,
    num_steps: int,
    step_seconds: float,
) -> Tensor:
    """The seconds [length] at which the characters of one song's text are sung, by where a head looks.

    `windows` are (first step, window of a batch of 1) and cover the song's `num_steps` of `step_seconds`; where they
    overlap, their mean counts. A character's time is the mean time that the best path through the song spends on it,
    weighted by how much it is looked at; one that the path leaps over lies evenly between its neighbours.
    """
    steps = max(round(_FRAME_SECONDS / step_seconds), 1)  # of a frame
    num_frames = -(-num_steps // steps)
    looked, heard = torch.zeros(num_frames, length), torch.zeros(num_frames, 1)
    for start, window in windows:
        weights = attention(prior, window)[head.layer][0, head.head].cpu()
        frames = torch.arange(start, start + len(weights)) // steps
        begun, ended, total = (window.labels[f"{name}_seconds"].item() for name in ("start", "end", "total"))
        first = first_character(length, weights.shape[1], begun, ended, total)
        told = weights[:, : length - first]
        looked[:, first : first + told.shape[1]].index_add_(0, frames, told)
        heard.index_add_(0, frames, torch.ones(len(frames), 1))
    looked /= heard
    _, path = best_path(looked - looked.mean(0))
    weight = looked.gather(1, path[:, None])[:, 0]  # next to none where nothing is sung
    seconds = (torch.arange(num_frames) + 0.5) * steps * step_seconds
    weights, moments = (torch.zeros(length).index_add_(0, path, each) for each in (weight, weight * seconds))
    met = weights > 0
    found = np.interp(np.arange(length), met.nonzero()[:, 0].numpy(), (moments[met] / weights[met]).numpy())
    return torch.from_numpy(found).float()
