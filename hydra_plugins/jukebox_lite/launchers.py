"""Jobs of a sweep on Ray, and a launcher that outlives its jobs. Optional packages are imported when they are used."""

import importlib.util
import sys
from collections.abc import Sequence
from typing import Any, cast

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from jukebox_lite.errors import InputError

_DEATHS = {"BrokenExecutor", "RayError", "UncompletedJobError"}  # how joblib, Ray and submitit tell that a job died


class RayLauncher(Launcher):
    """Every job is a Ray task, here or on a cluster; a task whose process dies is started again, and its run resumes.

    `init` are the arguments of ray.init, `remote` those of ray.remote: what one job needs. (hydra-ray-launcher does the
    same, but needs cloudpickle 2, which joblib refuses.)
    """

    def __init__(self, init: DictConfig, remote: DictConfig) -> None:
        self._init = cast(dict[str, Any], OmegaConf.to_container(init, resolve=True))
        self._remote = cast(dict[str, Any], OmegaConf.to_container(remote, resolve=True))

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called once by Hydra, before `launch`. Raises InputError where Ray is not installed."""
        if importlib.util.find_spec("ray") is None:
            raise InputError("launcher=ray: Ray is not installed: pip install -c constraints.txt -e '.[ray]'")
        self._given = (hydra_context, config, task_function)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """What the jobs returned, in their order."""
        import ray
        from hydra_plugins.hydra_joblib_launcher._core import execute_job

        ray.init(**self._init, ignore_reinit_error=True)
        job = ray.remote(**self._remote)(execute_job)
        state = Singleton.get_state()
        return ray.get(
            [job.remote(initial_job_idx + i, words, *self._given, state) for i, words in enumerate(job_overrides)]
        )


class Sturdy(Launcher):
    """Launches as `launcher` does; where a job's death takes all of them along, each is launched again alone.

    Those that were done return at once, the others resume; the one that dies again scores infinity. Raises InputError
    where no job can be launched.
    """

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher

    def setup(self, **given: Any) -> None:
        """Nothing: `launcher` is set up."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """What the jobs returned, in their order."""
        try:
            return self._launcher.launch(job_overrides, initial_job_idx=initial_job_idx)
        except Exception as error:  # of the launcher: what a job raises is in its JobReturn
            told = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            if not _DEATHS & {kind.__name__ for kind in type(error).__mro__}:
                if isinstance(error, RuntimeError | OSError):  # no Slurm here, no cluster there
                    raise InputError(f"the jobs could not be launched: {told}") from error
                raise
            if len(job_overrides) > 1:
                return [self.launch([words], initial_job_idx + i)[0] for i, words in enumerate(job_overrides)]
            print(f"error: job {initial_job_idx}: {told}", file=sys.stderr)
            return [JobReturn(overrides=job_overrides[0], status=JobStatus.COMPLETED, _return_value=float("inf"))]
