"""A journal gives back what was whole, whatever became of the rest; sampling goes on from it to the same codes."""

import itertools
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import World, child, command
from torch import Tensor

from jukebox_lite.errors import InputError
from jukebox_lite.generation import filling
from jukebox_lite.generation import journal as journal_module
from jukebox_lite.generation.journal import Journal, Steps, fingerprint_of

FACTS = {"seed": 0, "fingerprints": {"priors": {"top": "abc"}}}


def numbers(count: int) -> list[Tensor]:
    """Tensors of various sizes and kinds."""
    return [torch.arange(n * n).reshape(n, n) + (0.5 if n % 2 else 0) for n in range(count)]


def kept(path: Path, count: int, facts: dict[str, Any] = FACTS) -> tuple[list[Tensor], int]:
    """All `count` steps, and how many of them had to be taken anew."""
    taken = []
    with Journal(path, facts) as journal:
        steps = [journal.step(lambda number=number: taken.append(1) or number) for number in numbers(count)]
        assert not journal.reading
    return steps, len(taken)


def test_steps_are_taken_once(tmp_path: Path):
    """What they made comes back with the same type, shape and bits; more steps follow."""
    path = tmp_path / "run" / "journal"
    for known, count in ((0, 3), (3, 3), (3, 6), (6, 6)):
        steps, taken = kept(path, count)
        assert taken == count - known
        assert all(
            a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
            for a, b in zip(steps, numbers(count), strict=True)
        )


def test_the_time_of_a_step_is_that_of_when_it_was_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """However long ago, and however little its reading takes."""
    monkeypatch.setattr(journal_module.time, "perf_counter", itertools.count().__next__)  # a second a look
    for count in (2, 5):
        with Journal(tmp_path / "journal", FACTS) as journal:
            for taken, number in enumerate(numbers(count), 1):
                journal.step(lambda number=number: number)
                assert journal.seconds == taken
    steps = Steps()
    steps.step(lambda: torch.zeros(1))
    assert steps.seconds == 1 and not steps.reading


def test_a_file_cut_anywhere_gives_a_beginning_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As a kill in the middle of a write leaves it; what follows is the file that no kill ever touched."""
    monkeypatch.setattr(journal_module.time, "perf_counter", lambda: 0.0)  # which it tells, too
    path = tmp_path / "journal"
    kept(path, 4)
    whole, last = path.read_bytes(), 4
    for size in range(len(whole), -1, -7):
        path.write_bytes(whole[:size])
        steps, taken = kept(path, 4)
        assert all(torch.equal(a, b) for a, b in zip(steps, numbers(4), strict=True))
        assert path.read_bytes() == whole and 4 - taken <= last
        last = 4 - taken
    assert last == 0


def test_a_damaged_step_is_taken_again_with_all_that_follow(tmp_path: Path):
    """Wherever a byte has changed, no wrong number comes back."""
    path = tmp_path / "journal"
    kept(path, 4)
    whole = path.read_bytes()
    for place in range(len(whole) // 3, len(whole), 11):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        steps, taken = kept(path, 4)
        assert taken > 0 and all(torch.equal(a, b) for a, b in zip(steps, numbers(4), strict=True))


def test_other_facts_are_refused_with_the_difference(tmp_path: Path):
    """And the file stays as it was."""
    path = tmp_path / "journal"
    kept(path, 2)
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"seed was 0, is now 1; fingerprints.priors.top was abc, is now abd; give an"):
        kept(path, 2, {"seed": 1, "fingerprints": {"priors": {"top": "abd"}}})
    assert path.read_bytes() == before and kept(path, 2)[1] == 0


def test_what_took_no_step_leaves_its_name_free(tmp_path: Path):
    """A command refused at once, corrected, was refused again: its settings had changed."""
    path = tmp_path / "journal"
    with pytest.raises(InputError, match="polka"), Journal(path, FACTS):
        raise InputError("polka")
    assert not path.exists()
    assert kept(path, 1, {"seed": 1})[1] == 1


def test_two_processes_do_not_write_one_file(tmp_path: Path):
    """The second is refused, and the first's steps stay."""
    path = tmp_path / "journal"
    with Journal(path, FACTS) as journal:
        journal.step(lambda: torch.ones(1))
        with pytest.raises(InputError, match="another process is at work"):
            Journal(path, FACTS)
    with Journal(path, FACTS) as journal:
        assert journal.reading


def test_a_file_of_somebody_else_is_left_alone(tmp_path: Path):
    """It is refused and keeps its bytes."""
    path = tmp_path / "journal"
    path.write_text("dear diary, today")
    with pytest.raises(InputError, match="no journal of this program"):
        Journal(path, FACTS)
    assert path.read_text() == "dear diary, today"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_a_fingerprint_is_of_every_bit_and_name(dtype: torch.dtype):
    tensors = {"a": torch.arange(6).to(dtype), "b": torch.tensor(1).to(dtype)}
    changed = {"a": tensors["a"].clone(), "b": tensors["b"]}
    assert fingerprint_of(changed) == fingerprint_of(tensors)
    changed["a"][3] = 7
    others = [changed, {"c": tensors["a"], "b": tensors["b"]}, {**tensors, "a": tensors["a"].reshape(2, 3)}, {}]
    assert len({fingerprint_of(each) for each in (tensors, *others)}) == 5


# --- sampling --------------------------------------------------------------------------------------------------------

WAYS = {
    "ancestral": ("num_songs=2", "labels.genre=[piano,organ]"),
    "primed": ("given.audio={music}/00.wav", "given.audio_seconds=0.1", "num_songs=1"),
    "upsampled": ("given.codes={runs}/whole-ancestral/codes.safetensors", "given.levels=[top]"),
}


def sampling(world: World, way: str, windows: str) -> tuple[str, ...]:
    """Arguments of sample.py for one of the ways, in odd batches."""
    told = (word.format(music=world.folder / "music", runs=world.runs) for word in WAYS[way])
    settings = (f"windows={windows}", "windows.batch_size=3", "overlap=0.25", *told)
    return world.sample(*settings, levels=("top", "middle"))


@pytest.fixture(scope="module")
def upsampled_from(world: World) -> None:
    """The song whose top level is given."""
    assert command("sample.py", *world.sample("name=whole-ancestral", levels=("top",))).code == 0


def killed(arguments: tuple[str, ...], call: int) -> None:
    """sample.py, which sends itself kill -9 at its `call`th touch of the journal or of a file in its folder."""
    calls = itertools.count()
    folder = next(word.removeprefix("name=") for word in arguments if word.startswith("name="))

    def hook(name: str, details: tuple[Any, ...]) -> None:
        touched = name.startswith(("open", "os.")) and any(f"/{folder}/" in str(detail) for detail in details)
        if touched and next(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)

    step = Journal.step

    def counted(journal: Journal, make: Any) -> Tensor:
        if next(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(journal, make)

    Journal.step = counted
    sys.addaudithook(hook)
    sys.exit(command("sample.py", *arguments).code)


@pytest.mark.parametrize("windows", ["sequential", "parallel"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.usefixtures("upsampled_from")
def test_kill_9_changes_no_code(world: World, way: str, windows: str, monkeypatch: pytest.MonkeyPatch):
    """Killed again and again on its way, in the writing of its songs too, the same command ends with the same codes.

    The whole run saves seldom, the killed one after every step.
    """
    arguments = sampling(world, way, windows)
    assert command("sample.py", *arguments, f"name={way}-{windows}").code == 0
    whole = load_file(world.runs / f"{way}-{windows}" / "codes.safetensors")
    monkeypatch.setattr(filling, "SAVE_SECONDS", 0.0)
    name = f"killed-{way}-{windows}"
    for call in (4, 9, 33):
        if child(killed, (*arguments, f"name={name}"), call) == 0:
            break
        assert (world.runs / name / "journal").exists()
    if (world.runs / name / "journal").exists():
        refused = command("sample.py", *arguments, f"name={name}", "seed=5")
        assert re.search("seed was 0, is now 5", refused.error)
    assert command("sample.py", *arguments, f"name={name}").code == 0
    again = load_file(world.runs / name / "codes.safetensors")
    assert whole.keys() == again.keys() and all(torch.equal(whole[level], again[level]) for level in whole)
    left = sorted(path.name for path in (world.runs / name).iterdir())
    assert left == sorted(path.name for path in (world.runs / f"{way}-{windows}").iterdir()) and "journal" not in left
