"""A level knows its sizes, and says what it lacks."""

import pytest

from jukebox_lite.errors import InputError
from jukebox_lite.levels import Facts, Level


def test_sizes_and_ratio_are_those_given():
    top, bottom = Level("top", 512, 1, 128), Level("bottom", 2048, 1, 32)
    assert (bottom.codebook_size, bottom.samples_per_step) == (2048, 32)
    assert Facts(bottom, above=top).ratio == 4 and Facts(top).ratio == 1


def test_a_level_without_codes_or_rate_says_so():
    with pytest.raises(InputError, match="level latent is continuous"):
        _ = Level("latent", None, 64, 2048).codebook_size
    with pytest.raises(InputError, match="level score has no fixed time step"):
        _ = Level("score", 300).samples_per_step
