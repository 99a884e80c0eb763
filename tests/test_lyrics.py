"""Lyrics from a file beside the music to the second at which each character is sung."""

import csv
import itertools
import json
import math
import shutil
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given as over
from hypothesis import settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tiny import World, command, music, song
from torch import Tensor

from benchmarks import lyrics as benchmark
from jukebox_lite.codecs.base import Codec
from jukebox_lite.datasets.code_windows import CodeWindows
from jukebox_lite.datasets.songs import Songs
from jukebox_lite.errors import InputError
from jukebox_lite.generation.complete import complete, samplers
from jukebox_lite.levels import LYRICS, LYRICS_PLACES, NO_VALUE, Codes, Facts, Level, Window
from jukebox_lite.lyrics import characters_of, first_character, normalised, window_lyrics
from jukebox_lite.nn.linear import GatedDeltaRule
from jukebox_lite.nn.transformer import CausalAttention, Mixer
from jukebox_lite.priors.alignment import attention, best_path, progress_of, rank_heads
from jukebox_lite.priors.autoregressive import AutoregressivePrior
from jukebox_lite.priors.base import Prior, Sampler
from jukebox_lite.priors.conditioning import Labels, Timing
from jukebox_lite.priors.lyrics import Lyrics
from jukebox_lite.priors.patterns import Delay, Flatten, Parallel, Pattern
from jukebox_lite.priors.stepwise import draw, guided
from jukebox_lite.training import align as align_command

# --- texts beside the music ----------------------------------------------------------------------------------------


def written(folder: Path, files: dict[str, bytes], names: str = "abcdef") -> Songs:
    """Songs a.wav, b.wav, ... and what is written beside them."""
    for name in names:
        song(folder / f"{name}.wav", 0.5)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return Songs(str(folder))


def texts_of(songs: Songs) -> dict[str, str]:
    return {song.name[0]: song.lyrics for song in songs.all}


def test_lyrics_come_from_the_metadata_or_a_text_beside_the_song(tmp_path: Path):
    """The metadata goes first; line breaks of any system are kept; case, width and ligatures do not matter."""
    table = 'file_name,genre,lyrics\na.wav,jazz,"Ah, ""oh""\nLa"\nb.wav,rock,\nc.wav,rock,Metadata\n'
    files = {"metadata.csv": table.encode(), "b.txt": "\ufeffＯne ﬁre\r\nTwo\rThree\n\n".encode(), "c.txt": b"file"}
    songs = written(tmp_path, files)
    none = dict.fromkeys("def", "")
    assert texts_of(songs) == {"a": 'ah, "oh"\nla', "b": "one fire\ntwo\nthree", "c": "metadata", **none}
    assert [song.labels for song in songs.all[:3]] == [{"genre": "jazz"}, {"genre": "rock"}, {"genre": "rock"}]
    (tmp_path / "metadata.csv").unlink()
    rows = [{"file_name": "a.wav", "genre": "jazz", "lyrics": 'Ah, "oh"\nLa'}, {"file_name": "b.wav", "lyrics": None}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    again = texts_of(Songs(str(tmp_path)))
    assert again == texts_of(songs) | {"c": "file"}


def test_a_text_may_be_as_long_as_it_likes(tmp_path: Path):
    """Python's csv module refuses fields of more than 131,072 characters unless told otherwise."""
    opera = "\n".join(f"verse {number}" for number in range(30_000))
    with (tmp_path / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["file_name", "lyrics"], ["a.wav", opera]])
    assert texts_of(written(tmp_path, {"b.txt": opera.encode()}, "ab")) == {"a": opera, "b": opera}


def test_a_broken_text_is_one_line_and_the_song_stays(tmp_path: Path):
    songs = written(tmp_path, {"a.txt": "Zwölf".encode("latin-1"), "b.txt": b"fine"})
    assert texts_of(songs) == {"a": "", "b": "fine", **dict.fromkeys("cdef", "")}
    assert songs.set_aside == (("a.txt", "not UTF-8 at byte 2; save it as text in UTF-8"),)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.wav", "lyrics": ["two", "lines"]}')
    with pytest.raises(InputError, match=r"line 1: lyrics \['two', 'lines'\], expected one text"):
        Songs(str(tmp_path))


def test_characters_are_those_of_the_training_songs(tmp_path: Path):
    songs = written(tmp_path, {"a.txt": b"held out: xyz", "b.txt": b"Ba\nc", "c.txt": b"cab"})
    assert [song.name for song in songs.val] == ["a.wav"]
    assert songs.characters() == ["", "\n", "a", "b", "c"]


@settings(deadline=None)
@over(st.text(max_size=40))
def test_normalising_twice_is_normalising_once(text: str):
    assert normalised(normalised(text)) == normalised(text)
    assert not set(normalised(text)) & set("\r\f\v\u2028\x85")


# --- what a window is told -----------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=200)
@over(
    st.integers(0, 300), st.integers(1, 40).map(lambda n: 2 * n), st.floats(0, 1), st.floats(0.01, 1), st.floats(1, 900)
)
def test_a_window_is_told_what_jukebox_tells_it(length: int, size: int, start: float, duration: float, total: float):
    """Its characters lie around the middle, as OpenAI's rule has it; what is there is a stretch of the text."""
    begin, end = start * total, start * total + duration * total
    text = "".join(chr(ord("a") + index % 26) for index in range(length))
    characters = characters_of([text])
    told = window_lyrics(
        [text], characters, size, *(torch.tensor([x], dtype=torch.float64) for x in (begin, end, total))
    )
    tokens = told[LYRICS][0].tolist()
    said = "".join(characters[token] for token in tokens if token != NO_VALUE)
    if length < size:
        expected = text
    else:
        middle = min(max(int(length * (begin + end) / 2 / total), size // 2), length - size // 2)
        expected = text[middle - size // 2 : middle + size // 2]
    assert said == expected and tokens == [*tokens[: len(said)], *[NO_VALUE] * (size - len(said))]
    first = first_character(length, size, begin, end, total)
    for index, place in enumerate(told[LYRICS_PLACES][0, : len(said)].tolist()):
        assert begin + place * (end - begin) == pytest.approx(
            (first + index + 0.5) * total / length, rel=1e-4, abs=1e-3
        )


def test_a_character_never_learnt_is_a_value_of_its_own():
    """Not left out, which would move the others."""
    told = window_lyrics(["añb"], ["", "a", "b"], 5, *torch.tensor([[0.0], [1.0], [1.0]]))
    assert told[LYRICS].tolist() == [[1, 0, 2, NO_VALUE, NO_VALUE]]


class Plain(Codec):
    """25 and 100 steps a second, which count."""

    sample_rate, channels = 8_000, 1
    levels = (Level("top", 64, 1, 320), Level("bottom", 64, 1, 80))

    def encode(self, audio: Tensor) -> Codes:
        return {
            level.name: torch.arange(audio.shape[-1] // level.samples_per_step)[None, None] % 64
            for level in self.levels
        }

    def decode(self, codes: Codes) -> Tensor:
        raise NotImplementedError


class Noting(Prior):
    """Says nothing, and notes what it is told."""

    context_length, num_characters = 48, 12

    def __init__(self, characters: list[str], num_characters: int = 12):
        super().__init__()
        self.facts, self.num_characters = Facts(Plain.levels[1], Plain.levels[0], characters=characters), num_characters
        self.told: list[Window] = []

    def nats(self, window: Window) -> Tensor:
        raise NotImplementedError

    def draw(self, window: Window, _sampler: Sampler, noise: Tensor, read: int | None = None) -> Iterator[Tensor]:
        self.told.append(window)
        yield from torch.zeros(noise.shape, dtype=torch.int64)[..., read:].unbind(-1)


VERSE = "Row, row, row your boat\nGently down the stream"


@pytest.fixture
def sung(tmp_path: Path) -> CodeWindows:
    """Four songs of two seconds; the first two are sung, the first of them held out."""
    for index in range(4):
        song(tmp_path / "sung" / f"{index}.wav", 2.0)
    for index in range(2):
        (tmp_path / "sung" / f"{index}.txt").write_text(VERSE)
    return CodeWindows(Songs(str(tmp_path / "sung")), 6, str(tmp_path / "cache"), [], Plain(), label_dropout=0.2)


def test_sampling_is_told_what_training_is_told(sung: CodeWindows):
    """The same characters at the same places, in every window of a song."""
    prior = Noting(sung.characters)
    top = sung.cache.codes(sung.cache.songs[1], Plain.levels[0], 0, 50)[None]
    steps = {"top": 50, "bottom": 200}
    complete(Plain(), [prior], steps, {}, samplers(Plain.levels), 0, 2, {"top": top}, lyrics=[VERSE])
    assert len(prior.told) > 4
    for window in prior.told:
        start = round(window.labels["start_seconds"][0].item() * 100)
        trained = sung.cut([(sung.cache.songs[1], start)], prior.facts, 48, prior.num_characters)
        for name in LYRICS, LYRICS_PLACES:
            assert torch.allclose(window.labels[name], trained.labels[name].expand(2, -1), atol=1e-6)
        assert (window.labels[LYRICS] != NO_VALUE).all()
    assert len({tuple(window.labels[LYRICS][0].tolist()) for window in prior.told}) > 4


def test_each_song_sings_its_own(sung: CodeWindows):
    """A text for each song, and the same sampling without any."""
    prior, steps, given = Noting(sung.characters), {"top": 12, "bottom": 48}, {"top": torch.zeros(1, 1, 12).long()}
    run = partial(complete, Plain(), [prior], steps, {}, samplers(Plain.levels), 0, 2, given)
    run(lyrics=["row", "BOAT"])
    run()
    said = [
        ["".join(sung.characters[t] for t in row if t >= 0) for row in w.labels[LYRICS].tolist()] for w in prior.told
    ]
    assert said == [["row", "boat"], ["", ""]]


@pytest.mark.parametrize(
    ("lyrics", "num_characters", "says"),
    [
        (["la"], 0, "lyrics: none of these priors hears any; train one with conditioner=lyrics"),
        (["la", "la", "la"], 12, "lyrics: expected a list of one text, or of 2: one a song"),
        (["la", " \n"], 12, "lyrics: a text without a character"),
    ],
)
def test_lyrics_that_do_not_fit_are_one_line(lyrics: list[str], num_characters: int, says: str):
    prior, given = Noting(["", "l", "a"], num_characters), {"top": torch.zeros(1, 1, 12).long()}
    with pytest.raises(InputError, match=says) as refusal:
        complete(Plain(), [prior], {"top": 12, "bottom": 48}, {}, samplers(Plain.levels), 0, 2, given, lyrics=lyrics)
    assert "\n" not in str(refusal.value)


def test_lyrics_are_left_untold_as_labels_are(sung: CodeWindows):
    """In training only, whole, with the chance of a label; songs that have none stay without."""
    facts = Facts(Plain.levels[1], Plain.levels[0], characters=sung.characters)
    told = {}
    for split in ("train", "val"):
        labels = [sung.batch(split, step, facts, 48, 12).labels for step in range(100)]
        tokens = torch.cat([each[LYRICS] for each in labels])
        whole = (tokens != NO_VALUE).all(1)
        assert (whole | (tokens == NO_VALUE).all(1)).all(), "half a text"
        told[split] = whole.float().mean().item()
    assert told["val"] == 1
    assert told["train"] == pytest.approx((1 - 0.2) * (1 - 0.2) / 3, abs=0.06), "a third of the training songs are sung"


def test_lyrics_are_no_label(sung: CodeWindows, tmp_path: Path):
    with pytest.raises(InputError, match="windows.labels: lyrics are no label; leave it out and give conditioner=lyri"):
        CodeWindows(sung.songs, 2, str(tmp_path / "cache"), ["lyrics"], Plain())
    with pytest.raises(InputError, match="no training song has any"):
        Lyrics(16, Facts(Plain.levels[0]))


# --- what a prior makes of them ------------------------------------------------------------------------------------

LEVEL, STEPS, SIZE = Level("top", 7, 2, 16), 8, 10
FACTS = Facts(LEVEL, None, {"genre": ["", "jazz"]}, characters=["", *"abcdefg"])
OTHERS = {"labels": Labels, "timing": Timing}
PATTERNS = {"parallel": Parallel(), "delay": Delay(), "flatten": Flatten()}
MIXERS = {"causal": CausalAttention, "linear": partial(GatedDeltaRule, chunk_length=4)}


def prior(
    pattern: Pattern = PATTERNS["parallel"], mixer: type[Mixer] = CausalAttention, **options
) -> AutoregressivePrior:
    """A new prior; of its three layers the second looks at the text."""
    torch.manual_seed(0)
    conditioners = OTHERS | {"lyrics": partial(Lyrics, num_characters=SIZE, width=8, depth=2, every=2)}
    return AutoregressivePrior(16, 3, 2, STEPS, mixer, FACTS, conditioners, pattern=pattern, **options).eval()


def shaken(*arguments, **options) -> AutoregressivePrior:
    """A prior whose every parameter matters."""
    model = prior(*arguments, **options)
    for index, parameter in enumerate(model.parameters()):
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(index))
    return model


def window(texts: tuple[str, ...] = ("fade", "cabbageface"), size: int = SIZE) -> Window:
    """Windows from the third to the fourth of twelve seconds, of random codes."""
    batch = len(texts)
    codes = torch.randint(7, (batch, 2, STEPS), generator=torch.Generator().manual_seed(5))
    times = [torch.full((batch,), seconds) for seconds in (3.0, 4.0, 12.0)]
    labels = dict(zip((f"{name}_seconds" for name in ("start", "end", "total")), times, strict=True))
    labels |= window_lyrics(texts, FACTS.characters, size, *times)
    return Window({"top": codes}, labels | {"genre": torch.ones(batch, 1, dtype=torch.int64)})


def test_a_prior_without_lyrics_is_as_it_was():
    """Its parameters have the names and, from one seed, the values that those of a prior with lyrics have besides."""
    torch.manual_seed(0)
    plain = AutoregressivePrior(16, 3, 2, STEPS, CausalAttention, FACTS, OTHERS).eval()
    singing = prior()
    mine, others = plain.state_dict(), singing.state_dict()
    assert plain.num_characters == 0 and singing.num_characters == SIZE
    added = {name for name in others if ".cross." in name or name.startswith("conditioners.lyrics.")}
    assert added == others.keys() - mine.keys() and mine.keys() < others.keys()
    assert {name.split(".")[2] for name in added if ".cross." in name} == {"1"}
    assert all(torch.equal(mine[name], others[name]) for name in mine)
    untold = Window(window().codes, {name: each for name, each in window().labels.items() if LYRICS not in name})
    assert torch.equal(plain.logits(window()), plain.logits(untold))


@torch.no_grad()
def test_every_character_matters_and_padding_does_not():
    """Nor does how much of it there is, or what else is in the batch."""
    model, whole = shaken(), window()
    logits = model.logits(whole)
    for place in range(SIZE):
        changed = whole.labels[LYRICS].clone()
        changed[:, place] = torch.where(changed[:, place] == NO_VALUE, NO_VALUE, (changed[:, place] + 1) % 8)
        other = model.logits(Window(whole.codes, whole.labels | {LYRICS: changed}))
        assert torch.equal(other[0], logits[0]) == (place >= len("fade"))
        assert not torch.equal(other[1], logits[1])
    moved = torch.where(whole.labels[LYRICS] == NO_VALUE, 99.0, whole.labels[LYRICS_PLACES])
    assert torch.equal(model.logits(Window(whole.codes, whole.labels | {LYRICS_PLACES: moved})), logits)
    longer = window(("fade", "fade"), size=30)
    assert torch.allclose(model.logits(longer)[:1], model.logits(window(("fade", "fade")))[:1], atol=1e-5)


def test_the_future_stays_unheard():
    """A step's loss sends no gradient to the codes after it, lyrics or not."""
    model, whole = shaken(), window()
    x = model.embeddings[0](whole.codes["top"][:, 0]).detach().requires_grad_()
    heard = model.transformer.hear(model.conditioners["lyrics"](whole, STEPS).memory)
    y, _ = model.transformer(x, heard=heard)
    y[:, 3].square().sum().backward()
    assert x.grad is not None and (x.grad[:, 4:] == 0).all() and (x.grad[:, :4] != 0).any(-1).all()


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("given", [0, 3])
@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_step_by_step_is_all_at_once(pattern: str, mixer: str, given: int, guidance: float):
    """Sampling draws what the all-at-once logits of its codes give by its noise, and hears the text once."""
    model, whole, sampler = shaken(PATTERNS[pattern], MIXERS[mixer]), window(), Sampler(guidance=guidance)
    noise, heard = torch.rand(whole.codes["top"].shape, generator=torch.Generator().manual_seed(1)), []
    model.transformer.blocks[1].cross.key_value.register_forward_hook(lambda *_: heard.append(1))
    first = {"top": whole.codes["top"][..., :given]} if given else {}
    codes = model.sample(Window(first, whole.labels), sampler, noise)
    assert len(heard) == 1
    full = Window({"top": codes}, whole.labels)
    with torch.no_grad():
        logits = torch.cat([model.logits(full), model.logits(FACTS.untold(full))])
    expected = guided(logits, guidance) if guidance != 1 else logits[: len(codes)]
    assert torch.equal(draw(expected, Sampler(), noise)[..., given:], codes[..., given:])


@torch.no_grad()
def test_untold_is_a_song_without_lyrics():
    """Guidance's other side is finite, and equal to what a song that has no text hears."""
    model, whole = shaken(), window()
    silent = window(("", ""))
    untold = FACTS.untold(whole, [LYRICS])
    assert torch.equal(untold.labels[LYRICS], silent.labels[LYRICS]) and untold.labels["genre"] is whole.labels["genre"]
    assert torch.equal(model.logits(untold), model.logits(silent)) and model.logits(silent).isfinite().all()
    assert LYRICS not in FACTS.known(Window({}, {})) and FACTS.known(whole) == ["genre", LYRICS]


def test_checkpointing_is_the_same_step():
    """Loss and gradients are equal to the last bit, of the lyrics' parameters too."""
    steps = []
    for checkpointing in (False, True):
        model = shaken(checkpointing=checkpointing).train()
        model.loss(window()).total.backward()
        steps.append([parameter.grad for parameter in model.parameters()])
    assert all(grad is not None and grad.any() for grad in steps[0])
    assert all(torch.equal(*pair) for pair in zip(*steps, strict=True))


def test_two_that_tell_lyrics_are_refused():
    make = partial(Lyrics, num_characters=4)
    with pytest.raises(InputError, match="2 that tell the lyrics, expected one"):
        AutoregressivePrior(16, 2, 2, 8, CausalAttention, FACTS, {"one": make, "two": make})
    with pytest.raises(InputError, match="every=0"):
        Lyrics(16, FACTS, every=0)
    with pytest.raises(InputError, match="every=3: no block of 2 looks at the lyrics"):
        AutoregressivePrior(16, 2, 2, 8, CausalAttention, FACTS, {"lyrics": partial(Lyrics, every=3)})


# --- when they are sung --------------------------------------------------------------------------------------------


def test_the_best_path_is_the_best_of_all():
    """Against every path that never goes back."""
    gains = torch.randn(6, 4, 3, generator=torch.Generator().manual_seed(0))
    value, path = best_path(gains)
    for each, found, places in zip(gains, value, path, strict=True):
        sums = {p: sum(each[t, s].item() for t, s in enumerate(p)) / 4 for p in itertools.product(range(3), repeat=4)}
        assert found.item() == pytest.approx(max(v for p, v in sums.items() if list(p) == sorted(p)), abs=1e-6)
        assert sums[tuple(places.tolist())] == pytest.approx(found.item(), abs=1e-6)
        assert places.tolist() == sorted(places.tolist())


def test_going_through_the_text_is_what_counts():
    """A diagonal has nearly 1; the same backwards, one place only and all places alike have little or nothing."""
    forward = torch.eye(20).repeat_interleave(3, 0)
    alike, stuck = torch.full((60, 20), 1 / 20), torch.zeros(60, 20).index_fill_(1, torch.tensor([4]), 1.0)
    found = progress_of(torch.stack([forward, forward.flip(0), stuck, alike])).tolist()
    assert found[0] == pytest.approx(1 - 1 / 20) and found[1] < 0.1
    assert found[2:] == pytest.approx([0, 0], abs=1e-6)


@pytest.mark.parametrize("pattern", PATTERNS)
@torch.no_grad()
def test_attention_is_what_the_layer_uses(pattern: str):
    """Of one layer; of sum 1 but for what goes to nothing sung; and by it the values give what the layer adds."""
    model, whole, seen = shaken(PATTERNS[pattern]), window(), []
    cross = model.transformer.blocks[1].cross
    hook = cross.register_forward_hook(lambda _, arguments, y: seen.append((*arguments, y)))
    model.logits(whole)
    hook.remove()
    ((x, heard, y),) = seen
    weights = cross.weights(x, heard)
    assert torch.allclose(weights.sum(-1), torch.ones(()))
    summed = (weights @ heard.values).permute(0, 2, 1, 3).flatten(2)
    assert torch.allclose(cross.out(summed), y, atol=1e-5)
    ((layer, found),) = attention(model, whole).items()
    first = PATTERNS[pattern].positions(2, STEPS)[0]
    assert layer == 1 and torch.equal(found, weights[:, :, first, 1:])
    assert not cross._forward_pre_hooks, "a hook that stays would note every later window"


def test_a_prior_that_hears_nothing_aligns_nothing():
    deaf = AutoregressivePrior(16, 1, 2, 8, CausalAttention, FACTS, {})
    with pytest.raises(InputError, match="hears no lyrics"):
        attention(deaf, window())
    with pytest.raises(InputError, match="no text to align"):
        rank_heads(prior(), [window(("", ""))])


def test_a_small_prior_learns_when_each_letter_is_sung():
    """Songs whose codes follow their text: the text is heard, and found again where it was sung."""
    found = benchmark.judge(benchmark.train(benchmark.build(), 500), benchmark.sing(6, seed=1))
    own, none, other = (found[f"nats per token, {told}"] for told in ("own lyrics", "no lyrics", "another song's"))
    assert own < none - 0.15 and own < other - 0.3
    assert found["mean error (s)"] < 0.5 * found["mean error of linear alignment (s)"]
    assert found["mean error (s)"] < found["a letter's mean duration (s)"]


# --- the commands --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def singing(world: World) -> World:
    """The world, with runs/singing: a top prior that heard lyrics of three of five songs."""
    data = music(world.folder / "sung")
    for name in ("00", "01", "02"):
        (data / f"{name}.txt").write_text(f"{VERSE}\n{name}")
    small = ("conditioner=lyrics", "conditioner.lyrics.num_characters=16", "conditioner.lyrics.width=8")
    arguments = world.prior("top", "name=singing", *small, "conditioner.lyrics.every=1", data=data)
    done = command("train.py", *arguments)
    assert done.code == 0, done.err
    assert "lyrics: 3 songs, " in done.out + done.err
    return world


def test_a_run_keeps_the_characters_it_learnt(singing: World):
    vocabulary = json.loads((singing.runs / "singing" / "vocabulary.json").read_text())
    assert vocabulary[LYRICS] == ["", *sorted({*f"{VERSE}\n0102".lower()})]
    assert LYRICS not in json.loads((singing.runs / "top" / "vocabulary.json").read_text())


def test_songs_sing_what_they_are_given(singing: World, tmp_path: Path):
    """A text and a file of it are the same music, for all songs or for one; the run says what was asked for."""
    (tmp_path / "verse.txt").write_text("Row your boat\n")
    sampled = {}
    for name, lyrics in (("text", "row your boat"), ("each", f"[{tmp_path}/verse.txt,gently]")):
        done = command("sample.py", *singing.sample(f"lyrics={lyrics}", f"name=sung_{name}", levels=("singing",)))
        assert done.code == 0, done.err
        sampled[name] = load_file(singing.runs / f"sung_{name}" / "codes.safetensors")["top"]
    assert torch.equal(sampled["text"][0], sampled["each"][0])
    assert "row your boat" in (singing.runs / "sung_text" / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("lyrics=nowhere.txt", "lyrics=nowhere.txt: not readable (No such file or directory)"),
        ("lyrics=[a,b,c]", "lyrics: expected a list of one text, or of 2"),
        ("lyrics=3", "'lyrics' should be str | list[str] | None, not 3"),
        ("labels.lyrics=la", "labels.lyrics: these priors were trained with artist, genre"),
    ],
)
def test_a_mistake_in_sampling_is_one_line(singing: World, setting: str, says: str):
    done = command("sample.py", *singing.sample(setting, "name=mistaken", levels=("singing",)))
    assert says in done.error


def test_other_mistakes_are_one_line(world: World):
    """Lyrics for priors that hear none; a prior that hears them of songs that have none."""
    assert "none of these priors hears any" in command("sample.py", *world.sample("lyrics=la", "name=mute")).error
    done = command("train.py", *world.prior("top", "name=mute", "conditioner=lyrics"))
    assert "no training song has any; give a lyrics column" in done.error


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    """`python -m jukebox_lite.training.align ...`"""
    monkeypatch.setattr(sys, "argv", ["align", *map(str, arguments)])
    align_command.main()


def test_the_command_aligns_the_songs_of_a_run(
    singing: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    """Those held out, or a folder's: a second inside the song for every character, in their order."""
    run = singing.runs / "singing"
    call(monkeypatch, run)
    assert "progress" in (shown := capsys.readouterr().out) and f"written: {run}/alignment.json" in shown
    found = json.loads((run / "alignment.json").read_text())
    assert list(found["songs"]) == ["00.wav"] and found["songs"]["00.wav"]["text"] == f"{VERSE}\n00".lower()
    assert [head["progress"] for head in found["heads"]] == sorted(
        (h["progress"] for h in found["heads"]), reverse=True
    )
    assert len(found["heads"]) == 2 and all(math.isfinite(nats) for nats in found["nats_per_token"].values())
    call(monkeypatch, run, singing.folder / "sung", "--out", tmp_path / "all.json")
    songs = json.loads((tmp_path / "all.json").read_text())["songs"]
    assert list(songs) == ["00.wav", "01.flac", "02.ogg"]
    for index, told in enumerate(songs.values()):
        assert len(told["seconds"]) == len(told["text"]) and told["seconds"] == sorted(told["seconds"])
        assert told["seconds"][0] >= 0 and told["seconds"][-1] <= 2 + index / 5 + 0.1


def test_what_cannot_be_aligned_is_one_line(singing: World, tmp_path: Path):
    shutil.copytree(singing.folder / "music", tmp_path / "unsung")
    for arguments, says in (
        ((singing.runs / "top",), "its prior hears no lyrics"),
        ((singing.runs / "singing", tmp_path / "unsung"), "there is no text to align"),
    ):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit, match=says) as refusal:
            call(patch, *arguments)
        assert "\n" not in str(refusal.value)
