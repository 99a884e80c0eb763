"""Whether what is drawn comes as often as it is likely."""

import torch
from scipy.stats import chisquare
from torch import Tensor


def fit(counts: Tensor, expected: Tensor) -> float:
    """The p-value of a chi-squared test of counts [N] against expected ones; 0 where what cannot be has come."""
    if counts[expected == 0].sum():
        return 0.0
    often = expected >= 5  # where the test holds; the rare ones count together
    found, wanted = (torch.cat([x[often], x[~often].sum()[None]]) for x in (counts, expected))
    some = wanted > 0
    wanted = wanted * counts.sum() / wanted.sum()  # they are as many but for rounding
    return float(chisquare(found[some].numpy(), wanted[some].numpy()).pvalue)
