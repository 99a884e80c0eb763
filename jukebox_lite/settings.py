"""What differs between two sets of settings."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jukebox_lite.errors import InputError

_ABSENT = "absent"
_MOST_CHANGES = 8  # named in a refusal


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
