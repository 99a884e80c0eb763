"""Batches of raw audio for training a codec."""

import torch
from torch import Tensor

from jukebox_lite.audio import read
from jukebox_lite.datasets.songs import Songs
from jukebox_lite.datasets.spans import draw_spans, generator_of
from jukebox_lite.errors import InputError

_QUIETEST_DB = 60.0  # below a song's own level: about where 16-bit music fades to nothing


class AudioWindows:
    """Random windows of the songs, uniform over their total time, at one sample rate.

    In training, a share of the windows, `quiet_share`, is turned down by 0 to 60 dB, each by its own draw: songs seldom
    fade, and a codec that has heard little near silence fills it with hiss.
    """

    def __init__(
        self,
        songs: Songs,
        batch_size: int,
        num_samples: int,
        sample_rate: int,
        channels: int = 1,
        quiet_share: float = 0.0,
        seed: int = 0,
    ):
        if not 0 <= quiet_share <= 1:
            raise InputError(f"windows.quiet_share={quiet_share}: expected 0 to 1, a share of the windows")
        for name, value in [("batch_size", batch_size), ("num_samples", num_samples), ("channels", channels)]:
            if value < 1:
                raise InputError(f"{name}={value}: expected 1 or more")
        self.songs = songs
        self.batch_size = batch_size
        self.num_samples = num_samples
        self.sample_rate = sample_rate
        self.channels = channels
        self.quiet_share = quiet_share
        self.seed = seed
        self._songs = {"train": songs.train, "val": songs.val}
        self._lengths = {
            split: [song.info.num_samples(sample_rate) for song in chosen] for split, chosen in self._songs.items()
        }

    def batch(self, split: str, step: int) -> Tensor:
        """Audio [B, C, N] of a step, "train" or "val": a pure function of (seed, split, step).

        A song shorter than the window is followed by zeros. Raises InputError on a file that has become unreadable.
        """
        spans = draw_spans(self._lengths[split], self.num_samples, self.batch_size, self.seed, split, step)
        audio = torch.stack(
            [
                read(self._songs[split][song].path, start, self.num_samples, self.sample_rate, self.channels)
                for song, start in spans
            ]
        )
        return audio if split == "val" else audio * self._gains(step)[:, None, None]

    def _gains(self, step: int) -> Tensor:
        """What each window of a training step is multiplied with: [B]."""
        chance, fall = torch.rand(2, self.batch_size, generator=generator_of(self.seed, "quiet", step))
        return torch.where(chance < self.quiet_share, 10 ** (-_QUIETEST_DB / 20 * fall), 1.0)
