"""Checkpoints: safetensors and JSON under a manifest of checksums, written whole or not at all; nothing is pickled.

checkpoints/00020000/
  model.safetensors      averaged weights of every model, "<model>/<key>": what other programs load
  trainer.safetensors    every other tensor that resuming needs
  trainer.json           their structure, and the numbers among them
  manifest.json          step, validation score, size and SHA-256 of each file; written last
"""

import errno
import hashlib
import json
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from jukebox_lite import files
from jukebox_lite.errors import InputError

_FOLDER = "checkpoints"
_MODEL, _TENSORS, _STRUCTURE, _MANIFEST = "model.safetensors", "trainer.safetensors", "trainer.json", "manifest.json"
_FILES = (_MODEL, _TENSORS, _STRUCTURE)  # of which the manifest tells


def save(
    folder: Path,
    step: int,
    weights: Mapping[str, Mapping[str, Tensor]],
    trainer_state: Mapping[str, Any],
    score: float | None = None,
    keep: int = 3,
) -> Path:
    """Write a run's checkpoint of `step` and return its path; drop all but the last `keep` and the best score's.

    `weights` are state dicts by model name. `trainer_state` nests dicts, lists and tuples of tensors and scalars.
    `score` is the validation score of these very weights, lower is better; None where they were not validated. Raises
    OSError where the disk refuses; the checkpoints that there are stay.
    """
    target = folder / _FOLDER / f"{step:08d}"
    tensors: dict[str, Tensor] = {}
    structure = _pack(trainer_state, "", tensors)
    named = {f"{model}/{key}": value for model, state in weights.items() for key, value in state.items()}
    with files.staged(target) as beside:
        _write_tensors(named, beside / _MODEL)
        _write_tensors(tensors, beside / _TENSORS)
        (beside / _STRUCTURE).write_text(json.dumps(structure, indent=1, allow_nan=False))
        known = score if score is not None and math.isfinite(score) else None
        sums = {name: _fingerprint(beside / name) for name in _FILES}
        manifest = {"step": step, "score": known, "files": sums}
        (beside / _MANIFEST).write_text(json.dumps(manifest, indent=1))
    _prune(folder, keep)
    return target


def _print_warning(line: str) -> None:
    print(line, file=sys.stderr)


def latest(folder: Path, warn: Callable[[str], None] = _print_warning) -> Path | None:
    """The newest whole checkpoint of the run in `folder`; each damaged one on the way is named in a warning."""
    for path in reversed(_checkpoints(folder)):
        try:
            verify(path)
        except InputError as error:
            warn(f"warning: skipping a damaged checkpoint: {error}")
        else:
            return path
    return None


def verify(path: Path) -> None:
    """Raise InputError unless every file of the checkpoint is as its manifest says, and it tells of each."""
    sums = _manifest(path).get("files")
    if not isinstance(sums, dict) or sums.keys() != set(_FILES):
        raise InputError(f"{path / _MANIFEST} is no manifest: expected the checksums of {', '.join(_FILES)}")
    for name in _FILES:
        try:
            found = _fingerprint(path / name)
        except OSError as error:
            raise InputError(f"{path} is not a whole checkpoint: {error}") from error
        if found != sums[name]:
            raise InputError(f"{path / name} is not the file that was saved: its checksum differs")


def read_weights(path: Path, model_name: str) -> dict[str, Tensor]:
    """The averaged weights of one model as a state dict on the CPU, from the checkpoint at `path`."""
    prefix = f"{model_name}/"
    try:
        with safe_open(path / _MODEL, framework="pt") as file:
            names = list(file.keys())
            weights = {name.removeprefix(prefix): file.get_tensor(name) for name in names if name.startswith(prefix)}
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path / _MODEL} cannot be read: {error}") from error
    if not weights:
        known = sorted({name.split("/", 1)[0] for name in names})
        raise InputError(f"{path / _MODEL} holds no model '{model_name}', it holds {', '.join(known) or 'nothing'}")
    return weights


def read_trainer(path: Path) -> dict[str, Any]:
    """What `save` was given as `trainer_state`, with its tensors on the CPU; InputError where it is nothing like it."""
    try:
        state = _unpack(json.loads((path / _STRUCTURE).read_text()), load_file(path / _TENSORS))
    except (OSError, SafetensorError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise InputError(f"{path / _STRUCTURE} and {_TENSORS} do not belong together: {error}") from error
    if not isinstance(state, dict):
        raise InputError(f"{path / _STRUCTURE} holds a {type(state).__name__}, expected a trainer's state by name")
    return state


def _checkpoints(folder: Path) -> list[Path]:
    """Every finished checkpoint, oldest first; names that are not numbers are somebody else's."""
    return sorted(path for path in (folder / _FOLDER).glob("*") if path.is_dir() and path.name.isdecimal())


def _prune(folder: Path, keep: int) -> None:
    """Drop all checkpoints but the last `keep` and the one with the best score."""
    paths = _checkpoints(folder)
    scored = [(score, path) for path in paths if (score := _score(path)) is not None]
    kept = {*paths[-keep:], *([min(scored)[1]] if scored else [])}
    for path in paths:
        if path not in kept:
            files.remove(path)


def _score(path: Path) -> float | None:
    """The validation score in a checkpoint's manifest; None where there is none, or no manifest to read."""
    try:
        score = _manifest(path).get("score")
    except InputError:
        return None
    return score if isinstance(score, float) and math.isfinite(score) else None


def _manifest(path: Path) -> dict[str, Any]:
    """What a checkpoint's manifest tells. Raises InputError where there is none to read."""
    try:
        manifest = json.loads((path / _MANIFEST).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not a whole checkpoint: {error}") from error
    if not isinstance(manifest, dict):
        raise InputError(f"{path / _MANIFEST} is no manifest: it holds a {type(manifest).__name__}")
    return manifest


def _fingerprint(path: Path) -> dict[str, int | str]:
    """A file's size in bytes and its SHA-256."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file; OSError where the disk refuses."""
    try:
        save_file(_own_memory(tensors), path)
    except SafetensorError as error:
        raise OSError(errno.EIO, str(error), str(path)) from error


def _own_memory(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU: safetensors refuses tensors that share memory, as tied weights do."""
    return {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }


def _pack(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """`value` as strict JSON; its tensors go to `tensors` under their path. "$" marks what JSON has no word for."""
    if isinstance(value, Tensor):
        while path in tensors:  # {"a/b": x, "a": {"b": y}}
            path += "'"
        tensors[path] = value
        return {"$tensor": path}
    if isinstance(value, Mapping):
        packed = [(key, _pack(child, f"{path}/{key}".lstrip("/"), tensors)) for key, child in value.items()]
        plain = all(isinstance(key, str) and not key.startswith("$") for key, _ in packed)
        return dict(packed) if plain else {"$items": [[key, child] for key, child in packed]}
    if isinstance(value, list | tuple):
        children = [_pack(child, f"{path}/{index}".lstrip("/"), tensors) for index, child in enumerate(value)]
        return {"$tuple": children} if isinstance(value, tuple) else children
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{path} is a {type(value).__name__}: a checkpoint holds tensors, numbers, text and None")


def _unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `_pack`."""
    match value:
        case {"$tensor": str(path)}:
            return tensors[path]
        case {"$float": str(text)}:
            return float(text)
        case {"$tuple": list(children)}:
            return tuple(_unpack(child, tensors) for child in children)
        case {"$items": list(items)}:
            return {key: _unpack(child, tensors) for key, child in items}
        case dict():
            return {key: _unpack(child, tensors) for key, child in value.items()}
        case list():
            return [_unpack(child, tensors) for child in value]
    return value
