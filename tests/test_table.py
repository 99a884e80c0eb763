"""A folder of runs is told best first, with the settings in which the runs differ."""

from pathlib import Path

import pytest

from jukebox_lite.errors import InputError
from jukebox_lite.training.table import Row, read_rows, remarkable

FAST = """{"step": 10, "score": 2.5, "rate": 1}
{"step": 15, "rate": 2}
{"step": 20, "score": 1.5}
{"step": 30, "score": 1.75, "rate": 3}
{"st"""


def test_runs_are_read_best_first(tmp_path: Path):
    """Reading any run's settings raised TypeError: `leaves` was called without the path it asked for."""
    for name, lines in {"slow": '{"step": 10, "score": 2.5}\n', "fast": FAST}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(f"name: {name}\nseed: 1\noptimizer: {{lr: {len(lines)}}}\n")
        (tmp_path / name / "metrics.jsonl").write_text(lines)
    rows = read_rows(tmp_path)
    assert [(row.name, row.score, row.step) for row in rows] == [("fast", 1.5, 20), ("slow", 2.5, 10)]
    assert rows[0].metrics == {"step": 20, "score": 1.5, "rate": 2}, "as last logged at the best score's step"
    assert [list(own) for own in remarkable(rows)] == [["optimizer.lr"]] * 2


def test_what_most_runs_share_is_not_told():
    """Of a grid every setting that varies; of changes one at a time, each run's own."""

    def settings(*rows: dict[str, int]) -> list[dict[str, int]]:
        return remarkable([Row(str(index), 0.0, 0, {}, {"seed": 0, **row}) for index, row in enumerate(rows)])

    grid = [{"dim": dim, "depth": depth} for dim in (32, 64) for depth in (2, 4)]
    assert settings(*grid) == grid
    usual = {"dim": 64, "depth": 4}
    found = settings(usual, usual | {"dim": 32}, usual | {"depth": 2}, usual | {"loss": 1})
    assert found == [{}, {"dim": 32}, {"depth": 2}, {"loss": 1}]


def test_a_folder_without_runs_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="holds no runs"):
        read_rows(tmp_path)
