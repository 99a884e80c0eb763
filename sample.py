"""New music from finished runs. `python sample.py --help` tells how."""

import sys
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from jukebox_lite import config
from jukebox_lite.codecs.base import Codec
from jukebox_lite.datasets.code_cache import codec_fingerprint
from jukebox_lite.errors import InputError, one_line
from jukebox_lite.files import clean, write_text
from jukebox_lite.generation.complete import complete
from jukebox_lite.generation.filling import Cost
from jukebox_lite.generation.journal import Journal, fingerprint_of
from jukebox_lite.generation.report import Lyrics, Section, write_comparison
from jukebox_lite.generation.songs import encode_given, read_codes, real_section, steps_for, write_songs
from jukebox_lite.levels import Codes
from jukebox_lite.lyrics import read_lyrics
from jukebox_lite.priors.base import Prior
from jukebox_lite.priors.stepwise import for_sampling
from jukebox_lite.progress import LINE_SECONDS
from jukebox_lite.training.load import load_priors


@hydra.main(version_base="1.3", config_path="conf", config_name="sample")
def main(cfg: DictConfig) -> None:
    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        page = sample(cfg, folder)
        print(f"listen: {page}")
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            print(f"compare: {write_comparison(folder.parent, folder)}")
    except (InputError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        raise SystemExit(1) from None


def sample(cfg: DictConfig, folder: Path) -> Path:
    """Load the priors, complete the codes, write audio and a page; returns the page."""
    config.check(cfg, config.SampleConfig)
    settings = OmegaConf.to_yaml(cfg, resolve=True)
    if (folder / "provenance.json").exists():
        raise InputError(f"name={cfg.name}: {folder} is a training run; give another name")
    if not cfg.priors:
        raise InputError("priors=[]: expected the folder of at least one trained prior, such as priors=[runs/top]")
    priors, codec = load_priors(*cfg.priors)
    fingerprint = codec_fingerprint(codec)
    given = gift(cfg.given, codec, fingerprint)
    beside = [real_section(codec, Path(cfg.beside), cfg.seconds)] if cfg.beside else []
    labels = {str(name): values_of(values) for name, values in cfg.labels.items()}
    lyrics = [] if cfg.lyrics is None else [text_of(value) for value in values_of(cfg.lyrics)]
    took: dict[str, float] = {}
    with Journal(folder / "journal", facts(cfg, codec, priors, given) | {"lyrics": lyrics}) as journal:
        codes = complete(
            codec,
            [for_sampling(prior, cfg.precision, cfg.compile) for prior in priors],
            steps_for(codec, cfg.seconds),
            labels,
            config.build(cfg.sampler)(codec.levels),
            seed=cfg.seed,
            num_songs=cfg.num_songs,
            given=given,
            overlap=OmegaConf.to_object(cfg.overlap) if isinstance(cfg.overlap, DictConfig) else cfg.overlap,
            total_seconds=cfg.total_seconds,
            lyrics=lyrics,
            order=config.build(cfg.windows),
            journal=journal,
            tell=tell,
            on_level=took.__setitem__,
        )
        clean(folder)
        songs = [about(index, labels, lyrics) for index in range(cfg.num_songs)]
        write_text(folder / "config.yaml", settings)
        page = write_songs(folder, codec, codes, fingerprint, songs, settings, beside, took)
        journal.remove()  # a kill before this line reads all codes once more, and writes the page anew
    return page


def facts(cfg: DictConfig, codec: Codec, priors: Sequence[Prior], given: Codes | None) -> dict[str, Any]:
    """All that the sampled codes follow from."""
    told = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(told, dict)
    settings = {str(name): value for name, value in told.items() if name not in ("name", "runs", "beside")}
    weights = {prior.facts.level.name: fingerprint_of(prior.state_dict()) for prior in priors}
    return settings | {
        "fingerprints": {"codec": codec_fingerprint(codec), "given": fingerprint_of(given or {}), "priors": weights}
    }


def tell(costs: Mapping[str, Cost]) -> None:
    """Prints what sampling will take, where it takes long."""
    if (seconds := sum(cost.seconds for cost in costs.values())) < LINE_SECONDS:
        return
    levels = ", ".join(f"{name} {duration(cost.seconds)}" for name, cost in costs.items())
    memory = max(cost.num_bytes for cost in costs.values())
    told = f"sampling: about {duration(seconds)} ({levels}) and {memory / 2**30:.2g} GiB beside the weights"
    print(told, file=sys.stderr)


def duration(seconds: float) -> str:
    """12 s, or 0:03:20."""
    return f"{seconds:.0f} s" if seconds < 100 else str(timedelta(seconds=round(seconds)))


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
    """A setting of labels or lyrics as a list of text: one value, or one a song."""
    return [str(value) for value in values] if OmegaConf.is_list(values) else [str(values)]


def about(index: int, labels: Mapping[str, list[str]], lyrics: Sequence[str]) -> Section:
    """What the page tells of a song: its number, labels and lyrics."""
    own = {name: values[index % len(values)] for name, values in labels.items() if values}
    title = f"Song {index + 1}: {', '.join(own.values())}" if own else f"Song {index + 1}"
    return Section(title, labels=own, lyrics=Lyrics(lyrics[index % len(lyrics)]) if lyrics else None)


def text_of(lyrics: str) -> str:
    """The text that is to be sung: of a .txt, or given as it is."""
    if not lyrics.endswith(".txt"):
        return lyrics
    try:
        return read_lyrics(Path(lyrics))
    except InputError as error:
        raise InputError(f"lyrics={lyrics}: {error}") from error


if __name__ == "__main__":
    config.launch(main)
