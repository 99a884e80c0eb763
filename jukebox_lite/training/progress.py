"""How training goes: a live line on a terminal, a plain line now and then elsewhere, and all of it in train.log."""

import time
from collections.abc import Mapping
from datetime import datetime, timedelta
from multiprocessing import parent_process
from pathlib import Path
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bars

from jukebox_lite.progress import people

_LINE_SECONDS = 30.0  # between plain lines
_FIRST_ESTIMATE = 10  # steps; the first one compiles, fills caches and says little


class Progress:
    """Tells a person; a context manager. `step` and `max_steps` are where the run stands and where it ends."""

    def __init__(self, folder: Path, step: int, max_steps: int, rate_unit: str, console: Console | None = None) -> None:
        self.max_steps, self.rate_unit = max_steps, rate_unit
        self.console = console or people()
        self._whose = "" if parent_process() is None else f"{folder.name}: "  # of a sweep's jobs side by side
        self._file = (folder / "train.log").open("a", encoding="utf-8", buffering=1)
        self._start, self._began, self._last_line = step, 0.0, time.monotonic()
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[state]}"))
        self._bars = Bars(*columns, console=self.console, disable=not self.console.is_terminal)
        self._bar = self._bars.add_task("", total=max_steps, completed=step, state="")
        self._state = ""

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()
        self._file.close()

    def say(self, line: str) -> None:
        """A line that stays."""
        self._print(line)
        self.log(line)

    def advance(self, step: int) -> None:
        """A step is done."""
        if step == self._start + 1:
            self._began = time.monotonic()
        self._bars.update(self._bar, completed=step, state=f"{self._state}  {self._left(step)}")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """New numbers: in the live line, and as a plain line if the last is long ago or they tell of a validation."""
        validated = [name for name in values if name == "score" or name.startswith("val/")]
        first = next((name for name in values if name.startswith("loss/")), None)
        shown = [*([first] if first else []), *validated]
        parts = [f"{name} {values[name]:.4g}" for name in shown]
        if "rate" in values:
            rate = values["rate"]
            parts.append(f"{rate:{',.0f' if rate >= 100 else '.3g'}} {self.rate_unit}/s")
        self._state = "  ".join(parts) or self._state
        if not validated and time.monotonic() - self._last_line < _LINE_SECONDS:
            return
        self._last_line = time.monotonic()
        line = f"step {step:,}/{self.max_steps:,}  {self._state}  {self._left(step)}"
        self.log(line)
        if self._bars.disable or validated:
            self._print(line)

    def _print(self, line: str) -> None:
        self.console.print(self._whose + line, highlight=False, markup=False, soft_wrap=True)

    def log(self, line: str) -> None:
        """A line for train.log alone, with the time."""
        self._file.write(f"{datetime.now().isoformat(sep=' ', timespec='seconds')}  {line}\n")

    def _left(self, step: int) -> str:
        """Time left at the pace so far, validations and checkpoints included."""
        if step == self.max_steps:
            return "done"
        done = step - self._start - 1
        if done < _FIRST_ESTIMATE:
            return "time left: measuring"
        seconds = (time.monotonic() - self._began) / done * (self.max_steps - step)
        return f"{timedelta(seconds=round(seconds))} left"
