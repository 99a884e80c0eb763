"""Runs that are signalled, killed, scheduled or damaged: what was learnt is not lost, and the bits are the same."""

import itertools
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import assert_same, child
from toys import CutOff, Regression, cut_at, trainer


def fit_signalled(folder: Path, call: int, number: int) -> None:
    """Train, and send the own process a signal in the middle of a step."""
    torch.set_num_threads(1)
    task = Regression(lambda now: os.kill(os.getpid(), number) if now == call else None)
    trainer(validate_every=6, checkpoint_every=6).fit(task, folder, seed=3)


def fit_under_a_scheduler(folder: Path) -> None:
    """Train where submitit listens: it lets SIGTERM pass; at SIGUSR2 it puts the job into the queue again and exits."""
    saved = folder / "checkpoints"
    signal.signal(signal.SIGTERM, lambda *_: (folder / "passed").write_text(str(sorted(saved.iterdir())[-1].name)))
    signal.signal(signal.SIGUSR2, lambda *_: sys.exit(70 + len(list(saved.iterdir()))))
    calls = {2: signal.SIGTERM, 4: signal.SIGUSR2}
    torch.set_num_threads(1)
    task = Regression(lambda now: os.kill(os.getpid(), calls[now]) if now in calls else None)
    trainer(validate_every=6, checkpoint_every=6).fit(task, folder, seed=3)


def test_a_scheduler_that_listened_before_gets_its_signal_when_the_run_is_saved(tmp_path: Path) -> None:
    """SIGUSR2 ended the process at once, and what was learnt since the last checkpoint was lost."""
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    trainer(validate_every=6, checkpoint_every=6).fit(Regression(), whole, seed=3)
    assert child(fit_under_a_scheduler, resumed) == 72, "two checkpoints, and the scheduler's own exit"
    assert (resumed / "passed").read_text() == "00000003", "training went on after SIGTERM, which was let pass"
    assert (resumed / "checkpoints" / "00000005").is_dir()
    trainer(validate_every=6, checkpoint_every=6).fit(Regression(), resumed, seed=3)
    assert_same(whole, resumed)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_signal_in_a_step_loses_nothing(tmp_path: Path, number: int, code: int) -> None:
    """SIGTERM and Ctrl-C save after the step and say so; kill -9 can say nothing; all three resume to the same bits."""
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    trainer(validate_every=6, checkpoint_every=6).fit(Regression(), whole, seed=3)
    assert child(fit_signalled, resumed, 2, number) == code
    if number != signal.SIGKILL:
        assert (resumed / "checkpoints" / "00000003").is_dir()
        log = (resumed / "train.log").read_text()
        assert f"saved in {resumed / 'checkpoints' / '00000003'}; the same command resumes" in log
    trainer(validate_every=6, checkpoint_every=6).fit(Regression(), resumed, seed=3)
    assert_same(whole, resumed)


def fit_killed_in_a_save(folder: Path, event: int) -> None:
    """Train, and kill -9 the own process at its `event`th touch of the checkpoint folder."""
    torch.set_num_threads(1)
    touches = itertools.count()

    def hook(name: str, arguments: tuple[Any, ...]) -> None:
        touched = name.startswith(("open", "os.", "shutil.")) and any("checkpoints" in str(a) for a in arguments)
        if touched and next(touches) == event:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    trainer(checkpoint_every=1).fit(Regression(), folder, seed=3)


def test_kill_9_inside_a_save_leaves_a_run_that_resumes(tmp_path: Path) -> None:
    """Wherever in the writing, moving and pruning of checkpoints it strikes: the result has the same bits."""
    trainer(checkpoint_every=1).fit(Regression(), tmp_path / "whole", seed=3)
    for event in itertools.count(2, 11):
        resumed = tmp_path / f"killed-{event}"
        code = child(fit_killed_in_a_save, resumed, event)
        trainer(checkpoint_every=1).fit(Regression(), resumed, seed=3)
        assert_same(tmp_path / "whole", resumed)
        assert not list((resumed / "checkpoints").glob(".*")) or code == 0
        if code == 0:
            break
    assert event > 60


@pytest.mark.parametrize(("name", "damage"), [("model.safetensors", b"x"), ("trainer.json", b"{}")])
def test_a_damaged_checkpoint_costs_steps_and_not_the_run(tmp_path: Path, name: str, damage: bytes) -> None:
    """The trainer says which one it passes over, resumes from the one before and ends with the same bits."""
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    trainer().fit(Regression(), whole, seed=3)
    with pytest.raises(CutOff):
        trainer().fit(Regression(cut_at(5)), resumed, seed=3)
    (resumed / "checkpoints" / "00000004" / name).write_bytes(damage)
    trainer().fit(Regression(), resumed, seed=3)
    log = (resumed / "train.log").read_text()
    assert "skipping a damaged checkpoint" in log and "00000004" in log and "from step 2" in log
    assert_same(whole, resumed)
