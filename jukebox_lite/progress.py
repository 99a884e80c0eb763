"""How far a long piece of work is: a live bar on a terminal, a plain line now and then elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing import parent_process

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

PATIENCE = 2.0  # seconds; what is done by then needs no bar
LINE_SECONDS = 10.0  # between plain lines


def people() -> Console:
    """Where people are told: standard error. One of several processes that share it draws no bar over the others'."""
    return Console(stderr=True, force_terminal=None if parent_process() is None else False)


@contextmanager
def progress(
    doing: str, total: float, unit: str, console: Console | None = None, line_seconds: float = LINE_SECONDS
) -> Iterator[Callable[..., None]]:
    """Gives `advance(amount, note, before)`; tells what is done, how many `unit` a second, the note, and the time left.

    What was done `before`, by another process, counts as done and not for the rate.
    """
    console = console or people()
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}"), TimeRemainingColumn()
    bars = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    bar = bars.add_task(doing, total=total, state="")
    began = last_line = time.monotonic()
    done = found = 0.0

    def advance(amount: float = 1, note: str = "", before: bool = False) -> None:
        nonlocal done, found, last_line
        done += amount
        found += amount if before else 0
        now = time.monotonic()
        rate = (done - found) / max(now - began, 1e-9)
        state = f"{done:,.0f} of {total:,.0f} {unit}, {rate:{',.0f' if rate >= 100 else '.3g'}} a second"
        state = f"{state}, {note}" if note else state
        bars.update(bar, completed=done, state=state)
        if now - began > PATIENCE and not bars.live.is_started:
            bars.start()
        if bars.disable and rate and now - last_line >= line_seconds:
            left = timedelta(seconds=round(max(0.0, total - done) / rate))
            console.print(f"{doing}: {state}, {left} left", highlight=False, markup=False, soft_wrap=True)
            last_line = now

    try:
        yield advance
    finally:
        if bars.live.is_started:  # else it would print an empty line
            bars.stop()
