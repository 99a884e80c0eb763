"""How a task is learnt: the loop, and when it logs, validates, saves and stops."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from jukebox_lite.errors import InputError
from jukebox_lite.nn.device import check_compiler, multiplies_bf16
from jukebox_lite.tasks.base import Task
from jukebox_lite.training import checkpoint, processes
from jukebox_lite.training.interruption import Interruption
from jukebox_lite.training.learner import Learner
from jukebox_lite.training.lifeline import Lifeline
from jukebox_lite.training.pruning import MedianPruner
from jukebox_lite.training.reader import Reader
from jukebox_lite.training.rehearsal import rehearse
from jukebox_lite.training.reporter import Reporter, Silence
from jukebox_lite.training.rewinding import MOST_REWINDS, fit_rewinding
from jukebox_lite.training.tracking import Tracker
from jukebox_lite.training.validation import listen, validate

_PRECISIONS = ("auto", "32-true", "bf16-mixed")  # 16-mixed skips steps, and its loss scale would have to be saved
_ON_NONFINITE = ("stop", "rewind")


@dataclass
class _Fit:
    """One call of `fit`: what works for it, and what has been counted since the last log line."""

    learner: Learner
    folder: Path
    reader: Reader
    reporter: Silence
    interruption: Interruption
    best: float  # validation score
    keep_last: int  # checkpoints
    pruned: bool = False  # worse than the sweep's other runs
    amount: float = 0.0  # of the task's rate_unit, in this process
    began: float = field(default_factory=time.perf_counter)  # seconds

    def restart_clock(self) -> None:
        """Count afresh."""
        self.amount, self.reader.waited, self.began = 0.0, 0.0, time.perf_counter()


class Trainer:
    """Takes a task through `max_steps` on any number of devices; the same call again goes on where it was cut off.

    `optimizer` takes parameters, `schedule` an optimizer and `max_steps`, `tracker` the run's folder and its step.
    A step learns from `accumulate` batches on each device. Intervals are in steps; the last `keep_last` checkpoints are
    kept, and the best. `dry_run` asks whoever holds the trainer to call `rehearse`, not `fit`. `pruner` may end a run
    of a sweep early.
    """

    def __init__(
        self,
        *,
        max_steps: int,
        optimizer: Callable[..., Optimizer],
        schedule: Callable[..., LRScheduler],
        tracker: Callable[..., Tracker],
        validate_every: int,
        checkpoint_every: int,
        keep_last: int = 3,
        log_every: int = 10,
        accumulate: int = 1,
        gradient_clip: float = 1.0,
        ema_decay: float = 0.999,
        accelerator: str = "auto",
        devices: int = 1,
        num_nodes: int = 1,
        strategy: str = "auto",
        precision: str = "32-true",
        on_nonfinite: str = "stop",
        compile: bool = False,
        dry_run: bool = False,
        pruner: MedianPruner | None = None,
    ) -> None:
        counts = {"max_steps": max_steps, "validate_every": validate_every, "checkpoint_every": checkpoint_every}
        counts |= {"keep_last": keep_last, "log_every": log_every, "accumulate": accumulate}
        counts |= {"devices": devices, "num_nodes": num_nodes}
        for name, count in counts.items():
            if count < 1:
                raise InputError(f"trainer.{name}={count}: give 1 or more")
        if gradient_clip <= 0:
            raise InputError(f"trainer.gradient_clip={gradient_clip}: give more than 0, the largest norm of a gradient")
        if not 0 <= ema_decay < 1:
            raise InputError(f"trainer.ema_decay={ema_decay}: give 0 or more, and less than 1")
        words = {"precision": precision, "strategy": strategy, "on_nonfinite": on_nonfinite}
        for (name, value), known in zip(words.items(), (_PRECISIONS, processes.STRATEGIES, _ON_NONFINITE), strict=True):
            if value not in known:
                raise InputError(f"trainer.{name}={value}: give one of {', '.join(known)}")
        if compile and strategy == "fsdp":
            raise InputError("trainer.compile=true with trainer.strategy=fsdp: not known to be right; give one of them")
        if compile and (accelerator == "cpu" or not torch.accelerator.is_available()):
            check_compiler("trainer.compile=true")
        self.max_steps, self.validate_every, self.checkpoint_every = max_steps, validate_every, checkpoint_every
        self.optimizer, self.schedule, self.tracker = optimizer, schedule, tracker
        self.log_every, self.accumulate, self.compile, self.dry_run = log_every, accumulate, compile, dry_run
        self.keep_last, self.on_nonfinite, self.pruner = keep_last, on_nonfinite, pruner
        self.gradient_clip, self.ema_decay = gradient_clip, ema_decay
        self.precision = ("bf16-mixed" if multiplies_bf16() else "32-true") if precision == "auto" else precision
        self.accelerator, self.devices, self.num_nodes, self.strategy = accelerator, devices, num_nodes, strategy

    @cached_property
    def fabric(self) -> Fabric:
        """This process among the run's others, which are started, or waited for, when this is first asked for."""
        return processes.start(self.accelerator, self.devices, self.num_nodes, self.strategy, self.precision)

    @contextmanager
    def agreement(self) -> Iterator[None]:
        """An InputError or OSError of one process is an InputError of all of the run's; they start here if not yet.

        So is the end of one that is killed, or stands still, the end of all.
        """
        say = partial(print, file=sys.stderr)
        with Lifeline(self.fabric, self.num_nodes, say), processes.agreement(self.fabric):
            yield

    def fit(self, task: Task, folder: Path, seed: int) -> float:
        """Train to `max_steps`, from the last whole checkpoint in `folder` if it has one; returns the best score.

        Raises TrainingDiverged on a loss or gradient that is not finite, unless `on_nonfinite` is "rewind" and helps;
        InputError where the task sees no use in going on, OSError where the disk refuses, and SystemExit(128 + signal)
        after Ctrl-C, SIGTERM or SIGUSR2, when a checkpoint is saved. On several devices every process calls this; the
        first one writes.
        """
        learner = self._learner(task, seed)
        if self.compile:
            learner.compile()
        most = MOST_REWINDS if self.on_nonfinite == "rewind" else 0
        return fit_rewinding(learner, partial(_resume, learner, folder), partial(self._go_on, learner, folder), most)

    def _go_on(self, learner: Learner, folder: Path, best: float, lines: Sequence[str]) -> float:
        """Train to `max_steps` from where the learner stands, the best score so far behind it; tells `lines` first."""
        with processes.agreement(self.fabric):
            reports = self._reporter(learner, folder)
        with (
            reports as reporter,
            Reader(learner.task.batch) as reader,
            Interruption() as interruption,
            Lifeline(learner.fabric, self.num_nodes, reporter.say),
        ):
            for line in [learner.task.about, *lines, self._describe(learner)]:
                reporter.say(line)
            run = _Fit(learner, folder, reader, reporter, interruption, best, self.keep_last)
            while learner.step < self.max_steps and not run.pruned:
                self._step(run)
            return run.best

    def rehearse(self, task: Task, seed: int) -> list[str]:
        """What `fit` would take, told by a few steps that nothing is left of; empty on all processes but the first."""
        learner = self._learner(task, seed)
        if self.compile:
            learner.compile()
        told = [task.about, self._describe(learner)]
        with Reader(task.batch) as reader:
            found = rehearse(learner, reader, self.max_steps, partial(validate, learner, reader))
        if not learner.fabric.is_global_zero:
            return []
        num_validations = -(-self.max_steps // self.validate_every)
        return [*told, *found.lines(self.max_steps, num_validations, self.keep_last + 1)]  # and the best

    def _learner(self, task: Task, seed: int) -> Learner:
        """The task with all that it is learnt by."""
        return Learner(
            task,
            self.fabric,
            optimizer=self.optimizer,
            schedule=lambda optimizer: self.schedule(optimizer, self.max_steps),
            accumulate=self.accumulate,
            gradient_clip=self.gradient_clip,
            ema_decay=self.ema_decay,
            seed=seed,
        )

    def _reporter(self, learner: Learner, folder: Path) -> Silence:
        if not learner.fabric.is_global_zero:
            return Silence()
        folder.mkdir(parents=True, exist_ok=True)
        return Reporter(folder, learner.step, self.max_steps, learner.task.rate_unit, self.tracker)

    def _step(self, run: _Fit) -> None:
        """One step, and what is due after it."""
        learner = run.learner
        run.amount += learner.learn(run.reader, self.max_steps)
        step = learner.step
        run.reporter.advance(step)
        validates, saves = self._due(step, self.validate_every), self._due(step, self.checkpoint_every)
        logs = validates or saves or step == 1 or step % self.log_every == 0
        signal = _agreed_signal(run, logs)
        values = _measure(run) if logs or signal else {}  # before anything is saved: it raises if training diverged
        score = None
        if validates:
            values |= validate(learner, run.reader)
            listen(learner, run.reporter)
            score = values["score"]
            run.best = min(run.best, score)  # in this order a score that is not a number never is the best
        if values:
            run.reporter.scalars(step, values)
        if validates:
            learner.task.judge(step, values)  # before the weights that it judges are saved
            run.pruned = self._prunes(run)
        path = _save(run, score) if saves or signal or run.pruned else None
        if signal:
            _leave(run, signal, path)
        if values:
            run.restart_clock()

    def _prunes(self, run: _Fit) -> bool:
        """What the first process finds; all stop after the same step."""
        if self.pruner is None:
            return False
        step, fabric = run.learner.step, run.learner.fabric
        found = fabric.broadcast(fabric.is_global_zero and self.pruner.prunes(run.folder, step, run.best))
        if found:
            run.reporter.say(f"pruned after step {step:,}: worse than most of the other runs of the sweep by then")
        return found

    def _due(self, step: int, every: int) -> bool:
        return step % every == 0 or step == self.max_steps

    def _describe(self, learner: Learner) -> str:
        """What is about to happen, on one line."""
        fabric, task = learner.fabric, learner.task
        sizes = [f"{name} {sum(p.numel() for p in model.parameters()):,}" for name, model in task.models.items()]
        on_gpu = fabric.device.type == "cuda"
        device = torch.cuda.get_device_name(fabric.device) if on_gpu else fabric.device.type
        batches = fabric.world_size * self.accumulate
        start = f", from step {learner.step:,}" if learner.step else ""
        return (
            f"parameters: {', '.join(sizes)}; {fabric.world_size} x {device}, {self.precision}; "
            f"{self.max_steps:,} steps of {batches} {'batch' if batches == 1 else 'batches'}{start}"
        )


def _resume(learner: Learner, folder: Path, warn: Callable[[str], None]) -> float:
    """Put the learner where the run's last whole checkpoint left it; returns the best score so far.

    Raises InputError where that is whole and yet no checkpoint of these models.
    """
    fabric = learner.fabric
    path = fabric.broadcast(checkpoint.latest(folder, warn) if fabric.is_global_zero else None)
    if path is None:
        return float("inf")
    best = float("inf")
    with processes.agreement(fabric):
        state = checkpoint.read_trainer(path)
        weights = {name: checkpoint.read_weights(path, name) for name in learner.averages}
        try:
            learner.load_state_dict(state["learner"], weights)
            best = float(state["best"])
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            told = " ".join(str(error).split())
            raise InputError(f"{path} is no checkpoint of this run: {type(error).__name__}: {told:.300}") from error
    return best


def _agreed_signal(run: _Fit, logs: bool) -> int:
    """The signal that asks all processes to stop, or 0.

    One process looks after every step. Several must stop after the same one, and asking each other takes a wait for
    the GPU, so they do it only where they wait anyway, for the metrics of a log line.
    """
    fabric, mine = run.learner.fabric, run.interruption.signal
    if fabric.world_size == 1:
        return mine
    if not logs:
        return 0
    return int(processes.over_processes(fabric, torch.tensor(mine, device=fabric.device), "max"))


def _measure(run: _Fit) -> dict[str, float]:
    """The learner's metrics since the last log line, and the pace."""
    values = run.learner.read_metrics()  # waits for the device: the clock is right only after it
    seconds = max(time.perf_counter() - run.began, 1e-9)
    rate = run.amount * run.learner.fabric.world_size / seconds
    return values | {"rate": rate, "data_wait": run.reader.waited / seconds}


def _save(run: _Fit, score: float | None) -> Path | None:
    """Write a checkpoint; no process goes on, or away, before it is there. The first one returns its path."""
    learner, path = run.learner, None
    state, weights = {"best": run.best, "learner": learner.state_dict()}, learner.weights()
    if learner.fabric.is_global_zero:
        path = checkpoint.save(run.folder, learner.step, weights, state, score, run.keep_last)
    learner.fabric.barrier()
    return path


def _leave(run: _Fit, signal: int, path: Path | None) -> None:
    """Say where the run was saved, and exit as a process does that obeys the signal, or as its scheduler does."""
    run.reporter.say(f"stopped after step {run.learner.step:,}, saved in {path}; the same command resumes")
    if run.interruption.hand_over(signal):
        return
    # The first process kills itself when it sees another one fail (Fabric's observer): the others leave in peace.
    raise SystemExit(128 + signal if run.learner.fabric.is_global_zero else 0)
