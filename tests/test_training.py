"""The trainer: a run that is cut off anywhere is the same run, on one process or several."""

import itertools
import json
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import assert_same, tensors
from torch import Tensor, nn
from toys import CutOff, Game, Regression, Toy, cut_at, gentle, journal, trainer

from jukebox_lite.errors import InputError
from jukebox_lite.tasks.base import Listening, Metrics, Models, Update
from jukebox_lite.training.averages import averaged, follow
from jukebox_lite.training.learner import seed_torch
from jukebox_lite.training.pruning import MedianPruner
from jukebox_lite.training.schedule import constant, warmup_cosine, warmup_stable_decay
from jukebox_lite.training.table import metrics
from jukebox_lite.training.tracking import TensorBoard


class Songs(Regression):
    """Has something to hear."""

    num_clips = 2

    def listen(self, models: Models) -> Listening:  # noqa: ARG002
        """Two clips of a tenth of a second."""
        return Listening({"original": torch.zeros(1, 800), "loud/one": torch.ones(2, 800)}, 8000, {"SNR": "3 dB"})


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


TWO_PROCESSES = """
import sys, torch
from pathlib import Path
sys.path.insert(0, {tests!r})
from toys import Game, Regression, gentle, trainer
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
    buffers = re.compile(r"mean|count|numbers")  # statistics of one process's batches, as in any DDP training
    for make in (Regression, Game):
        alone = tmp_path / f"{make.__name__}-alone"
        trainer(accumulate=2, optimizer=gentle).fit(make(), alone, seed=3)
        a, b = tensors(tmp_path / make.__name__), tensors(alone)
        for name in (name for name in a if not buffers.search(name)):
            torch.testing.assert_close(a[name], b[name], rtol=1e-5, atol=1e-6)


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
    assert {value.dtype for name, value in tensors(tmp_path).items() if "weight" in name} == {torch.float32}


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
