"""Several processes learn what one learns that accumulates as many batches, however they are started or stopped."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pairs import SECONDS, meet, two
from safetensors.torch import load_file, save_file
from test_optimizers import learn, small
from tiny import ROOT, World, child, command, finish, forkserver, music, signalled, start, tensors
from torch.distributed.device_mesh import init_device_mesh

from jukebox_lite.codecs.jukebox_vq import JukeboxVQ
from jukebox_lite.codecs.quantizers import DAC, RVQ, VQ, Quantizer
from jukebox_lite.datasets import code_cache
from jukebox_lite.errors import InputError
from jukebox_lite.nn.pooled import Pooled
from jukebox_lite.training import processes, sharding, table
from jukebox_lite.training.learner import Learner
from jukebox_lite.training.optimizers import Muon

TWENTY = (
    "trainer.max_steps=20",
    "trainer.validate_every=20",
    "trainer.checkpoint_every=5",
    "trainer.precision=32-true",
)
ALONE = (*TWENTY, "trainer.accumulate=2")
EIGHT = (
    "trainer.max_steps=8",
    "trainer.validate_every=8",
    "trainer.checkpoint_every=8",
    "trainer.precision=bf16-mixed",
)
JUKEBOX = ("prior=jukebox", "prior.depth=3", "prior.num_rows=8")  # whose table of codes is its head, too
DDP = ("trainer.devices=2", "trainer.strategy=ddp")
FSDP = ("trainer.devices=2", "trainer.strategy=fsdp")
SMOOTH = (
    "optimizer=adamw",
    "optimizer.eps=0.01",
)  # Adam makes much of the last bit of a gradient that is nearly 0, as a new prior's are


def member(rank: int, port: int, seen: Path, both: Any, commands: list[tuple[str, ...]], killed: int | None) -> None:
    """One of two processes as torchrun starts them. It keeps its models after steps 1 and 4, and whose codes it made.

    With `killed`, the second one gets a kill -9 in that call of the last command's step.
    """
    meet(rank, port)
    plain, encode, encoded = Learner.learn, code_cache._encode, []

    def watched(self: Learner, *arguments: Any) -> float:
        amount = plain(self, *arguments)
        for name, model in () if sharding.shards(self.fabric) else self.task.models.items():
            if self.step in (1, 4):
                save_file(
                    {key: value.clone() for key, value in model.state_dict().items()},
                    seen / f"{name}-{self.step}-{rank}.safetensors",
                )
        return amount

    def noted(codec: Any, song: Any, advance: Any) -> Any:
        if not encoded:
            both.wait(60)  # or the first may have done it all before the second has begun
        encoded.append(song.name)
        (seen / f"songs-{rank}.json").write_text(json.dumps(encoded))
        return encode(codec, song, advance)

    Learner.learn, code_cache._encode = watched, noted
    for arguments in commands:
        if killed is not None and rank and arguments is commands[-1]:
            signalled(arguments, killed, signal.SIGKILL)
        done = command("train.py", *arguments)
        if done.code:
            sys.exit(done.err)


def pair(seen: Path, *commands: tuple[str, ...], killed: int | None = None) -> list[int | None]:
    """How two processes ended that went through train.py's `commands` together."""
    seen.mkdir(exist_ok=True)
    return two(member, seen, forkserver().Barrier(2), list(commands), killed)


def begun(world: World) -> str:
    """The setting to begin with a prior that has learnt."""
    return f"start.run={world.runs / 'prior'}"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Runs by one process that accumulates two, or four: codec, prior, jukebox, and cut, stopped after step 11 of 20;
    bf16, which begins with the weights of prior.
    """
    world = World(tmp_path_factory.mktemp("world"))
    music(world.folder / "music")
    for arguments in (
        world.codec("name=codec", *ALONE),
        world.prior("middle", "name=prior", *SMOOTH, *ALONE),
        world.prior("middle", "name=jukebox", *JUKEBOX, *SMOOTH, *ALONE),
        world.prior("middle", "name=bf16", begun(world), *SMOOTH, *EIGHT, "trainer.accumulate=4"),
    ):
        done = command("train.py", *arguments)
        assert done.code == 0, done.err
    assert (
        child(signalled, world.prior("middle", "name=cut", *JUKEBOX, *SMOOTH, *ALONE), 21, signal.SIGTERM)
        == 128 + signal.SIGTERM
    )
    return world


@pytest.fixture(scope="module")
def by_two(world: World) -> Path:
    """The same by two processes, which make their cache together and go on with cut; what they saw."""
    seen = world.folder / "by_two"
    commands = [
        world.codec("name=codec-ddp", *TWENTY, *DDP),
        world.codec("name=codec-fsdp", *TWENTY, *FSDP),
        world.prior("middle", "name=prior-ddp", *SMOOTH, *TWENTY, *DDP, f"cache={world.folder / 'shared'}"),
        world.prior("middle", "name=prior-fsdp", *SMOOTH, *TWENTY, *FSDP),
        world.prior("middle", "name=cut", *JUKEBOX, *SMOOTH, *TWENTY, *FSDP),
        world.prior("middle", "name=bf16-fsdp", begun(world), *SMOOTH, *EIGHT, *FSDP, "trainer.accumulate=2"),
    ]
    assert pair(seen, *commands) == [0, 0]
    return seen


def furthest(run: Path, other: Path, without: str = "nothing") -> float:
    """The largest difference in the last checkpoints of two runs: of weights, averages, buffers, moments.

    Relative to the largest value of their tensor where that is over 1.
    """
    a, b = tensors(run), tensors(other)
    del a["numbers"], b["numbers"]  # text, in which a score's last digit may differ
    assert a.keys() == b.keys()
    sizes = {name: max(1.0, value.double().abs().max().item()) for name, value in b.items() if without not in name}
    return max((a[name].double() - b[name].double()).abs().max().item() / size for name, size in sizes.items())


@pytest.mark.usefixtures("by_two")
@pytest.mark.parametrize(
    ("name", "alone", "bound"),
    [
        ("codec-ddp", "codec", 0),
        ("codec-fsdp", "codec", 1e-4),
        ("prior-ddp", "prior", 0),
        ("prior-fsdp", "prior", 1e-5),
        ("cut", "jukebox", 1e-5),
        ("bf16-fsdp", "bf16", 1e-5),
    ],
)
def test_two_processes_equal_one_that_accumulates_two(world: World, name: str, alone: str, bound: float):
    """k-means, codebooks and revivals included. DDP adds the same two numbers; shards sum a norm in another order.

    By which a latent that is as near to two entries may be counted for the other. `cut` is begun by one process and
    ended by two with shards; its optimizer's state, too, is what it would have been. Those of bf16 accumulate, too.
    """
    counts = "quantizers" if name == "codec-fsdp" else "nothing"
    difference = furthest(world.runs / name, world.runs / alone, without=counts)
    print(f"{name}: {difference:.1e}")
    assert difference <= bound


def test_two_processes_hold_one_model(world: World, by_two: Path):
    """After the first step, with k-means, and the fourth: bit for bit; the songs of the cache were shared out."""
    for name in ("codec", "prior"):
        for step in (1, 4):
            one, other = (load_file(by_two / f"{name}-{step}-{rank}.safetensors") for rank in (0, 1))
            assert [key for key in one if not torch.equal(one[key], other[key])] == []
    shares = [json.loads((by_two / f"songs-{rank}.json").read_text()) for rank in (0, 1)]
    assert all(shares) and len(sum(shares, [])) == len(set(sum(shares, []))) == 5
    assert [line["step"] for line in table.metrics(world.runs / "codec-ddp")] == list(range(1, 21))
    assert len(json.loads((world.runs / "codec-ddp" / "provenance.json").read_text())) == 1


def test_a_run_ends_when_one_of_its_processes_was_killed_and_goes_on_with_any_number(world: World):
    """The second one of two, in step 7 of shards: the first says so, and one process goes on from step 5."""
    assert pair(
        world.folder / "killed", world.prior("middle", "name=killed", *JUKEBOX, *SMOOTH, *TWENTY, *FSDP), killed=6
    ) == [
        1,
        -signal.SIGKILL,
    ]
    told = "error: process 1 of 2 was killed (kill -9, out of memory, a machine lost); the same command resumes"
    assert told in (world.runs / "killed" / "train.log").read_text()
    done = command("train.py", *world.prior("middle", "name=killed", *JUKEBOX, *SMOOTH, *ALONE))
    assert done.code == 0 and "from step 5" in done.err, done.err
    assert furthest(world.runs / "killed", world.runs / "jukebox") <= 1e-5


@pytest.mark.usefixtures("by_two")
def test_torchrun_goes_on_with_what_a_plain_start_began(world: World):
    """Of which the first process was killed: the second ends within SECONDS and says so; one folder, the same run."""
    arguments = world.codec("name=both", *TWENTY, *DDP)
    plain, run = start("train.py", *arguments), world.runs / "both"
    while not list(run.glob("checkpoints/0*")) and plain.poll() is None:
        time.sleep(0.02)
    plain.kill()
    killed = finish(plain, timeout=SECONDS)  # which waits for the end of whatever holds its output
    assert killed.code == -signal.SIGKILL and "error: process 0 of 2 was killed" in killed.err, killed.err
    launcher = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "train.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MASTER_PORT": "0"}
    done = subprocess.run([*launcher, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and re.search(r"2 x cpu.* from step", done.stderr), done.stderr
    assert furthest(run, world.runs / "codec-ddp") == 0


def test_another_number_of_processes_than_asked_for_is_refused(monkeypatch: pytest.MonkeyPatch):
    """In a line that says what to give, where torchrun started them."""
    for name, value in {"TORCHELASTIC_RUN_ID": "tests", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="torchrun started 4 processes; give trainer.devices=2 trainer.num_nodes=2"):
        processes.start("cpu", 1, 1, "auto", "32-true")


def test_what_cannot_be_in_shards_is_refused():
    """Models that learn from each other, and entries that are descended on and set."""
    with pytest.raises(InputError, match="2 models .*give trainer.strategy=ddp"):
        sharding.check({"codec": torch.nn.Linear(2, 2), "discriminator": torch.nn.Linear(2, 2)})
    with pytest.raises(InputError, match="quantizer=dac .*give trainer.strategy=ddp"):
        sharding.check({"codec": DAC(dim=8, codebook_size=16, num_codebooks=2)})
    sharding.check({"codec": VQ(dim=8, codebook_size=16)})


def learn_in_shards(rank: int, port: int) -> None:
    """Three steps of Muon on a model in shards, and on one that is whole."""
    torch.set_num_threads(1)
    store = torch.distributed.TCPStore("127.0.0.1", port, 2, is_master=rank == 0)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    sharded, whole = small(), small()
    sharding._shard(sharded, init_device_mesh("cpu", (2,)))
    sharding.through_shards(sharded, ["loss"])
    for model in (sharded, whole):
        learn(model, Muon(model.named_parameters(), 0.01), 3)
    for (name, one), other in zip(sharded.named_parameters(), whole.parameters(), strict=True):
        assert torch.equal(sharding.whole(one), other), name
    assert not torch.equal(other, dict(small().named_parameters())[name])


def test_muon_steps_matrices_in_shards_as_whole_ones():
    """Summed from products of shards in bfloat16, 0.4 of a step of a matrix of low rank was another."""
    assert two(learn_in_shards) == [0, 0]


KINDS = {
    "vq": partial(VQ, codebook_size=16, kmeans_init=False, dead_below=0.0),
    "rvq": partial(RVQ, codebook_size=16, num_codebooks=2, kmeans_init=False, dead_below=0.0),
    "jukebox": partial(JukeboxVQ, codebook_size=16, dead_below=0.0),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_codebook_learns_once_from_all_that_a_step_accumulates(kind: str):
    """It moved after every micro-batch: by decay^k towards the last ones, whose codes came from entries moved already.

    Two halves are as the whole batch; but for the very start, which is of the first half alone, and for revivals.
    """
    torch.manual_seed(0)
    whole: Quantizer = KINDS[kind](dim=8).train()
    x = torch.randn(4, 8, 64)
    whole(x)  # sets JukeboxVQ's entries
    halves: Quantizer = KINDS[kind](dim=8).train()
    halves.load_state_dict(whole.state_dict())
    before = {name: value.clone() for name, value in halves.state_dict().items()}
    for step in range(3):
        torch.manual_seed(1 + step)
        x = torch.randn(4, 8, 64) + step
        codes = []
        for micro, half in enumerate(x.chunk(2)):
            for module in halves.modules():
                if isinstance(module, Pooled):
                    module.take(micro, 2, 0, 1)
            codes.append(halves(half).codes)
            if micro == 0 and step == 0:
                assert all(torch.equal(value, before[name]) for name, value in halves.state_dict().items())
        assert torch.equal(torch.cat(codes), whole(x).codes)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(halves.state_dict()[name], value, msg=name)
    assert any(not torch.equal(value, before[name]) for name, value in halves.state_dict().items())
