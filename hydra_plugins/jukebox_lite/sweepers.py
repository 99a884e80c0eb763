"""Grids and searches whose jobs may die, and whose same command goes on where it was cut off."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from hydra_plugins.jukebox_lite.launchers import Sturdy


class Grid(BasicSweeper):
    """Hydra's own sweeper: every combination of what is swept; a job that dies does not take the others along."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called once by Hydra, before `sweep`."""
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        assert self.launcher is not None
        self.launcher = Sturdy(self.launcher)


class Search(Sweeper):
    """Lets Optuna choose the settings of `num_trials` jobs, `batch_size` at a time, for the lowest score.

    `params` says what is searched, in Hydra's words, as do settings on the command line: choice(16,32),
    interval(0,0.3), int(interval(1,6)), tag(log,interval(1e-4,1e-2)). `sampler(seed=...)` makes one of optuna.samplers.

    The trials are kept in study.db in the sweep's folder; a job's number is its trial's. When the same command comes
    again, trials that were cut off are launched first, and their runs resume; finished ones are not repeated. More
    `num_trials` than before go on with the search.
    """

    def __init__(
        self, sampler: Callable[..., Any], num_trials: int, batch_size: int, seed: int, params: DictConfig | None = None
    ) -> None:
        self._how = {"sampler": sampler, "num_trials": num_trials, "batch_size": batch_size, "seed": seed}
        self._params = dict(params or {})

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called once by Hydra, before `sweep`."""
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        self._launcher = Sturdy(launcher)
        self._parser = OverridesParser.create(config_loader=hydra_context.config_loader)
        self._folder = Path(config.hydra.sweep.dir)

    def sweep(self, arguments: list[str]) -> None:
        """Launches what the study is missing; `arguments` are the settings on the command line."""
        from hydra_plugins.jukebox_lite._study import search  # only here, since it needs Optuna

        words = [*(f"{name}={value}" for name, value in self._params.items()), *arguments]
        search(self._folder, self._launcher, self._parser.parse_overrides(words), **self._how)
