"""Which runs of a sweep are not worth their steps."""

from collections.abc import Iterator
from pathlib import Path
from statistics import median

from jukebox_lite.errors import InputError
from jukebox_lite.training.table import metrics


class MedianPruner:
    """Stops a run whose best score is worse than the median of the others' best by the same step.

    As Optuna's MedianPruner does, after Google Vizier (Golovin et al. 2017, section 3.1), but for any sweeper. The
    others are the runs beside it, as their metrics.jsonl tells: those that have come as far, `min_runs` or more.
    Nothing is stopped before `min_steps`. A run that is stopped scores its best.
    """

    def __init__(self, min_steps: int, min_runs: int = 4) -> None:
        if min_runs < 1:
            raise InputError(f"pruner.min_runs={min_runs}: give 1 or more")
        self.min_steps, self.min_runs = min_steps, min_runs

    def prunes(self, run: Path, step: int, best: float) -> bool:
        """Whether the run in the folder `run` is to stop after `step` steps; `best` is its best score."""
        others = list(_best_until(run, step)) if step >= self.min_steps else []
        return len(others) >= self.min_runs and not best <= median(others)


def _best_until(run: Path, step: int) -> Iterator[float]:
    """The best score until `step` of each run beside `run` that has come so far."""
    for path in run.parent.glob("*/metrics.jsonl"):
        lines = metrics(path.parent) if path.parent != run else []
        if any(line.get("step", 0) >= step for line in lines):
            yield min(
                (line["score"] for line in lines if "score" in line and line["step"] <= step), default=float("inf")
            )
