"""A song of three levels, beside transformers' JukeboxModel of the same weights. `python -m benchmarks.song`

    python -m pip install --target DIR transformers==4.46.3 && PYTHONPATH=DIR python -m benchmarks.song

The hops of the 5B model (128, 32, 8), three priors of the shape of `benchmarks.prior`, random weights. Theirs draws
the levels window after window, each sharing 7/8, 1/2 and 1/2 of itself with the one before, and decodes the finest
level. It is asked for a shorter song (--their-seconds), its time scaled by the number of codes: fewer windows have to
be primed in it, which flatters it. Ours does the same, and then what it offers beyond. Each side lives in a process of
its own; compiling is not timed.
"""

import argparse
import os
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.codec import SHAPE as CODEC_SHAPE
from benchmarks.prior import SHAPE as PRIOR_SHAPE
from benchmarks.turns import Child
from jukebox_lite.generation.complete import complete, samplers
from jukebox_lite.generation.windows import Parallel, Sequential, Windows
from jukebox_lite.interop import openai
from jukebox_lite.priors.stepwise import for_sampling

try:
    from transformers.models.deprecated.jukebox.configuration_jukebox import JukeboxConfig
    from transformers.models.deprecated.jukebox.modeling_jukebox import JukeboxModel

    from tests.fixtures import make_openai, make_openai_priors
except ImportError as error:
    raise SystemExit(f"error: {error}; pip install --target DIR transformers==4.46.3, and PYTHONPATH=DIR") from None

SAMPLE_RATE = 44_100
LEVELS = ("bottom", "middle", "top")  # OpenAI's 0, 1, 2
ABOVE = {"cond_width": 128, "cond_depth": 4, "cond_dilation_growth_rate": 3, "cond_dilation_cycle": 4}
SHAPES = [PRIOR_SHAPE | CODEC_SHAPE | {"level": i, "sr": SAMPLE_RATE} | (ABOVE if i < 2 else {}) for i in range(3)]
OVERLAPS = {"top": 0.875, "middle": 0.5, "bottom": 0.5}  # of JukeboxModel's windows


@dataclass(frozen=True)
class Way:
    """A way of ours to draw a song."""

    title: str
    order: Windows
    overlaps: dict[str, float]
    precision: str = "fp32"
    compiled: bool = False


EDGES = OVERLAPS | {"middle": 0.0, "bottom": 0.0}
WAYS = [
    Way("as theirs", Sequential(), OVERLAPS),
    Way("compiled", Sequential(), OVERLAPS, compiled=True),
    Way("parallel", Parallel(), OVERLAPS | {"middle": 0.25, "bottom": 0.25}),
    Way("parallel, int8", Parallel(), OVERLAPS | {"middle": 0.25, "bottom": 0.25}, "int8"),
    Way("parallel, int8, no overlap", Parallel(), EDGES, "int8"),
    Way("parallel, compiled, no overlap", Parallel(), EDGES, compiled=True),
]


class Theirs:
    """transformers' JukeboxModel."""

    def __init__(self, folder: Path, seconds: float):
        self.seconds = seconds
        configs = [make_openai_priors.hugging_face_config(shape).to_dict() for shape in reversed(SHAPES)]
        codec = make_openai.hugging_face_config(CODEC_SHAPE, 1).to_dict()
        config = JukeboxConfig(codec, configs, metadata_conditioning=False, sampling_rate=SAMPLE_RATE)
        self.model = JukeboxModel(config).eval()
        weights = load_file(folder / "codec.safetensors")
        names = {key: make_openai.openai_key(key, CODEC_SHAPE["downs_t"]) for key in self.model.vqvae.state_dict()}
        self.model.vqvae.load_state_dict({key: weights[name] for key, name in names.items()})
        for prior, shape, level in zip(self.model.priors, reversed(SHAPES), reversed(LEVELS), strict=True):
            make_openai_priors.mend(prior)
            prior.get_music_tokens_conds = partial(conditions, prior)
            weights = load_file(folder / f"{level}.safetensors")
            prior.load_state_dict({k: weights[make_openai_priors.openai_key(k, shape)] for k in prior.state_dict()})

    def draw(self) -> dict[str, Tensor]:
        """Codes [1, T] by level."""
        length = num_steps(self.seconds)["top"] * 128
        labels = [torch.zeros(1, 5, dtype=torch.int64)] * 3
        codes = self.model.ancestral_sample(labels, sample_length=length, save_results=False)
        self.codes = codes
        return dict(zip(reversed(LEVELS), codes, strict=True))

    def decode(self) -> dict[str, Tensor]:
        """Audio [1, N, 1] of the finest level."""
        return {"audio": self.model.decode(self.codes[-1:], start_level=0, end_level=1).detach()}


class Ours:
    """This project's, through interop.openai."""

    def __init__(self, folder: Path, seconds: float, way: Way):
        self.seconds, self.way = seconds, way
        self.codec = openai.codec(load_file(folder / "codec.safetensors"), CODEC_SHAPE)
        priors = [
            openai.prior(load_file(folder / f"{level}.safetensors"), shape)
            for level, shape in zip(LEVELS, SHAPES, strict=True)
        ]
        self.priors = [for_sampling(prior, way.precision, way.compiled) for prior in priors]
        if way.compiled:  # which is not timed: a graph for each number of windows
            self._complete(seconds)

    def draw(self) -> dict[str, Tensor]:
        """Codes [1, 1, T] by level."""
        self.codes = self._complete(self.seconds)
        return self.codes

    def decode(self) -> dict[str, Tensor]:
        """Audio [1, 1, N] of the finest level."""
        return {"audio": self.codec.decode({"bottom": self.codes["bottom"]}).detach()}

    def _complete(self, seconds: float) -> dict[str, Tensor]:
        drawn = samplers(self.codec.levels, temperature={"top": 0.98, "middle": 0.98, "bottom": 0.99})
        return complete(
            self.codec,
            self.priors,
            num_steps(seconds),
            {},
            drawn,
            seed=0,
            num_songs=1,
            overlap=self.way.overlaps,
            order=self.way.order,
        )


def conditions(prior: torch.nn.Module, codes: list[Tensor], start: int, end: int) -> list[Tensor] | None:
    """The codes above a window [start, end); transformers hands over all there are, and then refuses their number."""
    if prior.level == 0:
        return None
    above = codes[prior.level - 1][:, start // prior.cond_downsample : end // prior.cond_downsample]
    missing = prior.n_ctx // prior.cond_downsample - above.shape[1]
    return [torch.nn.functional.pad(above, (0, missing))]


def num_steps(seconds: float) -> dict[str, int]:
    """Codes of each level in a song of whole steps of the top level."""
    top = int(seconds * SAMPLE_RATE) // 128
    return {"top": top, "middle": 4 * top, "bottom": 16 * top}


def prepare(folder: Path) -> None:
    """Random weights for both sides, under OpenAI's keys."""
    torch.manual_seed(0)
    codec = make_openai.JukeboxVQVAE(make_openai.hugging_face_config(CODEC_SHAPE, 1))
    named = {make_openai.openai_key(key, CODEC_SHAPE["downs_t"]): value for key, value in codec.state_dict().items()}
    save_file({key: (torch.randn_like(value) * 0.05) for key, value in named.items()}, folder / "codec.safetensors")
    for level, shape in zip(LEVELS, SHAPES, strict=True):
        config = make_openai_priors.hugging_face_config(shape)
        prior = make_openai_priors.JukeboxPrior(config, nb_priors=3)
        named = {make_openai_priors.openai_key(key, shape): value for key, value in prior.state_dict().items()}
        drawn: dict[int, Tensor] = {}  # the embedding and the head are one matrix
        for value in named.values():
            drawn.setdefault(value.data_ptr(), torch.randn_like(value) * 0.05)
        save_file(
            {key: drawn[value.data_ptr()].clone() for key, value in named.items()}, folder / f"{level}.safetensors"
        )


def main() -> None:
    """Times all sides and prints a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="of the song that ours draws")
    parser.add_argument("--their-seconds", type=float, default=3.0, help="of the song that theirs draws")
    parser.add_argument("--ways", nargs="+", metavar="WAY", choices=[way.title for way in WAYS], help="of ours: all")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    os.environ["TQDM_DISABLE"] = "1"  # transformers' progress bars
    codes, their_codes = (sum(num_steps(s).values()) for s in (arguments.seconds, arguments.their_seconds))
    print(f"{arguments.threads} threads, torch {torch.__version__}; a song of {arguments.seconds:g} s, {codes:,} codes")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        theirs = Child("theirs", partial(Theirs, seconds=arguments.their_seconds), folder, arguments.threads)
        scale = codes / their_codes
        slow, decoding = (scale * theirs.run(action)[0] for action in ("draw", "decode"))
        theirs.stop()
        print(
            f"theirs, from {their_codes:,} codes ({1 / scale:.0%}): "
            f"{slow:.0f} s for the codes, {decoding:.1f} s for the audio"
        )
        for way in WAYS:
            if arguments.ways and way.title not in arguments.ways:
                continue
            ours = Child(way.title, partial(Ours, seconds=arguments.seconds, way=way), folder, arguments.threads)
            drawing, decoding_ours = (ours.run(action)[0] for action in ("draw", "decode"))
            ours.stop()
            print(
                f"ours, {way.title:30} {drawing:5.0f} s for the codes, {slow / drawing:.1f}x, "
                f"{decoding_ours:.1f} s for the audio, {decoding / decoding_ours:.1f}x; "
                f"both {(slow + decoding) / (drawing + decoding_ours):.1f}x",
                flush=True,
            )


if __name__ == "__main__":
    main()
