"""Batches of raw audio for training a codec."""

import torch
from torch import Tensor

from jukebox_lite import audio
from jukebox_lite.datasets.songs import Songs
from jukebox_lite.datasets.spans import draw_spans
from jukebox_lite.errors import InputError


class AudioWindows:
    """Random windows of the songs, uniform over their total time, at one sample rate."""

    def __init__(
        self, songs: Songs, batch_size: int, num_samples: int, sample_rate: int, channels: int = 1, seed: int = 0
    ):
        for name, value in [("batch_size", batch_size), ("num_samples", num_samples), ("channels", channels)]:
            if value < 1:
                raise InputError(f"{name}={value}: expected 1 or more")
        self.songs = songs
        self.batch_size = batch_size
        self.num_samples = num_samples
        self.sample_rate = sample_rate
        self.channels = channels
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
        return torch.stack(
            [
                audio.read(self._songs[split][song].path, start, self.num_samples, self.sample_rate, self.channels)
                for song, start in spans
            ]
        )
