"""Two processes learn one codec, through the command."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import ROOT, World, finish, music, start

from jukebox_lite.training import checkpoint, table

WATCHED = """
# train.py, whose every process keeps its own codec as it is after each step.
import sys
from pathlib import Path

sys.path.insert(0, "{root}")
from safetensors.torch import save_file
from jukebox_lite.training.learner import Learner

learn = Learner.learn


def watched(self, *arguments):
    amount = learn(self, *arguments)
    models = self.task.models.items()
    state = {f"{model}.{name}": value.clone() for model, each in models for name, value in each.state_dict().items()}
    save_file(state, Path("{folder}") / f"{self.step}-{self.fabric.global_rank}.safetensors")
    return amount


Learner.learn = watched
exec(compile(Path("{root}/train.py").read_text(), "{root}/train.py", "exec"))  # which leaves argv[0] as it is
"""


@pytest.mark.parametrize("kind", ["codec", "adversarial"])
def test_two_processes_learn_one_codec(tmp_path: Path, kind: str):
    """Their codebooks, first drawn by k-means over both halves of the batch, and their weights agree after every step;
    they see different music, and leave one run folder that tells of one start.
    """
    world = World(tmp_path)
    music(tmp_path / "music")
    script, seen = tmp_path / "watched.py", tmp_path / "seen"
    seen.mkdir()
    script.write_text(WATCHED.replace("{folder}", str(seen)).replace("{root}", str(ROOT)))
    done = finish(start(script, *getattr(world, kind)("name=both", "trainer.devices=2", "trainer.strategy=ddp")))
    assert done.code == 0, done.err
    assert "2 x cpu" in done.err and done.err.count("step 4/4") == 1
    for step in (1, 4):
        one, other = (load_file(seen / f"{step}-{rank}.safetensors") for rank in (0, 1))
        assert [name for name in one if not torch.equal(one[name], other[name])] == []
    embeds = [
        load_file(seen / f"{step}-0.safetensors")["codec.quantizers.bottom.vq._codebook.embed"] for step in (1, 4)
    ]
    assert not torch.equal(*embeds)
    assert [path.name for path in world.runs.iterdir()] == ["both"]
    assert [line["step"] for line in table.metrics(world.runs / "both")] == [1, 2, 3, 4]
    assert len(json.loads((world.runs / "both" / "provenance.json").read_text())) == 1
    path = checkpoint.latest(world.runs / "both")
    assert path is not None and path.name == "00000004"
