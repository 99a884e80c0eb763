"""The figures of a codec on a folder: hand-made codecs with known errors, and the command as a user types it."""

import json
import math
import re
from pathlib import Path
from unittest import mock

import pytest
import soundfile
import torch
from tiny import World, song
from torch import Tensor

from jukebox_lite.codecs.base import Codec
from jukebox_lite.datasets.songs import Songs
from jukebox_lite.errors import InputError
from jukebox_lite.levels import Codes, Level
from jukebox_lite.training import evaluate as command
from jukebox_lite.training.evaluate import evaluate

RATE = 8000


class Quantising(Codec):
    """Codes are the samples themselves in 256 steps of `gain`: what is heard is exactly `gain` times as loud."""

    def __init__(self, gain: float):
        super().__init__()
        self.gain, self.sample_rate, self.channels = gain, RATE, 1
        self.levels = (Level("coarse", 65536, 1, 2), Level("fine", 65536, 1, 1))

    def encode(self, audio: Tensor) -> Codes:
        codes = ((audio + 1) * 32767.5).round().long()
        return {"coarse": codes[..., ::2], "fine": codes}

    def decode(self, codes: Codes) -> Tensor:
        (name,) = codes
        audio = codes[name] / 32767.5 - 1
        return self.gain * (audio.repeat_interleave(2, -1) if name == "coarse" else audio)


@pytest.fixture
def songs(tmp_path: Path) -> Songs:
    """Two songs, of which one is longer than a clip, a silence, and something unreadable."""
    folder = tmp_path / "music"
    for index, seconds in enumerate((12.5, 1.0)):
        song(folder / f"{index}.wav", seconds, RATE, pitch=220 + index)
    soundfile.write(folder / "silence.wav", torch.zeros(RATE).numpy(), RATE)
    (folder / "text.wav").write_text("no music")
    return Songs(str(folder))


def test_a_known_error_is_found(songs: Songs):
    """Half the amplitude: a spectral convergence of 0.5, which is scale-invariantly near perfect; by song and level."""
    found = evaluate(Quantising(0.5), list(songs.all))
    assert list(found.songs) == ["0.wav", "1.wav"], "silence says nothing of a codec"
    for figures in (found.mean, *found.songs.values()):
        assert figures["fine"]["spectral_convergence"] == pytest.approx(0.5, abs=1e-3)
        assert figures["fine"]["si_sdr"] > 60 > 20 > figures["coarse"]["si_sdr"] > 0
        assert figures["fine"]["mel_distance"] < figures["coarse"]["mel_distance"]
    assert found.mean["fine"]["si_sdr"] == pytest.approx(
        sum(figures["fine"]["si_sdr"] for figures in found.songs.values()) / 2
    )
    assert found.mean["fine"]["bits_per_second"] == 16 * RATE
    assert found.mean["coarse"]["bits_per_second"] == 8 * RATE
    power, error = found.spectra["original"], found.spectra["error of fine"]
    assert (error.sum() / power.sum()).item() == pytest.approx(0.25, rel=1e-2)


def hears_steps(audio: Tensor, sample_rate: int) -> Tensor:
    """A transcriber that hears two notes, but one where every other sample is the one before."""
    assert sample_rate == RATE and audio.ndim == 2
    return torch.tensor([[0.5, 60.0], [0.7, 64.0]])[: 1 if torch.equal(audio[:, ::2], audio[:, 1::2]) else 2]


def test_notes_heard_again_are_counted_by_level(songs: Songs):
    """One of two that the original has is an F1 of two thirds; nothing is said of notes that nobody transcribes."""
    found = evaluate(Quantising(1.0), list(songs.all), transcribe=hears_steps)
    for figures in (found.mean, *found.songs.values()):
        assert figures["fine"]["note_f1"] == 1 and figures["coarse"]["note_f1"] == pytest.approx(2 / 3)
    assert "note_f1" not in evaluate(Quantising(1.0), list(songs.all)[:1]).mean["fine"]


def test_only_the_beginning_can_be_measured(songs: Songs):
    """Of a second, the codes are counted for a second; too little to take a spectrum of is refused."""
    found = evaluate(Quantising(1.0), list(songs.all)[:1], seconds=1.0)
    assert found.example["original"].shape == found.example["fine"].shape == (1, RATE)
    with pytest.raises(InputError, match="nothing to measure"):
        evaluate(Quantising(1.0), list(songs.all), seconds=0.1)


def call(*arguments: str | Path) -> None:
    with mock.patch("sys.argv", ["evaluate", *map(str, arguments)]):
        command.main()


def test_the_command_leaves_a_table_json_and_plots(
    world: World, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Of all songs, or of the held-out one; the same figures that training validates by."""
    monkeypatch.setenv("COLUMNS", "200")
    call(world.runs / "codec", world.folder / "music", "--held-out", "--seconds", "2", "--out", tmp_path / "out")
    shown = capsys.readouterr().out
    assert all(f" {level} " in shown for level in ("top", "middle", "bottom")) and "SI-SDR" in shown
    told = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert len(told["songs"]) == 1 and told["held_out"] and told["seconds"] == 2
    for figures in told["mean"].values():
        assert figures["spectral_convergence_db"] == pytest.approx(20 * math.log10(figures["spectral_convergence"]))
        assert 0 < figures["efficiency"] <= 1 and 0 < figures["use"] <= 1
    validated = (world.runs / "codec" / "metrics.jsonl").read_text().splitlines()[-1]
    for name in ("spectral_convergence", "mel_distance", "stft_distance", "si_sdr"):
        assert f"val/{name}/top" in json.loads(validated) and name in told["mean"]["top"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("evaluation.json", "spectra.png", "levels.png", "example.png")
    }
    call(world.runs / "codec" / "checkpoints" / "00000004", world.folder / "music", "--seconds", "1", "--out", tmp_path)
    assert len(json.loads((tmp_path / "evaluation.json").read_text())["songs"]) == 5


def test_notes_are_a_column_where_basic_pitch_is_installed(
    world: World, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """And a line on how to install it where it is not."""
    monkeypatch.setenv("COLUMNS", "200")
    arguments = (world.runs / "codec", world.folder / "music", "--seconds", "1", "--out", tmp_path)
    with mock.patch.dict("sys.modules", {"onnxruntime": None}):
        call(*arguments)
    absent = capsys.readouterr()
    assert re.search(r"^notes are not compared \(.*\): pip install --no-deps basic-pitch .*$", absent.err, re.MULTILINE)
    assert "note F1" not in absent.out and "note_f1" not in (tmp_path / "evaluation.json").read_text()
    with mock.patch.object(command, "basic_pitch", lambda: lambda *_: torch.tensor([[0.5, 60.0]])):
        call(*arguments)
    present = capsys.readouterr()
    assert "note F1" in present.out and "not compared" not in present.err
    told = json.loads((tmp_path / "evaluation.json").read_text())
    assert all(figures["note_f1"] == 1 for figures in (*told["mean"].values(), told["songs"]["00.wav"]["top"]))


def test_a_mistake_is_one_line(world: World, tmp_path: Path):
    run, music = world.runs / "codec", world.folder / "music"
    for wrong, says in (
        ((world.runs / "top", music), "error: .*top trained no codec"),
        ((run, tmp_path / "nowhere"), "error: .*nowhere: there is no such folder"),
        ((run, music, "--seconds", "0"), "error: --seconds=0.0: expected more than 0"),
    ):
        with pytest.raises(SystemExit, match=says) as refusal:
            call(*wrong)
        assert "\n" not in str(refusal.value)
