"""What it costs that windows were drawn side by side: how surprising codes are about the seams, to the prior itself."""

from collections.abc import Sequence

import torch
from torch import Tensor

from jukebox_lite.generation.filling import Filling
from jukebox_lite.generation.windows import Piece, Row
from jukebox_lite.levels import Codes


@torch.no_grad()
def surprise_about(filling: Filling, codes: Codes, places: Sequence[int], reach: int) -> Tensor:
    """Nats [songs, places, 2 reach] of a level's codes, of `reach` steps before each place and as many after it.

    Each place is judged in the middle of a window of its own, or at a song's ends as near to it as can be, so that all
    know as much of their past. The middle is on a step of the level above.
    """
    prior, level = filling.prior, filling.level
    num_songs, _, num_steps = codes[level.name].shape
    ratio = prior.facts.ratio
    length = min(prior.context_length // ratio * ratio, num_steps)
    found = []
    for place in places:
        start = min(max(place - length // 2, 0) // ratio * ratio, num_steps - length)
        rows = [Row(Piece(start, start, start + length), song) for song in range(num_songs)]
        window = filling.window(codes, rows, length)
        middle = place - start
        found.append(prior.nats(window).mean(1)[:, middle - reach : middle + reach])
    return torch.stack(found, 1)
