"""An audio file to codes and back, of any length in constant memory, by the codec that a run learnt.

python -m jukebox_lite.training.codes encode runs/vqvae song.flac codes.safetensors
python -m jukebox_lite.training.codes decode runs/vqvae codes.safetensors song.wav
"""

import argparse
from pathlib import Path

import torch

from jukebox_lite.codecs.pieces import PIECE_SAMPLES
from jukebox_lite.errors import InputError, told_in_one_line
from jukebox_lite.generation.streams import decode_file, encode_file
from jukebox_lite.training.load import load_codec


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    encode = commands.add_parser("encode", help="audio -> codes of every level")
    decode = commands.add_parser("decode", help="codes -> audio, from the finest level or the one asked for")
    for command, source, target in ((encode, "audio", "codes.safetensors"), (decode, "codes", ".wav, .flac or .ogg")):
        command.add_argument("run", help="the run of a codec, or one of its checkpoints")
        command.add_argument("source", type=Path, help=f"a file of {source}")
        command.add_argument("target", type=Path, help=f"the file to write: {target}")
        command.add_argument("--piece-samples", type=int, default=PIECE_SAMPLES, help="worked on at once")
    decode.add_argument("--level", help="the level to hear")
    decode.add_argument("--song", type=int, default=1, help="which song of the file, from 1")
    arguments = parser.parse_args()
    with told_in_one_line():
        run(arguments)


def run(arguments: argparse.Namespace) -> None:
    """Does what the command line says, on this machine's accelerator if it has one."""
    if arguments.piece_samples < 1:
        raise InputError(f"--piece-samples={arguments.piece_samples}: expected 1 or more")
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    codec = load_codec(arguments.run).to(device)
    if arguments.command == "encode":
        encode_file(codec, arguments.source, arguments.target, arguments.piece_samples)
    else:
        decode_file(codec, arguments.source, arguments.target, arguments.level, arguments.song, arguments.piece_samples)


if __name__ == "__main__":
    main()
