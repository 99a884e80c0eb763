"""A run's folder: its config, where it came from, and the meaning of its labels. Another config is refused."""

import fcntl
import json
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import distributions
from math import prod
from pathlib import Path
from typing import Any

import torch

from jukebox_lite.errors import InputError
from jukebox_lite.files import write_text
from jukebox_lite.settings import parse, read_settings, refuse_changes
from jukebox_lite.training.processes import is_first

_CONFIG, _PROVENANCE, _VOCABULARY = "config.yaml", "provenance.json", "vocabulary.json"
_DEALING = ("devices", "num_nodes", "accumulate", "strategy", "accelerator")
_PACKAGES = ("torch", "torchaudio", "lightning-fabric", "vector-quantize-pytorch", "hydra-core", "safetensors", "numpy")


def open_run(folder: Path, config_yaml: str) -> None:
    """Make the run's folder, or enter it again.

    Raises InputError where the folder was started with another config, but for how a step's batches are dealt out; a
    start that failed before `record_start`, as over a misspelt folder of music, is none. Only the first process writes.
    """
    path = folder / _CONFIG
    started = path.exists() and (folder / _PROVENANCE).exists()
    if started:
        refuse_changes(folder, _as_learnt(read_settings(path)), _as_learnt(parse(config_yaml)))
    if not is_first():
        return
    folder.mkdir(parents=True, exist_ok=True)
    if not started:
        write_text(path, config_yaml)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Waits while another process trains in `folder`: when a sweep is killed, its jobs go on until they are done."""
    if not is_first():
        yield
        return
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process
        except BlockingIOError:
            print(f"waiting for another process, which trains in {folder}", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            pass  # a file system without locks
        yield


def record_start(folder: Path, provenance: Mapping[str, Any]) -> None:
    """Add `provenance` to the list of the run's starts.

    Raises InputError where the run began with other songs, or codes of another codec, under the same names.
    """
    history = folder / _PROVENANCE
    starts = _starts(folder)
    if starts:
        known, now = ({"fingerprints": start.get("fingerprints", {})} for start in (starts[0], provenance))
        refuse_changes(folder, known, now)
    if not is_first():
        return
    write_text(history, json.dumps([*starts, dict(provenance)], indent=1))


def read_fingerprints(folder: Path) -> dict[str, str]:
    """Of the songs, and of a prior's codec, that the run in `folder` learns from; empty where it does not say."""
    told = next((start.get("fingerprints") for start in _starts(folder)), None)
    return told if isinstance(told, dict) else {}


def _starts(folder: Path) -> list[dict[str, Any]]:
    """The run's starts, none where it does not tell of any. Raises InputError where they cannot be read."""
    path = folder / _PROVENANCE
    try:
        starts = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read ({error})") from error
    if not isinstance(starts, list) or not all(isinstance(start, dict) for start in starts):
        raise InputError(f"{path} should hold a list of the run's starts")
    return starts


def provenance(seed: int, repository: Path) -> dict[str, Any]:
    """What another person needs to repeat this start: code, versions, machine, seed and command."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "commit": _git(repository, "rev-parse", "HEAD"),
        "uncommitted": _git(repository, "diff", "HEAD"),
        "seed": seed,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu",
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": {d.name: d.version for d in distributions() if d.name in _PACKAGES},
    }


def save_vocabulary(folder: Path, vocabulary: Mapping[str, Sequence[str]]) -> None:
    """Keep what the labels' indices mean. Raises InputError where the run learnt with other meanings."""
    path = folder / _VOCABULARY
    new = {name: list(values) for name, values in vocabulary.items()}
    if path.exists():
        refuse_changes(folder, read_vocabulary(folder), new)
    elif is_first():
        write_text(path, json.dumps(new, indent=1, ensure_ascii=False))


def read_vocabulary(folder: Path) -> dict[str, list[str]]:
    """Label -> its values in the order of their indices, as the run in `folder` learnt them."""
    path = folder / _VOCABULARY
    try:
        vocabulary = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read ({error}); is {folder} a run that train.py made?") from error
    lists = vocabulary.values() if isinstance(vocabulary, dict) else [None]
    if not all(isinstance(values, list) and all(isinstance(value, str) for value in values) for values in lists):
        raise InputError(f"{path} should hold a list of values for each label")
    return vocabulary


def _as_learnt(config: dict[str, Any]) -> dict[str, Any]:
    """A config without what its result does not depend on: two devices learn what one learns that accumulates two."""
    if not isinstance(trainer := config.get("trainer"), dict):
        return config
    batches = prod(trainer.get(name, 1) for name in ("devices", "num_nodes", "accumulate"))
    rest = {name: value for name, value in trainer.items() if name not in _DEALING}
    return {**config, "trainer": {**rest, "devices * num_nodes * accumulate": batches}}


def _git(repository: Path, *arguments: str) -> str | None:
    """What git says, or None where there is no git or no repository."""
    command = ["git", "--no-optional-locks", "-C", str(repository), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
