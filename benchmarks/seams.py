"""What it costs to sample windows side by side. `python -m benchmarks.seams runs/top runs/middle runs/bottom`

The same songs, of the same numbers and the same top level, window after window and in parallel. For each upsampler: how
many nats the prior itself is surprised by the codes just after a seam, beside the same steps of the songs drawn window
after window, where nothing is joined; and by the codes before it. Seams come in pairs with these places, so the
difference has a standard error of its own. Then, of the finest level's audio, how much of the spectrum is new at a seam
(spectral flux), beside the same moments of the other songs; and the time, of sampling alone.
"""

import argparse
import time
from collections.abc import Mapping
from statistics import mean, stdev

import torch
from rich.console import Console
from rich.table import Table

from jukebox_lite.codecs.base import Codec
from jukebox_lite.errors import told_in_one_line
from jukebox_lite.generation.complete import complete, samplers
from jukebox_lite.generation.filling import Filling
from jukebox_lite.generation.seams import surprise_about
from jukebox_lite.generation.songs import steps_for
from jukebox_lite.generation.windows import Parallel, Sequential, Windows, seams, windows
from jukebox_lite.levels import Codes
from jukebox_lite.metrics.signal import spectral_flux
from jukebox_lite.priors.base import Prior, Sampler
from jukebox_lite.training.load import load_priors


def main() -> None:
    """Samples twice and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="run folders of a codec's priors, from the top down")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--songs", type=int, default=2)
    parser.add_argument("--temperature", type=float, default=0.98)
    parser.add_argument("--overlaps", type=float, nargs="+", default=[0.0, 0.25, 0.5])
    parser.add_argument("--steps", type=int, default=16, help="judged on either side of a seam")
    parser.add_argument("--batch-size", type=int, default=16)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with told_in_one_line():
        priors, codec = load_priors(*arguments.runs)
        how = samplers(codec.levels, arguments.temperature)
        top = next(prior for prior in priors if prior.facts.above is None)
        given, _ = sample(codec, [top], how, arguments, Sequential(), 0.5, None)
        shown = Table("level", "overlap", "seams", "nats after: joined", "not", "difference", "before: difference")
        for overlap in arguments.overlaps:
            compare(codec, priors, how, arguments, overlap, given, shown)
    Console(width=140).print(shown)


def compare(
    codec: Codec,
    priors: list[Prior],
    how: Mapping[str, Sampler],
    arguments: argparse.Namespace,
    overlap: float,
    given: Codes,
    shown: Table,
) -> None:
    """Adds a row to the table for each upsampler; prints times and spectral flux."""
    orders = Sequential(arguments.batch_size), Parallel(arguments.batch_size)
    apart, joined = (sample(codec, priors, how, arguments, order, overlap, given) for order in orders)
    print(f"overlap {overlap}: window after window {apart[1]:.1f} s, in parallel {joined[1]:.1f} s of CPU time")
    places: list[int] = []
    for prior in priors:
        if prior.facts.above is None:
            continue
        name = prior.facts.level.name
        num_steps, steps = apart[0][name].shape[-1], arguments.steps
        spans = list(windows(num_steps, prior.context_length, overlap, prior.facts.ratio))
        waves = orders[1].waves(spans, 0, above=True)
        places = [place for place in seams(waves) if steps <= place <= num_steps - steps]
        if not places:
            shown.add_row(name, f"{overlap}", "0", "", "", "", "")
            continue
        labels = {key: index.expand(arguments.songs, -1) for key, index in prior.facts.indices({}).items()}
        labels["total_seconds"] = torch.full((arguments.songs,), arguments.seconds)
        filling = Filling(codec, prior, how[name], 0, labels, [""] * arguments.songs, waves, 1)
        nats = [surprise_about(filling, codes, places, steps) for codes, _ in (joined, apart)]
        before, after = (nats[0] - nats[1]).flatten(0, 1).split(steps, -1)
        means = [each[..., steps:].mean().item() for each in nats]
        differences = [f"{each.mean():+.3f} ± {each.mean(-1).std() / len(each) ** 0.5:.3f}" for each in (after, before)]
        shown.add_row(name, f"{overlap}", f"{len(after)}", *(f"{value:.3f}" for value in means), *differences)
    finest = priors[-1].facts.level
    samples = [place * finest.samples_per_step for place in places]
    flux = [flux_at(codec, codes, finest.name, samples) for codes, _ in (joined, apart)]
    told = [f"{mean(each):.3f} ± {stdev(each) / len(each) ** 0.5:.3f}" for each in flux if len(each) > 1]
    print(
        f"overlap {overlap}: spectral flux at {finest.name}'s seams, and there without: {', '.join(told)}", flush=True
    )


def sample(
    codec: Codec,
    priors: list[Prior],
    how: Mapping[str, Sampler],
    arguments: argparse.Namespace,
    order: Windows,
    overlap: float,
    given: Codes | None,
) -> tuple[Codes, float]:
    """Codes of the same songs in any order of windows, and seconds of CPU time."""
    steps = steps_for(codec, arguments.seconds)
    began = time.process_time()
    codes = complete(codec, priors, steps, {}, how, 0, arguments.songs, given, overlap, order=order)
    return codes, time.process_time() - began


@torch.no_grad()
def flux_at(codec: Codec, codes: Codes, name: str, samples: list[int]) -> list[float]:
    """Spectral flux of every song at these places, but for those too near the ends."""
    found: list[float] = []
    for song in codes[name].split(1):
        audio = codec.decode({name: song})[0]
        inside = [place for place in samples if 1024 <= place <= audio.shape[-1] - 1024]
        found += spectral_flux(audio, inside).tolist() if inside else []
    return found


if __name__ == "__main__":
    main()
