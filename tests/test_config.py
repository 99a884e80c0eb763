"""Every experiment fits the code, and a config that does not is refused by name before anything is built."""

import errno
import os
import shutil
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.writer import SummaryWriter

from jukebox_lite import config
from jukebox_lite.levels import Facts, Level, Window
from jukebox_lite.priors.base import Sampler
from jukebox_lite.training.load import load_codec

CONF = Path(__file__).parents[1] / "conf"
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
TOLD = {name: ["codec.run=runs/vqvae", "task.level=top"] for name in ("prior", "prior_jukebox")}
TOLD |= {"demo_prior": ["task.level=top"]}


def composed(*overrides: str, name: str = "train", folder: Path = CONF) -> DictConfig:
    with initialize_config_dir(str(folder), version_base="1.3"):
        return compose(name, list(overrides))


def experiment(name: str, *overrides: str) -> DictConfig:
    return composed(f"experiment={name}", *TOLD.get(name, []), *overrides)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_fits_the_code(name: str):
    """What people run composes, resolves and matches the signatures it names."""
    cfg = experiment(name)
    if OmegaConf.is_missing(cfg.data, "root"):
        cfg.data.root = "music"
    config.check(cfg, config.TrainConfig)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_tells_its_command(name: str):
    """An experiment opens with a comment that holds the command to run it."""
    head = (CONF / "experiment" / f"{name}.yaml").read_text().splitlines()[1:6]
    assert any(f"python train.py experiment={name}" in line for line in head)


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "quantizer").glob("*.yaml")))
def test_every_quantizer_is_one_word(name: str):
    """Of experiment=vqvae; what the file says is what the class takes, and it can be built for a latent."""
    cfg = experiment("vqvae", "data.root=music", f"quantizer={name}")
    config.check(cfg, config.TrainConfig)
    assert config.build(cfg.quantizer)(dim=16).vectors().shape[-1] == 16


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "pattern").glob("*.yaml")))
def test_every_pattern_is_one_word(name: str):
    """Of experiment=prior; it can be built as it stands."""
    cfg = experiment("prior", "data.root=music", f"pattern={name}")
    config.check(cfg, config.TrainConfig)
    assert config.build(cfg.prior.pattern, config.ROOMS).length(1, 5) == 5


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "mixer").glob("*.yaml")))
def test_every_mixer_is_one_word(name: str):
    """Of experiment=prior; a prior of two layers or more can be built of it, and says what it is given."""
    cfg = experiment("prior", "data.root=music", f"mixer={name}", "prior.dim=16", "prior.depth=4")
    config.check(cfg, config.TrainConfig)
    prior = config.build(cfg.prior)(facts=Facts(Level("top", 5, 1, 16)), conditioners={})
    given = torch.randint(5, (2, 1, 40), generator=torch.Generator().manual_seed(0))
    sampled = prior.sample(Window({"top": given}), Sampler(), torch.rand(2, 1, 70))
    assert torch.equal(sampled[..., :40], given) and sampled.shape == (2, 1, 70)


def test_sampling_fits_the_code():
    """conf/sample.yaml matches its schema once the priors are named."""
    config.check(composed("priors=[runs/top]", name="sample"), config.SampleConfig)


@pytest.mark.parametrize(
    "overrides, complaint",
    [
        (["+codec.dimm=3"], "codec: HierarchicalVQVAE takes no 'dimm'; it takes sample_rate"),
        (["+codec.dimm=3", "+trainer.max_step=1"], "no 'dimm'.*no 'max_step'"),
        (["codec.dim=wide"], "codec: 'dim' should be int, not 'wide'"),
        (["codec.strides.top=[x]"], "'strides' should be dict"),
        (["trainer.compile=3"], "'compile' should be bool, not 3"),
        (["~codec.dim"], "codec: HierarchicalVQVAE needs 'dim'"),
        (["+nmae=typo"], "the config takes no 'nmae'"),
        (["seed=many"], "'seed' should be int"),
        (["codec._target_=os.system"], "codec._target_=os.system is not allowed"),
        (["codec._target_=jukebox_lite.codecs.vqvae.Nothing"], "does not exist"),
        (["codec._target_=jukebox_lite.files.os.system"], "jukebox_lite.files.os.system is not allowed"),
        (["codec._target_=jukebox_lite.datasets.songs.os.remove"], "songs.os.remove is not allowed"),
        (["codec._target_=jukebox_lite.files.remove"], "jukebox_lite.files.remove is not allowed"),
        (["codec._target_=jukebox_lite.datasets.chorales.prepare_chorales"], "prepare_chorales is not allowed"),
        (["optimizer._target_=torch.hub.load"], "optimizer._target_=torch.hub.load is not allowed"),
        (["codec.dim=${nowhere}"], "does not resolve"),
    ],
)
def test_misfits_are_named(overrides: list[str], complaint: str):
    """Each misfit is one line that names the place and says what would fit."""
    with pytest.raises(config.ConfigError, match=complaint) as caught:
        config.check(composed("data.root=music", *overrides), config.TrainConfig)
    assert "\n" not in str(caught.value)


def test_a_missing_setting_is_named():
    """A ??? that nobody filled in is told with its path."""
    with pytest.raises(config.ConfigError, match="data: 'root' is not set"):
        config.check(composed("experiment=vqvae"), config.TrainConfig)


def test_a_misspelt_key_inside_an_experiment_file_is_named(tmp_path: Path):
    """Hydra itself accepts any key in a file; the check does not."""
    shutil.copytree(CONF, tmp_path / "conf")
    (tmp_path / "conf/experiment/mine.yaml").write_text("# @package _global_\ntrainer: { max_stepz: 3 }\ncodek: {}\n")
    cfg = composed("experiment=mine", "data.root=music", folder=tmp_path / "conf")
    with pytest.raises(config.ConfigError, match="takes no 'codek'.*takes no 'max_stepz'"):
        config.check(cfg, config.TrainConfig)


def test_build_refuses_what_check_would():
    """A foreign target is not run even where nobody called check, however deep it lies."""
    cfg = OmegaConf.create({"_target_": "jukebox_lite.losses.WaveformL2", "power_floor": {"_target_": "os.system"}})
    with pytest.raises(config.ConfigError, match="power_floor._target_=os.system is not allowed"):
        config.build(cfg)


def test_the_run_of_another_version_is_named(tmp_path: Path):
    """Loading a run whose quantizer had a setting that is gone was a TypeError with its traceback."""
    cfg = experiment("vqvae", "data.root=music")
    OmegaConf.update(cfg, "quantizer.norm_decay", 0.9, force_add=True)
    OmegaConf.save(cfg, tmp_path / "config.yaml", resolve=True)
    with pytest.raises(config.InputError, match="another version.* quantizer: VQ takes no 'norm_decay'; it takes dim"):
        load_codec(str(tmp_path))


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [", "!!python/object/apply:os.system ['true']\n", "\x00"])
def test_a_hostile_config_file_is_refused(tmp_path: Path, text: str):
    """A run's config.yaml is somebody else's file: whatever is in it gives one line and runs nothing."""
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(config.InputError) as caught:
        config.read(tmp_path / "config.yaml")
    assert "\n" not in str(caught.value)


def test_a_runs_config_builds_models_only():
    """What sample.py loads may name codecs and priors; a data set, which would write a folder, is refused there."""
    target = "jukebox_lite.datasets.chorales.Chorales"
    cfg = OmegaConf.create({"_target_": target, "root": "x", "rendered": "x"})
    with pytest.raises(config.ConfigError, match="Chorales is not allowed"):
        config.build(cfg, config.ROOMS)


def test_of_the_threads_only_tensorboards_ends_without_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Over a full disk: it tells who closes it. With it every other thread's OSError was silenced."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def main() -> None:
        with suppress(OSError):
            SummaryWriter(str(tmp_path)).close()
        assert not capsys.readouterr().err
        other = threading.Thread(target=refuse, name="other")
        other.start()
        other.join()

    monkeypatch.setattr(threading, "excepthook", threading.excepthook)  # which launch sets
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setattr(RecordWriter, "write", refuse)
    config.launch(main)
    said = capsys.readouterr().err
    assert "Exception in thread other" in said and "No space left" in said
