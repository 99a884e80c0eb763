"""Windows of cached codes, aligned over the levels, with what is known of their songs."""

from collections.abc import Sequence

import torch
from torch import Tensor

from jukebox_lite.codecs.base import Codec
from jukebox_lite.datasets.code_cache import CachedSong, CodeCache
from jukebox_lite.datasets.songs import Songs
from jukebox_lite.datasets.spans import draw_spans, generator_of
from jukebox_lite.errors import InputError
from jukebox_lite.levels import LYRICS, NO_VALUE, Facts, Window, split_values
from jukebox_lite.lyrics import window_lyrics

_MOST_VALUES = 8  # of a label that are listed


class CodeWindows:
    """Batches of windows that are a pure function of (seed, split, step): resuming needs no loader state.

    In training, a window is told none of its labels with the chance `label_dropout`, which guidance in sampling needs,
    and else each of them is left out with that chance, so that songs can be sampled with some of them; lyrics likewise.
    So is each of several values of a label, but never all: what is sampled with one value may have others as well.
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
        if LYRICS in labels:
            raise InputError(f"windows.labels: {LYRICS} are no label; leave it out and give conditioner=lyrics")
        self.songs, self.batch_size, self.label_dropout, self.seed = songs, batch_size, label_dropout, seed
        self.seconds_per_sample = 1 / codec.sample_rate
        self.vocabulary = songs.vocabulary(labels)
        self.characters = songs.characters()
        self.labels = {song.name: song.labels for song in songs.all}
        self.lyrics = {song.name: song.lyrics for song in songs.all}
        self.names = {"train": {s.name for s in songs.train}, "val": {s.name for s in songs.val}}
        self.cache = CodeCache.open(folder, codec, songs)

    def batch(self, split: str, step: int, facts: Facts, context_length: int, num_characters: int = 0) -> Window:
        """`context_length` steps of the level [B, K, T], and the same seconds of the level above.

        With `num_characters`, so many of the lyrics around each.
        """
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
        window = self.cut(
            [(songs[index], start * ratio) for index, start in spans], facts, context_length, num_characters
        )
        return self._dropped(window, facts, step) if split == "train" else window

    def cut(
        self, picks: Sequence[tuple[CachedSong, int]], facts: Facts, length: int, num_characters: int = 0
    ) -> Window:
        """`length` steps of the level [B, K, T] from each (song, step), and the same seconds of the level above.

        Each step, and the length, are multiples of `facts.ratio`. With `num_characters`, so many of the lyrics around.
        """
        level, ratio = facts.level, facts.ratio
        codes = {level.name: [self.cache.codes(song, level, start, length) for song, start in picks]}
        if above := facts.above:
            codes[above.name] = [self.cache.codes(song, above, at // ratio, length // ratio) for song, at in picks]
        texts = {
            name: ["; ".join(self.known(song.name, name, facts)) for song, _ in picks] for name in facts.vocabulary
        }
        step_seconds = level.samples_per_step * self.seconds_per_sample
        start_seconds = torch.tensor([start * step_seconds for _, start in picks])
        times = {
            "start_seconds": start_seconds,
            "end_seconds": start_seconds + length * step_seconds,
            "total_seconds": torch.tensor([song.seconds for song, _ in picks]),
        }
        labels = facts.indices(texts) | times
        if num_characters:
            lyrics = [self.lyrics[song.name] for song, _ in picks]
            labels |= window_lyrics(lyrics, facts.characters, num_characters, *times.values())
        return Window({name: torch.stack(parts) for name, parts in codes.items()}, labels)

    def summary(self) -> str:
        """A line a label for people: the values that the training songs have of it; and one of lyrics, if any."""
        lines = [f"  label {name}: {_listed(values[1:])}" for name, values in self.vocabulary.items()]
        if sung := sum(map(bool, self.lyrics.values())):
            lines.append(f"  lyrics: {sung} songs, {len(self.characters) - 1} characters in those to learn from")
        return "\n".join(lines)

    def _dropped(self, window: Window, facts: Facts, step: int) -> Window:
        """A window as a training step is told it: of some no label, of others not each, nor each of its values."""

        def kept(*what: str, width: int = 1) -> Tensor:
            generator = generator_of(self.seed, *what, step)
            return torch.rand(self.batch_size, width, generator=generator) >= self.label_dropout

        told = window.labels | {
            name: _some(window.labels[name], kept("values", name, width=window.labels[name].shape[1]))
            for name in facts.vocabulary
        }
        any_kept, silent = kept("all labels"), facts.untold(window)
        labels = {
            name: torch.where(any_kept & kept("label", name), told[name], silent.labels[name])
            for name in facts.known(window)
        }
        return Window(window.codes, window.labels | labels)

    def known(self, song: str, label: str, facts: Facts) -> list[str]:
        """A song's values of a label, without those that the vocabulary lacks."""
        values = split_values(self.labels[song].get(label, ""))
        return [value for value in values if value in facts.vocabulary[label]]


def _some(indices: Tensor, kept: Tensor) -> Tensor:
    """A label's values [B, M] that are kept [B, M], each song's in their order; all of a song that would have none."""
    present = indices != NO_VALUE
    some = present & kept
    some = torch.where(some.any(1, keepdim=True), some, present)
    order = (~some).int().argsort(dim=1, stable=True)  # a label's first place is never empty
    return torch.where(some, indices, NO_VALUE).gather(1, order)


def _listed(values: Sequence[str]) -> str:
    """How many values there are, and the first of them."""
    more = ", ..." if len(values) > _MOST_VALUES else ""
    return f"{len(values)} values ({', '.join(values[:_MOST_VALUES])}{more})" if values else "no song has a value of it"
