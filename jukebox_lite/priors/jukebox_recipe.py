"""A prior of Jukebox to train: the published shape and first weights (Jukebox, section 4 and appendix B)."""

from collections.abc import Callable, Iterator

from torch import nn

from jukebox_lite.errors import InputError
from jukebox_lite.levels import Facts
from jukebox_lite.nn.dense import Linear
from jukebox_lite.nn.reach import Beginning, Column, Past, PreviousRow, Reach, Row
from jukebox_lite.priors.conditioning import Conditioner
from jukebox_lite.priors.jukebox import (
    JukeboxAbove,
    JukeboxAttention,
    JukeboxBlock,
    JukeboxLabels,
    JukeboxPrior,
    JukeboxTiming,
    JukeboxTransformer,
    LyricPrefix,
    upward_stack,
)
from jukebox_lite.priors.lyrics import check_characters

_CYCLE: tuple[Callable[[int], Reach], ...] = (Row, Column, PreviousRow)
_EVERY = 16  # layers, of which the last looks at the lyrics or at all of the past


class JukeboxRecipe(JukeboxPrior):
    """As "small_prior" and "small_upsampler" were built: factored attention a quarter of the width, narrow layers.

    Artist and genre are told where `windows.labels` names both, and at the top the time as well. With `num_characters`
    the text around the window goes before the codes in one sequence, as in the published model that sings; each of its
    characters, which are predicted too, counts `lyric_weight` of what a code counts.
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
        min_seconds: float = 0.0,
        max_seconds: float = 600.0,
        num_characters: int = 0,
        lyric_weight: float = 0.4,
        merged: bool = False,
    ):
        """The sequence is laid out as `num_rows` rows. `above_*` are of the convolutions over the level above.

        Songs are told apart by their length from `min_seconds` on. A `merged` decoder has a head of its own, as the
        largest of the published top priors.
        """
        level, above, length = facts.level, facts.above, num_characters + context_length
        if level.channels != 1:
            raise InputError(f"Jukebox's priors have one codebook a level, and level {level.name} has {level.channels}")
        if length % num_rows:
            raise InputError(
                f"prior.num_rows={num_rows}: expected a divisor of {length}, prior.num_characters + context_length"
            )
        if dim % (4 * num_heads):
            raise InputError(f"prior.num_heads={num_heads}: expected a divisor of {dim // 4}, the width of attention")
        if num_characters < 0:
            raise InputError(f"prior.num_characters={num_characters}: expected 0, for no lyrics, or more")
        if num_characters:
            check_characters(facts)
            if depth < _EVERY:
                raise InputError(f"prior.depth={depth}: only layer {_EVERY} looks at lyrics; give that many, or more")
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
            seconds, hop_length = (min_seconds, max_seconds), level.hop_length
            conditioners["timing"] = JukeboxTiming(dim, 64, context_length, facts.sample_rate, hop_length, seconds)
        reaches = [_reach(layer, length // num_rows, num_characters, num_rows) for layer in range(depth)]
        blocks = [JukeboxBlock(dim, dim, JukeboxAttention(dim, dim // 4, num_heads, each), 1.0) for each in reaches]
        prefix = LyricPrefix(num_characters, len(facts.characters)) if num_characters else LyricPrefix(0, 0)
        transformer = JukeboxTransformer(prefix.vocab_size + level.codebook_size, dim, length, blocks)
        super().__init__(facts, transformer, conditioners, prefix, lyric_weight, merged)
        self.num_characters = num_characters
        self._begin(init_scale)

    def _begin(self, scale: float) -> None:
        """Normal weights of the published spreads; the convolutions and norms begin as torch's do."""
        for module in self.modules():
            if isinstance(module, Linear):
                nn.init.normal_(module.weight, std=0.02 * scale)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.01 * scale)
        for module in self.modules():
            if isinstance(module, JukeboxTransformer | JukeboxAbove):
                nn.init.normal_(module.embedding.weight, std=0.02 * scale)
        for parameter in (self.transformer.positions, self.start):
            if parameter is not None:
                nn.init.normal_(parameter, std=0.01 * scale)


def _reach(layer: int, row_length: int, num_characters: int, num_rows: int) -> Reach:
    """What a layer attends to: factored, but for those that a prior of lyrics has to look at them and at everything."""
    if num_characters and layer % _EVERY == _EVERY - 1:
        return Past() if layer % 3 == 2 else Beginning((num_characters // num_rows + 1) * num_rows)
    return _CYCLE[layer % 3](row_length)


def _prime_factors(number: int) -> Iterator[int]:
    """4 -> 2, 2: each is the stride of one step up."""
    factor = 2
    while number > 1:
        if number % factor:
            factor += 1
        else:
            number //= factor
            yield factor
