"""A folder of runs as a table, best score first; with --page also as a page with plots of what the score depends on.

python -m jukebox_lite.training.table runs/sweeps/vqvae
python -m jukebox_lite.training.table runs/sweeps/vqvae --page
python -m jukebox_lite.training.table runs/sweeps/vqvae --metrics val/spectral_convergence/top rate

Scores of runs with different losses do not compare: name metrics that do. They are as last logged when the score was.
"""

import argparse
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from jukebox_lite.errors import InputError, told_in_one_line
from jukebox_lite.generation.plots import draw_sweep
from jukebox_lite.generation.report import write_table
from jukebox_lite.settings import leaves, read_settings


@dataclass(frozen=True)
class Row:
    """One run: its folder, its best score, and every setting by dotted path."""

    name: str
    score: float  # infinite where none was reached
    step: int  # of the best score
    metrics: dict[str, float]  # as last logged at that step
    settings: dict[str, Any]
    started: str = ""  # when it was first, in ISO 8601; empty where the run does not say


def read_rows(folder: Path) -> list[Row]:
    """Every run below `folder`, best score first. Raises InputError where there is none."""
    configs = sorted(folder.rglob("config.yaml"))
    rows = [_row(path.parent, folder) for path in configs if (path.parent / "metrics.jsonl").exists()]
    if not rows:
        raise InputError(
            f"{folder} holds no runs: give a folder that train.py wrote, such as runs or runs/sweeps/vqvae"
        )
    return sorted(rows, key=lambda row: (row.score, row.name))


def metrics(run: Path) -> list[dict[str, float]]:
    """The lines of a run's metrics.jsonl; what is none, as half a line that a killed run may leave, is passed over."""
    lines = []
    for text in (run / "metrics.jsonl").read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict) and "step" in line and all(isinstance(v, int | float) for v in line.values()):
            lines.append(line)
    return lines


def remarkable(rows: list[Row]) -> list[dict[str, Any]]:
    """Of each row the settings that most of the rows do not share; the run's own name is none."""
    found: list[dict[str, Any]] = [{} for _ in rows]
    for key in sorted({key for row in rows for key in row.settings} - {"name"}):
        values = [repr(row.settings.get(key)) for row in rows]
        usual, count = Counter(values).most_common(1)[0]
        for row, own, value in zip(rows, found, values, strict=True):
            if key in row.settings and (value != usual or 2 * count <= len(rows)):
                own[key] = row.settings[key]
    return found


def varied(rows: list[Row]) -> dict[str, list[Any]]:
    """Settings in which the rows differ, each row's value or None; of names that always agree, the shortest."""
    names = sorted({name for own in remarkable(rows) for name in own}, key=lambda name: (name.count("."), name))
    found: dict[str, list[Any]] = {}
    for name in names:
        values = [row.settings.get(name) for row in rows]
        if len({repr(value) for value in values}) > 1 and values not in found.values():
            found[name] = values
    return found


def write_sweep_page(folder: Path, rows: list[Row], names: Sequence[str] = ()) -> Path:
    """Writes index.html and scores.png into `folder` of `rows`, with the metrics `names`; returns the page's path."""
    in_order = sorted(rows, key=lambda row: (row.started, row.name))
    draw_sweep(folder / "scores.png", [row.score for row in in_order], varied(in_order))
    settings = varied(rows)
    lines = [
        [row.name, *_figures(row, names), *map(str, own)] for row, *own in zip(rows, *settings.values(), strict=True)
    ]
    return write_table(
        folder, f"{folder.name}: {len(rows)} runs", ["run", "score", "at step", *names, *settings], lines
    )


def _figures(row: Row, names: Sequence[str]) -> list[str]:
    """A row's score, its step, and metrics, as text."""
    score = f"{row.score:.4f}" if row.score < float("inf") else "none"
    return [score, f"{row.step:,}", *(f"{row.metrics[name]:.4g}" if name in row.metrics else "" for name in names)]


def _started(run: Path) -> str:
    try:
        return json.loads((run / "provenance.json").read_text(encoding="utf-8"))[0]["time"]
    except (OSError, ValueError, LookupError, TypeError):
        return ""


def _row(run: Path, folder: Path) -> Row:
    lines = metrics(run)
    scored = [(line["score"], line["step"]) for line in lines if math.isfinite(line.get("score", math.inf))]
    score, step = min(scored, default=(float("inf"), 0))
    known = {name: value for line in lines if line["step"] <= step for name, value in line.items()}
    settings = dict(leaves(read_settings(run / "config.yaml")))
    return Row(str(run.relative_to(folder)), score, int(step), known, settings, _started(run))


def _show(rows: list[Row], names: list[str], console: Console) -> None:
    """Prints the table: the best score first, with the metrics asked for and the settings in which the runs differ."""
    if unknown := [name for name in names if not any(name in row.metrics for row in rows)]:
        known = sorted({name for row in rows for name in row.metrics})
        raise InputError(f"--metrics: no run has {unknown[0]}; there are {', '.join(known)}")
    settings, distinct = remarkable(rows), varied(rows)
    table = Table("run", "score", "at step", *names, "settings")
    for row, own in zip(rows, settings, strict=True):
        told = [f"{name}={value}" for name, value in own.items() if name in distinct]
        table.add_row(row.name, *_figures(row, names), "\n".join(told))
    console.print(table)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a folder of runs, at any depth")
    parser.add_argument("--metrics", nargs="+", default=[], metavar="NAME", help="as in a run's metrics.jsonl")
    parser.add_argument("--page", action="store_true", help="writes index.html and scores.png into the folder")
    arguments = parser.parse_args()
    with told_in_one_line():
        rows = read_rows(arguments.folder)
        _show(rows, arguments.metrics, Console())
        if arguments.page:
            print(f"page: {write_sweep_page(arguments.folder, rows, arguments.metrics)}")


if __name__ == "__main__":
    main()
