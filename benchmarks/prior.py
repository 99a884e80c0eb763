"""A prior of Jukebox beside transformers' of the same shape and weights. `python -m benchmarks.prior`

    python -m pip install --target DIR transformers==4.46.3 && PYTHONPATH=DIR python -m benchmarks.prior

(or, in an environment of its own, the extra [bench].) Each side lives in a process of its own, they take turns, and
time is the median; memory is the most that the process held above what it held before. Random weights.
"""

import argparse
import os
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.turns import Child, take_turns
from jukebox_lite.interop import openai
from jukebox_lite.levels import Window
from jukebox_lite.priors.base import Sampler

try:
    from tests.fixtures.make_openai_priors import COMMON, JukeboxPrior, hugging_face_config, mend, openai_key
except ImportError as error:
    raise SystemExit(f"error: {error}; pip install --target DIR transformers==4.46.3, and PYTHONPATH=DIR") from None

SHAPE = COMMON | {
    "l_bins": 2048,
    "n_ctx": 2048,
    "prior_width": 512,
    "prior_depth": 12,
    "heads": 8,
    "attn_order": 2,
    "blocks": 64,
    "labels": False,
}


class Theirs:
    """transformers' JukeboxPrior."""

    def __init__(self, folder: Path):
        self.given = load_file(folder / "given.safetensors")
        weights = load_file(folder / "weights.safetensors")
        self.model = JukeboxPrior(hugging_face_config(SHAPE), nb_priors=SHAPE["levels"])
        mend(self.model)
        self.model.load_state_dict({key: weights[openai_key(key, SHAPE)] for key in self.model.state_dict()})

    def train(self) -> dict[str, Tensor]:
        """One training step's loss in bits and gradient norm."""
        loss, _ = self.model.train().forward_tokens(self.given["codes"], [], None)
        return descend(self.model, loss)

    def sample(self) -> dict[str, Tensor]:
        """Greedy codes [B, T]."""
        batch_size, length = self.given["sampled"].shape
        return {"codes": self.model.eval().sample(batch_size, None, [], None, top_k=1, sample_tokens=length)}


class Ours:
    """This project's, through interop.openai."""

    def __init__(self, folder: Path):
        self.given = load_file(folder / "given.safetensors")
        self.model = openai.prior(load_file(folder / "weights.safetensors"), SHAPE)

    def train(self) -> dict[str, Tensor]:
        """One training step's loss in bits and gradient norm."""
        loss = self.model.train().loss(openai.window(SHAPE, self.given["codes"])).total
        return descend(self.model, loss / torch.log(torch.tensor(2.0)))

    def sample(self) -> dict[str, Tensor]:
        """Greedy codes [B, T]."""
        noise = self.given["sampled"][:, None]
        return {"codes": self.model.eval().sample(Window({}), Sampler(temperature=0.0), noise)[:, 0]}


def descend(model: torch.nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """The loss [] and its gradients' norm []."""
    model.zero_grad()
    loss.backward()
    norms = [parameter.grad.norm() for parameter in model.parameters() if parameter.grad is not None]
    return {"loss": loss.detach(), "gradient": torch.stack(norms).norm()}


def prepare(folder: Path, batch_size: int, num_sampled: int) -> None:
    """Random weights and codes, and zeros in the shape of what is to be sampled, for both."""
    torch.manual_seed(0)
    model = JukeboxPrior(hugging_face_config(SHAPE), nb_priors=SHAPE["levels"])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.05)
    save_file(
        {openai_key(key, SHAPE): value.clone() for key, value in model.state_dict().items()},
        folder / "weights.safetensors",
    )
    codes = torch.randint(SHAPE["l_bins"], (batch_size, SHAPE["n_ctx"]))
    save_file({"codes": codes, "sampled": torch.zeros(batch_size, num_sampled)}, folder / "given.safetensors")


def main() -> None:
    """Times both and prints a line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--num-sampled", type=int, default=256, help="tokens to sample of every sequence")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    print(f"{arguments.threads} threads, torch {torch.__version__}, {arguments.repeats} repeats")
    os.environ["TQDM_DISABLE"] = "1"  # transformers' progress bars
    sizes = {"train": SHAPE["n_ctx"], "sample": arguments.num_sampled}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, arguments.batch_size, arguments.num_sampled)
        sides = {"theirs": Theirs, "ours": Ours}
        children = {name: Child(name, make, folder, arguments.threads) for name, make in sides.items()}
        print("tokens per second: transformers' JukeboxPrior, and ours")
        for action, length in sizes.items():
            figures = take_turns(children, action, arguments.repeats)
            (seconds, held), (our_seconds, our_held) = figures["theirs"], figures["ours"]
            count = arguments.batch_size * length
            print(
                f"  {action:6} {count / seconds:7.0f} and {count / our_seconds:7.0f}: {seconds / our_seconds:.2f}x; "
                f"{held / 2**20:5.0f} MiB and {our_held / 2**20:5.0f} MiB: {held / our_held:.1f}x less memory  "
                f"({arguments.batch_size} x {length} tokens)"
            )
            made = {name: load_file(folder / f"{name}.{action}.safetensors") for name in children}
            print(f"         {compare(made['theirs'], made['ours'])}")
        for child in children.values():
            child.stop()


def compare(theirs: dict[str, Tensor], ours: dict[str, Tensor]) -> str:
    """How far what both made is the same."""
    if "codes" in theirs:
        return f"codes that differ: {int((theirs['codes'] != ours['codes']).sum())} of {theirs['codes'].numel()}"
    errors = {name: abs(float(ours[name] / theirs[name]) - 1) for name in theirs}
    return ", ".join(f"relative difference of the {name}: {error:.1e}" for name, error in errors.items())


if __name__ == "__main__":
    main()
