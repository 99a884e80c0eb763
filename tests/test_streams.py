"""Audio files to codes and back by pieces: equal to the whole, cut to the true length, refused in one line."""

from functools import partial
from pathlib import Path
from unittest import mock

import pytest
import soundfile
import torch
from safetensors.torch import load_file
from tiny import World, song

from jukebox_lite.audio import read
from jukebox_lite.codecs import pieces
from jukebox_lite.codecs.base import Codec
from jukebox_lite.codecs.pieces import padded_length
from jukebox_lite.codecs.quantizers import VQ
from jukebox_lite.codecs.vqvae import HierarchicalVQVAE
from jukebox_lite.datasets.code_cache import codec_fingerprint
from jukebox_lite.errors import InputError
from jukebox_lite.generation.songs import read_codes, save_codes
from jukebox_lite.generation.streams import decode_file, encode_file
from jukebox_lite.training import codes as command

RATE = 8000


@pytest.fixture(scope="module")
def codec() -> Codec:
    torch.manual_seed(0)
    strides = {"top": [4], "middle": [2, 2], "bottom": [8]}
    codec = HierarchicalVQVAE(RATE, strides, 8, 2, 4, partial(VQ, codebook_size=64), channels=2)
    codec.train()(0.1 * torch.randn(4, 2, 4096))
    return codec.eval()


@pytest.mark.parametrize("piece_samples", [1009, 7777, 10**7])
@pytest.mark.parametrize("native", [RATE, 44_100])
def test_a_file_there_and_back_equals_the_whole(
    codec: Codec, tmp_path: Path, piece_samples: int, native: int, monkeypatch: pytest.MonkeyPatch
):
    """Codes are those of one call on all of the audio; the sound has its samples to a 16-bit step, and its length.

    Of a resampled file, those of one piece: the resampling of a stretch and of the whole differ by their rounding.
    """
    monkeypatch.setattr(pieces, "_STRETCH_SAMPLES", 5000)
    monkeypatch.setattr(pieces, "_STRETCH_HALOS", 0)
    source = song(tmp_path / "song.flac", 3.337, native, 2)
    num_samples = round(3.337 * RATE)
    audio = read(source, 0, padded_length(codec, num_samples), RATE, 2)
    encode_file(codec, source, tmp_path / "codes.safetensors", piece_samples)
    codes = read_codes(tmp_path / "codes.safetensors", codec, codec_fingerprint(codec))
    encode_file(codec, source, tmp_path / "whole.safetensors", num_samples + 1000)
    whole = read_codes(tmp_path / "whole.safetensors", codec, codec_fingerprint(codec))
    at_once = codec.encode(audio[None])
    for name, values in codes.items():
        assert torch.equal(values, whole[name])
        assert torch.equal(values, at_once[name]) or native != RATE
    for level in (None, "top"):
        decode_file(codec, tmp_path / "codes.safetensors", tmp_path / "back.wav", level, piece_samples=piece_samples)
        heard, rate = soundfile.read(tmp_path / "back.wav", dtype="float32")
        assert rate == RATE and heard.shape == (num_samples, 2)
        expected = codec.decode({level or "bottom": codes[level or "bottom"]})[0, :, :num_samples].clamp(-1, 1)
        torch.testing.assert_close(torch.from_numpy(heard).T, expected, atol=2**-14, rtol=0)


def test_codes_of_a_file_are_narrow(codec: Codec, tmp_path: Path):
    """Two bytes a code, and any program that reads safetensors can read them."""
    encode_file(codec, song(tmp_path / "song.wav", 1, RATE), tmp_path / "codes.safetensors", 1000)
    codes = load_file(tmp_path / "codes.safetensors")
    assert {name: (values.dtype, *values.shape) for name, values in codes.items()} == {
        "top": (torch.int16, 1, 1, 63),
        "middle": (torch.int16, 1, 1, 252),
        "bottom": (torch.int16, 1, 1, 1008),
    }


def test_one_of_several_songs_can_be_heard(codec: Codec, tmp_path: Path):
    """Songs are counted from 1, as the page that sample.py writes counts them."""
    codes = {"top": torch.randint(64, (2, 1, 50))}
    save_codes(tmp_path / "codes.safetensors", codes, codec, codec_fingerprint(codec))
    decode_file(codec, tmp_path / "codes.safetensors", tmp_path / "second.wav", song=2)
    expected = codec.decode({"top": codes["top"][1:]})[0].clamp(-1, 1)
    torch.testing.assert_close(read(tmp_path / "second.wav", 0, 50 * 128, RATE, 2), expected, atol=2**-14, rtol=0)
    with pytest.raises(InputError, match="song=3: .* holds 2"):
        decode_file(codec, tmp_path / "codes.safetensors", tmp_path / "third.wav", song=3)
    with pytest.raises(InputError, match="level=bottom: .* holds top"):
        decode_file(codec, tmp_path / "codes.safetensors", tmp_path / "third.wav", "bottom")
    with pytest.raises(InputError, match="level 'tip': this codec has top, middle, bottom"):
        decode_file(codec, tmp_path / "codes.safetensors", tmp_path / "third.wav", "tip")
    assert {path.name for path in tmp_path.iterdir()} == {"codes.safetensors", "second.wav"}


def test_the_command_turns_a_file_into_codes_and_back(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Of a run, and of one of its checkpoints; a mistake is one line."""
    source, between, back = world.folder / "music" / "01.flac", tmp_path / "codes.safetensors", tmp_path / "back.wav"
    run = str(world.runs / "codec")

    def call(*arguments: str | Path) -> None:
        with mock.patch("sys.argv", ["codes", *map(str, arguments)]):
            command.main()

    call("encode", run, source, between, "--piece-samples", "3001")
    call("decode", f"{run}/checkpoints/00000004", between, back, "--level", "middle")
    assert abs(soundfile.info(back).frames / RATE - soundfile.info(source).duration) < 1e-3
    for wrong, says in (
        (("encode", "nowhere", source, between), "error: nowhere is no run"),
        (("encode", f"{run}/checkpoints/9", source, between), "error: .*9 is not a whole checkpoint|error: .*no run"),
        (("encode", run, "nowhere.wav", between), "error: nowhere.wav: cannot be opened"),
        (("encode", run, source, between, "--piece-samples", "0"), "error: --piece-samples=0: expected 1 or more"),
        (("decode", run, source, back), "error: .*01.flac: not a whole safetensors file"),
        (("decode", run, between, tmp_path / "back.mp3"), "error: .*back.mp3: cannot write .mp3; use .wav"),
    ):
        with pytest.raises(SystemExit, match=says):
            call(*wrong)
    assert capsys.readouterr().out == ""
