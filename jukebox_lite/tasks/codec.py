"""Learning a codec: reconstruct every level from its own codes."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from jukebox_lite.audio import read
from jukebox_lite.codecs.base import Codec
from jukebox_lite.codecs.pieces import padded_length
from jukebox_lite.codecs.quantizers import Quantized
from jukebox_lite.codecs.vqvae import HierarchicalVQVAE
from jukebox_lite.datasets.audio_windows import AudioWindows
from jukebox_lite.datasets.songs import Song
from jukebox_lite.errors import InputError
from jukebox_lite.levels import Level
from jukebox_lite.losses import Terms, WeightedTerms, balanced_sum, weighted_sum
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
from jukebox_lite.tasks.adversarial import Adversary
from jukebox_lite.tasks.base import Listening, Metrics, Models, Task, Update, check_counts

Output = dict[str, tuple[Tensor, Quantized]]  # level -> reconstruction [B, C, N] and its quantized latent
Heard = dict[str, Tensor]  # level -> reconstruction [B, C, N]


class CodecTask(Task):
    """Reconstruct every level from its own codes (Jukebox, section 3); with an adversary, also pass for music."""

    rate_unit = "audio s"

    def __init__(
        self,
        codec: HierarchicalVQVAE,
        windows: Callable[..., AudioWindows],
        loss: WeightedTerms,
        num_validation_batches: int = 4,
        num_clips: int = 2,
        clip_seconds: float = 5.0,
        collapse_below: float = 0.02,
        collapse_after: int = 1000,
        balance_gradients: bool = False,
        adversary: Callable[..., Adversary] | None = None,
    ):
        check_counts(num_validation_batches, num_clips)
        self.balance_gradients = balance_gradients
        self.collapse_below, self.collapse_after = collapse_below, collapse_after
        self.models = {"codec": codec}
        self.adversary = None if adversary is None else adversary(channels=codec.channels)
        if self.adversary is not None:
            self.models["discriminator"] = self.adversary.discriminator
        self.loss, self.num_validation_batches = loss, num_validation_batches
        self.num_clips, self.clip_seconds = num_clips, clip_seconds
        self.vocabulary = {}
        self.codec = codec
        self.windows = windows(sample_rate=codec.sample_rate, channels=codec.channels)
        _check_length(codec, self.windows.num_samples)
        if self.adversary is not None and self.adversary.num_samples > self.windows.num_samples:
            raise InputError(
                f"task.adversary.num_samples={self.adversary.num_samples}: expected no more than "
                f"windows.num_samples={self.windows.num_samples}"
            )
        self.about = "\n".join([self.windows.songs.summary(), *map(self.room, codec.levels)])
        self.fingerprints = {"songs": self.windows.songs.fingerprint()}

    def batch(self, split: str, step: int) -> Tensor:
        """Audio [B, C, N]"""
        return self.windows.batch(split, step)

    def amount(self, batch: Tensor) -> float:
        return batch.shape[0] * batch.shape[-1] / self.codec.sample_rate

    def hear(self, models: Models, audio: Tensor) -> tuple[Output, Heard, dict[str, Terms]]:
        """What the codec makes of audio [B, C, N], its reconstructions as the losses hear them, and these by level."""
        self.loss.to(audio.device)
        output = models["codec"](audio)
        heard = {level: reconstruction for level, (reconstruction, _) in output.items()}
        if self.balance_gradients and torch.is_grad_enabled():
            # Views, not the leaves: counting a step's FLOPs hooks what modules are given, and leaves forbid that.
            heard = {level: audio.detach().requires_grad_().view_as(audio) for level, audio in heard.items()}
        return output, heard, self.loss(heard, audio)

    def total(self, output: Output, heard: Heard, terms: dict[str, Terms]) -> Tensor:
        """What to descend [], of all levels and their quantizers."""
        losses = []
        for level, (reconstruction, quantized) in output.items():
            own, plain = terms[level], heard[level] is reconstruction
            loss = weighted_sum(own) if plain else balanced_sum(own, heard[level], reconstruction)
            losses.append(loss + quantized.loss)
        return torch.stack(losses).sum()

    def figures(self, output: Output, terms: dict[str, Terms]) -> Metrics:
        """What the losses are made of, and how the codes are used."""
        metrics = {}
        for level, (_, quantized) in output.items():
            values = {name: term.value for name, term in terms[level].items()}
            histogram = code_histogram(quantized.codes, self.codec.level(level).codebook_size)
            values |= {"commitment": quantized.loss, "use": code_use(histogram), "perplexity": perplexity(histogram)}
            values["bits_per_second"] = bits_per_step(histogram) * self.codec.steps_per_second(level)
            metrics |= {f"{name}/{level}": value.detach() for name, value in values.items()}
        return metrics

    def health(self) -> Metrics:
        """How the codebooks' entries fare, after a step."""
        healths = {level.name: self.codec.health(level.name) for level in self.codec.levels}
        return {f"{name}/{level}": value for level, health in healths.items() for name, value in health.items()}

    def step(self, models: Models, batch: Tensor, step: int, update: Update) -> Metrics:
        output, heard, terms = self.hear(models, batch)
        if self.adversary is not None and step >= self.adversary.start:
            self.adversary.play(models, batch, heard, terms, update)
        update("codec", self.total(output, heard, terms))
        return self.figures(output, terms) | self.health()

    def validate(self, models: Models, batch: Tensor) -> Metrics:
        output, heard, terms = self.hear(models, batch)
        metrics = self.figures(output, terms)
        for level, (reconstruction, _) in output.items():
            distances = measure(reconstruction, batch, self.codec.sample_rate)
            metrics |= {f"{name}/{level}": value for name, value in distances.items()}
        return metrics | {"score": self.total(output, heard, terms).detach()}

    def listen(self, models: Models) -> Listening:
        """The middle of the first held-out songs, as it is and from each level's codes, finest first."""
        audio = torch.stack([self.excerpt(song) for song in self.windows.songs.val[: self.num_clips]])
        audio = audio.to(device_of(models["codec"]))
        output = models["codec"](audio)
        heard = {name: reconstruction.float() for name, (reconstruction, _) in output.items()}
        clips, figures, codes = {}, {}, {}
        for index, original in enumerate(audio):
            clips[f"clip {index + 1}, original"] = original
            for level in reversed(self.codec.levels):
                clips[f"clip {index + 1}, {level.name}"] = heard[level.name][index].clamp(-1, 1)
                codes[f"clip {index + 1}, {level.name}"] = output[level.name][1].codes[index]
        for level in reversed(self.codec.levels):
            ratio = spectral_convergence(heard[level.name], audio).item()
            figures[f"spectral convergence, {level.name}"] = f"{decibels(ratio):.1f} dB"
            figures[f"codes, {level.name}"] = self.told(level, output[level.name][1].codes)
        return Listening(clips, self.codec.sample_rate, figures, codes)

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
