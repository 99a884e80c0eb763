"""What codes cost: as many bits as their codebooks allow, and as few as an entropy coder would need."""

import math

from torch import Tensor

from jukebox_lite.levels import Level
from jukebox_lite.metrics.codecs import bits_per_step


def bitrate(level: Level, sample_rate: int, histogram: Tensor) -> dict[str, float]:
    """Of codes that occur as the histogram [K, V] says: bits per second, nominal and by entropy, and their efficiency.

    Nominal are log2 V bits a code; the entropy is that of each codebook for itself. Their quotient is the bitrate
    efficiency (DAC, Kumar et al. 2023): 1 where all entries are used evenly.
    """
    steps_per_second = sample_rate / level.samples_per_step
    nominal = level.channels * math.log2(level.codebook_size) * steps_per_second
    entropy = bits_per_step(histogram).item() * steps_per_second
    return {"bits_per_second": nominal, "entropy_bits_per_second": entropy, "efficiency": entropy / nominal}
