"""What a training run learns. A task owns its models, its data and the shape of one step."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from jukebox_lite.audio import read
from jukebox_lite.codecs.base import Codec
from jukebox_lite.codecs.pieces import padded_length
from jukebox_lite.codecs.vqvae import HierarchicalVQVAE
from jukebox_lite.datasets.audio_windows import AudioWindows
from jukebox_lite.datasets.code_cache import codec_fingerprint
from jukebox_lite.datasets.code_windows import CodeWindows
from jukebox_lite.datasets.songs import Song
from jukebox_lite.errors import InputError
from jukebox_lite.levels import Facts, Level, Window
from jukebox_lite.losses import WeightedSum
from jukebox_lite.metrics.codecs import (
    bits_per_step,
    code_histogram,
    code_use,
    decibels,
    perplexity,
    spectral_convergence,
)
from jukebox_lite.metrics.distances import measure
from jukebox_lite.nn.device import device_of
from jukebox_lite.priors.base import Prior, Sampler

Metrics = dict[str, Tensor]  # name -> []
Models = dict[str, Any]  # modules, perhaps in a wrapper whose type does not know their methods
Update = Callable[[str, Tensor], None]  # update("codec", loss): one descent step of that model


@dataclass
class Listening:
    """Something to hear of a model in training: clips of equal rank, and figures about them."""

    clips: dict[str, Tensor]  # title -> audio [C, N]
    sample_rate: int
    figures: dict[str, str] = field(default_factory=dict)


class Task(ABC):
    """What is learnt, and from what. The trainer hands `step`, `validate` and `listen` the models to use:
    wrapped for several devices, or averaged; `models` are the bare ones, as built.
    """

    models: Models  # what is learnt, by name; each gets an optimizer of its own
    forward_methods: tuple[str, ...] = ()  # methods besides forward that compute gradients
    num_validation_batches: int
    vocabulary: dict[str, list[str]]  # what the labels' indices mean; saved with the run
    rate_unit: str  # what `amount` counts, for the progress line: "audio s", "tokens"
    about: str  # lines for people: the songs, what was set aside, what the codes are like
    fingerprints: dict[str, str]  # of the songs, and of the codec that a prior speaks for

    @abstractmethod
    def batch(self, split: str, step: int) -> Any:
        """The batch of a step, "train" or "val", on the CPU: a pure function of (seed, split, step)."""

    @abstractmethod
    def amount(self, batch: Any) -> float:
        """How much of `rate_unit` a batch holds."""

    @abstractmethod
    def step(self, models: Models, batch: Any, update: Update) -> Metrics:
        """One training step, written as the algorithm is: losses, and an `update` for each model."""

    @abstractmethod
    def validate(self, models: Models, batch: Any) -> Metrics:
        """Metrics of a held-out batch; "score" is what sweeps compare, lower is better."""

    @abstractmethod
    def listen(self, models: Models) -> Listening:
        """Something to hear: the first held-out clips and what the models make of them."""

    def judge(self, step: int, values: Mapping[str, float]) -> None:
        """Raises InputError where the `values` logged at a validation tell that there is no use in going on."""
        del step, values


class CodecTask(Task):
    """Reconstruct every level from its own codes (Jukebox, section 3)."""

    rate_unit = "audio s"

    def __init__(
        self,
        codec: HierarchicalVQVAE,
        windows: Callable[..., AudioWindows],
        loss: WeightedSum,
        num_validation_batches: int = 4,
        num_clips: int = 2,
        clip_seconds: float = 5.0,
        collapse_below: float = 0.02,
        collapse_after: int = 1000,
    ):
        self.collapse_below, self.collapse_after = collapse_below, collapse_after
        self.models = {"codec": codec}
        self.loss, self.num_validation_batches = loss, num_validation_batches
        self.num_clips, self.clip_seconds = num_clips, clip_seconds
        self.vocabulary = {}
        self.codec = codec
        self.windows = windows(sample_rate=codec.sample_rate, channels=codec.channels)
        _check_length(codec, self.windows.num_samples)
        self.about = "\n".join([self.windows.songs.summary(), *map(self.room, codec.levels)])
        self.fingerprints = {"songs": self.windows.songs.fingerprint()}

    def batch(self, split: str, step: int) -> Tensor:
        """Audio [B, C, N]"""
        return self.windows.batch(split, step)

    def amount(self, batch: Tensor) -> float:
        return batch.shape[0] * batch.shape[-1] / self.codec.sample_rate

    def losses(self, models: Models, audio: Tensor) -> tuple[Tensor, Metrics, dict[str, Tensor]]:
        """The loss [] to descend, what it is made of, and each level's reconstruction [B, C, N]."""
        self.loss.to(audio.device)
        output = models["codec"](audio)
        losses = self.loss({level: reconstruction for level, (reconstruction, _) in output.items()}, audio)
        total, metrics, heard = audio.new_zeros(()), {}, {}
        for level, (reconstruction, quantized) in output.items():
            loss, terms = losses[level]
            total = total + loss + quantized.loss
            heard[level] = reconstruction.detach()
            histogram = code_histogram(quantized.codes, self.codec.level(level).codebook_size)
            terms |= {"commitment": quantized.loss, "use": code_use(histogram), "perplexity": perplexity(histogram)}
            terms["bits_per_second"] = bits_per_step(histogram) * self.codec.steps_per_second(level)
            metrics |= {f"{name}/{level}": value.detach() for name, value in terms.items()}
        return total, metrics, heard

    def step(self, models: Models, batch: Tensor, update: Update) -> Metrics:
        loss, metrics, _ = self.losses(models, batch)
        update("codec", loss)
        for level in self.codec.levels:
            health = self.codec.health(level.name)
            metrics |= {f"{name}/{level.name}": value for name, value in health.items()}
        return metrics

    def validate(self, models: Models, batch: Tensor) -> Metrics:
        loss, metrics, heard = self.losses(models, batch)
        for level, reconstruction in heard.items():
            figures = measure(reconstruction, batch, self.codec.sample_rate)
            metrics |= {f"{name}/{level}": value for name, value in figures.items()}
        return metrics | {"score": loss.detach()}

    def listen(self, models: Models) -> Listening:
        """The middle of the first held-out songs, as it is and from each level's codes, finest first."""
        audio = torch.stack([self.excerpt(song) for song in self.windows.songs.val[: self.num_clips]])
        audio = audio.to(device_of(models["codec"]))
        output = models["codec"](audio)
        heard = {name: reconstruction.float() for name, (reconstruction, _) in output.items()}
        clips, figures = {}, {}
        for index, original in enumerate(audio):
            clips[f"clip {index + 1}, original"] = original
            for level in reversed(self.codec.levels):
                clips[f"clip {index + 1}, {level.name}"] = heard[level.name][index].clamp(-1, 1)
        for level in reversed(self.codec.levels):
            ratio = spectral_convergence(heard[level.name], audio).item()
            figures[f"spectral convergence, {level.name}"] = f"{decibels(ratio):.1f} dB"
            figures[f"codes, {level.name}"] = self.told(level, output[level.name][1].codes)
        return Listening(clips, self.codec.sample_rate, figures)

    def room(self, level: Level) -> str:
        """A line for people: what a level can hold."""
        books = f"{level.channels} x {level.codebook_size:,}" if level.channels > 1 else f"{level.codebook_size:,}"
        most = self.most_bits_per_second(level)
        return f"  level {level.name}: a step of {level.samples_per_step} samples, {books} codes, {most:,.0f} bits/s"

    def most_bits_per_second(self, level: Level) -> float:
        """What a level's codes would cost if all were equally likely."""
        return level.channels * math.log2(level.codebook_size) * self.codec.steps_per_second(level.name)

    def told(self, level: Level, codes: Tensor) -> str:
        """For people: how codes [B, K, T] of a level use its codebooks, and how these fared in training."""
        histogram = code_histogram(codes, level.codebook_size)
        bits_per_second = bits_per_step(histogram) * self.codec.steps_per_second(level.name)
        health = {name: value.item() for name, value in self.codec.health(level.name).items()}
        return (
            f"{code_use(histogram):.1%} of {level.codebook_size:,} in use, perplexity {perplexity(histogram):,.0f}, "
            f"{bits_per_second:,.0f} of {self.most_bits_per_second(level):,.0f} bits/s; in training "
            f"{health['dead']:.1%} dead, {health['revived']:.0f} just revived, idle for {health['age']:.1f} batches"
        )

    def judge(self, step: int, values: Mapping[str, float]) -> None:
        """Refuses to go on where a level writes so few codes that a prior of it would learn next to nothing."""
        for level in self.codec.levels if step >= self.collapse_after else ():
            seen = self.windows.batch_size * self.windows.num_samples // level.samples_per_step  # codes of a batch
            even = values[f"val/perplexity/{level.name}"]  # codes in even use that would be as varied
            if even < self.collapse_below * min(level.codebook_size, seen):
                raise InputError(
                    f"step {step:,}: level {level.name} has collapsed: its held-out codes are as varied as "
                    f"{even:.1f} of {level.codebook_size:,} would be (task.collapse_below={self.collapse_below}), "
                    f"too few for a prior; start again under another name with {self.codec.advice(level.name)}"
                )

    def excerpt(self, song: Song) -> Tensor:
        """Audio [C, N] from the middle of a song, at least `clip_seconds` long; zeros where the song is shorter."""
        rate = self.codec.sample_rate
        length = padded_length(self.codec, round(self.clip_seconds * rate))
        start = max(0, (song.info.num_samples(rate) - length) // 2)
        return read(song.path, start, length, rate, self.codec.channels)


def _check_length(codec: Codec, num_samples: int) -> None:
    """Raises InputError unless windows are whole steps of every level, and long enough to learn from.

    A window of less than twice the halo has an edge in everything that a code hears. Trained so, a codec writes other
    codes in the middle of a song: those that it never learnt to write.
    """
    step, least = codec.levels[0].samples_per_step, padded_length(codec, max(2 * codec.halo, 2048))
    if num_samples % step or num_samples < least:
        raise InputError(
            f"windows.num_samples={num_samples}: expected a multiple of {step}, {least} or more, so that codes are "
            f"learnt away from a window's edges; or a smaller codec.depth or codec.dilation_growth"
        )


class PriorTask(Task):
    """Predict one level's codes from their past, the level above and the labels (Jukebox, section 4)."""

    forward_methods = ("loss",)
    rate_unit = "tokens"

    def __init__(
        self,
        codec: Codec,
        level: str,
        prior: Callable[..., Prior],
        windows: Callable[..., CodeWindows],
        sampler: Sampler,
        num_validation_batches: int = 8,
        num_clips: int = 2,
    ):
        self.codec, self.sampler, self.num_clips = codec, sampler, num_clips
        self.windows = windows(codec=codec)
        self.num_validation_batches, self.vocabulary = num_validation_batches, self.windows.vocabulary
        self.facts = Facts(codec.level(level), codec.above(level), self.vocabulary, codec.code_vectors())
        model = prior(facts=self.facts)
        if (above := self.facts.above) and model.context_length % self.facts.ratio:
            raise InputError(
                f"prior.context_length={model.context_length} is no multiple of {self.facts.ratio}, "
                f"the steps of level {level} per step of {above.name}"
            )
        self.context_length = model.context_length
        for split in ("train", "val"):
            self.batch(split, 0)  # refuses now, and not at the first validation, songs shorter than the context
        self.models = {"prior": model}
        self.about = f"{self.windows.songs.summary()}\n{self.windows.cache.summary()}"
        self.fingerprints = {"songs": self.windows.songs.fingerprint(), "codec": codec_fingerprint(codec)}

    def batch(self, split: str, step: int) -> Window:
        return self.windows.batch(split, step, self.facts, self.context_length)

    def amount(self, batch: Window) -> float:
        return batch.codes[self.facts.level.name].numel()

    def step(self, models: Models, batch: Window, update: Update) -> Metrics:
        loss = models["prior"].loss(batch)
        update("prior", loss.total)
        return loss.metrics

    def validate(self, models: Models, batch: Window) -> Metrics:
        loss = models["prior"].loss(batch)
        return loss.metrics | {"score": loss.total.detach()}

    def listen(self, models: Models) -> Listening:
        """Held-out windows as their codes sound, and windows sampled with the same labels and level above."""
        device = device_of(models["prior"])
        level, window = self.facts.level, self.batch("val", 0).to(device)
        real = window.codes.pop(level.name)[: self.num_clips]
        window = Window(
            {name: codes[: self.num_clips] for name, codes in window.codes.items()},
            {name: values[: self.num_clips] for name, values in window.labels.items()},
        )
        noise = torch.rand(real.shape, generator=torch.Generator().manual_seed(0)).to(device)
        sampled = models["prior"].sample(window, self.sampler, noise)
        heard = [self.codec.decode({level.name: codes.cpu()}).float().clamp(-1, 1) for codes in (real, sampled)]
        clips = {}
        for index, (original, new) in enumerate(zip(*heard, strict=True)):
            clips |= {f"clip {index + 1}, real codes": original, f"clip {index + 1}, sampled": new}
        return Listening(clips, self.codec.sample_rate)
