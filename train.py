"""One training run: a codec, or the prior of one of its levels. `python train.py --help` tells how."""

import sys
from contextlib import ExitStack
from pathlib import Path

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning_fabric.plugins.environments import SLURMEnvironment
from omegaconf import DictConfig, OmegaConf

from jukebox_lite import config
from jukebox_lite.errors import InputError, one_line
from jukebox_lite.training import processes, run
from jukebox_lite.training.meter import TrainingDiverged


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> float:
    """Returns the best validation score, so that sweepers can compare runs."""
    try:
        return train(cfg, Path(HydraConfig.get().runtime.output_dir))
    except (InputError, TrainingDiverged, OSError) as error:
        shared = not isinstance(error, OSError)  # by all of a run's processes, and one tells it
        if shared and not processes.is_first():
            raise SystemExit(0) from None
        print(f"error: {one_line(error)}", file=sys.stderr)
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            return float("inf")  # the sweep's other jobs go on
        raise SystemExit(1) from None


def train(cfg: DictConfig, folder: Path) -> float:
    """Compose, check, build, fit."""
    config.check(cfg, config.TrainConfig)
    if not cfg.trainer.dry_run:
        run.open_run(folder, OmegaConf.to_yaml(cfg, resolve=True))
    if cfg.seed < 0:
        raise InputError(f"seed={cfg.seed}: give 0 or more")
    if HydraConfig.get().mode == RunMode.MULTIRUN and cfg.trainer.devices > 1 and not SLURMEnvironment.detect():
        raise InputError("trainer.devices: a sweep's jobs run on one device each, but for launcher=slurm")
    trainer = config.build(cfg.trainer)  # how
    start = config.build(cfg.start)  # with whose weights
    torch.manual_seed(cfg.seed)
    folder = trainer.fabric.broadcast(folder)
    with trainer.agreement():
        task = config.build(cfg.task)  # what is learnt, and from what
        begun = start.begin(task, folder)
    if trainer.dry_run:
        print(*trainer.rehearse(task, cfg.seed), sep="\n")
        return float("inf")  # no score
    told = {"fingerprints": task.fingerprints, **begun}
    processes.check_same(trainer.fabric, told)
    with ExitStack() as held:
        with trainer.agreement():
            held.enter_context(run.alone(folder))
            run.save_vocabulary(folder, task.vocabulary)
            run.record_start(folder, run.provenance(cfg.seed, Path(__file__).parent) | told)
        return trainer.fit(task, folder, cfg.seed)


if __name__ == "__main__":
    config.launch(main)
