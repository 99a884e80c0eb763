"""From a composed Hydra config to objects. Only the entry points, this file and the reader of runs see a config.

A `_target_` names a class; the class's own signature is the only schema. `check` compares the whole tree with those
signatures before anything is built, so a misspelt key, a wrong type or a foreign target fails in a second, with its
full path.
"""

import inspect
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra.utils
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from jukebox_lite.errors import InputError

# A config may be part of somebody else's checkpoint: it is data, and may build only what is listed here.
TRUSTED = ("jukebox_lite.", "torch.optim.")
RESERVED = {"_target_", "_partial_", "_recursive_", "_convert_"}


class ConfigError(InputError):
    """The config does not fit the code it names."""


@dataclass(frozen=True)
class TrainConfig:
    """The keys of conf/train.yaml: the groups, and what is said once for the whole run."""

    task: dict
    trainer: dict
    name: str
    runs: str
    cache: str
    seed: int
    codec: dict
    quantizer: dict
    loss: dict
    prior: dict
    mixer: dict
    conditioner: dict
    data: dict
    windows: dict
    optimizer: dict
    schedule: dict
    tracker: dict


@dataclass(frozen=True)
class SampleConfig:
    """The keys of conf/sample.yaml."""

    priors: list[str]
    seconds: float
    num_songs: int
    labels: dict
    given: dict
    sampler: dict
    overlap: float | dict[str, float]
    beside: str | None
    seed: int
    name: str
    runs: str


def build(node: DictConfig, **given: Any) -> Any:
    """Instantiate `node` and everything under it; refuse targets outside `TRUSTED`."""
    for path, part in _targets(OmegaConf.to_container(node, resolve=True)):
        _refuse_untrusted(path, part["_target_"])
    return hydra.utils.instantiate(node, _convert_="all", **given)


def check(cfg: DictConfig, schema: type) -> None:
    """Raise `ConfigError` naming every place where `cfg` does not fit the code; `schema` lists the top-level keys."""
    try:
        tree = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"the config does not resolve: {str(error).splitlines()[0]}") from error
    where: dict[str, str] = {}  # a fault reached by interpolation is told once, at its source
    for fault in _misfits(tree, inspect.signature(schema), typing.get_type_hints(schema), "the config"):
        where.setdefault(fault, "")
    for path, node in _targets(tree):
        for fault in _faults_of(path, node):
            where.setdefault(fault, f"{path}: ")
    if where:
        raise ConfigError("the config does not fit the code: " + "; ".join(f"{p}{f}" for f, p in where.items()))


def read(path: Path) -> DictConfig:
    """The config that a run left behind; raises InputError when it is missing or not a mapping."""
    try:
        cfg = OmegaConf.load(path)
    except FileNotFoundError:
        raise InputError(f"{path.parent} is no run: it has no {path.name}; give the folder of a trained run") from None
    except Exception as error:  # whatever a YAML parser may say of somebody else's file
        raise InputError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(cfg, DictConfig):
        raise InputError(f"{path} should hold a mapping of settings")
    return cfg


def _targets(node: Any, path: str = "") -> Iterator[tuple[str, dict]]:
    """Every mapping with a `_target_` under a plain `node`, with its dotted path."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield path or "the config", node
        for key, child in node.items():
            yield from _targets(child, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list):
        for index, child in enumerate(node):
            yield from _targets(child, f"{path}[{index}]")


def _refuse_untrusted(path: str, target: Any) -> None:
    if not isinstance(target, str) or not target.startswith(TRUSTED):
        raise ConfigError(f"{path}._target_={target} is not allowed: a config builds only {', '.join(TRUSTED)}*")


def _faults_of(path: str, node: dict) -> Iterator[str]:
    _refuse_untrusted(path, node["_target_"])
    try:
        target = hydra.utils.get_object(node["_target_"])
    except Exception as error:  # Hydra raises several kinds
        raise ConfigError(f"{path}._target_={node['_target_']} does not exist") from error
    signature = inspect.signature(target)
    hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    yield from _misfits(node, signature, hints, node["_target_"].rsplit(".", 1)[-1], bool(node.get("_partial_")))


def _misfits(
    node: dict, signature: inspect.Signature, hints: dict[str, Any], owner: str, partial: bool = False
) -> Iterator[str]:
    """Keys of `node` that `signature` has no place for, values of the wrong type, and what is missing."""
    parameters = signature.parameters
    for key in sorted(node.keys() - RESERVED, key=str):
        if key not in parameters:
            yield f"{owner} takes no '{key}'; it takes {', '.join(parameters)}"
        elif node[key] == "???":
            yield f"'{key}' is not set"
        elif not _fits(node[key], hints.get(key, Any)):
            yield f"'{key}' should be {_name(hints[key])}, not {_shown(node[key])}"
    if not partial:
        for key, parameter in parameters.items():
            if parameter.default is parameter.empty and key not in node:
                yield f"{owner} needs '{key}'"


def _name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint).replace("typing.", "")


def _shown(value: Any) -> str:
    return repr(value) if len(repr(value)) < 60 else f"{repr(value)[:57]}..."


def _fits(value: Any, hint: Any) -> bool:
    """Whether a plain config value may stand where `hint` is asked for."""
    if isinstance(value, dict) and "_target_" in value:
        return hint not in (int, float, bool, str)  # an object in waiting
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, arg) for arg in args)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (str, bool, dict, list, type(None)):
        return isinstance(value, hint)
    if origin in (list, tuple):
        return isinstance(value, list) and all(_fits(item, args[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(k, args[0]) and _fits(v, args[1]) for k, v in value.items())
    return hint is Any or hint is inspect.Parameter.empty or isinstance(value, dict | list)
