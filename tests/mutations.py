"""Changes to a file's bytes, as a cable, a disk, an editor or an enemy would make them."""

import io
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
import yaml

ODD_TEXTS = (
    "",
    "../../../escaped",
    "/escaped",
    "${oc.env:HOME}",
    "<script>alert(1)</script>",
    "=cmd|' /C calc'!A0",
    "\ud800",
    "\0",
    "\x1b[2J",
    "os.system",
    "!!python/object/apply:os.system ['touch escaped']",
    "é" * 5000,
    "???",
)
ODD_VALUES = (None, True, -1, 0, 3, 2**31, 10**400, 1e308, float("nan"), float("-inf"), [], {}, [[]], {"": None})


def mutated(data: bytes, dice: random.Random, suffix: str) -> bytes:
    """One to three changes, as a cable, a disk, an editor or an enemy would make them."""
    kinds: list[Callable[[bytes, random.Random], bytes]] = [cut, flipped, flipped, noised, noised, repeated, replaced]
    if suffix in (".json", ".jsonl", ".yaml", ".csv", ".txt"):
        kinds += [lines_changed, odd_text, odd_text]
    if suffix in (".json", ".yaml"):
        kinds += [structure_changed] * 6
    if suffix == ".safetensors":
        kinds += [header_changed] * 4
    for _ in range(dice.choice([1, 1, 2, 3])):
        data = dice.choice(kinds)(data, dice)
    return data


def cut(data: bytes, dice: random.Random) -> bytes:
    return data[: dice.randrange(len(data) + 1)]


def flipped(data: bytes, dice: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(min(dice.choice([1, 1, 8, 64]), len(data))):
        changed[min(int(dice.paretovariate(0.3)) - 1, dice.randrange(len(data)))] ^= 1 << dice.randrange(8)
    return bytes(changed)


def noised(data: bytes, dice: random.Random) -> bytes:
    start, size = dice.randrange(len(data) + 1), dice.choice([1, 4, 16, 300])
    return data[:start] + dice.randbytes(size) + data[start + size :]


def repeated(data: bytes, dice: random.Random) -> bytes:
    start, end = sorted(dice.randrange(len(data) + 1) for _ in range(2))
    return data[:end] + data[start:end] * dice.choice([1, 3]) + data[end:]


def replaced(data: bytes, dice: random.Random) -> bytes:
    """By something else altogether."""
    made = io.BytesIO()
    torch.save({"weight": torch.zeros(3)}, made)
    whole = [b"", b"\0" * len(data), b"[" * 100_000, b'{"a":' * 100_000, b"- " * 20_000, made.getvalue()]
    return dice.choice([*whole, b"(" * 9, dice.randbytes(999), b"\x80\x04cos\nsystem\n(S'touch escaped'\ntR."])


def lines_changed(data: bytes, dice: random.Random) -> bytes:
    lines = data.splitlines(keepends=True) or [b""]
    at, other = dice.randrange(len(lines)), dice.randrange(len(lines))
    match dice.randrange(3):
        case 0:
            del lines[at]
        case 1:
            lines.insert(other, lines[at])
        case _:
            lines[at], lines[other] = lines[other], lines[at]
    return b"".join(lines)


def odd_text(data: bytes, dice: random.Random) -> bytes:
    at = dice.randrange(len(data) + 1)
    return data[:at] + dice.choice(ODD_TEXTS).encode("utf-8", "backslashreplace") + data[at:]


def structure_changed(data: bytes, dice: random.Random) -> bytes:
    """JSON or YAML that is well formed, with another value, key or nesting somewhere."""
    try:
        tree = yaml.safe_load(data) if data[:1] not in b"[{" else json.loads(data)
    except Exception:  # an earlier change spoilt it
        return data
    places = list(nodes(tree))
    if not places:
        return data
    parent, key = dice.choice(places)
    deep: Any = "deep"
    for _ in range(dice.choice([3, 200, 900])):
        deep = [deep]
    match dice.randrange(6):
        case 0:
            del parent[key]
        case 1 if isinstance(parent, dict):
            parent[dice.choice(ODD_TEXTS)] = parent.pop(key)
        case 2:
            parent[key] = {"_target_": dice.choice(["os.system", "jukebox_lite.files.remove", "torch.load"])}
        case 3:
            parent[key] = deep
        case 4:
            parent[key] = dice.choice(ODD_TEXTS)
        case _:
            parent[key] = dice.choice(ODD_VALUES)
    try:
        return (json.dumps(tree) if data[:1] in b"[{" else yaml.safe_dump(tree)).encode()
    except (RecursionError, ValueError):
        return data


def nodes(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) of a tree."""
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, child in list(children):
        yield tree, key
        yield from nodes(child)


def header_changed(data: bytes, dice: random.Random) -> bytes:
    """A safetensors file whose header is another, and as long as it says."""
    size = int.from_bytes(data[:8], "little")
    header = structure_changed(data[8 : 8 + size].strip() or b"{}", dice)
    return len(header).to_bytes(8, "little") + header + data[8 + size :]
