"""Long work tells how far it is, and short work says nothing."""

import io
import re
import time

import pytest
from rich.console import Console

from jukebox_lite import progress as told_by
from jukebox_lite.progress import people, progress


def told(terminal: bool) -> str:
    """What two steps of work print."""
    console = Console(file=io.StringIO(), force_terminal=terminal, width=120)
    with progress("sampling top", 1000, "codes", console, line_seconds=0) as advance:
        advance(400, "window 1 of 2")
        advance(600, "window 2 of 2")
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_what_is_done_the_rate_and_the_note_are_told(terminal: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("jukebox_lite.progress.PATIENCE", -1.0)
    text = told(terminal)
    for part in ("sampling top", "1,000 of 1,000 codes", "a second", "window 2 of 2"):
        assert part in text
    assert ("\x1b" in text) == terminal


def test_what_is_soon_done_leaves_a_terminal_as_it_was():
    """Stopping bars that had never started printed an empty line."""
    assert told(terminal=True) == ""


def test_what_another_process_did_is_no_part_of_the_rate():
    """A sampling that went on at half of its codes told twice its rate, and half the time left."""
    console = Console(file=io.StringIO(), width=120)
    with progress("sampling top", 1000, "codes", console, line_seconds=0) as advance:
        advance(999, before=True)
        time.sleep(0.02)
        advance(1)
    assert isinstance(console.file, io.StringIO)
    (line,) = console.file.getvalue().splitlines()
    rate = float(re.search(r"1,000 of 1,000 codes, ([\d.]+) a second", line)[1])
    assert rate <= 50


def test_one_of_several_processes_draws_no_bar(monkeypatch: pytest.MonkeyPatch):
    """Two jobs of a sweep drew theirs over each other, on one line of one terminal."""
    monkeypatch.setenv("FORCE_COLOR", "1")  # standard error passes for a terminal
    monkeypatch.setattr(told_by, "parent_process", lambda: None)
    assert people().is_terminal
    monkeypatch.setattr(told_by, "parent_process", object)
    assert not people().is_terminal
