"""The trainer: a run that is cut off anywhere is the same run, on one process or several."""

import itertools
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from jukebox_lite.errors import InputError
from jukebox_lite.tasks.base import Listening, Metrics, Models, Task, Update
from jukebox_lite.training import checkpoint
from jukebox_lite.training.averages import averaged, follow
from jukebox_lite.training.learner import seed_torch
from jukebox_lite.training.meter import TrainingDiverged
from jukebox_lite.training.pruning import MedianPruner
from jukebox_lite.training.reader import Reader
from jukebox_lite.training.rehearsal import rehearse
from jukebox_lite.training.schedule import constant, warmup_cosine, warmup_stable_decay
from jukebox_lite.training.table import metrics
from jukebox_lite.training.tracking import NoTracker, TensorBoard
from jukebox_lite.training.trainer import Trainer


class Toy(nn.Module):
    """A layer, noise, a float buffer that learns and an integer buffer that counts."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.dropout = nn.Linear(4, 4), nn.Dropout(0.3)
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("count", torch.tensor(0))

    def loss(self, x: Tensor) -> Tensor:
        """Mean squared distance of the output from the input [B, 4] doubled."""
        if self.training:
            self.count += 1
            self.mean.lerp_(x.mean(0), 0.1)
        return (self.linear(self.dropout(x)) - 2 * x).square().mean()

    def forward(self, x: Tensor) -> Tensor:
        """[B, 4] -> [B, 4]."""
        return self.linear(self.dropout(x))


class Regression(Task):
    """One model; `spoil(index of the call)` may do harm in any step."""

    forward_methods = ("loss",)
    num_validation_batches, num_clips = 2, 0
    vocabulary: dict[str, list[str]] = {}
    rate_unit = "rows"
    about = "numbers"

    def __init__(self, spoil: Callable[[int], None] = lambda _: None, poisoned: int = -1) -> None:
        torch.manual_seed(0)
        self.models: Models = {"model": Toy()}
        self.spoil, self.poisoned, self.calls = spoil, poisoned, itertools.count()

    def batch(self, split: str, step: int) -> Tensor:
        """[8, 4], drawn for this step; not finite where poisoned."""
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(2 * step + (split == "val")))
        return x / 0 if step == self.poisoned and split == "train" else x

    def amount(self, batch: Tensor) -> float:
        """Rows."""
        return len(batch)

    def step(self, models: Models, batch: Tensor, step: int, update: Update) -> Metrics:  # noqa: ARG002
        """Descend."""
        self.spoil(next(self.calls))
        loss = models["model"].loss(batch)
        update("model", loss)
        return {"doubled": 2 * loss}

    def validate(self, models: Models, batch: Tensor) -> Metrics:
        """The loss, and some noise to prove that drawing it changes nothing."""
        return {"score": models["model"].loss(batch) + 0 * torch.rand(()), "noise": torch.rand(())}

    def listen(self, models: Models) -> Listening:  # noqa: ARG002
        """Never asked, of no clips."""
        raise AssertionError


class Game(Regression):
    """Two players: a critic judges what the model makes; neither may move the other."""

    forward_methods = ()

    def __init__(self, spoil: Callable[[int], None] = lambda _: None) -> None:
        super().__init__(spoil)
        self.models["critic"] = nn.Linear(4, 1)

    def step(self, models: Models, batch: Tensor, step: int, update: Update) -> Metrics:  # noqa: ARG002
        """The model learns to please the critic as it is; then the critic learns from what the model made."""
        self.spoil(next(self.calls))
        made = models["model"](batch)
        update("model", (models["critic"](made) - 1).square().mean() + (made - 2 * batch).square().mean())
        judged = models["critic"](made.detach()).square() + (models["critic"](2 * batch) - 1).square()
        update("critic", judged.mean())
        return {}


class Songs(Regression):
    """Has something to hear."""

    num_clips = 2

    def listen(self, models: Models) -> Listening:  # noqa: ARG002
        """Two clips of a tenth of a second."""
        return Listening({"original": torch.zeros(1, 800), "loud/one": torch.ones(2, 800)}, 8000, {"SNR": "3 dB"})


def trainer(**changed: Any) -> Trainer:
    """A short training."""
    settings: dict[str, Any] = {
        "max_steps": 6,
        "optimizer": partial(torch.optim.AdamW, lr=0.1),
        "schedule": partial(warmup_cosine, warmup_steps=2),
        "tracker": NoTracker,
        "validate_every": 3,
        "checkpoint_every": 2,
        "log_every": 2,
        "accelerator": "cpu",
    }
    return Trainer(**settings | changed)


def final(folder: Path) -> dict[str, Tensor]:
    """All tensors of the last checkpoint; the numbers beside them as one more."""
    path = checkpoint.latest(folder)
    assert path is not None
    scalars = torch.tensor(list((path / "trainer.json").read_bytes()))
    return {**load_file(path / "model.safetensors"), **load_file(path / "trainer.safetensors"), "scalars": scalars}


def journal(folder: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl without what a clock wrote."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in ("rate", "data_wait")} for line in lines]


def assert_same(folder: Path, other: Path) -> None:
    """Two runs ended with the same bits."""
    a, b = final(folder), final(other)
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


class CutOff(Exception):
    """The power goes."""


def cut_at(step: int) -> Callable[[int], None]:
    """Harm that raises in one step."""

    def spoil(call: int) -> None:
        if call == step:
            raise CutOff

    return spoil


@pytest.mark.parametrize("make", [Regression, Game])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("cut", [1, 2, 3, 5])
def test_a_resumed_run_is_the_same_run(tmp_path: Path, make: Any, accumulate: int, cut: int) -> None:
    """Weights, averages, optimizers, rates, score and log, with dropout; cut before, at and after a validation."""
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    best = trainer(accumulate=accumulate).fit(make(), whole, seed=3)
    with pytest.raises(CutOff):
        trainer(accumulate=accumulate).fit(make(cut_at(cut * accumulate)), resumed, seed=3)
    assert trainer(accumulate=accumulate).fit(make(), resumed, seed=3) == best
    assert_same(whole, resumed)
    assert journal(whole) == journal(resumed)
    assert trainer(accumulate=accumulate).fit(make(cut_at(0)), resumed, seed=3) == best  # already done: no step


SCHEDULES = {
    "constant": partial(constant, warmup_steps=2),
    "linear": partial(warmup_stable_decay, warmup_steps=2),
    "wsd": partial(warmup_stable_decay, warmup_steps=1, decay_steps=2),
}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_every_schedule_goes_on_where_it_was(tmp_path: Path, schedule: Any) -> None:
    """Cut off between a rise and a fall, the run meets the rates, and so the bits, of one that was not."""
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    trainer(schedule=schedule, log_every=1).fit(Regression(), whole, seed=3)
    with pytest.raises(CutOff):
        trainer(schedule=schedule, log_every=1).fit(Regression(cut_at(2)), resumed, seed=3)
    trainer(schedule=schedule, log_every=1).fit(Regression(), resumed, seed=3)
    assert_same(whole, resumed)
    assert [line["lr/model"] for line in journal(whole)] == [line["lr/model"] for line in journal(resumed)]


def test_another_seed_is_another_run(tmp_path: Path) -> None:
    """Dropout follows the seed."""
    for seed in (0, 1):
        trainer().fit(Regression(), tmp_path / str(seed), seed)
    with pytest.raises(AssertionError):
        assert_same(tmp_path / "0", tmp_path / "1")


def test_two_players_learn_from_their_own_losses_only(tmp_path: Path) -> None:
    """The model's loss passes through the critic and leaves no trace in it."""

    class Still(Game):
        def step(self, models: Models, batch: Tensor, step: int, update: Update) -> Metrics:  # noqa: ARG002
            update("model", models["critic"](models["model"](batch)).mean())
            return {}

    task = Still()
    before = task.models["critic"].weight.clone()
    trainer().fit(task, tmp_path, seed=0)
    assert torch.equal(task.models["critic"].weight, before)
    assert task.models["critic"].weight.grad is None


def in_process(function: Callable[..., None], *arguments: Any) -> int:
    """The exit code of a fresh process that runs `function`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["jukebox_lite.training.trainer"])  # imported once: a process then costs nothing
    process = context.Process(target=function, args=arguments)
    process.start()
    process.join(60)
    assert process.exitcode is not None, "still running after a minute"
    return process.exitcode


def fit_signalled(folder: Path, call: int, number: int) -> None:
    """Train, and send the own process a signal in the middle of a step."""
    torch.set_num_threads(1)
    task = Regression(lambda now: os.kill(os.getpid(), number) if now == call else None)
    trainer(validate_every=6, checkpoint_every=6).fit(task, folder, seed=3)


def test_a_run_worse_than_most_beside_it_is_saved_and_ends(tmp_path: Path) -> None:
    """It scores its best so far; one that is better than most goes on."""
    for others, last in ((1e9, 6), (1e-9, 3)):
        run = tmp_path / f"until{last}" / "run"
        for name in "abc":
            (run.parent / name).mkdir(parents=True)
            (run.parent / name / "metrics.jsonl").write_text(f'{{"step": 3, "score": {others}}}\n')
        pruner = MedianPruner(min_steps=2, min_runs=3)
        best = trainer(pruner=pruner, checkpoint_every=6).fit(Regression(), run, seed=3)
        lines = metrics(run)
        assert lines[-1]["step"] == last and (run / "checkpoints" / f"{last:08d}").is_dir()
        assert best == pytest.approx(min(line["score"] for line in lines if "score" in line), rel=1e-5)
        assert ("pruned after step 3" in (run / "train.log").read_text()) == (last == 3)


def fit_under_a_scheduler(folder: Path) -> None:
    """Train where submitit listens: it lets SIGTERM pass; at SIGUSR2 it puts the job into the queue again and exits."""
    saved = folder / "checkpoints"
    signal.signal(signal.SIGTERM, lambda *_: (folder / "passed").write_text(str(sorted(saved.iterdir())[-1].name)))
    signal.signal(signal.SIGUSR2, lambda *_: sys.exit(70 + len(list(saved.iterdir()))))
    calls = {2: signal.SIGTERM, 4: signal.SIGUSR2}
    torch.set_num_threads(1)
    task = Regression(lambda now: os.kill(os.getpid(), calls[now]) if now in calls else None)
    trainer(validate_every=6, checkpoint_every=6).fit(task, folder, seed=3)


def test_a_scheduler_that_listened_before_gets_its_signal_when_the_run_is_saved(tmp_path: Path) -> None:
    """SIGUSR2 ended the process at once, and what was learnt since the last checkpoint was lost."""
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    trainer(validate_every=6, checkpoint_every=6).fit(Regression(), whole, seed=3)
    assert in_process(fit_under_a_scheduler, resumed) == 72, "two checkpoints, and the scheduler's own exit"
    assert (resumed / "passed").read_text() == "00000003", "training went on after SIGTERM, which was let pass"
    assert (resumed / "checkpoints" / "00000005").is_dir()
    trainer(validate_every=6, checkpoint_every=6).fit(Regression(), resumed, seed=3)
    assert_same(whole, resumed)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_signal_in_a_step_loses_nothing(tmp_path: Path, number: int, code: int) -> None:
    """SIGTERM and Ctrl-C save after the step and say so; kill -9 can say nothing; all three resume to the same bits."""
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    trainer(validate_every=6, checkpoint_every=6).fit(Regression(), whole, seed=3)
    assert in_process(fit_signalled, resumed, 2, number) == code
    if number != signal.SIGKILL:
        assert (resumed / "checkpoints" / "00000003").is_dir()
        log = (resumed / "train.log").read_text()
        assert f"saved in {resumed / 'checkpoints' / '00000003'}; the same command resumes" in log
    trainer(validate_every=6, checkpoint_every=6).fit(Regression(), resumed, seed=3)
    assert_same(whole, resumed)


def fit_killed_in_a_save(folder: Path, event: int) -> None:
    """Train, and kill -9 the own process at its `event`th touch of the checkpoint folder."""
    torch.set_num_threads(1)
    touches = itertools.count()

    def hook(name: str, arguments: tuple[Any, ...]) -> None:
        touched = name.startswith(("open", "os.", "shutil.")) and any("checkpoints" in str(a) for a in arguments)
        if touched and next(touches) == event:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    trainer(checkpoint_every=1).fit(Regression(), folder, seed=3)


def test_kill_9_inside_a_save_leaves_a_run_that_resumes(tmp_path: Path) -> None:
    """Wherever in the writing, moving and pruning of checkpoints it strikes: the result has the same bits."""
    trainer(checkpoint_every=1).fit(Regression(), tmp_path / "whole", seed=3)
    for event in itertools.count(2, 11):
        resumed = tmp_path / f"killed-{event}"
        code = in_process(fit_killed_in_a_save, resumed, event)
        trainer(checkpoint_every=1).fit(Regression(), resumed, seed=3)
        assert_same(tmp_path / "whole", resumed)
        assert not list((resumed / "checkpoints").glob(".*")) or code == 0
        if code == 0:
            break
    assert event > 60


gentle = partial(torch.optim.SGD, lr=0.05, momentum=0.9)  # Adam makes much of the last bit of a small gradient

TWO_PROCESSES = """
import sys, torch
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_training import Game, Regression, gentle, trainer
torch.set_num_threads(1)
for make in (Regression, Game):
    trainer(devices=2, strategy="ddp", optimizer=gentle).fit(make(), Path({folder!r}) / make.__name__, seed=3)
"""


def test_two_processes_equal_one_that_accumulates_two(tmp_path: Path) -> None:
    """Averaging gradients over processes or over micro-steps is one sum; each batch has its own dropout either way.

    Of players this holds only if none is judged by another that has learnt within the step: of the micro-steps that
    accumulate, only the last one sees such a change. The script is started once, and starts its other process itself.
    """
    script = tmp_path / "train.py"
    script.write_text(TWO_PROCESSES.format(tests=str(Path(__file__).parent), folder=str(tmp_path)))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    buffers = re.compile(r"mean|count|scalars")  # statistics of one process's batches, as in any DDP training
    for make in (Regression, Game):
        alone = tmp_path / f"{make.__name__}-alone"
        trainer(accumulate=2, optimizer=gentle).fit(make(), alone, seed=3)
        a, b = final(tmp_path / make.__name__), final(alone)
        for name in (name for name in a if not buffers.search(name)):
            torch.testing.assert_close(a[name], b[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "damage"), [("model.safetensors", b"x"), ("trainer.json", b"{}")])
def test_a_damaged_checkpoint_costs_steps_and_not_the_run(tmp_path: Path, name: str, damage: bytes) -> None:
    """The trainer says which one it passes over, resumes from the one before and ends with the same bits."""
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    trainer().fit(Regression(), whole, seed=3)
    with pytest.raises(CutOff):
        trainer().fit(Regression(cut_at(5)), resumed, seed=3)
    (resumed / "checkpoints" / "00000004" / name).write_bytes(damage)
    trainer().fit(Regression(), resumed, seed=3)
    log = (resumed / "train.log").read_text()
    assert "skipping a damaged checkpoint" in log and "00000004" in log and "from step 2" in log
    assert_same(whole, resumed)


def test_a_loss_that_is_not_finite_ends_the_run_with_its_step(tmp_path: Path) -> None:
    """Although metrics are fetched every 10 steps only; and no poisoned weights are saved."""
    with pytest.raises(TrainingDiverged, match=r"^step 3: grad_norm/model and loss/model not finite"):
        trainer(log_every=10, validate_every=6, checkpoint_every=5).fit(Regression(poisoned=3), tmp_path, seed=0)
    assert checkpoint.latest(tmp_path) is None
    assert "TrainingDiverged: step 3" in (tmp_path / "train.log").read_text()


class Poisoned(Regression):
    """Is not finite in a range of training batches, whatever run of batches they are in."""

    def __init__(self, *poisoned: int, spoil: Callable[[int], None] = lambda _: None) -> None:
        super().__init__(spoil)
        self.poison = poisoned

    def batch(self, split: str, step: int) -> Tensor:
        """[8, 4]; not finite where poisoned."""
        return super().batch(split, step) / (0 if split == "train" and step in self.poison else 1)


rewinding = partial(trainer, on_nonfinite="rewind", max_steps=12, checkpoint_every=4, validate_every=6)


def test_a_rewound_run_passes_what_was_not_finite_by(tmp_path: Path) -> None:
    """It learns from no batch after its checkpoint that it had seen, ends finite, and its log holds no step twice."""
    seen: list[int] = []

    class Watched(Poisoned):
        def batch(self, split: str, step: int) -> Tensor:
            if split == "train":
                seen.append(step)
            return super().batch(split, step)

    rewinding().fit(Watched(6), tmp_path, seed=3)
    assert 6 in seen and len(set(seen)) == len(seen)
    assert all(value.isfinite().all() for value in final(tmp_path).values())
    assert [line["step"] for line in journal(tmp_path)] == [1, 2, 4, 6, 8, 10, 12]
    log = (tmp_path / "train.log").read_text()
    assert re.search("step 6: .* not finite .*; rewound to step 4, to go on with other batches", log)


@pytest.mark.parametrize("cut", [1, 5, 9, 10, 11, 13, 14, 16])
def test_a_rewound_run_resumes_to_the_same_bits(tmp_path: Path, cut: int) -> None:
    """Cut before, between and after two rewinds, one of them in what the other led to."""
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    poison = (6, 9 + (1 << 40))
    best = rewinding().fit(Poisoned(*poison), whole, seed=3)
    with pytest.raises(CutOff):
        rewinding().fit(Poisoned(*poison, spoil=cut_at(cut)), resumed, seed=3)
    assert rewinding().fit(Poisoned(*poison), resumed, seed=3) == best
    assert_same(whole, resumed)
    assert journal(whole) == journal(resumed)
    assert json.loads((whole / "checkpoints/00000012/trainer.json").read_text())["learner"]["rewinds"] == 2


def test_rewinding_ends(tmp_path: Path) -> None:
    """After three times from one checkpoint; and at once where there is none yet. What was saved stays finite."""
    everywhere = [step + (times << 40) for step in (6, 7) for times in range(9)]
    with pytest.raises(TrainingDiverged, match="^step 6: .* not finite .*; so it did on other batches, 3 times"):
        rewinding().fit(Poisoned(*everywhere), tmp_path / "often", seed=3)
    assert (tmp_path / "often" / "train.log").read_text().count("rewound to step 4") == 3
    assert [path.name for path in (tmp_path / "often" / "checkpoints").iterdir()] == ["00000004"]
    assert all(value.isfinite().all() for value in final(tmp_path / "often").values())
    with pytest.raises(TrainingDiverged, match="^step 2: .* not finite .*; there is no checkpoint yet to rewind to"):
        rewinding().fit(Poisoned(2), tmp_path / "early", seed=3)


def test_averages_equal_a_sum_by_hand() -> None:
    """Decay (1 + n) / (10 + n), then its limit; integers are copied; the model is left alone."""
    model = Toy()
    average = averaged(model)
    expected = model.linear.weight.detach().clone()
    for step, decay in enumerate([1 / 10, 2 / 11, 0.2, 0.2]):
        with torch.no_grad():
            model.linear.weight += step + 1
        model.count += 1
        expected = decay * expected + (1 - decay) * model.linear.weight.detach()
        follow(average, model, step, decay=0.2)
    torch.testing.assert_close(average.linear.weight.detach(), expected)
    assert average.count == 4 and not average.training
    assert model.linear.weight.requires_grad and not average.linear.weight.requires_grad


def test_as_many_checkpoints_are_kept_as_asked_for(tmp_path: Path) -> None:
    """And the best: with a rate that undoes what was learnt, an early one. The rehearsal counts with one more."""
    wild = {"optimizer": partial(torch.optim.SGD, lr=9.0), "schedule": partial(constant, warmup_steps=4)}
    how = trainer(keep_last=2, checkpoint_every=1, validate_every=1, ema_decay=0.0, **wild)
    how.fit(Regression(), tmp_path, seed=0)
    scores = {line["step"]: line["score"] for line in journal(tmp_path)}
    best = min(scores, key=scores.__getitem__)
    assert best < 5
    assert {int(path.name) for path in (tmp_path / "checkpoints").iterdir()} == {best, 5, 6}
    assert "for 3 checkpoints" in how.rehearse(Regression(), seed=0)[-1]


def test_schedules_rise_and_fall() -> None:
    """None begins at zero; the cosine ends at `final`, the constant stays, the straight ones fall late or all along."""

    def rates(make: Callable[..., Any], **settings: Any) -> list[float]:
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        schedule = make(optimizer, 10, **settings)
        seen = []
        for _ in range(11):
            seen.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        return seen

    cosine = rates(warmup_cosine, warmup_steps=2, final=0.1)
    assert cosine[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert cosine[6] == pytest.approx(0.55) and cosine[10] == pytest.approx(0.1)
    assert rates(constant, warmup_steps=1) == pytest.approx([0.5] + [1.0] * 10)
    stable = rates(warmup_stable_decay, warmup_steps=1, decay_steps=4, final=0.2)
    assert stable == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])
    linear = rates(warmup_stable_decay, warmup_steps=2)
    assert linear == pytest.approx([1 / 3, 2 / 3] + [1 - step / 8 for step in range(9)])


def test_what_a_step_draws_follows_seed_and_index() -> None:
    """Equal pairs draw equal numbers; exchanging seed and index does not."""
    drawn = {}
    for pair in [(0, 1), (1, 0), (0, 2), (0, 1)]:
        seed_torch(*pair, torch.device("cpu"))
        noise = torch.rand(4)
        assert torch.equal(drawn.setdefault(pair, noise), noise)
    assert len({tuple(noise.tolist()) for noise in drawn.values()}) == 3


def test_a_run_leaves_what_a_person_looks_for(tmp_path: Path) -> None:
    """The data and the parameters first, then a line a log interval; curves, sounds, a page; nothing to unpickle."""
    trainer(tracker=TensorBoard).fit(Songs(), tmp_path, seed=0)
    assert "parameters: model 20; 1 x cpu" in (tmp_path / "train.log").read_text().splitlines()[1]
    lines = journal(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 6]
    assert {"loss/model", "grad_norm/model", "lr/model", "doubled"} <= lines[0].keys()
    assert {"score", "val/noise"} <= lines[2].keys()
    assert (tmp_path / "samples" / "00000003" / "index.html").exists()
    assert len(list((tmp_path / "samples" / "00000006").glob("*.wav"))) == 2
    assert list((tmp_path / "tensorboard").iterdir())
    for path in (tmp_path / "checkpoints").glob("*/*"):
        assert path.suffix in (".safetensors", ".json")
        assert path.suffix == ".safetensors" or json.loads(path.read_text())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"precision": "16-mixed"}, "trainer.precision=16-mixed: give one of auto, 32-true, bf16-mixed"),
        ({"strategy": "deepspeed"}, "trainer.strategy=deepspeed: give one of auto, ddp"),
        ({"strategy": "fsdp", "compile": True}, "trainer.compile=true with trainer.strategy=fsdp"),
        ({"validate_every": 0}, "trainer.validate_every=0: give 1 or more"),
        ({"keep_last": 0}, "trainer.keep_last=0: give 1 or more"),
        ({"on_nonfinite": "skip"}, "trainer.on_nonfinite=skip: give one of stop, rewind"),
        ({"gradient_clip": 0.0}, "trainer.gradient_clip=0.0: give more than 0"),
        ({"ema_decay": 1.0}, "trainer.ema_decay=1.0: give 0 or more"),
    ],
)
def test_settings_that_would_break_a_promise_are_refused(changed: dict[str, Any], message: str) -> None:
    """Before anything is started."""
    with pytest.raises(InputError, match=re.escape(message)):
        trainer(**changed)


def test_bf16_reaches_methods_besides_forward(tmp_path: Path) -> None:
    """Fabric on one device leaves marked methods in 32 bits; the step runs under autocast, so ours are not."""
    seen = []

    class Watching(Regression):
        def step(self, models: Models, batch: Tensor, step: int, update: Update) -> Metrics:
            models["model"].linear.register_forward_hook(lambda _m, _i, output: seen.append(output.dtype))
            return super().step(models, batch, step, update)

    trainer(precision="bf16-mixed", max_steps=1).fit(Watching(), tmp_path, seed=0)
    assert set(seen) == {torch.bfloat16}
    assert {value.dtype for name, value in final(tmp_path).items() if "weight" in name} == {torch.float32}


class Unmeasurable(Regression):
    """Its first validation is no number."""

    def __init__(self) -> None:
        super().__init__()
        self.validations = itertools.count()

    def validate(self, models: Models, batch: Tensor) -> Metrics:
        """Not a number in the first validation, the loss afterwards."""
        metrics = super().validate(models, batch)
        first = next(self.validations) < self.num_validation_batches
        return metrics | {"score": metrics["score"] * (float("nan") if first else 1)}


def test_a_score_that_is_no_number_never_is_the_best(tmp_path: Path) -> None:
    """Python's min keeps whichever comes first where one is not a number; once that made such a score the best."""
    best = trainer().fit(Unmeasurable(), tmp_path, seed=0)
    finite = [line["score"] for line in journal(tmp_path) if line.get("score", float("nan")) == line.get("score")]
    assert best == pytest.approx(min(finite), rel=1e-5)


def test_a_rehearsal_counts_a_step_and_weighs_a_checkpoint(tmp_path: Path) -> None:
    """Its layer of 4 x 4, on 8 rows, there and back to the weight, in two batches; the bytes that a run then saves."""
    task, how = Regression(), trainer(accumulate=2)
    with Reader(task.batch) as reader:
        found = rehearse(how._learner(task, 3), reader, 40, lambda: None)  # pyright: ignore[reportPrivateUsage]
    assert found.flop == 2 * 2 * (2 * 8 * 4 * 4)
    how.fit(Regression(), tmp_path, seed=3)
    saved = [load_file(path) for path in (tmp_path / "checkpoints/00000006").glob("*.safetensors")]
    assert found.checkpoint_bytes == sum(tensor.nbytes for tensors in saved for tensor in tensors.values())
    assert found.memory_bytes > 2**24 and found.step_seconds > 0


def test_a_rehearsal_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says how long the steps and the validations will be, writes nothing, and raises where training would."""
    monkeypatch.chdir(tmp_path)
    lines = trainer(max_steps=40, validate_every=15).rehearse(Regression(), seed=3)
    assert re.search(r"time: .* for 40 steps, .* for 3 validations", "\n".join(lines))
    assert not list(tmp_path.iterdir())
    with pytest.raises(TrainingDiverged, match="step 0: .* not finite"):
        trainer().rehearse(Regression(poisoned=0), seed=3)
