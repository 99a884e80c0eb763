"""Our codec beside transformers' Jukebox of the same shape and weights, DAC and EnCodec. `python -m benchmarks.codec`

    python -m pip install --target DIR transformers==4.46.3 && PYTHONPATH=DIR python -m benchmarks.codec

(or, in an environment of its own, the extra [bench].) Each side lives in a process of its own, they take turns, and
time is the median; memory is the most that the process held above what it held before. Random weights everywhere.
"""

import argparse
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.turns import Child, take_turns
from jukebox_lite import config
from jukebox_lite.interop import openai
from jukebox_lite.losses import MagnitudeDistance, WaveformL2, WeightedTerms, weighted_sum

try:
    from transformers import DacConfig, DacModel, EncodecConfig, EncodecModel

    from tests.fixtures.make_openai import JukeboxVQVAE, hugging_face_config, openai_key
except ImportError as error:
    raise SystemExit(f"error: {error}; pip install --target DIR transformers==4.46.3, and PYTHONPATH=DIR") from None

SHAPE = {  # of the 5B model
    "levels": 3,
    "downs_t": [3, 2, 2],
    "strides_t": [2, 2, 2],
    "hvqvae_multipliers": [2, 1, 1],
    "width": 32,
    "depth": 4,
    "emb_width": 64,
    "l_bins": 2048,
    "m_conv": 1,
    "dilation_growth_rate": 3,
    "dilation_cycle": None,
}
LEVELS = ("bottom", "middle", "top")
COMMITMENT = 0.02


class Side(ABC):
    """One implementation, in a process of its own; what it makes it leaves in a folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.audio = load_file(folder / "audio.safetensors")

    @abstractmethod
    def encode(self) -> dict[str, Tensor]:
        """Codes by level of the long clip."""

    @abstractmethod
    def decode(self) -> dict[str, Tensor]:
        """Audio by level, all from the same codes."""

    @abstractmethod
    def train(self) -> dict[str, Tensor]:
        """One training step: reconstructions, losses, gradients and codebooks; the loss."""

    def given_codes(self) -> dict[str, Tensor]:
        """The codes that both decode."""
        return load_file(self.folder / "codes.safetensors")


class Theirs(Side):
    """transformers' JukeboxVQVAE."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.model = JukeboxVQVAE(hugging_face_config(SHAPE, 1)).eval()
        weights = load_file(folder / "weights.safetensors")
        self.model.load_state_dict(
            {key: weights[openai_key(key, SHAPE["downs_t"])] for key in self.model.state_dict()}, strict=True
        )
        self.loss = jukebox_loss()
        for block in self.model.bottleneck.level_blocks:
            block.init = True
            block.codebook_sum, block.codebook_elem = block.codebook.clone(), torch.ones(SHAPE["l_bins"])

    @torch.no_grad()
    def encode(self) -> dict[str, Tensor]:
        return dict(zip(LEVELS, self.model.encode(self.audio["long"].mT), strict=True))

    @torch.no_grad()
    def decode(self) -> dict[str, Tensor]:
        codes = self.given_codes()
        levels = enumerate(LEVELS)
        return {name: self.model.decode([codes[name]], start_level=i, end_level=i + 1).mT for i, name in levels}

    def train(self) -> dict[str, Tensor]:
        audio, heard, penalty = self.audio["batch"], {}, torch.zeros(())
        for i, name in enumerate(LEVELS):
            latent = self.model.encoders[i](audio)[-1]
            _, seen, commitment, _ = self.model.bottleneck.level_blocks[i](latent, update_codebook=True)
            heard[name] = self.model.decoders[i]([seen], all_levels=False)
            penalty = penalty + COMMITMENT * commitment
        return descend(self.loss, heard, audio, penalty, self.model)


class Ours(Side):
    """This project's, through interop.openai."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.model = openai.codec(load_file(folder / "weights.safetensors"), SHAPE | {"commit": COMMITMENT})
        self.loss = jukebox_loss()

    def encode(self) -> dict[str, Tensor]:
        return {name: codes[:, 0] for name, codes in self.model.encode(self.audio["long"]).items()}

    def decode(self) -> dict[str, Tensor]:
        return {name: self.model.decode({name: codes[:, None]}) for name, codes in self.given_codes().items()}

    def train(self) -> dict[str, Tensor]:
        audio = self.audio["batch"]
        output = self.model.train()(audio)
        penalty = torch.stack([quantized.loss for _, quantized in output.values()]).sum()
        return descend(self.loss, {name: heard for name, (heard, _) in output.items()}, audio, penalty, self.model)


class Recipe(Side):
    """The codec of experiment=vqvae."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        with initialize_config_dir(str(Path("conf").absolute()), version_base="1.3"):
            cfg = compose("train", ["experiment=vqvae"])
            self.model = config.build(cfg.codec, config.ROOMS).eval()

    def encode(self) -> dict[str, Tensor]:
        return self.model.encode(self.audio["long"])

    def decode(self) -> dict[str, Tensor]:
        finest = self.model.levels[-1]
        length = self.audio["long"].shape[-1] // finest.samples_per_step
        return {"audio": self.model.decode({finest.name: torch.zeros(1, finest.channels, length, dtype=torch.int64)})}

    def train(self) -> dict[str, Tensor]:
        raise NotImplementedError


class Peer(Recipe):
    """A codec of transformers."""

    def __init__(self, folder: Path, model: Any):
        Side.__init__(self, folder)
        self.model = model.eval()
        self.made: Any = None

    @torch.no_grad()
    def encode(self) -> dict[str, Tensor]:
        self.made = self.model.encode(self.audio["long"])
        return {"codes": self.made.audio_codes}

    @torch.no_grad()
    def decode(self) -> dict[str, Tensor]:
        made = self.made
        scales = {"audio_scales": made.audio_scales} if "audio_scales" in made else {}
        return {"audio": self.model.decode(audio_codes=made.audio_codes, **scales).audio_values}


def dac(folder: Path) -> Peer:
    """DAC of 44.1 kHz."""
    return Peer(folder, DacModel(DacConfig(sampling_rate=44100)))


def encodec(folder: Path) -> Peer:
    """EnCodec of 24 kHz."""
    return Peer(folder, EncodecModel(EncodecConfig()))


def jukebox_loss() -> WeightedTerms:
    """What both learn by: the squared error and OpenAI's magnitudes of several resolutions."""
    several = MagnitudeDistance([[2048, 240, 1200], [1024, 120, 600], [512, 50, 240]], norm=37.0)
    return WeightedTerms({"l2": WaveformL2(power=0.03), "multispectral": several}, {"l2": 1.0, "multispectral": 1.0})


def descend(
    loss: WeightedTerms, heard: dict[str, Tensor], audio: Tensor, penalty: Tensor, model: torch.nn.Module
) -> dict[str, Tensor]:
    """The loss [] and its gradients' norm []."""
    total = torch.stack([weighted_sum(terms) for terms in loss(heard, audio).values()]).sum() + penalty
    model.zero_grad()
    total.backward()
    norms = [parameter.grad.norm() for parameter in model.parameters() if parameter.grad is not None]
    return {"loss": total.detach(), "gradient": torch.stack(norms).norm()}


def prepare(folder: Path, long_samples: int, batch_size: int, num_samples: int) -> None:
    """Audio, random weights with codebooks that fit it, and codes, for both."""
    torch.manual_seed(0)
    audio = {"long": noise(1, long_samples), "batch": noise(batch_size, num_samples)}
    save_file(audio, folder / "audio.safetensors")
    model = JukeboxVQVAE(hugging_face_config(SHAPE, 1)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.01)
        for encoder, block in zip(model.encoders, model.bottleneck.level_blocks, strict=True):
            latents = encoder(noise(1, 1 << 17))[-1].mT.flatten(0, 1)
            many = latents.repeat(-(-SHAPE["l_bins"] // len(latents)), 1)
            block.codebook = many[torch.randperm(len(many))[: SHAPE["l_bins"]]]
            block.codebook += torch.randn_like(block.codebook) * 0.1 * latents.std()
    weights = {openai_key(key, SHAPE["downs_t"]): value.contiguous() for key, value in model.state_dict().items()}
    save_file(weights, folder / "weights.safetensors")


def noise(batch_size: int, num_samples: int) -> Tensor:
    """Swelling chords and noise [B, 1, N]."""
    time_ = torch.arange(num_samples) / 44100
    pitches = 110 * 2 ** (torch.randint(0, 36, (batch_size, 6, 1)) / 12)
    chords = torch.sin(2 * torch.pi * pitches * time_).mean(1, keepdim=True)
    return chords * (1.5 + torch.sin(3 * time_)) / 2 + 0.05 * torch.randn(batch_size, 1, num_samples)


def main() -> None:
    """Times all and prints a line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--long-samples", type=int, default=1 << 20, help="to encode and decode; the 5B model's window")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--num-samples", type=int, default=1 << 16, help="of each clip of a training step")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    print(f"{arguments.threads} threads, torch {torch.__version__}, {arguments.repeats} repeats")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, arguments.long_samples, arguments.batch_size, arguments.num_samples)
        jukebox(folder, arguments)
        peers(folder, arguments)


def jukebox(folder: Path, arguments: argparse.Namespace) -> None:
    """The 5B shape, ours and theirs in turn."""
    children = {
        name: Child(name, make, folder, arguments.threads) for name, make in {"theirs": Theirs, "ours": Ours}.items()
    }
    sizes = {
        "encode": f"{arguments.long_samples} samples",
        "decode": f"{arguments.long_samples} samples, every level",
        "train": f"{arguments.batch_size} x {arguments.num_samples} samples",
    }
    print("the 5B shape: transformers' JukeboxVQVAE, and ours")
    for action, size in sizes.items():
        figures = take_turns(children, action, arguments.repeats)
        (seconds, held), (our_seconds, our_held) = figures["theirs"], figures["ours"]
        print(
            f"  {action:6} {seconds:7.2f} s and {our_seconds:7.2f} s: {seconds / our_seconds:.1f}x less time; "
            f"{held / 2**20:5.0f} MiB and {our_held / 2**20:5.0f} MiB: {held / our_held:.1f}x less memory  ({size})"
        )
        made = {name: load_file(folder / f"{name}.{action}.safetensors") for name in children}
        print(f"         {compare(action, made['theirs'], made['ours'])}")
        if action == "encode":
            (folder / "theirs.encode.safetensors").rename(folder / "codes.safetensors")
    for child in children.values():
        child.stop()


def peers(folder: Path, arguments: argparse.Namespace) -> None:
    """How fast our own recipe is, and codecs that others use."""
    print("audio seconds per second, to encode and to decode (the finest level); each in its own rate")
    sides: dict[str, tuple[Callable[[Path], Side], int]] = {
        "experiment=vqvae, 44.1 kHz": (Recipe, 44100),
        "DacModel, 44.1 kHz": (dac, 44100),
        "EncodecModel, 24 kHz": (encodec, 24000),
    }
    rates, audio = {}, load_file(folder / "audio.safetensors")
    save_file({"long": audio["long"][..., : 1 << 18].contiguous()}, folder / "audio.safetensors")
    children = {name: Child(name.split(",")[0], make, folder, arguments.threads) for name, (make, _) in sides.items()}
    for action in ("encode", "decode"):
        for name, (seconds, _) in take_turns(children, action, arguments.repeats).items():
            rates.setdefault(name, []).append((1 << 18) / sides[name][1] / seconds)
    for name, (encoding, decoding) in rates.items():
        print(f"  {name:28} {encoding:7.1f} {decoding:7.1f}")
        children[name].stop()


def compare(action: str, theirs: dict[str, Tensor], ours: dict[str, Tensor]) -> str:
    """How far what both made is the same."""
    if action == "encode":
        differing = {name: int((theirs[name] != ours[name]).sum()) for name in theirs}
        total = sum(codes.numel() for codes in theirs.values())
        return f"codes that differ: {sum(differing.values())} of {total}"
    if action == "decode":
        error = max(float((theirs[name] - ours[name]).abs().max() / theirs[name].std()) for name in theirs)
        return f"greatest difference: {error:.1e} of the audio's standard deviation"
    errors = {name: abs(float(ours[name] / theirs[name]) - 1) for name in theirs}
    return ", ".join(f"relative difference of the {name}: {error:.1e}" for name, error in errors.items())


if __name__ == "__main__":
    main()
