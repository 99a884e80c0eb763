"""Learning a codec against a discriminator, for the detail that no distance asks for."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from jukebox_lite.codecs.vqvae import HierarchicalVQVAE
from jukebox_lite.datasets.audio_windows import AudioWindows
from jukebox_lite.errors import InputError
from jukebox_lite.losses import Term, WeightedTerms
from jukebox_lite.nn.discriminators import Verdicts
from jukebox_lite.tasks.base import Metrics, Models, Update
from jukebox_lite.tasks.codec import CodecTask


class AdversarialCodecTask(CodecTask):
    """A CodecTask whose reconstructions are, from step `start` on, also to pass for music (DAC, Kumar et al. 2023).

    The discriminator learns by least squares to tell the music, 1, from every level's reconstruction, 0. The codec
    then learns to be taken for music, and to have the discriminator see in it what it sees in the music.
    """

    def __init__(
        self,
        codec: HierarchicalVQVAE,
        windows: Callable[..., AudioWindows],
        loss: WeightedTerms,
        discriminator: Callable[..., nn.Module],
        start: int,
        adversarial_weight: float,
        feature_weight: float,
        num_validation_batches: int = 4,
        num_clips: int = 2,
        clip_seconds: float = 5.0,
        collapse_below: float = 0.02,
        collapse_after: int = 1000,
        balance_gradients: bool = False,
    ):
        super().__init__(
            codec=codec,
            windows=windows,
            loss=loss,
            num_validation_batches=num_validation_batches,
            num_clips=num_clips,
            clip_seconds=clip_seconds,
            collapse_below=collapse_below,
            collapse_after=collapse_after,
            balance_gradients=balance_gradients,
        )
        if start < 0:
            raise InputError(f"task.start={start}: give the step from which the discriminator plays, 0 or later")
        self.start, self.adversarial_weight, self.feature_weight = start, adversarial_weight, feature_weight
        self.models["discriminator"] = discriminator(channels=codec.channels)

    def step(self, models: Models, batch: Tensor, step: int, update: Update) -> Metrics:
        output, heard, terms = self.hear(models, batch)
        if step >= self.start:
            both = torch.cat([batch, *heard.values()]).detach()
            update("discriminator", _telling(models["discriminator"](both), len(batch)))
            # The bare one: of its own gradients nothing is wanted, and several processes have nothing to exchange.
            judge = self.models["discriminator"]
            with torch.no_grad():
                wanted = judge(batch)
            for level, reconstruction in heard.items():
                found = judge(reconstruction)
                terms[level]["adversarial"] = Term(_passing(found), self.adversarial_weight)
                terms[level]["features"] = Term(_differing(found, wanted), self.feature_weight)
        update("codec", self.total(output, heard, terms))
        return self.figures(output, terms) | self.health()


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
