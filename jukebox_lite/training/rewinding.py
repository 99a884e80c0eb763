"""Where training diverges: back to the last checkpoint, and on with other batches."""

from collections.abc import Callable, Sequence

from jukebox_lite.training.learner import Learner
from jukebox_lite.training.meter import TrainingDiverged

MOST_REWINDS = 3  # to one checkpoint


def fit_rewinding(
    learner: Learner,
    resume: Callable[[Callable[[str], None]], float],
    go_on: Callable[[float, Sequence[str]], float],
    most: int,
) -> float:
    """Calls `go_on` until it comes to the end of training; returns what it returns, the best score.

    `resume` puts the learner where its last checkpoint left it, says of each one that is damaged, and returns the best
    score; `go_on` takes that, and lines to tell. After a loss or gradient that is not finite both are called again,
    with the learner's `rewinds` one higher each time, at most `most` times from one checkpoint; then TrainingDiverged
    is raised. What the learner does follows from the checkpoint and this count, which the next checkpoint keeps: a
    killed run, resumed, rewinds as it would have.
    """
    lines: list[str] = []
    best, rewound = resume(lines.append), 0
    while True:
        start = learner.step
        try:
            return go_on(best, lines)
        except TrainingDiverged as error:
            if not most:
                raise
            diverged, lines = learner.step, []
            best = resume(lines.append)
            if learner.step == diverged:  # nothing is saved at a step that diverged: there was no checkpoint
                raise TrainingDiverged(f"{error}; there is no checkpoint yet to rewind to") from error
            rewound = rewound + 1 if learner.step == start else 1
            if rewound > most:
                raise TrainingDiverged(f"{error}; so it did on other batches, {most} times from there") from error
            learner.rewinds += rewound
            lines.append(f"{error}; rewound to step {learner.step:,}, to go on with other batches")
