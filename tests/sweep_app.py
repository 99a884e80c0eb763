"""A command that Hydra launches, as train.py without PyTorch. Its job returns x squared; job `fatal` is killed once."""

import os
import time
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from jukebox_lite import config


@hydra.main(version_base="1.3", config_path=None, config_name="app")
def main(cfg: DictConfig) -> float:
    """Notes each start in the job's folder."""
    number = HydraConfig.get().job.num
    starts = Path(HydraConfig.get().runtime.output_dir) / "starts"
    with starts.open("a") as file:
        file.write(f"{os.getpid()}\n")
    if number == cfg.fatal and len(starts.read_text().splitlines()) <= cfg.kills:
        os.kill(os.getpid(), cfg.signal)
        time.sleep(60)
    return float(cfg.x) ** 2


if __name__ == "__main__":
    config.launch(main)
