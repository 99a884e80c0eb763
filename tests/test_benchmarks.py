"""Benchmarks run by hand, months apart: those that need neither a peer nor a trained run are run here, very small."""

import math
from argparse import Namespace

import pytest

from benchmarks import long_context, mixers

MIXERS = sorted(path.stem for path in mixers.MIXERS.glob("*.yaml"))
SHAPE = {"dim": 16, "depth": 1, "num_heads": 2}


@pytest.mark.parametrize("name", MIXERS)
def test_long_context_judges_every_mixer(name: str):
    """An untrained prior pays about the chance line for a note, the first time and the second."""
    arguments = Namespace(**SHAPE, lr=1e-3, row_length=8, steps=1)
    prior = long_context.build(arguments, name)
    long_context.train(prior, arguments)
    first, second = long_context.judge(prior, long_context.SHORT, num_songs=4)[2:]
    assert first == pytest.approx(math.log(long_context.NOTES), rel=0.2)
    assert second == pytest.approx(first, rel=0.2)


@pytest.mark.parametrize("name", MIXERS)
def test_mixers_measures_every_mixer(name: str):
    prior = mixers.build(Namespace(**SHAPE, checkpointing=False), name, "256")
    found = mixers.measure(prior, repeats=1)
    assert all(found[key] > 0 for key in ("seconds", "step_seconds", "state")) and found["memory"] >= 0
