"""A prior of Jukebox to train: the published shape and first weights (Jukebox, section 4 and appendix B)."""

from collections.abc import Callable, Iterator

from torch import nn

from jukebox_lite.errors import InputError
from jukebox_lite.levels import Facts
from jukebox_lite.nn.dense import Linear
from jukebox_lite.nn.reach import Column, PreviousRow, Reach, Row
from jukebox_lite.priors.conditioning import Conditioner
from jukebox_lite.priors.jukebox import (
    JukeboxAbove,
    JukeboxAttention,
    JukeboxBlock,
    JukeboxLabels,
    JukeboxPrior,
    JukeboxTiming,
    JukeboxTransformer,
    upward_stack,
)

_CYCLE: tuple[Callable[[int], Reach], ...] = (Row, Column, PreviousRow)


class JukeboxRecipe(JukeboxPrior):
    """As "small_prior" and "small_upsampler" were built: factored attention a quarter of the width, narrow layers.

    Artist and genre are told where `windows.labels` names both, and at the top the time as well; lyrics are not.
    """

    def __init__(
        self,
        facts: Facts,
        dim: int,
        depth: int,
        num_heads: int,
        context_length: int,
        num_rows: int = 64,
        init_scale: float = 0.7,
        above_width: int = 128,
        above_depth: int = 16,
        max_seconds: float = 600.0,
    ):
        """The context is laid out as `num_rows` rows. `above_*` are of the convolutions over the level above."""
        level, above = facts.level, facts.above
        if level.channels != 1:
            raise InputError(f"Jukebox's priors have one codebook a level, and level {level.name} has {level.channels}")
        if context_length % num_rows:
            raise InputError(f"prior.num_rows={num_rows}: expected a divisor of context_length={context_length}")
        if dim % (4 * num_heads):
            raise InputError(f"prior.num_heads={num_heads}: expected a divisor of {dim // 4}, the width of attention")
        conditioners: dict[str, Conditioner] = {}
        labelled = {"artist", "genre"} <= facts.vocabulary.keys()
        if labelled:
            num_artists, num_genres = (len(facts.vocabulary[name]) for name in ("artist", "genre"))
            conditioners["labels"] = JukeboxLabels(num_artists, num_genres, dim)
        if above is not None:
            dilations = [3 ** (layer % 8) for layer in range(above_depth)]
            stack = upward_stack(dim, above_width, above_width, dilations, list(_prime_factors(facts.ratio)))
            conditioners["above"] = JukeboxAbove(above.codebook_size, dim, stack, above.name)
        elif labelled and level.hop_length and facts.sample_rate:
            seconds, hop_length = (0.0, max_seconds), level.hop_length
            conditioners["timing"] = JukeboxTiming(dim, 64, context_length, facts.sample_rate, hop_length, seconds)
        reaches = [_CYCLE[layer % 3](context_length // num_rows) for layer in range(depth)]
        blocks = [JukeboxBlock(dim, dim, JukeboxAttention(dim, dim // 4, num_heads, each), 1.0) for each in reaches]
        super().__init__(facts, JukeboxTransformer(level.codebook_size, dim, context_length, blocks), conditioners)
        self._begin(init_scale)

    def _begin(self, scale: float) -> None:
        """Normal weights of the published spreads; the convolutions and norms begin as torch's do."""
        for module in self.modules():
            if isinstance(module, Linear):
                nn.init.normal_(module.weight, std=0.02 * scale)
                assert module.bias is not None
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.01 * scale)
        for module in self.modules():
            if isinstance(module, JukeboxTransformer | JukeboxAbove):
                nn.init.normal_(module.embedding.weight, std=0.02 * scale)
        for parameter in (self.transformer.positions, self.start):
            if parameter is not None:
                nn.init.normal_(parameter, std=0.01 * scale)


def _prime_factors(number: int) -> Iterator[int]:
    """4 -> 2, 2: each is the stride of one step up."""
    factor = 2
    while number > 1:
        if number % factor:
            factor += 1
        else:
            number //= factor
            yield factor
