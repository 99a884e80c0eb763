"""A folder of runs is told best first, with the settings in which the runs differ."""

from pathlib import Path

import pytest

from jukebox_lite.errors import InputError
from jukebox_lite.training.table import differing, read_rows


def test_runs_are_read_best_first(tmp_path: Path):
    """Reading any run's settings raised TypeError: `leaves` was called without the path it asked for."""
    for name, lines in {"slow": '{"step": 10, "score": 2.5}\n', "fast": '{"step": 20, "score": 1.5}\n{"st'}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(f"name: {name}\nseed: 1\noptimizer: {{lr: {len(lines)}}}\n")
        (tmp_path / name / "metrics.jsonl").write_text(lines)
    rows = read_rows(tmp_path)
    assert [(row.name, row.score, row.step) for row in rows] == [("fast", 1.5, 20), ("slow", 2.5, 10)]
    assert differing(rows) == ["optimizer.lr"]


def test_a_folder_without_runs_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="holds no runs"):
        read_rows(tmp_path)
