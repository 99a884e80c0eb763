"""New music from finished runs. `python sample.py --help` tells how."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from jukebox_lite import config
from jukebox_lite.codecs.base import Codec
from jukebox_lite.datasets.code_cache import codec_fingerprint
from jukebox_lite.errors import InputError
from jukebox_lite.files import write_text
from jukebox_lite.generation.complete import complete
from jukebox_lite.generation.report import Section, write_comparison
from jukebox_lite.generation.songs import encode_given, read_codes, real_section, steps_for, write_songs
from jukebox_lite.levels import Codes
from jukebox_lite.priors.base import Prior
from jukebox_lite.priors.stepwise import for_sampling
from jukebox_lite.training.load import load_prior


@hydra.main(version_base="1.3", config_path="conf", config_name="sample")
def main(cfg: DictConfig) -> None:
    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        page = sample(cfg, folder)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    print(f"listen: {page}")
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        print(f"compare: {write_comparison(folder.parent, folder)}")


def sample(cfg: DictConfig, folder: Path) -> Path:
    """Load the priors, complete the codes, write audio and a page; returns the page."""
    config.check(cfg, config.SampleConfig)
    settings = OmegaConf.to_yaml(cfg, resolve=True)
    if (folder / "provenance.json").exists():
        raise InputError(f"name={cfg.name}: {folder} is a training run; give another name")
    priors, codec, fingerprint = load(cfg.priors)
    priors = [for_sampling(prior, cfg.precision, cfg.compile) for prior in priors]
    beside = [real_section(codec, Path(cfg.beside), cfg.seconds)] if cfg.beside else []
    labels = {str(name): values_of(values) for name, values in cfg.labels.items()}
    took: dict[str, float] = {}
    codes = complete(
        codec,
        priors,
        steps_for(codec, cfg.seconds),
        labels,
        config.build(cfg.sampler)(codec.levels),
        seed=cfg.seed,
        num_songs=cfg.num_songs,
        given=gift(cfg.given, codec, fingerprint),
        overlap=OmegaConf.to_object(cfg.overlap) if isinstance(cfg.overlap, DictConfig) else cfg.overlap,
        total_seconds=cfg.total_seconds,
        on_level=took.__setitem__,
    )
    songs = [about(index, labels) for index in range(cfg.num_songs)]
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.yaml", settings)
    return write_songs(folder, codec, codes, fingerprint, songs, settings, beside, took)


def load(runs: list[str]) -> tuple[list[Prior], Codec, str]:
    """The priors of `runs` on this machine's accelerator, the codec they share, and its fingerprint."""
    loaded = [load_prior(run) for run in runs]
    if not loaded:
        raise InputError("priors=[]: expected the folder of at least one trained prior, such as priors=[runs/top]")
    fingerprints = [codec_fingerprint(codec) for _, codec in loaded]
    for run, fingerprint in zip(runs, fingerprints, strict=True):
        if fingerprint != fingerprints[0]:
            raise InputError(f"priors: {runs[0]} and {run} were trained on different codecs; give priors of one codec")
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    return [prior.to(device) for prior, _ in loaded], loaded[0][1].to(device), fingerprints[0]


def gift(given: DictConfig, codec: Codec, fingerprint: str) -> Codes | None:
    """The codes to begin with: those of an audio file, or saved ones."""
    if given.audio and given.codes:
        raise InputError("given.audio and given.codes: expected one of them")
    if given.audio:
        return encode_given(codec, Path(given.audio), given.audio_seconds)
    if given.codes:
        codes = read_codes(Path(given.codes), codec, fingerprint)
        names = list(given.levels or codes)
        if missing := [name for name in names if name not in codes]:
            raise InputError(f"given.levels: {given.codes} has no level {missing[0]}; it has {', '.join(codes)}")
        return {name: codes[name] for name in names}
    return None


def values_of(values: Any) -> list[str]:
    """A label's setting as a list of text: one value, or one a song."""
    return [str(value) for value in values] if OmegaConf.is_list(values) else [str(values)]


def about(index: int, labels: Mapping[str, list[str]]) -> Section:
    """What the page tells of a song: its number and labels."""
    own = {name: values[index % len(values)] for name, values in labels.items() if values}
    return Section(f"Song {index + 1}: {', '.join(own.values())}" if own else f"Song {index + 1}", labels=own)


if __name__ == "__main__":
    config.launch(main)
