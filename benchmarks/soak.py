"""A VQ-VAE in training for a long time: does its memory grow, its pace fall, its data keep up?

python -m benchmarks.soak music --minutes 120 [a setting of train.py ...]

Runs train.py in a process of its own, looks at its resident memory every few seconds, and ends it by SIGTERM. Prints
the memory once warm and at the end, the share of time that training waited for data, and the pace at the end beside
the pace once warm.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean

from jukebox_lite.training import table

ROOT = Path(__file__).parents[1]
ENDLESS = 10**9  # steps
EDGE = 0.1  # of the log lines: the pace at either end is their mean
ALLOWED_GROWTH, ALLOWED_DROP = 1.05, 0.95  # of memory, and of pace


def main() -> None:
    """Trains, watches, reports; exit status 1 if memory grew or the pace fell by more than a twentieth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("music", type=Path, help="a folder of music, as ogg files are the dearest to seek in")
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--warm-minutes", type=float, default=10, help="when caches are full and the pace is settled")
    parser.add_argument("--folder", type=Path, default=Path("runs/soak"), help="made anew")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two looks at the memory")
    arguments, settings = parser.parse_known_args()
    shutil.rmtree(arguments.folder, ignore_errors=True)
    place = (f"runs={arguments.folder.parent}", f"name={arguments.folder.name}", f"data.root={arguments.music}")
    words = ("experiment=vqvae", *place, f"trainer.max_steps={ENDLESS}", "schedule=constant", *settings)
    process = subprocess.Popen([sys.executable, str(ROOT / "train.py"), *words])
    memory = watch(process, arguments.minutes * 60, arguments.every)
    if process.returncode != 128 + signal.SIGTERM:
        raise SystemExit(f"train.py ended with status {process.returncode}, not by our signal")
    sys.exit(report(memory, table.metrics(arguments.folder), arguments.warm_minutes * 60))


def watch(process: subprocess.Popen[bytes], seconds: float, every: float) -> list[tuple[float, float]]:
    """(seconds since the start, resident MiB) of a process, which is ended after so many seconds."""
    began, memory = time.monotonic(), []
    while process.poll() is None and (elapsed := time.monotonic() - began) < seconds:
        memory.append((elapsed, resident(process.pid)))
        time.sleep(every)
    process.send_signal(signal.SIGTERM)
    process.wait()
    return memory


def resident(process: int) -> float:
    """MiB of memory that a process holds now, on Linux as on macOS; 0 where it has just ended."""
    told = subprocess.run(["ps", "-o", "rss=", "-p", str(process)], capture_output=True, text=True, check=False).stdout
    return int(told.strip() or 0) / 1024


def report(memory: list[tuple[float, float]], lines: list[dict[str, float]], warm_seconds: float) -> int:
    """Prints what was seen after `warm_seconds`; 1 if memory grew or the pace fell by more than is allowed, else 0."""
    warm = next((mib for elapsed, mib in memory if elapsed >= warm_seconds), memory[-1][1])
    last, most = memory[-1][1], max(mib for _, mib in memory)
    paced = [line for line in lines if "rate" in line]
    paced = paced[round(len(paced) * min(warm_seconds / memory[-1][0], 0.9)) :]  # a line a pace: about as even in time
    edge = max(1, round(len(paced) * EDGE))
    first_pace, last_pace = (mean(line["rate"] for line in part) for part in (paced[:edge], paced[-edge:]))
    print(f"cores {os.cpu_count()}, {memory[-1][0] / 60:.1f} minutes, {lines[-1]['step']:,} steps")
    print(
        f"memory: {warm:.0f} MiB once warm, {last:.0f} MiB at the end ({last / warm:.3f} times), {most:.0f} MiB at most"
    )
    print(f"waiting for data: {mean(line['data_wait'] for line in paced):.2%} of the time")
    print(
        f"pace: {first_pace:.4g} audio s/s once warm, {last_pace:.4g} at the end ({last_pace / first_pace:.3f} times)"
    )
    return int(last > ALLOWED_GROWTH * warm or last_pace < ALLOWED_DROP * first_pace)


if __name__ == "__main__":
    main()
