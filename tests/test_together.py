"""What happens to one of two processes happens to both: they go back, stop and end together, and one line tells why."""

import errno
import json
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pairs import begin, meet, two
from safetensors.torch import load_file, save_file
from tiny import tensors
from toys import Poisoned, Regression, gentle, rewinding, trainer

from jukebox_lite.errors import InputError
from jukebox_lite.training import checkpoint, lifeline, processes

BEAT, SILENCE = 0.1, 20  # in place of 5 s and 18 times
POISON = (13, 19 + (1 << 40))  # of the second process: batches of step 6, and of step 9 when it was rewound


def settled(rank: int, port: int, folder: Path) -> None:
    """Meets the other process, with little patience, and writes what it says to a file."""
    torch.set_num_threads(1)
    meet(rank, port)
    lifeline._BEAT, lifeline._SILENCE, lifeline._GRACE = BEAT, SILENCE, 1
    folder.mkdir(exist_ok=True)
    sys.stderr = (folder / f"said-{rank}").open("w", buffering=1)


def shared(make: Any, rank: int, folder: Path) -> None:
    """Trains by two with each strategy, and keeps what each process then holds; then until one of them is signalled."""
    for strategy in ("ddp", "fsdp"):
        task = make()
        rewinding(devices=2, strategy=strategy, optimizer=gentle).fit(task, folder / strategy, seed=3)
        state = {name: value.clone() for name, value in task.models["model"].state_dict().items()}
        if strategy == "ddp":
            save_file(state, folder / f"held-{rank}.safetensors")
    task = Regression(lambda call: os.kill(os.getpid(), signal.SIGTERM) if rank and call == 2 else None)
    trainer(devices=2, strategy="ddp", optimizer=gentle).fit(task, folder / "signalled", seed=3)


def go_together(rank: int, port: int, folder: Path) -> None:
    """One of the two of `shared`."""
    settled(rank, port, folder)
    shared(partial(Poisoned, *POISON), rank, folder)


def assert_close(run: Path, other: Path) -> None:
    """But for the statistics of each process's batches, and numbers as text."""
    a, b = tensors(run), tensors(other)
    for name in a.keys() - {"numbers"}:
        if "mean" not in name and "count" not in name:
            torch.testing.assert_close(a[name], b[name], rtol=1e-5, atol=1e-6)


def test_two_processes_rewind_and_stop_together(tmp_path: Path):
    """Where only the second one met what is not finite, or SIGTERM; and one process goes on from what they saved.

    They go on with the batches that one process, which accumulates two, goes on with.
    """
    folder = tmp_path / "two"
    assert two(go_together, folder) == [128 + signal.SIGTERM, 0]
    rewinding(accumulate=2, optimizer=gentle).fit(Poisoned(*POISON), tmp_path / "alone", seed=3)
    for strategy in ("ddp", "fsdp"):
        assert_close(folder / strategy, tmp_path / "alone")
        assert (folder / strategy / "train.log").read_text().count("rewound to step") == 2
        kept = json.loads((folder / strategy / "checkpoints/00000012/trainer.json").read_text())
        assert kept["learner"]["rewinds"] == 2
    held, other = (load_file(folder / f"held-{rank}.safetensors") for rank in (0, 1))
    assert [name for name in held if name != "mean" and not torch.equal(held[name], other[name])] == []
    assert checkpoint.latest(folder / "signalled") == folder / "signalled/checkpoints/00000003"
    for run in (folder / "signalled", tmp_path / "whole"):
        trainer(accumulate=2, optimizer=gentle).fit(Regression(), run, seed=3)
    assert_close(folder / "signalled", tmp_path / "whole")


class Unreadable(Regression):
    """A song is gone in a training batch of the second process, or there is a fault in it."""

    def __init__(self, error: Exception, at: int) -> None:
        super().__init__()
        self.error, self.at = error, at

    def batch(self, split: str, step: int) -> torch.Tensor:
        """[8, 4]; raises at the batch `at`."""
        if split == "train" and step == self.at:
            raise self.error
        return super().batch(split, step)


def full(step: int, plain: Any, folder: Path, at: int, *rest: Any) -> Path:
    """checkpoint.save, where the disk has no room for a step."""
    if at == step:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "model.safetensors")
    return plain(folder, at, *rest)


def fail(rank: int, port: int, folder: Path, kind: str) -> None:
    """One of two processes, of which one fails in the fifth step or after the fourth."""
    settled(rank, port, folder)
    if kind == "full disk":
        checkpoint.save = partial(full, 4, checkpoint.save)
    error = InputError("song.wav is gone") if kind == "gone" else RuntimeError("a fault")
    task = Regression() if kind == "full disk" else Unreadable(error, 9)
    trainer(devices=2, strategy="ddp", log_every=1).fit(task, folder, seed=3)


@pytest.mark.parametrize(
    ("kind", "codes", "told"),
    [
        ("full disk", [1, 0], ["OSError: [Errno 28] No space left on device: 'model.safetensors'", ""]),
        ("gone", [1, 0], ["error: process 1 of 2 stopped: song.wav is gone", ""]),
        (
            "fault",
            [1, 1],
            ["error: process 1 of 2 stopped on an error; the same command resumes", "RuntimeError: a fa"],
        ),
    ],
)
def test_an_error_of_one_process_ends_both_and_is_told_once(
    tmp_path: Path, kind: str, codes: list[int], told: list[str]
):
    """That a song was gone for the second process was not told at all; over a full disk it printed a traceback.

    In two lines only where it was a fault of ours: the traceback, and what it led to. What was saved before is whole.
    """
    assert two(fail, tmp_path, kind) == codes
    said = [(tmp_path / f"said-{rank}").read_text() for rank in (0, 1)]
    assert all(line in text for line, text in zip(told, said, strict=True)), said
    assert sum(text.count("Traceback") for text in said) == (kind != "gone") and (kind == "fault" or not said[1]), said
    assert checkpoint.latest(tmp_path) == tmp_path / f"checkpoints/{2 if kind == 'full disk' else 4:08d}"


def begin_killed(rank: int, port: int, folder: Path) -> None:
    """One of two processes: they find that they differ; then the second is killed, as while it makes a cache."""
    settled(rank, port, folder)
    how = trainer(devices=2, strategy="ddp")
    with pytest.raises(InputError, match="process 1 of 2 begins with {'codec': 'b'}, and the first one with {'codec'"):
        processes.check_same(how.fabric, {"codec": "ab"[rank]})
    processes.check_same(how.fabric, {"codec": "a"})
    with how.agreement():
        if rank:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)  # at a song


def test_processes_begin_with_the_same_and_end_together_before_training(tmp_path: Path):
    """Of a run that was still trained, two read two checkpoints; one waited long for another that was killed."""
    assert two(begin_killed, tmp_path) == [1, -signal.SIGKILL]
    assert (tmp_path / "said-0").read_text().startswith("error: process 1 of 2 was killed")


def stand_still(rank: int, port: int, folder: Path) -> None:
    """One of two processes: the first is long at a checkpoint; then both are stopped; then the second one is."""
    settled(rank, port, folder)
    plain = checkpoint.save

    def slow(*arguments: Any) -> Path:
        time.sleep(1.5 * BEAT * SILENCE)
        return plain(*arguments)

    def spoil(call: int) -> None:
        if call == 3:
            (folder / f"there-{rank}").touch()
            time.sleep(0.5)
        if call == 5 and rank:
            os.kill(os.getpid(), signal.SIGSTOP)

    checkpoint.save = slow
    trainer(devices=2, strategy="ddp", checkpoint_every=4).fit(Regression(spoil), folder, seed=3)


def test_a_process_that_is_stopped_ends_the_run_and_one_that_is_slow_does_not(tmp_path: Path):
    """Torch would have waited for half an hour. Both may be stopped for any time, as by Ctrl-Z, and go on."""
    members = begin(stand_still, tmp_path)
    while not all((tmp_path / f"there-{rank}").exists() for rank in (0, 1)):
        assert all(process.is_alive() for process in members)
        time.sleep(0.02)
    for number, pause in ((signal.SIGSTOP, 1.5 * BEAT * SILENCE), (signal.SIGCONT, 0.3)):
        for process in members:
            os.kill(process.pid or 0, number)
            time.sleep(0.3 if number == signal.SIGCONT else 0)
        time.sleep(pause)
    members[0].join(60)
    assert members[0].exitcode == 1
    log = (tmp_path / "train.log").read_text()
    assert "error: process 1 of 2 gave no sign of life for 2 s (stopped, or stuck); the same command resumes" in log
    assert checkpoint.latest(tmp_path) == tmp_path / "checkpoints/00000004"
    os.kill(members[1].pid or 0, signal.SIGCONT)
    members[1].join(60)  # and one that wakes up when it was given up leaves, too
    assert members[1].exitcode == 0 and not (tmp_path / "said-1").read_text()
