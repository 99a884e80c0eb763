"""All that a run tells the world, in one place: the first process reports, the others keep silent."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Self

from jukebox_lite.tasks.base import Listening
from jukebox_lite.training.progress import Progress
from jukebox_lite.training.tracking import Journal, Tracker, write_samples


class Silence:
    """Hears everything and says nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to close."""

    def say(self, line: str) -> None:
        """A line for the user."""

    def advance(self, step: int) -> None:
        """A step is done."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers by name, after `step` steps."""

    def listening(self, step: int, listening: Listening) -> None:
        """Something to hear, after `step` steps."""


class Reporter(Silence):
    """Tells the terminal, train.log, metrics.jsonl, samples/ and the tracker; a context manager."""

    def __init__(
        self, folder: Path, step: int, max_steps: int, rate_unit: str, tracker: Callable[[Path, int], Tracker]
    ) -> None:
        self.folder = folder
        self._closing = ExitStack()
        self._trackers = [self._closing.enter_context(closing(make(folder, step))) for make in (Journal, tracker)]
        self._progress = self._closing.enter_context(Progress(folder, step, max_steps, rate_unit))

    def __exit__(self, *error: object) -> None:
        if isinstance(error[1], Exception):
            with suppress(OSError):  # of a full disk, which may be the error that is told
                self._progress.log(f"{type(error[1]).__name__}: {error[1]}")
        self._closing.close()

    def say(self, line: str) -> None:
        """A line for the user, kept in train.log."""
        self._progress.say(line)

    def advance(self, step: int) -> None:
        """A step is done."""
        self._progress.advance(step)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers by name, after `step` steps."""
        self._progress.scalars(step, values)
        for tracker in self._trackers:
            tracker.scalars(step, values)

    def listening(self, step: int, listening: Listening) -> None:
        """Something to hear, after `step` steps."""
        page = write_samples(self.folder, step, listening)
        for tracker in self._trackers:
            tracker.listening(step, listening, page)
