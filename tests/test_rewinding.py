"""Losses that are not finite: the run ends with a line, or goes back and on with other batches."""

import json
import re
from pathlib import Path

import pytest
from tiny import assert_same, tensors
from torch import Tensor
from toys import CutOff, Poisoned, Regression, cut_at, journal, rewinding, trainer

from jukebox_lite.training import checkpoint
from jukebox_lite.training.meter import TrainingDiverged


def test_a_loss_that_is_not_finite_ends_the_run_with_its_step(tmp_path: Path) -> None:
    """Although metrics are fetched every 10 steps only; and no poisoned weights are saved."""
    with pytest.raises(TrainingDiverged, match=r"^step 3: grad_norm/model and loss/model not finite"):
        trainer(log_every=10, validate_every=6, checkpoint_every=5).fit(Regression(poisoned=3), tmp_path, seed=0)
    assert checkpoint.latest(tmp_path) is None
    assert "TrainingDiverged: step 3" in (tmp_path / "train.log").read_text()


def test_a_rewound_run_passes_what_was_not_finite_by(tmp_path: Path) -> None:
    """It learns from no batch after its checkpoint that it had seen, ends finite, and its log holds no step twice."""
    seen: list[int] = []

    class Watched(Poisoned):
        def batch(self, split: str, step: int) -> Tensor:
            if split == "train":
                seen.append(step)
            return super().batch(split, step)

    rewinding().fit(Watched(6), tmp_path, seed=3)
    assert 6 in seen and len(set(seen)) == len(seen)
    assert all(value.isfinite().all() for value in tensors(tmp_path).values())
    assert [line["step"] for line in journal(tmp_path)] == [1, 2, 4, 6, 8, 10, 12]
    log = (tmp_path / "train.log").read_text()
    assert re.search("step 6: .* not finite .*; rewound to step 4, to go on with other batches", log)


@pytest.mark.parametrize("cut", [1, 5, 9, 10, 11, 13, 14, 16])
def test_a_rewound_run_resumes_to_the_same_bits(tmp_path: Path, cut: int) -> None:
    """Cut before, between and after two rewinds, one of them in what the other led to."""
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    poison = (6, 9 + (1 << 40))
    best = rewinding().fit(Poisoned(*poison), whole, seed=3)
    with pytest.raises(CutOff):
        rewinding().fit(Poisoned(*poison, spoil=cut_at(cut)), resumed, seed=3)
    assert rewinding().fit(Poisoned(*poison), resumed, seed=3) == best
    assert_same(whole, resumed)
    assert journal(whole) == journal(resumed)
    assert json.loads((whole / "checkpoints/00000012/trainer.json").read_text())["learner"]["rewinds"] == 2


def test_rewinding_ends(tmp_path: Path) -> None:
    """After three times from one checkpoint; and at once where there is none yet. What was saved stays finite."""
    everywhere = [step + (times << 40) for step in (6, 7) for times in range(9)]
    with pytest.raises(TrainingDiverged, match="^step 6: .* not finite .*; so it did on other batches, 3 times"):
        rewinding().fit(Poisoned(*everywhere), tmp_path / "often", seed=3)
    assert (tmp_path / "often" / "train.log").read_text().count("rewound to step 4") == 3
    assert [path.name for path in (tmp_path / "often" / "checkpoints").iterdir()] == ["00000004"]
    assert all(value.isfinite().all() for value in tensors(tmp_path / "often").values())
    with pytest.raises(TrainingDiverged, match="^step 2: .* not finite .*; there is no checkpoint yet to rewind to"):
        rewinding().fit(Poisoned(2), tmp_path / "early", seed=3)
