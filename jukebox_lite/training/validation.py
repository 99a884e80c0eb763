"""What the averaged models are worth, and how they sound."""

import torch

from jukebox_lite.training import sharding
from jukebox_lite.training.learner import Learner, seed_torch
from jukebox_lite.training.reader import Reader
from jukebox_lite.training.reporter import Silence


@torch.no_grad()
def validate(learner: Learner, reader: Reader) -> dict[str, float]:
    """Mean metrics of the averaged models over the validation batches; "score" among them.

    Every process does the same, so that the score does not depend on their number and none has to be told it. What is
    drawn here touches no step: each seeds itself.
    """
    task, fabric, batches = learner.task, learner.fabric, []
    with sharding.gathered(learner.averages.values()), fabric.autocast():
        for index in range(task.num_validation_batches):
            seed_torch(learner.seed, index, fabric.device)
            batches.append(task.validate(learner.averages, fabric.to_device(reader.validation(index))))
    means = {name: float(torch.stack([metrics[name] for metrics in batches]).mean()) for name in batches[0]}
    return {name if name == "score" else f"val/{name}": mean for name, mean in means.items()}


@torch.no_grad()
def listen(learner: Learner, reporter: Silence) -> None:
    """Hands the `reporter` of the first process what the task lets hear, if anything; all processes take part."""
    if not learner.task.num_clips:
        return
    fabric = learner.fabric
    with sharding.gathered(learner.averages.values()):  # by all processes, for the first one
        if fabric.is_global_zero:
            with fabric.autocast():
                seed_torch(learner.seed, 0, fabric.device)
                heard = learner.task.listen(learner.averages)
            reporter.listening(learner.step, heard)
