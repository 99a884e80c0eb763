"""A search with Optuna that outlives its process. Hydra imports no plugin's file that begins with an underscore."""

import logging
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import optuna
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.plugins.launcher import Launcher
from optuna.samplers import BaseSampler
from optuna.trial import Trial, TrialState

from jukebox_lite.settings import refuse_changes


def search(
    folder: Path,
    launcher: Launcher,
    overrides: Iterable[Override],
    *,
    sampler: Callable[..., BaseSampler],
    num_trials: int,
    batch_size: int,
    seed: int,
) -> None:
    """Launch trials until the study in `folder` has `num_trials`; first those that were cut off.

    Of settings given twice the last one holds. Raises InputError where the study was begun with other settings, and, at
    the end, what the first job raised that failed by a fault of ours.
    """
    settings = {override.key_or_group: override for override in overrides}
    study = _open(folder, {name: str(override.input_line).partition("=")[2] for name, override in settings.items()})
    faults = []
    while numbers := _missing(study, num_trials)[:batch_size]:
        trials, jobs = [], []
        for number in _neighbours(numbers):
            study.sampler = sampler(seed=1000 * seed + number)  # so that it proposes the same whenever it is asked
            trials.append(_trial(study, number))
            jobs.append([_word(override, trials[-1]) for override in settings.values()])
        for trial, job in zip(trials, launcher.launch(jobs, numbers[0]), strict=True):
            try:
                study.tell(trial, job.return_value)
            except Exception as fault:
                study.tell(trial, state=TrialState.FAIL)
                faults.append(fault)
    if faults:
        raise faults[0]


def _open(folder: Path, settings: dict[str, str]) -> optuna.Study:
    """The study that is kept in `folder`."""
    optuna.logging.set_verbosity(logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    folder.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(storage=f"sqlite:///{folder / 'study.db'}", study_name="study", load_if_exists=True)
    refuse_changes(folder, study.user_attrs.get("settings", settings), settings)
    study.set_user_attr("settings", settings)
    return study


def _missing(study: optuna.Study, num_trials: int) -> list[int]:
    """The numbers of trials that were cut off, and of those that were never begun."""
    trials = study.trials
    cut_off = [trial.number for trial in trials if not trial.state.is_finished()]
    return cut_off + list(range(len(trials), num_trials))


def _neighbours(numbers: list[int]) -> list[int]:
    """Those at the beginning that follow each other, as the numbers of jobs that are launched together."""
    return [number for index, number in enumerate(numbers) if number == numbers[0] + index]


def _trial(study: optuna.Study, number: int) -> Trial:
    """A trial that was begun, with what it proposed, or the next one."""
    trials = study.trials
    return Trial(study, trials[number]._trial_id) if number < len(trials) else study.ask()


def _word(override: Override, trial: Trial) -> str:
    """A job's setting: as given, or as the trial proposes it."""
    name, sweep = override.key_or_group, override.value()
    if override.is_discrete_sweep():
        value = trial.suggest_categorical(name, list(override.sweep_string_iterator()))
    elif isinstance(sweep, IntervalSweep):
        low, high, log = sweep.start, sweep.end, "log" in sweep.tags
        assert low is not None and high is not None  # Hydra's parser sees to it
        if isinstance(low, int) and isinstance(high, int):
            value = trial.suggest_int(name, low, high, log=log)
        else:
            value = trial.suggest_float(name, low, high, log=log)
    else:
        value = override.get_value_element_as_str()
    return f"{override.get_key_element()}={value}"
