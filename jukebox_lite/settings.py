"""Settings that a run or a song left behind, and what differs between two sets of them."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from jukebox_lite.errors import InputError

_ABSENT = "absent"
_DEEPEST = 50  # mappings and lists in each other
_MOST_CHANGES = 8  # named in a refusal


def read_settings(path: Path) -> dict[str, Any]:
    """What `parse` makes of a file; raises InputError where it is missing or is no YAML of settings."""
    try:
        return parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path.parent} is no run: it has no {path.name}; give the folder of a trained run") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def parse(text: str) -> dict[str, Any]:
    """Settings in YAML as nested mappings, lists and values. Raises ValueError on anything else.

    Aliases are refused, which we never write: ten lines of them make a tree larger than any memory.
    """
    depth = 0
    try:
        for event in yaml.parse(text, yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _DEEPEST or isinstance(event, yaml.AliasEvent):
                raise ValueError(f"expected settings that are written out, without aliases, {_DEEPEST} levels at most")
        settings = yaml.safe_load(text)
    except Exception as error:  # a parser of YAML raises nearly anything
        raise ValueError(f"{' '.join(str(error).split()):.300}") from error
    if not isinstance(settings, dict):
        raise ValueError("it should hold a mapping of settings")
    return settings


def refuse_changes(folder: Path, old: Any, new: Any) -> None:
    """Raise InputError naming each setting of the work in `folder` whose value differs."""
    was, now = dict(leaves(old)), dict(leaves(new))
    keys = [key for key in {**was, **now} if was.get(key, _ABSENT) != now.get(key, _ABSENT)]
    if not keys:
        return
    changes = [f"{key} was {was.get(key, _ABSENT)}, is now {now.get(key, _ABSENT)}" for key in keys[:_MOST_CHANGES]]
    if len(keys) > _MOST_CHANGES:
        changes.append(f"and {len(keys) - _MOST_CHANGES} more")
    raise InputError(
        f"{folder} was started with another config: {'; '.join(changes)}; give another name=... or the old values"
    )


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of nested mappings by its dotted path; a list is one value."""
    if isinstance(value, Mapping) and value:
        for key, child in value.items():
            yield from leaves(child, f"{path}.{key}" if path else str(key))
    else:
        yield path, value
