"""Windows of cached codes, aligned over the levels, with what is known of their songs."""

from collections.abc import Sequence

import torch
from torch import Tensor

from jukebox_lite.codecs.base import Codec
from jukebox_lite.datasets.code_cache import CodeCache
from jukebox_lite.datasets.songs import Songs
from jukebox_lite.datasets.spans import draw_spans, generator_of
from jukebox_lite.errors import InputError
from jukebox_lite.levels import Facts, Window, split_values, untold

_MOST_VALUES = 8  # of a label that are listed


class CodeWindows:
    """Batches of windows that are a pure function of (seed, split, step): resuming needs no loader state.

    In training, a window is told none of its labels with the chance `label_dropout`, which guidance in sampling needs,
    and else each of them is left out with that chance, so that songs can be sampled with some of them.
    """

    def __init__(
        self,
        songs: Songs,
        batch_size: int,
        folder: str,
        labels: list[str],
        codec: Codec,
        label_dropout: float = 0.1,
        seed: int = 0,
    ):
        if batch_size < 1 or not 0 <= label_dropout <= 1:
            raise InputError(
                f"windows.batch_size={batch_size} and windows.label_dropout={label_dropout}: "
                "expected 1 or more, and 0 to 1"
            )
        self.songs, self.batch_size, self.label_dropout, self.seed = songs, batch_size, label_dropout, seed
        self.seconds_per_sample = 1 / codec.sample_rate
        self.vocabulary = songs.vocabulary(labels)
        self.labels = {song.name: song.labels for song in songs.all}
        self.names = {"train": {s.name for s in songs.train}, "val": {s.name for s in songs.val}}
        self.cache = CodeCache.open(folder, codec, songs)

    def batch(self, split: str, step: int, facts: Facts, context_length: int) -> Window:
        """`context_length` steps of the level [B, K, T], and the same seconds of the level above."""
        level, ratio = facts.level, facts.ratio
        steps_per_coarse = self.cache.levels[0].samples_per_step // level.samples_per_step
        names = self.names[split]
        songs = [s for s in self.cache.songs if s.name in names and s.length * steps_per_coarse >= context_length]
        if not songs:
            seconds = context_length * level.samples_per_step * self.seconds_per_sample
            raise InputError(
                f"prior.context_length={context_length} is {seconds:.1f} s of level {level.name}, longer than every "
                f"{split} song: give longer songs or a shorter context"
            )
        lengths = [song.length * steps_per_coarse // ratio for song in songs]
        spans = draw_spans(lengths, context_length // ratio, self.batch_size, self.seed, split, step)
        picks = [(songs[index], start) for index, start in spans]  # starts in steps of the level above
        codes = {level.name: [self.cache.codes(song, level, start * ratio, context_length) for song, start in picks]}
        if above := facts.above:
            codes[above.name] = [self.cache.codes(song, above, start, context_length // ratio) for song, start in picks]
        labels = facts.indices({name: [self._known(name, song.name) for song, _ in picks] for name in self.vocabulary})
        if split == "train":
            labels = self._dropped(labels, step)
        step_seconds = level.samples_per_step * self.seconds_per_sample
        start_seconds = torch.tensor([start * ratio * step_seconds for _, start in picks])
        labels |= {
            "start_seconds": start_seconds,
            "end_seconds": start_seconds + context_length * step_seconds,
            "total_seconds": torch.tensor([song.seconds for song, _ in picks]),
        }
        return Window({name: torch.stack(parts) for name, parts in codes.items()}, labels)

    def summary(self) -> str:
        """A line a label for people: the values that the training songs have of it."""
        return "\n".join(f"  label {name}: {_listed(values[1:])}" for name, values in self.vocabulary.items())

    def _dropped(self, labels: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        """Labels [B, M] as a training step is told them: some windows of no label, others not of each."""

        def kept(*what: str) -> Tensor:
            generator = generator_of(self.seed, *what, step)
            return torch.rand(self.batch_size, 1, generator=generator) >= self.label_dropout

        any_kept = kept("all labels")
        return {
            name: torch.where(any_kept & kept("label", name), values, untold(values)) for name, values in labels.items()
        }

    def _known(self, label: str, song: str) -> str:
        """The song's values of a label, without those that the training split has none like."""
        values = split_values(self.labels[song].get(label, ""))
        return "; ".join(value for value in values if value in self.vocabulary[label])


def _listed(values: Sequence[str]) -> str:
    """How many values there are, and the first of them."""
    more = ", ..." if len(values) > _MOST_VALUES else ""
    return f"{len(values)} values ({', '.join(values[:_MOST_VALUES])}{more})" if values else "no song has a value of it"
