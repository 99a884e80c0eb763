"""The house's plan, kept by a test: imports point one way, and few places know Hydra."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "jukebox_lite"
FILES = sorted(PACKAGE.rglob("*.py"))
# Every room may import from those before it, and from itself.
ROOMS = [
    "errors",
    "files",
    "settings",
    "progress",
    "levels",
    "lyrics",
    "audio",
    "nn",
    "losses",
    "metrics",
    "codecs",
    "priors",
    "interop",
    "datasets",
    "generation",
    "tasks",
    "config",
    "training",
    "demo",
]
KNOW_HYDRA = {"train.py", "sample.py", "jukebox_lite/config.py"}  # and hydra_plugins/, which Hydra imports by itself


def imported(path: Path) -> list[str]:
    """Dotted names of everything a file imports."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path):
    """A module imports only from rooms before its own in the house's list."""
    room = path.relative_to(PACKAGE).with_suffix("").parts[0]
    if room == "__init__":
        assert imported(path) == []
        return
    for name in imported(path):
        if name.startswith("jukebox_lite."):
            assert ROOMS.index(name.split(".")[1]) <= ROOMS.index(room), f"{room} imports {name}"


def test_three_places_know_hydra():
    """Only the entry points and config.py import Hydra or OmegaConf; constructors never see a config object."""
    everywhere = [*FILES, ROOT / "train.py", ROOT / "sample.py"]
    knowing = {
        str(path.relative_to(ROOT))
        for path in everywhere
        if any(n.split(".")[0] in ("hydra", "omegaconf") for n in imported(path))
    }
    assert knowing == KNOW_HYDRA


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nothing_unpickles(path: Path):
    """No module imports pickle, and torch.load is never called without weights_only=True."""
    assert not any(name.split(".")[0] in ("pickle", "dill", "cloudpickle", "joblib") for name in imported(path))
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "np.load"):
            words = {word.arg: ast.unparse(word.value) for word in node.keywords}
            assert words.get("weights_only") == "True" or (
                ast.unparse(node.func) == "np.load" and words.get("allow_pickle", "False") == "False"
            )
