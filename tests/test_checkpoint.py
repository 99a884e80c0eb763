"""A checkpoint gives back what it was given, is whole or absent, and holds no code."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from jukebox_lite import files
from jukebox_lite.errors import InputError
from jukebox_lite.training import checkpoint
from jukebox_lite.training.run import open_run, read_vocabulary, record_start, save_vocabulary

WEIGHTS = {"codec": {"weight": torch.arange(6.0).view(2, 3), "count": torch.tensor(7)}}


def equal(a: Any, b: Any) -> bool:
    """The same types, structure, numbers and tensors, bit for bit."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b or (isinstance(a, float) and math.isnan(a) and math.isnan(b))


tensors = st.builds(
    lambda shape, dtype, seed: torch.randint(0, 99, shape, generator=torch.Generator().manual_seed(seed)).to(dtype),
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.int16, torch.bool]),
    st.integers(0, 99),
)
leaves = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), tensors)
keys = st.one_of(st.integers(-3, 3), st.sampled_from(["a", "a/b", "b", "$tensor", "$items", ""]))
states = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.dictionaries(keys, inner, max_size=4), st.lists(inner, max_size=3), st.lists(inner, max_size=3).map(tuple)
    ),
    max_leaves=12,
)


@given(state=st.dictionaries(keys, states, max_size=4))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_nesting_of_tensors_and_numbers_comes_back(tmp_path: Path, state: dict[Any, Any]) -> None:
    """Keys of any kind, tuples, infinities, empty tensors: nothing is rounded, renamed or confused."""
    path = checkpoint.save(tmp_path, 1, WEIGHTS, state)
    checkpoint.verify(path)
    assert equal(checkpoint.read_trainer(path), state)
    assert equal(dict(sorted(checkpoint.read_weights(path, "codec").items())), dict(sorted(WEIGHTS["codec"].items())))


def test_tied_weights_survive(tmp_path: Path) -> None:
    """safetensors refuses shared memory; both names are written, and loading into a tied model restores it."""
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    path = checkpoint.save(tmp_path, 1, {"model": model.state_dict()}, {"model": model.state_dict()})
    other = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    other[1].weight = other[0].weight
    other.load_state_dict(checkpoint.read_weights(path, "model"))
    assert torch.equal(other[1].weight, model[0].weight)


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    """Asking for a prior in the checkpoint of a codec says what it holds."""
    path = checkpoint.save(tmp_path, 1, WEIGHTS, {})
    with pytest.raises(InputError, match="no model 'prior', it holds codec"):
        checkpoint.read_weights(path, "prior")


def flip(path: Path) -> None:
    """Change one bit in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["model.safetensors", "trainer.safetensors", "trainer.json", "manifest.json"])
@pytest.mark.parametrize("damage", [flip, Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-9])])
def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path: Path, name: str, damage: Any) -> None:
    """The one before it is used. A flipped bit in the manifest may spare what matters: then it is no damage."""
    older = checkpoint.save(tmp_path, 1, WEIGHTS, {"step": 1})
    newest = checkpoint.save(tmp_path, 2, WEIGHTS, {"step": 2})
    damage(newest / name)
    warnings: list[str] = []
    found = checkpoint.latest(tmp_path, warnings.append)
    if found != newest:
        assert found == older
        assert len(warnings) == 1 and str(newest) in warnings[0]
    else:
        assert name == "manifest.json" and damage is flip
    checkpoint.save(tmp_path, 2, WEIGHTS, {"step": 2})
    assert checkpoint.latest(tmp_path) == newest


def test_the_last_ones_and_the_best_are_kept(tmp_path: Path) -> None:
    """Step 2 has the best score; later ones push out all others. A score that is no number is never the best."""
    for step, score in enumerate([5.0, 1.0, 2.0, None, math.nan, 3.0], 1):
        checkpoint.save(tmp_path, step, WEIGHTS, {}, score, keep=2)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["00000002", "00000005", "00000006"]


def test_leftovers_of_a_killed_process_are_ignored_and_swept(tmp_path: Path) -> None:
    """A half-written folder is never read, and the next save removes it."""
    leftover = tmp_path / "checkpoints" / ".tmp-00000009"
    leftover.mkdir(parents=True)
    (leftover / "model.safetensors").write_text("half")
    assert checkpoint.latest(tmp_path) is None
    checkpoint.save(tmp_path, 1, WEIGHTS, {})
    assert not leftover.exists()


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    """An object that cannot be saved raises, and the checkpoint of that step is still the old one."""
    path = checkpoint.save(tmp_path, 1, WEIGHTS, {"step": 1})
    with pytest.raises(TypeError, match="state/module is a Linear"):
        checkpoint.save(tmp_path, 1, WEIGHTS, {"state": {"module": nn.Linear(1, 1)}})
    assert checkpoint.read_trainer(path) == {"step": 1}
    with pytest.raises(ZeroDivisionError), files.staged(path) as beside:
        (beside / "half").write_text(str(1 // 0))
    checkpoint.verify(path)


def test_another_config_is_refused_with_the_key_named(tmp_path: Path) -> None:
    """The same config enters again, however it is laid out; another one is told what changed."""
    run = tmp_path / "x"
    open_run(run, "trainer: {max_steps: 60}\ncodec: {dim: 8}\n")
    record_start(run, {})  # until then it had not started
    open_run(run, "codec:\n  dim: 8\ntrainer:\n  max_steps: 60\n")
    with pytest.raises(InputError, match=r"x was started .*: trainer\.max_steps was 60, is now 80; give another name"):
        open_run(run, "trainer: {max_steps: 80}\ncodec: {dim: 8}\n")
    with pytest.raises(InputError, match=r"codec\.dim was 8, is now absent"):
        open_run(run, "trainer: {max_steps: 60}")


def test_every_start_is_recorded(tmp_path: Path) -> None:
    """provenance.json lists the starts of a run in their order."""
    for seed in (0, 1):
        record_start(tmp_path, {"seed": seed})
    assert json.loads((tmp_path / "provenance.json").read_text()) == [{"seed": 0}, {"seed": 1}]


def test_labels_keep_their_meaning(tmp_path: Path) -> None:
    """Indices learnt as one vocabulary cannot be trained further as another, and text of any script survives."""
    vocabulary = {"genre": ["", "jazz", "фолк"]}
    save_vocabulary(tmp_path, vocabulary)
    save_vocabulary(tmp_path, vocabulary)
    assert read_vocabulary(tmp_path) == vocabulary
    with pytest.raises(InputError, match="genre was"):
        save_vocabulary(tmp_path, {"genre": ["", "rock"]})
    with pytest.raises(InputError, match="is .* a run that train.py made"):
        read_vocabulary(tmp_path / "elsewhere")
