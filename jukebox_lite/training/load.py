"""What a finished run learnt, rebuilt from config, vocabulary and checkpoint; a prior also names its codec's run."""

from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from jukebox_lite import config
from jukebox_lite.codecs.base import Codec
from jukebox_lite.datasets.code_cache import codec_fingerprint
from jukebox_lite.errors import InputError
from jukebox_lite.levels import LYRICS
from jukebox_lite.priors.base import Prior
from jukebox_lite.training import checkpoint
from jukebox_lite.training.run import read_fingerprints, read_vocabulary

Model = TypeVar("Model", bound=nn.Module)


def load_codec(run: str) -> Codec:
    """The codec a run learnt, frozen, with the averaged weights of its latest checkpoint, or of one given by path."""
    folder, chosen = Path(run), None
    if folder.parent.name == "checkpoints":
        folder, chosen = folder.parents[1], folder
    cfg = config.read(folder / "config.yaml")
    if not _target(cfg, "task").endswith("CodecTask"):
        raise InputError(f"{run} trained no codec: give the run of a codec, such as one of experiment=vqvae")
    codec = _built(run, cfg, "codec", Codec)
    _fill(codec, "codec", folder, chosen)
    return codec


def load_prior(run: str) -> tuple[Prior, Codec]:
    """The prior a run learnt, frozen, and the codec whose codes it models."""
    cfg = config.read(Path(run) / "config.yaml")
    if not _target(cfg, "task").endswith("PriorTask"):
        raise InputError(f"{run} trained no prior: give runs of experiment=prior")
    codec = _built(run, cfg, "codec", Codec)
    if read_fingerprints(Path(run)).get("codec", codec_fingerprint(codec)) != codec_fingerprint(codec):
        raise InputError(
            f"{run} learnt codes that its codec {cfg.codec.get('run', '')} no longer writes: the codec was trained "
            "further, or replaced; train the prior again under another name"
        )
    labels = read_vocabulary(Path(run))
    characters = labels.pop(LYRICS, [])
    facts = codec.facts(str(cfg.task.get("level")), labels, characters)
    prior = _built(run, cfg, "prior", Prior, facts=facts)
    _fill(prior, "prior", Path(run))
    return prior, codec


def load_priors(*runs: str) -> tuple[list[Prior], Codec]:
    """The priors that these runs learnt, and the codec they share, on this machine's accelerator where it has one."""
    loaded = [load_prior(run) for run in runs]
    fingerprints = [codec_fingerprint(codec) for _, codec in loaded]
    for run, fingerprint in zip(runs, fingerprints, strict=True):
        if fingerprint != fingerprints[0]:
            raise InputError(f"priors: {runs[0]} and {run} were trained on different codecs; give priors of one codec")
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    return [prior.to(device) for prior, _ in loaded], loaded[0][1].to(device)


def _target(cfg: Any, part: str) -> str:
    """What a part of a config is, as far as it says."""
    node = cfg.get(part)
    return str(node.get("_target_")) if hasattr(node, "get") else ""


def _built(run: str, cfg: Any, part: str, kind: type[Model], **given: Any) -> Model:
    """A model as a run's config tells it, made with what is `given` to it.

    Raises InputError, whatever the code may say of somebody else's settings: they may be another version's, or damaged.
    """
    here = f"{run}/config.yaml, which another version of jukebox_lite may have written"
    try:
        model = config.build(cfg[part], config.ROOMS)
        model = model(**given) if given else model
    except config.ConfigError as error:
        raise InputError(f"{here}: {error}") from None
    except InputError:
        raise
    except Exception as error:
        told = " ".join(str(error).split())
        raise InputError(f"{here}: no {part} can be made of it: {type(error).__name__}: {told:.300}") from error
    if not isinstance(model, kind):
        raise InputError(f"{here}: {part} is no {kind.__name__.lower()}")
    return model


def _fill(model: nn.Module, name: str, run: Path, chosen: Path | None = None) -> None:
    """Loads the averaged weights of a run's latest whole checkpoint, or the `chosen`, into `model`, and freezes it."""
    if chosen is not None:
        checkpoint.verify(chosen)
    path = chosen or checkpoint.latest(run)
    if path is None:
        raise InputError(f"{run} has no finished checkpoint yet: train it first, or wait for its first checkpoint")
    weights: dict[str, Tensor] = checkpoint.read_weights(path, name)
    wanted = model.state_dict()
    if misfits := sorted(
        key
        for key in wanted.keys() | weights.keys()
        if key not in wanted or key not in weights or wanted[key].shape != weights[key].shape
    ):
        raise InputError(f"{path} does not fit {run}/config.yaml: {len(misfits)} tensors differ, first {misfits[0]}")
    if broken := [key for key, tensor in weights.items() if not tensor.isfinite().all()]:
        raise InputError(f"{path}: {broken[0]} is not finite; give another checkpoint, or train again")
    model.load_state_dict(weights)
    model.eval().requires_grad_(False)
