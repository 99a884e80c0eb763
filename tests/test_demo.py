"""The demo's stages side by side: all run, and one that fails ends the others."""

import sys
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console

from jukebox_lite.demo import _run_side_by_side

MARK = "import pathlib, sys; pathlib.Path(sys.argv[1]).touch()"
WAIT = f"import pathlib, sys, time; {MARK}\nwhile not pathlib.Path(sys.argv[2]).exists(): time.sleep(0.01)"
FOR_EVER = "import time; time.sleep(600)"


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as these tests want, whatever the machine has."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)


def test_stages_run_at_once_and_say_whose_each_line_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each waits for the other, which never comes if it waits for its turn; a third one goes when one is done."""
    here, there = str(tmp_path / "here"), str(tmp_path / "there")
    commands = {
        "third": ["-c", "import os; print('on', os.environ['OMP_NUM_THREADS'])"],
        "one": ["-c", WAIT, here, there],
        "other": ["-c", WAIT, there, here],
    }
    minutes = _run_side_by_side(commands, Console(file=sys.stdout))
    assert list(minutes) == list(commands) and min(minutes.values()) > 0
    assert "third: on 1\n" in capsys.readouterr().out


def test_one_that_fails_ends_the_others(tmp_path: Path) -> None:
    """With its exit code; what still waited is not begun."""
    mark = tmp_path / "mark"
    commands = {"late": ["-c", MARK, str(mark)], "fails": ["-c", "exit(3)"], "long": ["-c", FOR_EVER]}
    began = time.monotonic()
    with pytest.raises(SystemExit) as error:
        _run_side_by_side(commands, Console(quiet=True))
    assert error.value.code == 3 and time.monotonic() - began < 60
    assert not mark.exists()
