"""How far sampling is: a bar a level on a terminal, a line now and then in a log."""

import time
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars


class Progress(Protocol):
    """Told by `complete` what it is doing."""

    def begin(self, level: str, num_windows: int, num_codes: int) -> None:
        """A level begins: it will take `num_windows` windows to sample `num_codes` codes, of all songs together."""
        ...

    def window(self, num_codes: int) -> None:
        """A window is done, and with it `num_codes` codes."""
        ...


class Silent:
    """Says nothing."""

    def begin(self, level: str, num_windows: int, num_codes: int) -> None:
        """Nothing."""

    def window(self, num_codes: int) -> None:
        """Nothing."""


class ConsoleProgress:
    """Codes a second, windows done and time left; a context manager.

    Bars where the console is a terminal; elsewhere a line every `line_seconds`, and one when a level is done.
    """

    def __init__(self, console: Console | None = None, line_seconds: float = 10.0) -> None:
        self.console = console or Console(stderr=True)
        self.line_seconds = line_seconds
        columns = [
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[state]}"),
            TimeRemainingColumn(),
        ]
        self.bars = Bars(*columns, console=self.console, disable=not self.console.is_terminal)
        self.task: TaskID | None = None
        self.level, self.num_windows, self.num_codes = "", 0, 0
        self.windows_done, self.codes_done, self.began, self.last_line = 0, 0, 0.0, 0.0

    def __enter__(self) -> "ConsoleProgress":
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def begin(self, level: str, num_windows: int, num_codes: int) -> None:
        """A level begins."""
        self.level, self.num_windows, self.num_codes = level, num_windows, num_codes
        self.windows_done = self.codes_done = 0
        self.began = self.last_line = time.monotonic()
        self.task = self.bars.add_task(level, total=num_codes, state="")

    def window(self, num_codes: int) -> None:
        """A window is done."""
        self.windows_done += 1
        self.codes_done += num_codes
        now = time.monotonic()
        rate = self.codes_done / max(now - self.began, 1e-9)
        state = f"window {self.windows_done}/{self.num_windows}  {rate:,.0f} codes/s"
        if self.task is not None:
            self.bars.update(self.task, completed=self.codes_done, state=state)
        last = self.windows_done == self.num_windows
        if self.bars.disable and (last or now - self.last_line >= self.line_seconds):
            left = "done" if last else f"{(self.num_codes - self.codes_done) / rate:,.0f} s left"
            self.console.print(f"{self.level}: {state}  {left}", highlight=False, markup=False)
            self.last_line = now
