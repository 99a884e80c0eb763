"""How near the alignment of lyrics comes to the truth, where the truth is known. `python -m benchmarks.lyrics`

Songs are made of their texts: 60 random letters, no two alike in a row, each sung for 2 to 8 steps of 20 ms, drawn at
random. A letter has two codes: one that it begins with and one that it is held on, so that nothing but the text can
tell which letter comes next, and nothing at all how long it will be sung. A small prior hears 48 steps (0.96 s) at a
time and is told the 24 letters that linear alignment puts around them, with a tenth of the windows untold.

The table: what held-out songs cost in nats per token, told their own lyrics, none, or another song's; the head that
goes through the texts best; and how far in seconds each letter was found from where it begins to be sung, beside the
same of linear alignment, which is what the prior is told. A head looks at a letter before it begins, since that is when
it has to be known, and while it is sung: the mean of these times is what is found. One seed.
"""

import argparse
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from jukebox_lite.generation.complete import windows as spans_of
from jukebox_lite.levels import LYRICS, Facts, Level, Window
from jukebox_lite.lyrics import characters_of, window_lyrics
from jukebox_lite.nn.transformer import CausalAttention
from jukebox_lite.priors.alignment import align, rank_heads
from jukebox_lite.priors.autoregressive import AutoregressivePrior
from jukebox_lite.priors.conditioning import Timing
from jukebox_lite.priors.lyrics import Lyrics

LETTERS = "abcdefghijkl"
LENGTH = 60  # letters of a text
STEP_SECONDS = 0.02
LEVEL = Level("top", 2 * len(LETTERS), 1, 1)
CONTEXT, NUM_CHARACTERS = 48, 24  # steps, and letters around them
UNTOLD = 0.1  # of the windows


@dataclass
class SungText:
    """A song whose codes follow its text."""

    text: str
    codes: Tensor  # [T]
    seconds: Tensor  # [letters] at which each begins

    @property
    def total_seconds(self) -> float:
        """Of the song."""
        return STEP_SECONDS * len(self.codes)

    def window(self, facts: Facts, start: int, lyrics: str | None = None) -> Window:
        """A batch of one from step `start` on, told its own text or another."""
        begin, end, total = (torch.tensor([each]) for each in self._times(start))
        labels = {"start_seconds": begin, "end_seconds": end, "total_seconds": total}
        text = self.text if lyrics is None else lyrics
        labels |= window_lyrics([text], facts.characters, NUM_CHARACTERS, begin, end, total)
        return Window({LEVEL.name: self.codes[None, None, start : start + CONTEXT]}, labels)

    def windows(self, facts: Facts) -> Iterator[tuple[int, Window]]:
        """Windows that cover the song, each sharing half of itself with the last."""
        for start, _ in spans_of(len(self.codes), CONTEXT, 0.5):
            yield start, self.window(facts, start)

    def _times(self, start: int) -> tuple[float, float, float]:
        return start * STEP_SECONDS, (start + CONTEXT) * STEP_SECONDS, self.total_seconds


def main() -> None:
    """Trains a prior and prints what it found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000, help="of training")
    parser.add_argument("--songs", type=int, default=16, help="held-out songs to judge by")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    began = time.process_time()
    prior = train(build(), arguments.steps)
    trained = time.process_time() - began
    found = judge(prior, sing(arguments.songs, seed=1))
    table = Table("", "", title=f"{arguments.steps} steps, {trained:.0f} s of CPU time")
    for name, value in found.items():
        table.add_row(name, f"{value:.3f}")
    Console().print(table)


def sing(count: int, seed: int) -> list[SungText]:
    """Songs of random texts and durations."""
    draw, songs = random.Random(seed), []
    for _ in range(count):
        text = draw.choice(LETTERS)
        while len(text) < LENGTH:
            text += draw.choice([letter for letter in LETTERS if letter != text[-1]])
        steps = torch.tensor([draw.randint(2, 8) for _ in text])
        held = torch.tensor([2 * LETTERS.index(letter) + 1 for letter in text]).repeat_interleave(steps)
        ends = steps.cumsum(0)
        held[ends - steps] -= 1  # the code that a letter begins with
        songs.append(SungText(text, held, (ends - steps) * STEP_SECONDS))
    return songs


def build() -> AutoregressivePrior:
    """An untrained prior of two layers, of which the second looks at the text."""
    torch.manual_seed(0)
    facts = Facts(LEVEL, characters=characters_of([LETTERS]))
    conditioners = {
        "lyrics": partial(Lyrics, num_characters=NUM_CHARACTERS, width=32, depth=1, every=2),
        "timing": partial(Timing, max_seconds=12.0),
    }
    return AutoregressivePrior(32, 2, 2, CONTEXT, CausalAttention, facts, conditioners)


def train(prior: AutoregressivePrior, steps: int, batch_size: int = 16, lr: float = 1e-2) -> AutoregressivePrior:
    """Learns from 500 songs, in windows drawn at random."""
    songs, draw = sing(500, seed=0), random.Random(0)
    optimizer = torch.optim.AdamW(prior.parameters(), lr=lr, betas=(0.9, 0.95))
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1, (step + 1) / 30) * (1 - 0.9 * step / steps)
        chosen = draw.choices(songs, k=batch_size)
        batch = [song.window(prior.facts, draw.randint(0, len(song.codes) - CONTEXT)) for song in chosen]
        batch = [prior.facts.untold(each) if draw.random() < UNTOLD else each for each in batch]
        optimizer.zero_grad()
        prior.loss(joined(batch)).total.backward()
        torch.nn.utils.clip_grad_norm_(prior.parameters(), 1.0)
        optimizer.step()
    return prior.eval()


@torch.no_grad()
def judge(prior: AutoregressivePrior, songs: Sequence[SungText]) -> dict[str, float]:
    """Figures of held-out songs, as the table names them."""
    facts = prior.facts
    batches = [joined([window for _, window in song.windows(facts)]) for song in songs]
    others = [
        joined([song.window(facts, start, other.text) for start, _ in song.windows(facts)])
        for song, other in zip(songs, [*songs[1:], songs[0]], strict=True)
    ]
    nats = {
        "own lyrics": [prior.nats(batch).mean() for batch in batches],
        "no lyrics": [prior.nats(facts.untold(batch, [LYRICS])).mean() for batch in batches],
        "another song's": [prior.nats(batch).mean() for batch in others],
    }
    heads = rank_heads(prior, batches)
    best, progress = next(iter(heads.items()))
    errors, by_line = [], []
    for song in songs:
        length, num_steps = len(song.text), len(song.codes)
        found = align(prior, best, song.windows(facts), length, num_steps, STEP_SECONDS)
        errors.append(found - song.seconds)
        even = torch.arange(length) * song.total_seconds / length
        by_line.append(even - song.seconds)
    lateness, by_line = torch.cat(errors), torch.cat(by_line)
    return {
        **{f"nats per token, {told}": torch.stack(each).mean().item() for told, each in nats.items()},
        f"progress of layer {best.layer}, head {best.head}": progress,
        "mean error (s)": lateness.abs().mean().item(),
        "mean lateness (s)": lateness.mean().item(),
        "mean error of linear alignment (s)": by_line.abs().mean().item(),
        "a letter's mean duration (s)": sum(song.total_seconds for song in songs) / sum(len(s.text) for s in songs),
    }


def joined(windows: Sequence[Window]) -> Window:
    """Windows as one batch."""
    whole = windows[0]
    for window in windows[1:]:
        whole = whole.beside(window)
    return whole


if __name__ == "__main__":
    main()
