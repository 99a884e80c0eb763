"""Renders the Bach chorales that the examples learn from; training does the same when they are missing."""

import argparse
import sys
from pathlib import Path

from jukebox_lite.datasets.chorales import Chorales
from jukebox_lite.errors import InputError

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=64, help="how much music (default: %(default)s)")
    parser.add_argument(
        "--folder", default=str(Path(__file__).parent / "songs"), help="where it goes (default: %(default)s)"
    )
    chosen = parser.parse_args()
    try:
        print(Chorales(chosen.folder, chosen.folder, chosen.minutes).summary())
    except InputError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on from here")
