"""Learning a prior: one level's codes from their past, the level above and the labels."""

from collections.abc import Callable

import torch

from jukebox_lite.codecs.base import Codec
from jukebox_lite.datasets.code_cache import codec_fingerprint
from jukebox_lite.datasets.code_windows import CodeWindows
from jukebox_lite.errors import InputError
from jukebox_lite.levels import LYRICS, Window
from jukebox_lite.nn.device import device_of
from jukebox_lite.priors.base import Prior, Sampler
from jukebox_lite.tasks.base import Listening, Metrics, Models, Task, Update, check_counts


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
        check_counts(num_validation_batches, num_clips)
        self.codec, self.sampler, self.num_clips = codec, sampler, num_clips
        self.windows = windows(codec=codec)
        self.num_validation_batches, labels = num_validation_batches, self.windows.vocabulary
        characters = self.windows.characters
        self.facts = codec.facts(level, labels, characters)
        model = prior(facts=self.facts)
        self.vocabulary = {**labels, LYRICS: characters} if model.num_characters else labels
        if (above := self.facts.above) and model.context_length % self.facts.ratio:
            raise InputError(
                f"prior.context_length={model.context_length} is no multiple of {self.facts.ratio}, "
                f"the steps of level {level} per step of {above.name}"
            )
        self.context_length, self.num_characters = model.context_length, model.num_characters
        for split in ("train", "val"):
            self.batch(split, 0)  # refuses now, and not at the first validation, songs shorter than the context
        self.models = {"prior": model}
        told = (self.windows.songs.summary(), self.windows.summary(), self.windows.cache.summary())
        self.about = "\n".join(text for text in told if text)
        self.fingerprints = {"songs": self.windows.songs.fingerprint(), "codec": codec_fingerprint(codec)}

    def batch(self, split: str, step: int) -> Window:
        return self.windows.batch(split, step, self.facts, self.context_length, self.num_characters)

    def amount(self, batch: Window) -> float:
        return batch.codes[self.facts.level.name].numel()

    def step(self, models: Models, batch: Window, step: int, update: Update) -> Metrics:
        del step
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
        clips, codes = {}, {}
        for index in range(len(real)):
            for title, tokens, audio in zip(("real codes", "sampled"), (real, sampled), heard, strict=True):
                clips[f"clip {index + 1}, {title}"] = audio[index]
                codes[f"clip {index + 1}, {title}"] = tokens[index]
        return Listening(clips, self.codec.sample_rate, codes=codes)
