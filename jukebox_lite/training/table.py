"""A folder of runs as a table, best score first. `python -m jukebox_lite.training.table runs/sweeps/vqvae`"""

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from jukebox_lite.errors import InputError, told_in_one_line
from jukebox_lite.training.run import leaves


@dataclass(frozen=True)
class Row:
    """One run: its folder, its best score, and every setting by dotted path."""

    name: str
    score: float  # infinite where none was reached
    step: int  # of the best score
    settings: dict[str, Any]


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
    """The lines of a run's metrics.jsonl; half a line at its end, which a killed run may leave, is passed over."""
    lines = []
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    return lines


def differing(rows: list[Row]) -> list[str]:
    """The settings that are not the same in all rows; the run's own name is none."""
    keys = sorted({key for row in rows for key in row.settings} - {"name"})
    return [key for key in keys if len({repr(row.settings.get(key)) for row in rows}) > 1]


def _row(run: Path, folder: Path) -> Row:
    scored = [(line["score"], line["step"]) for line in metrics(run) if math.isfinite(line.get("score", math.inf))]
    score, step = min(scored, default=(float("inf"), 0))
    settings = dict(leaves(yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))))
    return Row(str(run.relative_to(folder)), score, int(step), settings)


def _show(rows: list[Row], console: Console) -> None:
    """Prints the table: the best score first, with the settings in which the runs differ."""
    keys = differing(rows)
    table = Table("run", "score", "at step", *_short(keys))
    for row in rows:
        score = f"{row.score:.4f}" if row.score < float("inf") else "none"
        table.add_row(row.name, score, f"{row.step:,}", *(str(row.settings.get(key, "")) for key in keys))
    console.print(table)


def _short(keys: list[str]) -> list[str]:
    """Each key's last word, or all of it where another ends alike."""
    ends = [key.rsplit(".", 1)[-1] for key in keys]
    return [end if ends.count(end) == 1 else key for key, end in zip(keys, ends, strict=True)]


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="a folder of runs, at any depth")
    with told_in_one_line():
        _show(read_rows(parser.parse_args().folder), Console())


if __name__ == "__main__":
    main()
