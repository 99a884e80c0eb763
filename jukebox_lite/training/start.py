"""What a run begins with: weights that another run, or OpenAI, has learnt; and which of them stay as they are."""

import difflib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from jukebox_lite.datasets.code_cache import codec_fingerprint
from jukebox_lite.errors import InputError
from jukebox_lite.interop import openai
from jukebox_lite.priors.base import Prior
from jukebox_lite.tasks.base import Models, Task
from jukebox_lite.tasks.prior import PriorTask
from jukebox_lite.training import checkpoint
from jukebox_lite.training.carry import carry, counted
from jukebox_lite.training.load import load_codec, load_prior


@dataclass(frozen=True)
class _Source:
    """Models to begin with, or only their weights where nobody has to be asked what these mean."""

    place: str
    models: dict[str, nn.Module]
    weights: dict[str, Mapping[str, Tensor]]


class Start:
    """Begins with the averaged weights of a `run` (its folder; for a codec also one of its checkpoints), or with those
    in the file `openai`, as OpenAI published them; `hps` go before the hyperparameters that it may hold.

    Only where the run has no checkpoint of its own: a resumed one goes on from that. What `freeze`, shell patterns of
    names such as encoders.*, fits stays as it is: it has no gradient, no optimizer state and no moving average.
    """

    def __init__(
        self,
        run: str | None = None,
        openai: str | None = None,
        hps: dict[str, Any] | None = None,
        freeze: list[str] | None = None,
    ):
        if run and openai:
            raise InputError(f"start.run={run} and start.openai={openai}: expected one; leave out the other")
        if hps and not openai:
            raise InputError("start.hps: hyperparameters of one of OpenAI's files; give it as start.openai=...")
        if freeze and not (run or openai):
            raise InputError(f"start.freeze={freeze}: nothing is known of it yet; give start.run=... beside it")
        self.run, self.openai, self.hps, self.freeze = run, openai, hps or {}, freeze or []

    def begin(self, task: Task, folder: Path) -> dict[str, Any]:
        """Gives the task's models their weights and freezes; tells so in `task.about`.

        Returns what the provenance of the run in `folder` is to hold: {"start": ...}, or nothing where no weights were
        taken over. Raises InputError where they cannot be.
        """
        lines, record, new = [], {}, set()
        if (self.run or self.openai) and checkpoint.latest(folder, lambda _: None) is None:
            source = self._of_openai(task) if self.openai else self._of_run(task)
            fingerprint = _fingerprint(source.weights)
            lines.append(f"begins with {source.place} ({fingerprint})")
            for name, weights in source.weights.items():
                carried = carry(task.models[name], weights, source.models.get(name))
                learnt = dict(task.models[name].named_parameters())
                if not any(learnt[key].ndim > 1 for key in learnt.keys() & (carried.taken | carried.fitted).keys()):
                    raise InputError(f"{source.place}: no matrix of it fits this {name}; start from one of its shape")
                new |= carried.new.keys()
                lines += carried.lines()
            record = {"start": {"from": source.place, "fingerprint": fingerprint}}
        frozen = freeze(task.models, self.freeze)
        if strange := sorted(new & frozen.keys()):
            raise InputError(f"start.freeze: {strange[0]} is new here, and would stay as it is by chance; freeze less")
        lines += [f"frozen: {counted(frozen)}"] if frozen else []
        task.about = "\n".join([task.about, *lines])
        return record

    def _of_run(self, task: Task) -> _Source:
        """Another run's."""
        run = str(self.run)
        if isinstance(task, PriorTask):
            prior, codec = load_prior(run)
            _check_codes(task, prior, f"start.run={run}", codec_fingerprint(codec))
            return _Source(run, {"prior": prior}, {"prior": prior.state_dict()})
        codec = load_codec(run)
        weights: dict[str, Mapping[str, Tensor]] = {"codec": codec.state_dict()}
        path = Path(run) if Path(run).parent.name == "checkpoints" else checkpoint.latest(Path(run))
        assert path is not None  # from which the codec is
        for name in sorted(task.models.keys() - weights.keys()):
            with suppress(InputError):  # a codec's run may have had no discriminator
                weights[name] = checkpoint.read_weights(path, name)
        return _Source(str(path), {"codec": codec}, weights)

    def _of_openai(self, task: Task) -> _Source:
        """OpenAI's."""
        path = str(self.openai)
        if isinstance(task, PriorTask):
            prior = openai.read_prior(path, self.hps)
            _check_codes(task, prior, f"start.openai={path}")
            return _Source(path, {"prior": prior}, {"prior": prior.state_dict()})
        codec = openai.read(path, self.hps)
        return _Source(path, {"codec": codec}, {"codec": codec.state_dict()})


def _check_codes(task: PriorTask, prior: Prior, where: str, fingerprint: str | None = None) -> None:
    """Raises InputError where the prior's codes mean something else than the task's.

    A codec whose codebooks are bit for bit those of the prior's speaks the same codes, whatever became of the rest.
    Without the `fingerprint` of the prior's codec there are only the levels to compare.
    """
    ours, theirs = task.facts, prior.facts
    if (ours.level, ours.above) != (theirs.level, theirs.above):
        pairs = [f"{facts.level}{f' below {facts.above}' if facts.above else ''}" for facts in (theirs, ours)]
        raise InputError(f"{where}: is a prior of {pairs[0]}, and this run learns {pairs[1]}: expected the same level")
    if fingerprint in (None, task.fingerprints["codec"]):
        return
    for name in filter(None, (ours.level.name, ours.above and ours.above.name)):
        mine, other = ours.vectors.get(name), theirs.vectors.get(name)
        if mine is None or other is None or not torch.equal(mine, other):
            raise InputError(
                f"{where}: learnt codes of another codec, whose codebook of level {name} is not this one's: give "
                "codec.run its codec, or one trained on from that with start.freeze=[quantizers.*]"
            )


def _fingerprint(weights: Mapping[str, Mapping[str, Tensor]]) -> str:
    """12 hex digits that change with any of the numbers."""
    digest = hashlib.sha256()
    for name, tensors in weights.items():
        for key, value in tensors.items():
            digest.update(f"{name}/{key}".encode())
            digest.update(value.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def freeze(models: Models, patterns: Sequence[str]) -> dict[str, Tensor]:
    """Puts the models into training mode, but for what the patterns fit: returns that by name.

    Codebooks and their like move by themselves in training, so they are put into evaluation mode, each as a whole.
    Raises InputError where a pattern fits nothing, a part of such a whole, or all that a model could learn.
    """
    tensors = {name: dict(_tensors(model)) for name, model in models.items()}
    names = sorted({key for model in tensors.values() for key in model})
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise InputError(f"start.freeze: no weight is called {pattern}; {_nearest(pattern, names)}")
    frozen: dict[str, Tensor] = {}
    for name, model in models.items():
        chosen = {key for key in tensors[name] if any(fnmatchcase(key, pattern) for pattern in patterns)}
        model.train()
        for path, module in model.named_modules():
            _hold(path, module, chosen)
        frozen |= {key: value for key, value in tensors[name].items() if key in chosen}
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise InputError(f"start.freeze={list(patterns)}: nothing is left of the {name} to learn; freeze less")
    return frozen


def _hold(path: str, module: nn.Module, chosen: set[str]) -> None:
    """Freezes those of a module's own tensors that are `chosen`."""
    own = dict(_tensors(module, recurse=False))
    moving = own.keys() - dict(module.named_parameters(recurse=False)).keys()
    held = {key for key in own if f"{path}.{key}".removeprefix(".") in chosen}
    if moving and held and held != own.keys():
        raise InputError(
            f"start.freeze: {path}.{min(held)} moves with {', '.join(sorted(own.keys() - held))}; freeze {path}.*"
        )
    for key in held - moving:
        own[key].requires_grad_(False)
    if held & moving:
        module.training = False


def _tensors(module: nn.Module, recurse: bool = True) -> Iterator[tuple[str, Tensor]]:
    """The tensors that are saved with a module, by name."""
    for prefix, each in module.named_modules() if recurse else [("", module)]:
        passing = each._non_persistent_buffers_set
        for name, tensor in {**each._parameters, **each._buffers}.items():
            if tensor is not None and name not in passing:
                yield f"{prefix}.{name}".removeprefix("."), tensor


def _nearest(pattern: str, names: Sequence[str]) -> str:
    """What could have been meant."""
    parts = {".".join(name.split(".")[:depth]) + ".*" for name in names for depth in range(1, name.count(".") + 1)}
    near = difflib.get_close_matches(pattern, sorted({*parts, *names}), 3, 0.4)
    return f"there are {', '.join(near or names[:3])}"
