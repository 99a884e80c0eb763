"""From a composed Hydra config to objects. Only the entry points, this file and the reader of runs see a config.

A `_target_` names a class; the class's own signature is the only schema. `check` compares the whole tree with those
signatures before anything is built, so a misspelt key, a wrong type or a foreign target fails in a second, with its
full path.
"""

import difflib
import inspect
import os
import re
import sys
import threading
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any

import hydra.utils
from hydra.errors import HydraException, InstantiationException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from jukebox_lite.errors import InputError, one_line
from jukebox_lite.settings import leaves, read_settings

# A config may be part of somebody else's checkpoint: it is data. It may build the classes of these rooms and call these
# functions, and nothing else, whatever path leads to it.
ROOMS = ("jukebox_lite.codecs.", "jukebox_lite.nn.", "jukebox_lite.priors.", "torch.optim.")
TRUSTED = (
    *ROOMS,
    "jukebox_lite.losses.",
    "jukebox_lite.datasets.",
    "jukebox_lite.generation.windows.",
    "jukebox_lite.tasks.",
    "jukebox_lite.training.start.",
    "jukebox_lite.training.trainer.",
    "jukebox_lite.training.tracking.",
    "jukebox_lite.training.pruning.",
    "jukebox_lite.training.optimizers.",
)
FUNCTIONS = (
    "jukebox_lite.training.load.load_codec",
    "jukebox_lite.interop.openai.vqvae.read",
    "jukebox_lite.training.schedule.constant",
    "jukebox_lite.training.schedule.warmup_cosine",
    "jukebox_lite.training.schedule.warmup_stable_decay",
    "jukebox_lite.generation.complete.samplers",
)
RESERVED = {"_target_", "_partial_", "_recursive_", "_convert_"}
_SETTING_OF_A_PART = re.compile(r"(?!hydra\.)\w+\.[\w.]+=")
_OPTIONAL = {  # what a part needs, by how Hydra names it when it is missing
    "launcher=slurm": ("slurm", "hydra/launcher/submitit_slurm"),
    "a search": ("sweeps", "optuna"),
}
_EMPTY_GROUPS = ("experiment", "launcher", "sweep", "pruner")  # of which nothing is seen in a composed config


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
    discriminator: dict
    loss: dict
    prior: dict
    mixer: dict
    conditioner: dict
    pattern: dict
    data: dict
    windows: dict
    optimizer: dict
    schedule: dict
    tracker: dict
    start: dict


@dataclass(frozen=True)
class GivenConfig:
    """What sample.py goes on from."""

    audio: str | None
    audio_seconds: float | None
    codes: str | None
    levels: list[str] | None


@dataclass(frozen=True)
class SampleConfig:
    """The keys of conf/sample.yaml."""

    priors: list[str]
    seconds: float
    num_songs: int
    labels: dict
    lyrics: str | list[str] | None
    given: GivenConfig
    sampler: dict
    precision: str
    compile: bool
    windows: dict
    overlap: float | dict[str, float]
    total_seconds: float | None
    beside: str | None
    seed: int
    name: str
    runs: str


def launch(main: Callable[[], Any]) -> None:
    """Run a command; what Hydra has to say of the settings becomes one line and exit status 1.

    `part.key=value` may set what no file mentions, as labels.genre=jazz does: Hydra knows the files only, `check` knows
    what each part takes, and judges it.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise what it would print
    threading.excepthook = _told_elsewhere
    sys.argv[1:] = [f"++{word}" if _SETTING_OF_A_PART.match(word) else word for word in sys.argv[1:]]
    try:
        main()
    except (HydraException, OmegaConfBaseException) as error:
        print(f"error: {_complaint(error)}", file=sys.stderr)
        raise SystemExit(1) from None
    except (InputError, OSError) as error:  # of a sweeper; and where it cannot make the run's folder
        print(f"error: {one_line(error)}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:  # outside of training, which saves first
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def _complaint(error: Exception) -> str:
    """Hydra's and OmegaConf's complaints, with the nearest name that does exist, or what to install."""
    first = str(error).splitlines()[0]
    for part, (extra, needed) in _OPTIONAL.items():
        if needed in f"{first} {error.__cause__}":
            return f"{part} needs a package that is not installed: pip install -c constraints.txt -e '.[{extra}]'"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        return f"{group}={name} does not exist{_nearest(name, error.options or ())}"
    if isinstance(error, OverrideParseException):
        told = error.override.removeprefix("++")
        return f"{told} cannot be read: {first}; quote odd signs twice, as in 'labels.genre=\"piano; organ\"'"
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    if isinstance(cause, ConfigAttributeError | ConfigKeyError) and isinstance(cause.parent_node, DictConfig):
        return f"there is no setting '{cause.full_key}'{_nearest(str(cause.key), [*map(str, cause.parent_node)])}"
    if missing := re.search(r"Missing mandatory value: (\S+)", str(error)):
        return f"'{missing[1]}' is not set: give {missing[1]}=..."
    return first


def _told_elsewhere(failure: threading.ExceptHookArgs) -> None:
    """Keeps quiet of a full disk that ends TensorBoard's thread: who waits for that thread hears of it."""
    of_tensorboard = type(failure.thread).__module__.startswith("tensorboard.")
    if not (of_tensorboard and issubclass(failure.exc_type, OSError)):
        threading.__excepthook__(failure)


def _nearest(name: str, known: Iterable[str]) -> str:
    """What to end a complaint about `name` with."""
    names = sorted(set(known) - {"hydra"})
    near = difflib.get_close_matches(name, [*names, *_EMPTY_GROUPS], 1)
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(names)}"


def build(node: DictConfig, within: tuple[str, ...] = TRUSTED, **given: Any) -> Any:
    """Instantiate `node` and everything under it, of classes that are defined `within` and of `FUNCTIONS`.

    Raises ConfigError where it has what they do not take, as the config of a run by another version may.
    """
    parts = list(_targets(OmegaConf.to_container(node, resolve=True)))
    targets = [_trusted(path, part["_target_"], within) for path, part in parts]
    for (path, part), target in zip(parts, targets, strict=True):
        if faults := list(_faults_of(target, {**part, "_partial_": True})):  # the rest may be `given`
            raise ConfigError(f"the config does not fit the code: {path}: {'; '.join(faults)}")
    try:
        return hydra.utils.instantiate(node, _convert_="all", **given)
    except InstantiationException as error:
        cause = error.__cause__  # Hydra wraps what a constructor raises, an InputError as well as a fault of ours
        while isinstance(cause, InstantiationException):
            cause = cause.__cause__
        raise cause or error from None


def check(cfg: DictConfig, schema: type) -> None:
    """Raise `ConfigError` naming every place where `cfg` does not fit the code; `schema` lists the top-level keys."""
    try:
        tree = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"the config does not resolve: {str(error).splitlines()[0]}") from error
    assert isinstance(tree, dict)  # as is every DictConfig that is not missing
    if ".." in Path(str(tree.get("name"))).parts:
        raise ConfigError(f"name={tree['name']}: expected a folder below runs={tree.get('runs')}")
    where: dict[str, str] = {}  # a fault reached by interpolation is told once, at its source
    hints = typing.get_type_hints(schema)
    for fault in _misfits(tree, inspect.signature(schema), hints, "the config"):
        where.setdefault(fault, "")
    for name, hint in hints.items():
        if isinstance(hint, type) and is_dataclass(hint) and isinstance(tree.get(name), dict):
            for fault in _misfits(tree[name], inspect.signature(hint), typing.get_type_hints(hint), name):
                where.setdefault(fault, "")
    for path, node in _targets(tree):
        for fault in _faults_of(_trusted(path, node["_target_"], TRUSTED), node):
            where.setdefault(fault, f"{path}: ")
    if where:
        raise ConfigError("the config does not fit the code: " + "; ".join(f"{p}{f}" for f, p in where.items()))


def read(path: Path) -> DictConfig:
    """The config that a run left behind; raises InputError when it is missing or not a mapping of resolved settings."""
    settings = read_settings(path)
    if odd := next((key for key, value in leaves(settings) if "${" in str(value)), None):
        raise InputError(f"{path}: {odd} holds an interpolation, expected settings that are written out")
    try:
        return OmegaConf.create(settings)
    except (OmegaConfBaseException, ValueError) as error:
        raise InputError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error


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


def _trusted(path: str, target: Any, within: tuple[str, ...]) -> Any:
    """The class or function that `target` names; ConfigError unless it is one that a config may build.

    The object itself is asked where it was defined: jukebox_lite.files.os.system begins well and is something else.
    """
    refusal = ConfigError(f"{path}._target_={target} is not allowed: a config builds only parts of this project")
    if not isinstance(target, str) or not target.startswith((*within, *FUNCTIONS)):
        raise refusal
    try:
        found = hydra.utils.get_object(target)
    except Exception as error:  # Hydra raises several kinds
        raise ConfigError(f"{path}._target_={target} does not exist") from error
    home = f"{getattr(found, '__module__', '')}.{getattr(found, '__qualname__', '')}"
    if not (home.startswith(within) if inspect.isclass(found) else home in FUNCTIONS):
        raise refusal
    return found


def _faults_of(target: Any, node: dict) -> Iterator[str]:
    """What in `node` the target's own signature has no place for."""
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
    if origin is Callable:
        return False  # only an object in waiting can be called
    if origin in (list, tuple):
        return isinstance(value, list) and all(_fits(item, args[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(k, args[0]) and _fits(v, args[1]) for k, v in value.items())
    return hint is Any or hint is inspect.Parameter.empty or isinstance(value, dict | list)
