"""Sampling covers what is asked, keeps what is given, and lines its levels up."""

import json
import random
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given as over
from hypothesis import settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import Tensor

from jukebox_lite.audio import write
from jukebox_lite.codecs.base import Codec
from jukebox_lite.errors import InputError
from jukebox_lite.generation.complete import complete, samplers
from jukebox_lite.generation.report import Section
from jukebox_lite.generation.songs import encode_given, read_codes, save_codes, steps_for, write_songs
from jukebox_lite.generation.windows import Parallel, Sequential, Windows, seams, windows
from jukebox_lite.levels import UNKNOWN, Codes, Facts, Level, Window
from jukebox_lite.nn.transformer import CausalAttention
from jukebox_lite.priors.autoregressive import AutoregressivePrior
from jukebox_lite.priors.base import Prior, Sampler
from jukebox_lite.priors.conditioning import LevelAbove, Timing

VOCAB_SIZE = 1 << 20
LEVELS = tuple(Level(name, VOCAB_SIZE, 1, hop) for name, hop in (("top", 128), ("middle", 32), ("bottom", 8)))
VOCABULARY = {"genre": (UNKNOWN, "jazz", "folk")}
STEPS = {"top": 30, "middle": 120, "bottom": 480}


class PlainCodec(Codec):
    """Codes that count samples: step t of a level is t times its hop."""

    sample_rate, channels, levels = 8000, 1, LEVELS

    def encode(self, audio: Tensor) -> Codes:
        hops = {level.name: level.samples_per_step for level in LEVELS}
        return {name: self._positions(audio.shape[-1] // hop) * hop for name, hop in hops.items()}

    def decode(self, codes: Codes) -> Tensor:
        name = next(level.name for level in reversed(LEVELS) if level.name in codes)
        return torch.sin(torch.arange(codes[name].shape[-1] * self.level(name).hop_length) / 5.0)[None, None]

    @staticmethod
    def _positions(num_steps: int) -> Tensor:
        return torch.arange(num_steps)[None, None]


class FakePrior(Prior):
    """A prior without weights, which records what it is asked."""

    def __init__(self, name: str, context_length: int = 12) -> None:
        super().__init__()
        index = [level.name for level in LEVELS].index(name)
        self.facts = Facts(LEVELS[index], LEVELS[index - 1] if index else None, VOCABULARY)
        self.context_length = context_length
        self.asked: list[Window] = []

    def nats(self, window: Window) -> Tensor:
        raise NotImplementedError

    def draw(self, window: Window, _sampler: Sampler, noise: Tensor, read: int | None = None) -> Iterator[Tensor]:
        assert noise.shape[-1] <= self.context_length and noise.min() >= 0 and noise.max() < 1
        self.asked.append(window)
        codes = self.say(window, noise)
        if (own := window.codes.get(self.facts.level.name)) is not None:
            assert 0 < own.shape[-1] < noise.shape[-1], "a window with nothing to do, or an empty beginning"
            codes[..., : own.shape[-1]] = -1  # what is known must be kept by `complete` too
            read = own.shape[-1] if read is None else read
        yield from codes[..., read:].unbind(-1)

    def say(self, window: Window, noise: Tensor) -> Tensor:
        raise NotImplementedError


class PositionPrior(FakePrior):
    """Says which sample each step begins at: the top from the window's time, the others from the level above."""

    def say(self, window: Window, noise: Tensor) -> Tensor:
        level, above = self.facts.level, self.facts.above
        steps = torch.arange(noise.shape[-1])
        if above is None:
            first = torch.round(window.labels["start_seconds"] * PlainCodec.sample_rate).long()
            return first[:, None, None] + steps * level.hop_length
        coarse = window.codes[above.name].repeat_interleave(self.facts.ratio, -1)
        assert coarse.shape == noise.shape, "the level above must span the window, no more and no less"
        return coarse + steps % self.facts.ratio * level.hop_length


class NoisyPrior(FakePrior):
    """Its codes are its noise."""

    def say(self, _window: Window, noise: Tensor) -> Tensor:
        return (noise * VOCAB_SIZE).long()


def run(priors: Sequence[FakePrior], num_songs: int = 1, seed: int = 0, steps: dict[str, int] = STEPS, **rest) -> Codes:
    """`complete` with what most tests share."""
    labels, how = rest.pop("labels", {}), rest.pop("samplers", samplers(LEVELS))
    return complete(PlainCodec(), priors, steps, labels, how, seed, num_songs, **rest)


def equal(one: Codes, other: Codes) -> bool:
    """Whether the same levels hold the same codes."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@settings(deadline=None, max_examples=300)
@over(st.integers(1, 300), st.integers(1, 90), st.floats(0, 0.95), st.sampled_from([1, 2, 3, 4, 8]))
def test_windows_cover_the_length_in_order_and_on_multiples(steps, context_length, overlap, multiple):
    length, context_length = steps * multiple, max(context_length, multiple)
    spans = list(windows(length, context_length, overlap, multiple))
    assert spans[0][0] == 0 and spans[-1][1] == length
    assert all(start % multiple == 0 and end % multiple == 0 for start, end in spans)
    assert len({end - start for start, end in spans}) == 1 and spans[0][1] <= context_length
    hops = [later[0] - sooner[0] for sooner, later in zip(spans, spans[1:], strict=False)]
    assert all(0 < hop <= spans[0][1] for hop in hops), "a gap, or a window too many"
    if hops[:-1]:
        assert len(set(hops[:-1])) == 1 and hops[-1] <= hops[0]
        wanted = context_length * (1 - overlap)
        assert abs(hops[0] - wanted) <= multiple or hops[0] in (multiple, spans[0][1])


@settings(deadline=None, max_examples=200)
@over(st.integers(1, 300), st.integers(1, 90), st.floats(0, 0.5), st.sampled_from([1, 2, 4]), st.floats(0, 0.99))
def test_parallel_windows_draw_every_step_from_what_was_drawn_before(steps, context_length, overlap, multiple, given):
    """What is known when a window begins is there, and no window of a wave waits for another; given steps stay."""
    length, known = steps * multiple, int(given * steps * multiple)
    spans = [span for span in windows(length, max(context_length, multiple), overlap, multiple) if span[1] > known]
    waves = Parallel().waves(spans, known, above=True)
    assert sorted((piece.start, piece.end) for wave in waves for piece in wave) == spans
    there = set(range(known))
    for wave in waves:
        drawn = [set(range(piece.begin, piece.end)) for piece in wave]
        assert all(piece.start <= piece.begin < piece.end for piece in wave) and min(min(own) for own in drawn) >= known
        assert all(set(range(piece.start, piece.begin)) <= there for piece in wave)
        for piece, own in zip(wave, drawn, strict=True):
            others = [other for other in drawn if other is not own]
            assert not any(other & set(range(piece.start, piece.end)) for other in others), "one waits for another"
        there = there.union(*drawn)
    assert there == set(range(length))
    assert set(seams(waves)) <= {piece.end for wave in waves[1:] for piece in wave} - {length}


@pytest.mark.parametrize(("overlap", "share"), [(0.0, 1.0), (0.25, 7 / 6), (0.5, 1.5)])
def test_parallel_windows_cost_what_they_say(overlap, share):
    """In codes drawn for a code kept, of a long level; in three turns at most that wait for each other."""
    length = 64 * 1001
    spans = list(windows(length, 64, overlap))
    waves = Parallel().waves(spans, 0, above=True)
    drawn = sum(piece.end - piece.begin for wave in waves for piece in wave)
    assert drawn / length == pytest.approx(share, abs=0.01) and len(waves) <= 3
    one_by_one = Sequential().waves(spans, 0, above=True)
    assert sum(piece.end - piece.begin for wave in one_by_one for piece in wave) == length
    assert Parallel().waves(spans, 0, above=False) == one_by_one and seams(one_by_one) == []


def test_parallel_windows_that_share_more_than_a_half_are_refused():
    with pytest.raises(InputError, match="0.5 or less"):
        run([NoisyPrior(level.name, 40) for level in LEVELS], overlap=0.6, order=Parallel())


@pytest.mark.parametrize("batch_size", [0, -1])
def test_no_batch_is_refused(batch_size: int):
    with pytest.raises(InputError, match=f"windows.batch_size={batch_size}"):
        Parallel(batch_size)


@pytest.mark.parametrize("overlap", [-0.1, 1.0, float("nan")])
def test_an_overlap_that_makes_no_sense_is_refused(overlap):
    with pytest.raises(InputError, match="overlap"):
        list(windows(8, 4, overlap))


@pytest.mark.parametrize("order", [Sequential(), Sequential(1), Parallel(), Parallel(1), Parallel(3)])
@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.5, 0.9, {"top": 0.75, "middle": 0.5, "bottom": 0.5}])
@pytest.mark.parametrize("contexts", [(7, 18, 50), (12, 48, 192), (100, 10, 9), (1, 4, 4)])
def test_levels_line_up_whatever_the_windows(contexts, overlap, order):
    if isinstance(order, Parallel) and overlap == 0.9:
        overlap = 0.1
    priors = [PositionPrior(level.name, size) for level, size in zip(LEVELS, contexts, strict=True)]
    codes = run(priors[::-1], num_songs=2, overlap=overlap, order=order)
    assert list(codes) == [level.name for level in LEVELS], "coarse to fine, in whatever order the priors are listed"
    for level in LEVELS:
        assert torch.equal(codes[level.name], (torch.arange(STEPS[level.name]) * level.hop_length).expand(2, 1, -1))


def test_windows_carry_labels_and_times():
    prior = NoisyPrior("middle", 48)
    given = {"top": torch.zeros(1, 1, 30, dtype=torch.int64)}
    run([prior], num_songs=2, given=given, labels={"genre": ["folk", "jazz"]}, total_seconds=90.0)
    second = prior.asked[1]
    assert second.labels["genre"].tolist() == [[2], [1]]
    times = {name: values.tolist() for name, values in second.labels.items() if name != "genre"}
    step = 32 / 8000
    assert times["total_seconds"] == [90.0] * 2
    assert times["start_seconds"] == pytest.approx([24 * step] * 2)
    assert times["end_seconds"] == pytest.approx([72 * step] * 2)
    run([prior], given=given)
    assert prior.asked[-1].labels["total_seconds"].item() == pytest.approx(120 * step)
    assert prior.asked[-1].labels["genre"].tolist() == [[0]], "unknown"
    run([prior], num_songs=2, given=given, labels={"genre": ["folk; jazz"]})
    assert prior.asked[-1].labels["genre"].tolist() == [[2, 1]] * 2


@pytest.mark.parametrize("order", [Sequential(), Parallel(5)])
@pytest.mark.parametrize("known", [1, 11, 12, 13, 29, 30])
def test_what_is_given_is_kept_and_only_the_rest_is_asked_for(known, order):
    priors = [NoisyPrior(level.name, size) for level, size in zip(LEVELS, (12, 40, 100), strict=True)]
    sizes = {"top": 30, "middle": known * 4, "bottom": known * 16}
    given = {name: torch.randint(VOCAB_SIZE, (1, 1, size)) for name, size in sizes.items()}
    codes = run(priors, num_songs=2, given=given, order=order)
    for name, size in sizes.items():
        assert torch.equal(codes[name][..., :size], given[name].expand(2, 1, -1))
        assert codes[name].shape == (2, 1, STEPS[name]) and codes[name].min() >= 0
    assert not priors[0].asked, "the whole top was given"
    assert bool(priors[1].asked) == bool(priors[2].asked) == (known < 30)
    for prior in priors:
        name = prior.facts.level.name
        ends = [window.labels["end_seconds"][0] * 8000 / prior.facts.level.hop_length for window in prior.asked]
        assert all(end > sizes[name] for end in ends)


def test_songs_side_by_side_have_their_own_labels_and_times():
    """Each row of a batch is told of its own song and its own window."""
    prior = NoisyPrior("middle", 48)
    given = {"top": torch.arange(60).reshape(2, 1, 30)}
    run([prior], num_songs=2, given=given, labels={"genre": ["folk", "jazz"]}, order=Parallel())
    first = prior.asked[0]
    starts = (first.labels["start_seconds"] * 8000 / 32).round().int().tolist()
    assert starts == [0, 0, 48, 48] and first.labels["genre"].tolist() == [[2], [1]] * 2
    assert [row[0, 0].item() for row in first.codes["top"]] == [0, 30, 12, 42]
    assert "middle" not in first.codes and prior.asked[1].codes["middle"].shape == (4, 1, 24)


def test_a_level_left_unfinished_without_a_prior_is_left_out():
    codes = run([NoisyPrior("top")], given={name: torch.ones(1, 1, 8, dtype=torch.int64) for name in STEPS})
    assert list(codes) == ["top"]


def transformers() -> list[Prior]:
    """Priors of random weights, so that every code depends on all that they are told."""
    torch.manual_seed(0)
    levels = PlainerCodec.levels
    priors: list[Prior] = []
    for level, above in zip(levels, [None, *levels], strict=False):
        told = {"above": LevelAbove, "timing": Timing}
        prior = AutoregressivePrior(16, 2, 2, 32, CausalAttention, Facts(level, above, VOCABULARY), told)
        for parameter in prior.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
        priors.append(prior.eval())
    return priors


class PlainerCodec(PlainCodec):
    """A codec of seven codes a level."""

    levels = tuple(Level(level.name, 7, 1, level.hop_length) for level in LEVELS)


@pytest.mark.parametrize("order", [Sequential, Parallel])
def test_transformers_too_draw_each_song_alike_in_any_company(order: type[Windows]):
    """Of any number of songs, in batches of any size. Rounding could tip a draw; here it does not."""
    rest = {"samplers": samplers(LEVELS), "seed": 3, "overlap": 0.25}
    priors = transformers()

    def sampled(num_songs: int, **how: int) -> Codes:
        return complete(PlainerCodec(), priors, STEPS, {}, num_songs=num_songs, order=order(**how), **rest)

    three = sampled(3)
    assert all(len(codes.unique()) == 7 for codes in three.values())
    for num_songs, how in ((1, {}), (2, {"batch_size": 1}), (3, {"batch_size": 4})):
        assert equal(sampled(num_songs, **how), {name: codes[:num_songs] for name, codes in three.items()})


def test_windows_that_share_nothing_are_the_same_side_by_side():
    """No window then has a past; the benchmark of seams shows a difference of exactly 0."""
    rest = transformers(), STEPS, {}, samplers(LEVELS), 0, 2, None, 0.0
    assert equal(*(complete(PlainerCodec(), *rest, order=order) for order in (Sequential(), Parallel())))


@pytest.mark.parametrize(("order", "rows"), [(Sequential(), (2, 2)), (Parallel(), (4, 20))])
def test_what_it_will_cost_is_told_and_changes_nothing(order: Windows, rows: tuple[int, int]):
    """Of each level that is sampled, before it is; time for all its codes, memory for a batch."""
    priors, heard = transformers(), {}
    given = {"top": torch.zeros(1, 1, STEPS["top"], dtype=torch.int64)}
    rest = PlainerCodec(), priors, STEPS, {}, samplers(LEVELS), 0, 2, given, 0.25
    assert equal(complete(*rest, order=order, tell=heard.update), complete(*rest, order=order))
    assert list(heard) == ["middle", "bottom"]
    state = 2 * 2 * 32 * 16 * 4 + 32 * 16 * 4  # keys and values of two layers; what is known of each step
    for (name, cost), count in zip(heard.items(), rows, strict=True):
        assert cost.seconds > 0
        assert cost.num_bytes == count * state + 2 * STEPS[name] * 8


@pytest.mark.parametrize("order", [Sequential(), Parallel(), Parallel(1), Parallel(5)])
def test_codes_follow_from_seed_and_song_alone(order):
    priors = [NoisyPrior(level.name, 40) for level in LEVELS]
    three, one = run(priors, num_songs=3), run(priors, num_songs=1, order=order)
    assert equal({name: codes[:1] for name, codes in three.items()}, one)
    assert equal(run(priors, num_songs=3, order=order), three)
    other = run(priors, num_songs=3, seed=1)
    for name in STEPS:
        assert not torch.equal(three[name], other[name]) and not torch.equal(three[name][0], three[name][1])
    assert not torch.equal(three["top"][..., :30], three["middle"][..., :30])


@pytest.mark.parametrize("factor", [2, 40])
def test_a_longer_song_begins_alike(factor):
    priors = [NoisyPrior(level.name, 40) for level in LEVELS]
    short, long = run(priors), run(priors, steps={name: steps * factor for name, steps in STEPS.items()})
    assert equal(short, {name: codes[..., : STEPS[name]] for name, codes in long.items()})


TOP = {"top": torch.zeros(1, 1, 30, dtype=torch.int64)}


@pytest.mark.parametrize(
    ("names", "change", "message"),
    [
        (["bottom"], {"given": TOP}, "level bottom needs 120 steps of level middle"),
        (["middle"], {"given": {"top": TOP["top"][..., :5]}}, "would have 5"),
        (["top", "top"], {}, "two priors"),
        (["top"], {"labels": {"mood": ["sad"]}}, "labels.mood"),
        (["top"], {"labels": {"genre": ["polka"]}}, "jazz, folk"),
        (["top"], {"labels": {"genre": ["jazz", "folk"]}}, "one a song"),
        (["top"], {"labels": {"genre": "jazz"}}, "list"),
        (["top"], {"steps": {"top": 0}}, "num_steps.top=0"),
        (["top"], {"steps": {}}, "num_steps.top=None"),
        (["top", "middle"], {"steps": {"top": 30, "middle": 121}}, "different numbers of audio samples"),
        (["top"], {"given": {"top": torch.zeros(1, 1, 31, dtype=torch.int64)}}, "31 steps"),
        (["top"], {"given": {"top": TOP["top"] - 1}}, "from -1"),
        (["top"], {"given": {"top": TOP["top"].float()}}, "float32"),
        (["top"], {"given": {"top": TOP["top"][0]}}, "shape"),
        (["top"], {"given": {"treble": TOP["top"]}}, "treble"),
        (["top"], {"given": {"top": TOP["top"].expand(3, 1, 30)}}, "3 songs"),
        (["top"], {"samplers": samplers(LEVELS, guidance=2.0)}, "guidance=2 of level top: no labels"),
        (["top"], {"overlap": {"treble": 0.5}}, "overlap.treble"),
        (["top"], {"overlap": 1.5}, "overlap=1.5"),
        (["top"], {"seed": -1}, "seed=-1"),
        (["top"], {"num_songs": 0}, "num_songs=0"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_sampled(names, change, message):
    priors = [NoisyPrior(name, 40) for name in names]
    with pytest.raises(InputError, match=message):
        run(priors, **change)
    assert not any(prior.asked for prior in priors)


def test_samplers_take_one_value_or_one_a_level():
    made = samplers(
        LEVELS,
        temperature={"top": 0.5, "middle": 1.0, "bottom": 1.0},
        top_k=7,
        top_p={"top": None, "bottom": None, "middle": 1.0},
        guidance={"top": 3.0, "middle": 1.0, "bottom": 1.0},
    )
    assert made["top"] == Sampler(0.5, 7, None, 3.0) and made["middle"] == Sampler(1.0, 7, 1.0)
    assert made["bottom"] == Sampler(1.0, 7, None)


@pytest.mark.parametrize(
    "wrong",
    [
        *({"temperature": value} for value in (-0.1, float("nan"), float("inf"), {"treble": 1.0})),
        *({"top_k": value} for value in (0, {"top": -1})),
        *({"top_p": value} for value in (0.0, 1.1, float("nan"))),
        *({"guidance": value} for value in (-1.0, float("inf"), float("nan"), {"top": 2.0})),
    ],
)
def test_samplers_refuse_what_cannot_be_drawn_from(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        samplers(LEVELS, **wrong)


@pytest.mark.parametrize("seconds", [0.001, 0.016, 0.0161, 1.0, 3.21])
def test_steps_cover_the_seconds_and_no_more(seconds):
    codec = PlainCodec()
    steps = steps_for(codec, seconds)
    assert steps["middle"] == 4 * steps["top"] and steps["bottom"] == 16 * steps["top"]
    assert 0 <= steps["top"] * 128 / 8000 - seconds + 1e-9 < 128 / 8000
    assert steps_for(codec, steps["top"] * 128 / 8000) == steps


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_seconds_that_are_no_length_are_refused(seconds):
    with pytest.raises(InputError, match="seconds"):
        steps_for(PlainCodec(), seconds)


def test_given_audio_is_cut_to_whole_steps(tmp_path: Path):
    path, codec = tmp_path / "intro.wav", PlainCodec()
    write(path, torch.zeros(1, 1000), 8000)
    assert [codes.shape[-1] for codes in encode_given(codec, path).values()] == [7, 28, 112]
    assert [codes.shape[-1] for codes in encode_given(codec, path, 0.05).values()] == [3, 12, 48]
    for too_short in (0.0, 0.01, -1.0):
        with pytest.raises(InputError, match="or more"):
            encode_given(codec, path, too_short)
    (tmp_path / "notes.wav").write_text("la la la")
    for unreadable in (tmp_path / "notes.wav", tmp_path / "none.wav"):
        with pytest.raises(InputError, match=unreadable.name):
            encode_given(codec, unreadable)


def test_codes_come_back_as_they_were_written(tmp_path: Path):
    codec, path = PlainCodec(), tmp_path / "codes.safetensors"
    codes = run([NoisyPrior(level.name, 40) for level in LEVELS], num_songs=2)
    save_codes(path, codes, codec, "abc", {"settings": "seed: 0"})
    assert equal(read_codes(path, codec, "abc"), codes)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name], "nothing is left beside"
    with pytest.raises(InputError, match="another codec"):
        read_codes(path, codec, "abd")


def file_of(codes: Codes, **metadata: str) -> bytes:
    """A file of codes with the right metadata, but for what is given."""
    return save(codes, {"format": "jukebox_lite codes 1", "codec": "abc", **metadata})


HOSTILE = {
    "empty": b"",
    "pickle": b"\x80\x04cos\nsystem\n(S'true'\ntR.",
    "huge header": struct.pack("<Q", 1 << 62) + b"{}",
    "deep header": struct.pack("<Q", 200_000) + b"[" * 200_000,
    "no metadata": save(TOP),
    "other format": file_of(TOP, format="jukebox_lite codes 2"),
    "no levels": file_of({}),
    "other levels": file_of({"treble": TOP["top"]}),
    "dtype": file_of({"top": TOP["top"].to(torch.uint8)}),
    "float": file_of({"top": TOP["top"].double()}),
    "low": file_of({"top": TOP["top"] - 1}),
    "high": file_of({"top": TOP["top"] + VOCAB_SIZE}),
    "two axes": file_of({"top": TOP["top"][0]}),
    "codebooks": file_of({"top": TOP["top"].expand(1, 2, 30).contiguous()}),
    "no steps": file_of({"top": TOP["top"][..., :0]}),
    "no songs": file_of({"top": TOP["top"][:0]}),
    "seconds": file_of({"top": TOP["top"], "middle": TOP["top"].clone()}),
    "songs": file_of({"top": TOP["top"], "middle": torch.zeros(2, 1, 120, dtype=torch.int64)}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_of_codes_are_refused_in_one_line(name, tmp_path: Path):
    path = tmp_path / "codes.safetensors"
    path.write_bytes(HOSTILE[name])
    with pytest.raises(InputError) as refusal:
        read_codes(path, PlainCodec(), "abc")
    assert "\n" not in str(refusal.value) and str(path) in str(refusal.value)
    with pytest.raises(InputError, match="no such file"):
        read_codes(tmp_path, PlainCodec(), "abc")


@pytest.mark.parametrize("dtype", ["I64", "F4", "F8_E8M0", "BF16", "X9", "C64"])
def test_odd_headers_are_refused(dtype, tmp_path: Path):
    for shape in ([1, 1, 2**62], [2**62, 2**62, 0], [0, 1, 2**63 - 1], [-1, 1, 2]):
        tensor = {"dtype": dtype, "shape": shape, "data_offsets": [0, 0]}
        header = json.dumps({"__metadata__": {"format": "jukebox_lite codes 1", "codec": "abc"}, "top": tensor})
        path = tmp_path / "codes.safetensors"
        path.write_bytes(struct.pack("<Q", len(header)) + header.encode())
        with pytest.raises(InputError):
            read_codes(path, PlainCodec(), "abc")


def test_damaged_files_of_codes_are_read_or_refused_and_nothing_else(tmp_path: Path):
    whole, path, dice = file_of(TOP), tmp_path / "codes.safetensors", random.Random(0)
    for trial in range(400):
        damaged = bytearray(whole)
        if trial % 2:
            del damaged[dice.randrange(len(damaged)) :]
        for _ in range(dice.randrange(1, 4) if damaged else 0):
            damaged[dice.randrange(len(damaged))] = dice.randrange(256)
        path.write_bytes(damaged)
        try:
            codes = read_codes(path, PlainCodec(), "abc")["top"]
        except InputError as refusal:
            assert "\n" not in str(refusal), "one line"
        else:
            assert codes.dtype == torch.int64 and codes.min() >= 0 and codes.max() < VOCAB_SIZE


def test_songs_are_written_with_their_codes_and_every_level_to_hear(tmp_path: Path):
    codec = PlainCodec()
    codes = run([NoisyPrior("top", 40), NoisyPrior("middle", 40)], num_songs=2, steps=steps_for(codec, 0.5))
    page = write_songs(tmp_path / "jazz", codec, codes, "abc", [Section("Song 1, jazz"), Section("Song 2, folk")])
    text = page.read_text()
    assert text.index("01-01-middle.wav") < text.index("01-02-top.wav") < text.index("Song 2, folk")
    assert len(list(page.parent.glob("*.wav"))) == 4
    assert equal(read_codes(page.parent / "codes.safetensors", codec, "abc"), codes)
