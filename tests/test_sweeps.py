"""A sweep outlives its jobs and its own end: nothing is lost, nothing is done twice."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor
from functools import partial
from pathlib import Path

import fake_slurm
import optuna
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from tiny import ROOT, Done

from hydra_plugins.jukebox_lite._study import search
from hydra_plugins.jukebox_lite.launchers import Sturdy
from jukebox_lite.errors import InputError
from jukebox_lite.training.pruning import MedianPruner
from jukebox_lite.training.run import alone

SPACE = ("model.depth=int(interval(1,6))", "optimizer.lr=tag(log,interval(1e-4,1e-1))", "optimizer=choice(adamw,muon)")
Job = Callable[[int, dict[str, str]], float | None]


class Killed(BaseException):
    """Stands for kill -9: nothing catches it."""


class Here(Launcher):
    """Runs every job at once, and remembers which there were."""

    def __init__(self, job: Job) -> None:
        self.job, self.launched = job, {}

    def setup(self, **given: object) -> None:
        """Nothing."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        """As Hydra's launchers: what a job raises is in its return value."""
        returns = []
        for number, words in enumerate(job_overrides, initial_job_idx):
            settings = dict(word.split("=", 1) for word in words)
            self.launched.setdefault(number, []).append(settings)
            try:
                returns.append(JobReturn(status=JobStatus.COMPLETED, _return_value=self.job(number, settings)))
            except Exception as error:
                returns.append(JobReturn(status=JobStatus.FAILED, _return_value=error))
        return returns


def bowl(_number: int, settings: dict[str, str]) -> float:
    """Lowest, 0, at depth 4, a rate of 0.01 and muon."""
    rate, depth = float(settings["optimizer.lr"]), int(settings["model.depth"])
    return (depth - 4) ** 2 + abs(rate - 0.01) * 100 + (settings["optimizer"] != "muon")


def run(
    folder: Path, launcher: Launcher, num_trials: int = 9, batch_size: int = 3, words: Sequence[str] = SPACE
) -> None:
    """A search by TPE."""
    sampler = partial(optuna.samplers.TPESampler, n_startup_trials=4, constant_liar=True)
    overrides = OverridesParser.create().parse_overrides(list(words))
    search(folder, launcher, overrides, sampler=sampler, num_trials=num_trials, batch_size=batch_size, seed=1)


def scores(folder: Path) -> list[tuple[str, float | None]]:
    """State and score of every trial."""
    study = optuna.load_study(study_name="study", storage=f"sqlite:///{folder / 'study.db'}")
    return [(trial.state.name, trial.value) for trial in study.trials]


def test_a_search_that_is_killed_ends_as_it_would_have(tmp_path: Path):
    """Whenever it is killed: the same jobs under the same numbers, only those that were cut off a second time."""
    whole = Here(bowl)
    run(tmp_path / "whole", whole)
    assert sorted(whole.launched) == list(range(9)) and all(len(times) == 1 for times in whole.launched.values())
    for fatal in (0, 4, 8):
        folder, kills = tmp_path / f"killed{fatal}", [fatal]

        def job(number: int, settings: dict[str, str], kills: list[int] = kills) -> float:
            if number in kills:
                kills.clear()
                raise Killed
            return bowl(number, settings)

        launcher = Here(job)
        with pytest.raises(Killed):
            run(folder, launcher)
        run(folder, launcher)
        assert scores(folder) == scores(tmp_path / "whole")
        for number, times in launcher.launched.items():
            assert all(settings == whole.launched[number][0] for settings in times), "another job under that number"
            cut_off = number // 3 == fatal // 3 and number <= fatal
            assert len(times) == 1 + cut_off, f"job {number} was launched {len(times)} times"


def test_a_search_goes_on_for_more_trials_and_finds_more(tmp_path: Path):
    """The first ones are kept; those that follow learn from them."""
    launcher = Here(bowl)
    run(tmp_path, launcher, num_trials=4)
    first = scores(tmp_path)
    run(tmp_path, launcher, num_trials=24)
    assert scores(tmp_path)[:4] == first and len(launcher.launched) == 24
    values = [value for _, value in scores(tmp_path) if value is not None]
    assert sum(values[14:]) < sum(values[:10]), "no better than at random"


def test_another_search_in_the_same_folder_is_refused(tmp_path: Path):
    """What differs is named."""
    run(tmp_path, Here(bowl), num_trials=1)
    with pytest.raises(InputError, match=r"model.depth was int\(interval\(1,6\)\), is now int\(interval\(1,8\)\)"):
        run(tmp_path, Here(bowl), words=("model.depth=int(interval(1,8))", *SPACE[1:]))
    assert len(scores(tmp_path)) == 1


def test_what_is_given_on_the_command_line_is_not_searched(tmp_path: Path):
    """The last word on a setting holds, also with the plus signs that the entry points add."""
    launcher = Here(lambda *_: 1.0)
    run(tmp_path, launcher, num_trials=2, words=(*SPACE, "++model.depth=3", "name=x"))
    for (settings,) in launcher.launched.values():
        assert settings["++model.depth"] == "3" and "model.depth" not in settings and settings["name"] == "x"


def test_jobs_that_fail_do_not_take_the_search_along(tmp_path: Path):
    """A score of infinity is a bad one, NaN and an exception are none; the exception is raised when all is done."""

    def job(number: int, settings: dict[str, str]) -> float:
        if number == 1:
            raise RuntimeError("a fault")
        return {2: float("inf"), 3: float("nan")}.get(number, bowl(number, settings))

    launcher = Here(job)
    with pytest.raises(RuntimeError, match="a fault"):
        run(tmp_path, launcher)
    told = scores(tmp_path)
    assert [state for state, _ in told] == ["COMPLETE", "FAIL", "COMPLETE", "FAIL"] + ["COMPLETE"] * 5
    assert told[2][1] == float("inf") and len(launcher.launched) == 9
    run(tmp_path, Here(bowl))
    assert scores(tmp_path) == told, "what failed is not tried again"


def test_a_job_whose_death_takes_its_launcher_along_scores_infinity(capsys: pytest.CaptureFixture[str]):
    """joblib gives up all jobs when the process of one is killed: the others are launched again, alone."""

    class Fragile(Here):
        def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
            returns = super().launch(job_overrides, initial_job_idx)
            if any(job._return_value is None for job in returns):
                raise BrokenExecutor("a worker was killed\nand more")
            return returns

    launcher = Fragile(lambda number, _: None if number == 6 else float(number))
    returns = Sturdy(launcher).launch([["a=1"]] * 3, 5)
    assert [job.return_value for job in returns] == [5.0, float("inf"), 7.0]
    assert capsys.readouterr().err == "error: job 6: BrokenExecutor: a worker was killed\n"


def test_a_launcher_that_cannot_launch_is_no_death_of_a_job():
    """Without Slurm every job would score infinity, and the sweep would end well."""

    class Absent(Here):
        def launch(self, *_: object, **__: object) -> list[JobReturn]:  # pyright: ignore[reportIncompatibleMethodOverride]
            raise RuntimeError("no srun here")

    with pytest.raises(InputError, match="could not be launched: RuntimeError: no srun here"):
        Sturdy(Absent(bowl)).launch([["a=1"]] * 3, 0)


def test_two_processes_do_not_train_in_one_folder_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Jobs of a sweep that was killed go on: the same command, started again at once, trained beside them."""
    order: list[str] = []

    def second() -> None:
        with alone(tmp_path):
            order.append("second")

    thread = threading.Thread(target=second)
    with alone(tmp_path):
        thread.start()
        while "waiting" not in capsys.readouterr().err:
            assert thread.is_alive(), "did not wait"
        order.append("first")
    thread.join(60)
    assert order == ["first", "second"]


def test_pruning_compares_runs_at_the_same_step(tmp_path: Path):
    """What others reached later does not count, nor do others that have not come so far, nor too few."""
    beside = {"early": [(10, 1.0)], "good": [(10, 2.0), (20, 1.0)], "late": [(10, 4.0), (20, 3.0), (30, 0.0)]}
    beside["none"] = [(20, float("inf"))]
    for name, lines in {**beside, "own": [(20, 9.0)]}.items():
        (tmp_path / name).mkdir()
        told = "".join(f'{{"step": {step}, "score": {json.dumps(score)}}}\n' for step, score in lines)
        (tmp_path / name / "metrics.jsonl").write_text(told + '{"st')
    pruner, own = MedianPruner(min_steps=20, min_runs=3), tmp_path / "own"
    assert [pruner.prunes(own, 20, best) for best in (3.5, 3.0, 2.0)] == [True, False, False], "the median is 3"
    assert pruner.prunes(own, 20, float("nan")) and pruner.prunes(own, 20, float("inf"))
    assert not pruner.prunes(own, 10, 9.0), "before min_steps"
    assert not pruner.prunes(own, 30, 9.0), "one run has come so far"


# --- launchers: a small command of its own, each job a process ------------------------------------------------------

APP = f"""
defaults: [_self_, launcher: null, sweep: grid, override hydra/job_logging: none, override hydra/hydra_logging: none]
x: 0
fatal: null  # the number of the job that is killed
kills: 1  # so many times
signal: 9
trainer: {{ devices: 1, num_nodes: 1 }}
hydra:
  searchpath: ["file://{ROOT / "conf"}"]
  sweep: {{ dir: sweep, subdir: "${{hydra.job.num}}" }}
  output_subdir: null
"""


def launch(folder: Path, *words: str, path: str = "") -> Done:
    """tests/sweep_app.py -m, in `folder`."""
    (folder / "app.yaml").write_text(APP)
    app = [sys.executable, str(ROOT / "tests" / "sweep_app.py"), "-m", "--config-dir", str(folder), *words]
    env = os.environ | {"PYTHONPATH": str(ROOT), "PATH": f"{path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(app, cwd=folder, env=env, capture_output=True, text=True, timeout=180)
    return Done(done.returncode, done.stdout, done.stderr)


def starts(folder: Path) -> list[int]:
    """How often each job was started, by its number."""
    return [len((folder / "sweep" / str(number) / "starts").read_text().splitlines()) for number in range(4)]


def test_a_sweep_under_joblib_outlives_a_job_that_is_killed(tmp_path: Path):
    """kill -9 of one worker made joblib give up all jobs; a job that dies every time scores infinity."""
    done = launch(
        tmp_path,
        "launcher=joblib",
        "sweep=random",
        "x=choice(1,2,3)",
        "fatal=1",
        "kills=9",
        "hydra.sweeper.num_trials=4",
    )
    assert done.code == 0, done.err
    assert "error: job 1: " in done.err
    told = scores(tmp_path / "sweep")
    assert [state for state, _ in told] == ["COMPLETE"] * 4
    assert [value == float("inf") for _, value in told] == [False, True, False, False]


def test_a_sweep_runs_on_ray(tmp_path: Path):
    """Four jobs; the one whose process is killed is started again by Ray, the others are not."""
    done = launch(tmp_path, "launcher=ray", "x=1,2,3,4", "fatal=2")
    assert done.code == 0, done.err
    assert starts(tmp_path) == [1, 1, 2, 1]


def test_a_sweep_runs_under_slurm_and_a_preempted_job_goes_on(tmp_path: Path):
    """An array of four; the one that is told to make room is put into the queue again, and its score comes back."""
    fake_slurm.install(tmp_path / "bin")
    words = ["launcher=slurm", "hydra.launcher.partition=gpu", "hydra.launcher.timeout_min=600"]
    usr2 = f"signal={int(signal.SIGUSR2)}"
    done = launch(tmp_path, *words, "x=1,2,3,4", "fatal=2", usr2, path=str(tmp_path / "bin"))
    assert done.code == 0, done.err
    assert starts(tmp_path) == [1, 1, 2, 1] and (tmp_path / "bin" / "sbatch-again-7_2").exists()
    script = (tmp_path / "bin" / "sbatch-script").read_text()
    for line in ("--partition=gpu", "--time=600", "--gpus-per-node=1", "--signal=USR2@120", "--ntasks-per-node=1"):
        assert f"#SBATCH {line}" in script


def test_a_sweep_runs_in_processes_of_submitit(tmp_path: Path):
    """Its local launcher, beside the one for Slurm."""
    done = launch(tmp_path, "hydra/launcher=submitit_local", "x=1,2,3,4")
    assert done.code == 0, done.err
    assert starts(tmp_path) == [1, 1, 1, 1]
