"""What a codec learns against a discriminator, for the detail that no distance asks for."""

from collections.abc import Callable

import torch
from torch import Tensor

from jukebox_lite.errors import InputError
from jukebox_lite.losses import Term, Terms
from jukebox_lite.nn.discriminators import Discriminators, Verdicts
from jukebox_lite.tasks.base import Models, Update


class Adversary:
    """From step `start` on, a codec's reconstructions are also to pass for music (DAC, Kumar et al. 2023).

    The discriminator learns by least squares to tell the music, 1, from every level's reconstruction, 0. The codec
    then learns to be taken for music, and to have the discriminator see in it what it sees in the music. Of each
    window the discriminator hears `num_samples` from a random place: what it judges is short, and it is large.
    """

    def __init__(
        self,
        discriminator: Callable[..., Discriminators],
        start: int,
        num_samples: int,
        adversarial_weight: float,
        feature_weight: float,
        channels: int,
    ):
        if start < 0:
            raise InputError(f"task.adversary.start={start}: give the step from which it plays, 0 or later")
        self.discriminator = discriminator(channels=channels)
        if num_samples < self.discriminator.least_samples:
            raise InputError(
                f"task.adversary.num_samples={num_samples}: give {self.discriminator.least_samples} or more, "
                f"the longest of discriminator.fft_sizes"
            )
        self.start, self.num_samples = start, num_samples
        self.adversarial_weight, self.feature_weight = adversarial_weight, feature_weight

    def play(
        self, models: Models, music: Tensor, heard: dict[str, Tensor], terms: dict[str, Terms], update: Update
    ) -> None:
        """The discriminator's update on music [B, C, N] and what each level made of it; then adds to the terms."""
        start = int(torch.randint(music.shape[-1] - self.num_samples + 1, ()))
        piece = slice(start, start + self.num_samples)
        music, heard = music[..., piece], {level: audio[..., piece] for level, audio in heard.items()}
        both = torch.cat([music, *heard.values()]).detach()
        update("discriminator", _telling(models["discriminator"](both), len(music)))
        # The bare one: of its own gradients nothing is wanted, and several processes have nothing to exchange.
        with torch.no_grad():
            wanted = self.discriminator(music)
        for level, reconstruction in heard.items():
            found = self.discriminator(reconstruction)
            terms[level]["adversarial"] = Term(_passing(found), self.adversarial_weight)
            terms[level]["features"] = Term(_differing(found, wanted), self.feature_weight)


def _telling(verdicts: Verdicts, num_real: int) -> Tensor:
    """How badly the music, the first of the batch, is told from the rest (LSGAN, Mao et al. 2017). -> []"""
    scores = [features[-1].float() for features in verdicts]
    return torch.stack([(s[:num_real] - 1).square().mean() + s[num_real:].square().mean() for s in scores]).mean()


def _passing(verdicts: Verdicts) -> Tensor:
    """How little reconstructions pass for music. -> []"""
    return torch.stack([(features[-1].float() - 1).square().mean() for features in verdicts]).mean()


def _differing(found: Verdicts, wanted: Verdicts) -> Tensor:
    """How far what is seen on the way to a score differs from the music's, relative to it (EnCodec, section 3.4)."""
    pairs = [pair for each in zip(found, wanted, strict=True) for pair in zip(each[0][:-1], each[1][:-1], strict=True)]
    inner = [(a.float(), b.float()) for a, b in pairs]
    return torch.stack([(a - b).abs().mean() / b.abs().mean().clamp(min=1e-6) for a, b in inner]).mean()
