"""An hour of audio to codes and back beside a minute: peak memory, speed, equality. `python -m benchmarks.long_audio`

Each encoding and decoding is a process of its own, so that its peak is its own. The codec has the shape of
conf/codec/vqvae.yaml and untrained weights; its codebooks are set by k-means on the audio.
"""

import argparse
import json
import math
import re
import resource
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from torch import Tensor

from jukebox_lite.audio import read, writing
from jukebox_lite.codecs.pieces import decode_in_pieces, encode_in_pieces, padded_length
from jukebox_lite.codecs.quantizers import VQ
from jukebox_lite.codecs.vqvae import HierarchicalVQVAE
from jukebox_lite.generation.streams import decode_file, encode_file
from jukebox_lite.levels import Codes
from jukebox_lite.progress import progress

SAMPLE_RATE = 44_100
ODD_PIECES = (30_011, 333_333, 1_000_003)  # samples
RISE = 5.0  # percent of the minute's peak; the allocator alone makes some


def main() -> None:
    """Prints a table of peaks, and a line of equality for each piece size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60, help="the length that is put beside a minute")
    parser.add_argument("--dim", type=int, default=64, help="width of the codec's stacks")
    parser.add_argument("--depth", type=int, default=4, help="of the codec's stacks")
    parser.add_argument("--child", nargs=3, metavar=("WORK", "SOURCE", "TARGET"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    codec = build(arguments.dim, arguments.depth)
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "codec.safetensors"
        if arguments.child:
            child(codec, *arguments.child)
            return
        short, long = (compose(Path(folder), minutes) for minutes in (1.0, arguments.minutes))
        with torch.no_grad():
            codec.train()(read(short, 0, 16 * 32768, SAMPLE_RATE, 1).view(16, 1, -1))
        codec.eval()
        save_file(codec.state_dict(), weights)
        compare(codec, short)
        shape = f"dim {arguments.dim}, depth {arguments.depth}, hops 128, 32 and 8"
        table = Table("work", "audio", "took", "audio s a second", "peak memory", title=f"a codec of {shape}")
        for work, suffix in (("encode", "safetensors"), ("decode", "wav")):
            peaks = {}
            for source, minutes in ((short, 1.0), (long, arguments.minutes)):
                codes = source.with_suffix(".safetensors")
                origin, target = (source, codes) if work == "encode" else (codes, source.with_suffix(f".back.{suffix}"))
                facts = measure(arguments, work, origin, target)
                peaks[minutes] = facts["peak"]
                rate = minutes * 60 / facts["seconds"]
                row = (
                    f"{minutes:g} min",
                    f"{facts['seconds']:.1f} s",
                    f"{rate:.1f}",
                    f"{facts['peak'] / 2**20:,.0f} MiB",
                )
                table.add_row(work, *row)
            rise = 100 * (peaks[arguments.minutes] / peaks[1.0] - 1)
            table.add_row("", f"rises by {rise:.1f} %: {'flat' if rise < RISE else 'NOT flat'}")
        Console().print(table)


def build(dim: int, depth: int) -> HierarchicalVQVAE:
    """The codec, untrained."""
    torch.manual_seed(0)
    strides = {"top": [4], "middle": [4], "bottom": [8]}
    return HierarchicalVQVAE(SAMPLE_RATE, strides, dim, depth, 16, partial(VQ, codebook_size=1024)).eval()


def compose(folder: Path, minutes: float) -> Path:
    """A file of chords over some noise, a new one every half second, written piece by piece."""
    path = folder / f"{minutes:g}.wav"
    generator = torch.Generator().manual_seed(0)
    with writing(path, SAMPLE_RATE, 1) as put, progress("composing", minutes * 60, "audio s") as advance:
        for _ in range(round(minutes * 120)):
            pitches = 110 * 2 ** (torch.randint(36, (4, 1), generator=generator) / 12)
            seconds = torch.arange(SAMPLE_RATE // 2) / SAMPLE_RATE
            chord = torch.sin(2 * math.pi * pitches * seconds).mean(0) * torch.exp(-3 * seconds)
            put((chord + 0.02 * torch.randn(chord.shape, generator=generator))[None])
            advance(0.5)
    return path


def compare(codec: HierarchicalVQVAE, path: Path) -> None:
    """Prints how far codes and sound by pieces are from those of one piece."""
    num_samples = padded_length(codec, 60 * SAMPLE_RATE)

    def stretch(start: int, length: int) -> Tensor:
        return read(path, start, length, SAMPLE_RATE, 1)

    def of(codes: Tensor, start: int, length: int) -> Tensor:
        return codes[..., start : start + length]

    whole = codec.encode(stretch(0, num_samples)[None])
    level = codec.levels[-1]
    heard = codec.decode({level.name: whole[level.name]})
    for piece in ODD_PIECES:
        pieces = [codes for _, codes in encode_in_pieces(codec, stretch, num_samples, piece)]
        codes: Codes = {name: torch.cat([each[name] for each in pieces], -1) for name in whole}
        differing = sum(int((codes[name] != whole[name]).sum()) for name in whole)
        count = sum(values.numel() for values in whole.values())
        values = codes[level.name]
        audio = torch.cat(list(decode_in_pieces(codec, level, partial(of, values), values.shape[-1], piece)), -1)
        error = (audio - heard).abs().max().item()
        print(f"60 s by {piece:,} samples: {differing} of {count:,} codes differ, audio by {error:.1e} at most")


def measure(arguments: argparse.Namespace, work: str, source: Path, target: Path) -> dict[str, float]:
    """Peak memory in bytes, and seconds, of one encoding or decoding in a process of its own."""
    shape = [f"--dim={arguments.dim}", f"--depth={arguments.depth}"]
    line = [sys.executable, "-m", "benchmarks.long_audio", *shape, "--child", work, str(source), str(target)]
    done = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def child(codec: HierarchicalVQVAE, work: str, source: str, target: str) -> None:
    """Encodes or decodes, and prints what it took."""
    codec.load_state_dict(load_file(Path(source).with_name("codec.safetensors")))
    began = time.perf_counter()
    (encode_file if work == "encode" else decode_file)(codec, source, target)
    seconds = time.perf_counter() - began
    print(json.dumps({"seconds": seconds, "peak": peak_bytes()}))


def peak_bytes() -> int:
    """This process's peak memory; Linux's ru_maxrss would be no less than that of the process it was forked from."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()
