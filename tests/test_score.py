"""What is said of a prior: hand-made priors with known nats, and the command as a user types it."""

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch
from tiny import HOPS, SAMPLE_RATE, World, command, song
from torch import Tensor

from jukebox_lite.codecs.base import Codec
from jukebox_lite.datasets.code_windows import CodeWindows
from jukebox_lite.datasets.songs import Songs
from jukebox_lite.errors import InputError
from jukebox_lite.levels import Codes, Facts, Level, Window
from jukebox_lite.priors.base import Prior, Sampler
from jukebox_lite.training import score as module
from jukebox_lite.training.score import Worth, score

RATE = 1000
LEVELS = (Level("coarse", 8, 1, 20), Level("fine", 4, 2, 10))
VOCABULARY = {"genre": ["", "jazz", "rock", "soul"], "artist": ["", "Ann"], "mood": [""]}


class Counting(Codec):
    """Each code is the number of its step in the song, as far as its codebook goes; the second codebook's, from 1."""

    sample_rate, channels, levels = RATE, 1, LEVELS

    def encode(self, audio: Tensor) -> Codes:
        return {
            level.name: (
                torch.arange(audio.shape[-1] // level.samples_per_step) + torch.arange(level.channels)[:, None]
            )[None]
            % level.codebook_size
            for level in LEVELS
        }

    def decode(self, codes: Codes) -> Tensor:
        raise NotImplementedError


class Opinionated(Prior):
    """Nats of a code: its codebook, its step in the window / 100, 1 where the genre is untold, 3 where it is soul."""

    context_length = 40

    def __init__(self, level: int):
        super().__init__()
        self.facts = Facts(LEVELS[level], LEVELS[0] if level else None, VOCABULARY)

    def nats(self, window: Window) -> Tensor:
        codes = window.codes[self.facts.level.name]
        genre = window.labels["genre"]
        steps = torch.round(window.labels["start_seconds"] * RATE / self.facts.level.samples_per_step).long()
        assert torch.equal(codes[:, 0, 0], steps % self.facts.level.codebook_size), "codes are not of their time"
        assert {len(values) for values in window.labels.values()} == {len(codes)}
        said = 1.0 * (genre == 0).any(1) + 3.0 * (genre == 3).any(1)
        k, t = torch.arange(codes.shape[1])[:, None], torch.arange(codes.shape[2])
        return said[:, None, None] + k + t / 100

    def draw(self, window: Window, sampler: Sampler, noise: Tensor, read: int | None = None) -> Iterator[Tensor]:
        raise NotImplementedError


@pytest.fixture
def windows(tmp_path: Path) -> CodeWindows:
    """Four songs of 1 s, 0.66 s, 0.3 s and 1 s; one unlabelled, one of two genres, one of a genre nobody learnt."""
    for index, seconds in enumerate((1.0, 0.66, 0.3, 1.0)):
        song(tmp_path / "music" / f"{index}.wav", seconds, RATE)
    rows = ["file_name,genre,artist", "0.wav,jazz;rock,Ann", "1.wav,soul,Ann", "2.wav,polka,"]
    (tmp_path / "music" / "metadata.csv").write_text("\n".join(rows))
    return CodeWindows(Songs(str(tmp_path / "music")), 2, str(tmp_path / "cache"), list(VOCABULARY), Counting())


ALL = [f"{index}.wav" for index in range(4)]


@pytest.mark.parametrize("level", [0, 1])
def test_every_code_is_scored_once_where_its_window_has_it(windows: CodeWindows, level: int):
    """A song of 100 steps is windows from 0, 40 and 60, of which the last is new from step 20 on."""
    found = score(Opinionated(level), windows, ["0.wav"])
    steps, codebooks = (50, 1) if level == 0 else (100, 2)
    places = [*range(40), *range(30, 40)] if level == 0 else [*range(40), *range(40), *range(20, 40)]
    assert found.songs["0.wav"].tokens == steps * codebooks == found.figures()["tokens"]
    mean = sum(places) / 100 / len(places)
    assert found.by_codebook() == pytest.approx([mean + k for k in range(codebooks)])
    assert found.mean() == pytest.approx(mean + (codebooks - 1) / 2)
    assert found.by_place() == pytest.approx([(codebooks - 1) / 2 + t / 100 for t in range(40)])
    assert found.place_counts.tolist() == [places.count(t) for t in range(40)]


def test_nats_are_told_as_bits_per_second(windows: CodeWindows):
    """100 steps a second of two codebooks of four codes: 400 bits by chance."""
    figures = score(Opinionated(1), windows, ["0.wav"]).figures()
    assert figures["chance"] == pytest.approx(math.log(4)) and figures["chance_bits_per_second"] == pytest.approx(400)
    assert figures["bits_per_second"] == pytest.approx(figures["nats_per_token"] / math.log(2) * 200)


def test_a_label_is_worth_what_it_saves(windows: CodeWindows):
    """By hand: jazz; rock saves 1 against untold and 3 against the one other genre; soul costs 2, and saves 3 - 0."""
    found = score(Opinionated(0), windows, ALL)
    lengths = {"0.wav": 50, "1.wav": 33, "2.wav": 15, "3.wav": 50}
    place = {
        "0.wav": sum([*range(40), *range(30, 40)]) / 100,
        "1.wav": sum(range(33)) / 100,
        "2.wav": sum(range(15)) / 100,
        "3.wav": sum([*range(40), *range(30, 40)]) / 100,
    }
    said = {"0.wav": 0, "1.wav": 3, "2.wav": 1, "3.wav": 1}
    for name, row in found.songs.items():
        assert row.tokens == lengths[name]
        assert row.nats["told"] == pytest.approx(place[name] + said[name] * lengths[name])
        assert row.nats["untold"] == pytest.approx(place[name] + lengths[name])
    assert found.songs["2.wav"].values == {"genre": [], "artist": [], "mood": []}
    genre, artist = found.worth("genre"), found.worth("artist")
    saved, against_wrong = (50 * 1 - 33 * 2) / 83, (50 * 3 - 33 * 3) / 83
    assert genre == Worth(2, pytest.approx(saved), 1, 2, pytest.approx(against_wrong))
    assert artist == Worth(2, pytest.approx(0), 0, 0, None), "only one artist: none is wrong"
    assert found.worth("mood") is None
    values = found.by_value("genre")
    assert list(values) == ["jazz", "rock", "soul", "(unknown)"]
    assert values["jazz"] == values["rock"] == pytest.approx(place["0.wav"] / 50)
    assert values["soul"] == pytest.approx(place["1.wav"] / 33 + 3)
    assert values["(unknown)"] == pytest.approx((place["2.wav"] + place["3.wav"]) / 65 + 1)


def test_only_the_beginning_can_be_scored(windows: CodeWindows):
    """In whole steps of the coarsest level; a song that is shorter is scored whole."""
    found = score(Opinionated(1), windows, ALL, seconds=0.5)
    assert [row.tokens for row in found.songs.values()] == [100, 100, 60, 100]
    with pytest.raises(InputError, match="nothing to score"):
        score(Opinionated(1), windows, [])


# --- the command ---------------------------------------------------------------------------------------------------


def call(*arguments: str | Path) -> None:
    with mock.patch("sys.argv", ["score", *map(str, arguments)]):
        module.main()


def test_the_command_leaves_a_table_json_and_plots(
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """The held-out song of a run, all of its songs, or a folder's; figures that add up."""
    monkeypatch.setenv("COLUMNS", "200")
    run = world.runs / "middle"
    call(run)
    shown = capsys.readouterr().out
    assert "chance" in shown and "genre" in shown and "piano" in shown and f"written: {run}/score/held_out" in shown
    told = json.loads((run / "score" / "held_out" / "score.json").read_text())
    assert list(told["songs"]) == ["00.wav"] and told["chance"] == pytest.approx(math.log(16))
    assert told["tokens"] == 2 * SAMPLE_RATE // HOPS["middle"] and len(told["by_place"]) == 64
    assert told["nats_per_token"] == pytest.approx(told["songs"]["00.wav"]["told"])
    assert told["labels"]["genre"]["nats"] == pytest.approx(
        told["songs"]["00.wav"]["untold genre"] - told["nats_per_token"]
    )
    assert told["labels"]["genre"]["wrong_songs"] == 1
    names = {"score.json", "places.png", "labels.png"}
    assert {path.name for path in (run / "score" / "held_out").iterdir()} == names
    call(run, "--all")
    everything = json.loads((run / "score" / "all" / "score.json").read_text())
    assert len(everything["songs"]) == 5 and everything["songs"]["00.wav"] == told["songs"]["00.wav"]
    call(run, world.folder / "music", "--seconds", "0.5", "--out", world.folder / "scored")
    part = json.loads((world.folder / "scored" / "score.json").read_text())
    assert part["tokens"] == 5 * math.ceil(0.5 * SAMPLE_RATE / HOPS["top"] - 0.5) * 4 and part["which"] == "music"


def test_a_mistake_is_one_line(world: World, tmp_path: Path):
    shutil.copytree(world.folder / "music", tmp_path / "music")
    done = command("train.py", *world.prior("top", "name=outdated", "trainer.max_steps=1", data=tmp_path / "music"))
    assert done.code == 0, done.err
    (tmp_path / "music" / "04.flac").unlink()
    run = world.runs / "top"
    for wrong, says in (
        ((world.runs / "codec",), "error: .*codec trained no prior"),
        ((world.runs / "outdated",), "error: .*music: not the songs that .*outdated learnt from any more"),
        ((run, tmp_path / "nowhere"), "error: .*nowhere: there is no such folder"),
        ((run, tmp_path / "music", "--all"), "error: --all: a folder is scored whole"),
        ((run, "--seconds", "-1"), "error: --seconds=-1.0: expected more than 0"),
    ):
        with pytest.raises(SystemExit, match=says) as refusal:
            call(*wrong)
        assert "\n" not in str(refusal.value)
