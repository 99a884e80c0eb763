"""OpenAI's checkpoint files, and whether what they hold fits."""

from collections.abc import Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jukebox_lite.errors import InputError

_NAMED = 8  # of many keys that do not fit, so many are named
# Numbers by numpy, such as a data set's bandwidth, which OpenAI's files may hold beside tensors and plain values.
_SCALAR = np.float64(0).__reduce__()[0]
_NUMBERS: list[Any] = [np.dtype, *(type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8"))]
_NUMBERS += [(_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]


def load(path: str | Path, hps: Mapping[str, object] | None) -> tuple[Mapping[str, Tensor], dict[str, object]]:
    """Weights by key and hyperparameters in a file; `hps` go before those it may hold. Nothing in it is executed.

    Raises InputError on a file that cannot be read or holds more than data.
    """
    try:
        with torch.serialization.safe_globals(_NUMBERS):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be opened ({error.strerror})") from error
    except Exception as error:  # what torch raises on a damaged file is any of many
        raise InputError(f"{path}: damaged, or holds code beside data; not read ({_reason(error)})") from error
    if not isinstance(checkpoint, Mapping) or not isinstance(weights := checkpoint.get("model"), Mapping):
        raise InputError(f"{path}: not one of OpenAI's checkpoints: expected a dictionary with the weights as 'model'")
    stored = checkpoint.get("hps")
    return weights, {**(stored if isinstance(stored, Mapping) else {}), **(hps or {})}


def _reason(error: Exception) -> str:
    """What torch says of a file it refuses, in short."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = next((line for line in lines if "Unsupported" in line or "GLOBAL" in line), lines[0] if lines else "")
    return told.removeprefix("WeightsUnpickler error:").strip()[:120] or type(error).__name__


def plain_keys(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights without what training by several processes puts before their keys; InputError if not tensors."""
    check_mapping("weights", weights)
    if not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in weights.items()):
        raise InputError("weights: expected tensors by key, as in the 'model' of OpenAI's checkpoint")
    return {key.removeprefix("module."): value for key, value in weights.items()}


def check_keys(weights: Mapping[str, Tensor], expected: Mapping[str, list[int]]) -> None:
    """Raises an InputError of one line that names keys which are unknown, missing, or of another shape."""
    misshapen = [
        f"{key} {list(weights[key].shape)} instead of {shape}"
        for key, shape in expected.items()
        if key in weights and list(weights[key].shape) != shape
    ]
    faults = {
        "unknown": [key for key in weights if key not in expected],
        "missing": [key for key in expected if key not in weights],
        "of another shape": misshapen,
    }
    if any(faults.values()):
        told = "; ".join(f"{kind}: {_some(keys)}" for kind, keys in faults.items() if keys)
        raise InputError(f"weights do not fit hps: {told}")


def _some(keys: list[str]) -> str:
    rest = len(keys) - _NAMED
    return ", ".join(keys[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def check_mapping(what: str, given: object) -> None:
    """Raises InputError unless values by key are given."""
    if not isinstance(given, Mapping):
        raise InputError(f"{what}: {type(given).__name__} given, expected values by key, as in OpenAI's checkpoint")


def whole(key: str, value: Any, most: int = 1 << 20) -> int:
    """The hyperparameter, numpy's too, as a number of Python's, which never overflows. Raises InputError if it is none.

    Whole are those from 1 to `most`.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or not 1 <= int(value) <= most:
        raise InputError(f"hps.{key}: {value!r} given, expected whole numbers from 1 to {most}")
    return int(value)


def number(key: str, value: Any, least: float = 0.0, most: float = 1e12) -> float:
    """The same of a number from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, Real) or not least <= float(value) <= most:
        raise InputError(f"hps.{key}: {value!r} given, expected numbers from {least:g} to {most:g}")
    return float(value)


def flag(key: str, value: Any) -> bool:
    """The same of what says yes or no; None, as 0, is no."""
    if not (value is None or isinstance(value, bool | np.bool_) or (isinstance(value, Integral) and value in (0, 1))):
        raise InputError(f"hps.{key}: {value!r} given, expected True or False")
    return bool(value)
