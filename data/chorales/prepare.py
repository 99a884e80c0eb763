"""Renders the Bach chorales that the examples learn from; training does the same when they are missing."""

import argparse
from pathlib import Path

from jukebox_lite.datasets.chorales import Chorales
from jukebox_lite.errors import told_in_one_line

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=64, help="how much music (default: %(default)s)")
    parser.add_argument(
        "--folder", default=str(Path(__file__).parent / "songs"), help="where it goes (default: %(default)s)"
    )
    chosen = parser.parse_args()
    with told_in_one_line():
        print(Chorales(chosen.folder, chosen.folder, chosen.minutes).summary())
