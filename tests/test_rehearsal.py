"""A rehearsal: what training would take, from a few steps that leave no trace."""

import re
from pathlib import Path

import pytest
from safetensors.torch import load_file
from toys import Regression, trainer

from jukebox_lite.training.meter import TrainingDiverged
from jukebox_lite.training.reader import Reader
from jukebox_lite.training.rehearsal import rehearse


def test_a_rehearsal_counts_a_step_and_weighs_a_checkpoint(tmp_path: Path) -> None:
    """Its layer of 4 x 4, on 8 rows, there and back to the weight, in two batches; the bytes that a run then saves."""
    task, how = Regression(), trainer(accumulate=2)
    with Reader(task.batch) as reader:
        found = rehearse(how._learner(task, 3), reader, 40, lambda: None)  # pyright: ignore[reportPrivateUsage]
    assert found.flop == 2 * 2 * (2 * 8 * 4 * 4)
    how.fit(Regression(), tmp_path, seed=3)
    saved = [load_file(path) for path in (tmp_path / "checkpoints/00000006").glob("*.safetensors")]
    assert found.checkpoint_bytes == sum(tensor.nbytes for tensors in saved for tensor in tensors.values())
    assert found.memory_bytes > 2**24 and found.step_seconds > 0


def test_a_rehearsal_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says how long the steps and the validations will be, writes nothing, and raises where training would."""
    monkeypatch.chdir(tmp_path)
    lines = trainer(max_steps=40, validate_every=15).rehearse(Regression(), seed=3)
    assert re.search(r"time: .* for 40 steps like the last ones, .* for 3 validations", "\n".join(lines))
    assert not list(tmp_path.iterdir())
    with pytest.raises(TrainingDiverged, match="step 3: .* not finite"):
        trainer().rehearse(Regression(poisoned=3), seed=3)  # the first of the last three of six
