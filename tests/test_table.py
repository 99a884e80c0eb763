"""A folder of runs is told best first, with the settings in which the runs differ."""

import re
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from matplotlib.image import imread

from jukebox_lite.errors import InputError
from jukebox_lite.training.table import Row, read_rows, remarkable, varied, write_sweep_page

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


def test_what_is_known_by_two_names_is_told_once():
    """codec.dim is task.codec.dim as well, by interpolation; and what all share is not told."""
    rows = [
        Row(str(dim), 0.0, 0, {}, {"codec.dim": dim, "task.codec.dim": dim, "dim": 8, "norm": norm})
        for dim, norm in ((8, "a"), (16, "a"), (32, None))
    ]
    assert varied(rows) == {"norm": ["a", "a", None], "codec.dim": [8, 16, 32]}
    assert varied(rows[:1]) == {}


def test_the_page_of_a_sweep_tells_every_run_and_shows_its_scores(tmp_path: Path):
    """Also of one that has no score, of settings that are no numbers, and of names with odd signs."""
    rows = [
        Row("a&b", 1.5, 20, {"rate": 2.0}, {"lr": 1e-3, "optimizer": "adamw"}, "2026-01-02"),
        Row("2", 2.5, 10, {}, {"lr": 1e-1, "optimizer": "<muon>"}, "2026-01-01"),
        Row("3", float("inf"), 0, {}, {"lr": 1e-2, "optimizer": None}, "2026-01-03"),
    ]
    page = write_sweep_page(tmp_path, rows, ["rate"]).read_text()
    cells = ["1.5000", "20", "2", "0.001", "adamw", "2.5000", "10", "", "0.1", "&lt;muon&gt;"]
    assert re.findall(r"<td>(.*?)</td>", page) == [*cells, "none", "0", "", "0.01", "None"]
    assert 'href="a%26b/train.log">a&amp;b</a>' in page and 'src="scores.png"' in page
    picture = imread(tmp_path / "scores.png")
    assert (picture[..., :3] != 1).any(-1).sum() > 1000, "an empty picture"
    write_sweep_page(tmp_path, rows[:1])
    assert imread(tmp_path / "scores.png").shape[1] < picture.shape[1], "nothing varies: one panel"


def test_the_best_so_far_never_rises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Over the runs in the order of their starts, whatever their numbers; scores that are none are passed over."""
    drawn: list[list[float]] = []
    monkeypatch.setattr(Axes, "plot", lambda _, *given, **__: drawn.append([float(v) for v in given[0]]))
    rows = [
        Row(name, score, 0, {}, {}, day) for name, score, day in (("2", 3.0, "b"), ("10", 2.0, "c"), ("9", 5.0, "a"))
    ]
    write_sweep_page(tmp_path, [*rows, Row("x", float("inf"), 0, {}, {}, "bb")])
    assert drawn[1] == [5.0, 3.0, 3.0, 2.0]


def test_a_folder_without_runs_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="holds no runs"):
        read_rows(tmp_path)
