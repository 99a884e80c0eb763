"""The hyperparameters of OpenAI's priors: what is absent filled in, what cannot be refused in a line."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np

from jukebox_lite.errors import InputError
from jukebox_lite.interop.openai.vqvae import Shape, shape_of
from jukebox_lite.interop.openai.weights import flag, number, whole
from jukebox_lite.levels import Level
from jukebox_lite.priors.jukebox import LyricPrefix

_DEFAULTS: dict[str, Any] = {  # OpenAI's, where every prior does not say its own
    "labels": True,
    "t_bins": 64,
    "merged_decoder": False,
    "single_enc_dec": False,
    "blocks": None,
    "m_attn": 0.25,
    "m_mlp": 1.0,
    "res_scale": False,
    "n_tokens": 0,
    "prime_loss_fraction": 0.1,
    "prime_width": 128,
    "prime_depth": 3,
    "prime_heads": 1,
    "prime_attn_order": 0,
    "prime_blocks": None,
    "prime_m_attn": 0.25,
    "prime_m_mlp": 1.0,
    "prime_res_scale": False,
    "cond_width": 128,
    "cond_depth": 3,
    "cond_m_conv": 1.0,
    "cond_dilation_growth_rate": 1,
    "cond_dilation_cycle": None,
    "cond_res_scale": False,
    "cond_c_res": 0,
}
_NEEDED = ("level", "n_ctx", "prior_width", "prior_depth", "heads", "attn_order")
_WHOLE = ("n_ctx", "prior_width", "heads", "t_bins", "prime_width", "prime_heads", "cond_width")
_WHOLE += ("cond_dilation_growth_rate",)
_DEPTHS, _DEEPEST = ("prior_depth", "prime_depth", "cond_depth"), 1000  # layers
_FACTORS = ("m_attn", "m_mlp", "prime_m_attn", "prime_m_mlp", "cond_m_conv", "prime_loss_fraction")
_FLAGS = ("labels", "merged_decoder", "single_enc_dec", "res_scale", "prime_res_scale", "cond_res_scale", "cond_c_res")
_UNLIKE = ("copy_input", "y_cond_as_bias", "pos_init", "prime_pos_init")  # what no published prior does
ROW, COLUMN, PREVIOUS_ROW, ROW_ENDS, LYRICS_BESIDE, BEGINNING, PAST = 1, 2, 3, 4, 6, 7, 0
_CYCLE = [ROW, COLUMN, PREVIOUS_ROW]
ORDERS: dict[int, Callable[[int], int]] = {  # attn_order -> the kind of attention of each layer
    0: lambda _: PAST,
    2: lambda layer: _CYCLE[layer % 3],
    3: lambda layer: [ROW, ROW_ENDS][layer % 2],
    8: lambda layer: [*_CYCLE * 3, LYRICS_BESIDE][layer % 10],
    10: lambda layer: [*_CYCLE * 3, *[*_CYCLE * 3, LYRICS_BESIDE] * 7][layer % 79],
    12: lambda layer: [BEGINNING, BEGINNING, PAST][layer % 3] if layer % 16 == 15 else _CYCLE[layer % 3],
}


@dataclass(frozen=True)
class Place:
    """A prior's hyperparameters, checked, and where it stands among the levels; level 0 is the finest."""

    shape: Shape
    hps: Mapping[str, Any]

    @property
    def level(self) -> Level:
        return self._level(self.hps["level"])

    @property
    def above(self) -> Level | None:
        coarser = self.hps["level"] + 1
        return self._level(coarser) if coarser < self.shape.levels else None

    def _level(self, index: int) -> Level:
        return Level(self.shape.names[index], self.shape.hps["l_bins"], 1, self.shape.hop_lengths[index])

    @property
    def num_samples(self) -> int:
        """Of audio in a window."""
        return self.hps["n_ctx"] * self.level.samples_per_step

    @property
    def prefix(self) -> LyricPrefix | None:
        """The lyrics before the codes, where they are one sequence."""
        return LyricPrefix(self.hps["n_tokens"], self.hps["n_vocab"]) if self.hps["single_enc_dec"] else None

    @property
    def encodes_lyrics(self) -> bool:
        """Whether a transformer of their own reads the lyrics."""
        return bool(self.hps["n_tokens"]) and not self.hps["single_enc_dec"]


def place_of(hps: Mapping[str, object]) -> Place:
    """The hyperparameters with OpenAI's defaults in the place of what is absent, or an InputError."""
    shape, given = shape_of(hps), {**_DEFAULTS, **hps}
    given |= {key: flag(key, given.get(key)) for key in (*_FLAGS, *_UNLIKE)}
    given |= {key: None if given.get(key) is None else _count(key, given[key]) for key in ("level", "n_tokens")}
    given["n_tokens"] = given["n_tokens"] or 0
    needed, top = [*_NEEDED], given["level"] == shape.levels - 1
    if given["labels"]:
        needed += ["y_bins", "min_duration", "max_duration"] if top else ["y_bins"]
    needed += ["n_vocab"] if given["n_tokens"] else []
    if absent := [key for key in needed if given.get(key) is None]:
        raise InputError(f"hps.{absent[0]}: missing; expected {', '.join(needed)} as in OpenAI's hparams.py")
    if given["level"] >= shape.levels:
        raise InputError(f"hps.level={given['level']}: expected 0 to {shape.levels - 1}, finest first")
    if unlike := [key for key in _UNLIKE if given[key]]:
        raise InputError(f"hps.{unlike[0]}=True: no JukeboxPrior does this; expected False")
    if given["single_enc_dec"] and not (given["n_tokens"] and given["labels"]):
        raise InputError("hps.single_enc_dec=True: expected labels and n_tokens from 1 on beside it")
    given |= _plain(given, needed)
    return Place(shape, given)


def _plain(given: Mapping[str, Any], needed: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """The hyperparameters that are numbers, as Python's own. Raises InputError on what is none, or cannot be."""
    for key in (*_WHOLE, "n_vocab") if "n_vocab" in needed else _WHOLE:
        yield key, whole(key, given[key])
    for key in _DEPTHS:
        yield key, whole(key, given[key], most=_DEEPEST)
    for key in _FACTORS:
        yield key, number(key, given[key], most=1024)
    for key in ("blocks", "prime_blocks", "cond_dilation_cycle", "max_bow_genre_size"):
        yield key, None if given.get(key) is None else whole(key, given[key])
    for key in ("attn_order", "prime_attn_order"):
        if isinstance(given[key], bool) or not isinstance(given[key], Integral) or given[key] not in ORDERS:
            raise InputError(f"hps.{key}={given[key]}: expected one of {', '.join(map(str, ORDERS))}")
    if "y_bins" in needed:
        if not isinstance(bins := given["y_bins"], Sequence | np.ndarray) or len(bins) != 2:
            raise InputError(f"hps.y_bins={bins}: expected two numbers, of genres and of artists")
        yield "y_bins", [whole("y_bins", count) for count in bins]
    if "min_duration" in needed:
        yield "min_duration", (least := number("min_duration", given["min_duration"]))
        yield "max_duration", number("max_duration", given["max_duration"], least)


def _count(key: str, value: Any) -> int:
    """A hyperparameter that is a whole number from 0 on."""
    return 0 if isinstance(value, Integral) and value == 0 else whole(key, value)
