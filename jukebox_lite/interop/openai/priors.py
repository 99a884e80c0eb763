"""OpenAI's priors and upsamplers as ours (Jukebox, section 4)."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jukebox_lite.errors import InputError
from jukebox_lite.interop.openai.place import (
    BEGINNING,
    COLUMN,
    LYRICS_BESIDE,
    ORDERS,
    PAST,
    PREVIOUS_ROW,
    ROW,
    ROW_ENDS,
    Place,
    place_of,
)
from jukebox_lite.interop.openai.weights import check_keys, load, plain_keys, whole
from jukebox_lite.levels import LYRICS, UNKNOWN, Facts, Level, Window
from jukebox_lite.nn.conv import ConvStack
from jukebox_lite.nn.reach import Beginning, Column, Past, PreviousRow, Reach, Row, RowEnds
from jukebox_lite.priors.conditioning import Conditioner
from jukebox_lite.priors.jukebox import (
    CrossAttention,
    JukeboxAbove,
    JukeboxAttention,
    JukeboxBlock,
    JukeboxLabels,
    JukeboxPrior,
    JukeboxTiming,
    JukeboxTransformer,
    LyricEncoder,
    LyricPrefix,
    upward_stack,
)


def read_prior(path: str | Path, hps: Mapping[str, object]) -> JukeboxPrior:
    """The prior in OpenAI's `prior_level_2.pth.tar`; `hps` go before those the file may hold. None of it is executed.

    Raises InputError on a file that cannot be read, holds more than data, or does not fit.
    """
    return prior(*load(path, hps))


def prior(weights: Mapping[str, Tensor], hps: Mapping[str, object]) -> JukeboxPrior:
    """OpenAI's prior of these weights, under their own keys, and hyperparameters, those of its VQ-VAE among them.

    What `hps` lacks is OpenAI's default, and of the VQ-VAE as published. The prior is in evaluation mode and in full
    precision. Raises InputError where a key is unknown, missing or of another shape, and on hyperparameters that no
    JukeboxPrior has.
    """
    place, weights = place_of(hps), plain_keys(weights)
    with torch.device("meta"):
        model = _empty(place)
    keys, wanted = dict(keys_of(place)), model.state_dict()
    check_keys(weights, {key: _their_shape(key, wanted[ours]) for key, ours in keys.items()})
    if model.head is None and not torch.equal(weights["prior.x_emb.weight"], weights["prior.x_out.weight"]):
        raise InputError(
            "weights do not fit hps: prior.x_out.weight is not prior.x_emb.weight, as without merged_decoder"
        )
    found = {ours: weights[key].T if key.endswith(".w") else weights[key] for key, ours in keys.items()}
    found = {key: torch.empty(wanted[key].shape).copy_(value.view_as(wanted[key])) for key, value in found.items()}
    model.load_state_dict(found, assign=True)
    return model.eval()


def logits(prior: JukeboxPrior, window: Window) -> Tensor:
    """What OpenAI's forward pass calls preds [B, T, V]; with lyrics in the same sequence, of these as well."""
    return prior.logits(window)


def window(hps: Mapping[str, object], z: Tensor, y: Tensor | None = None, z_above: Tensor | None = None) -> Window:
    """OpenAI's codes z [B, T], those of the level above, and labels y, as a prior of these hyperparameters reads them.

    A row of y is: samples of the song, the first sample of the window and how many it has, artist, genres (-1 for
    none), lyric tokens. Raises InputError on what the prior lacks, on numbers it has not learnt and on foreign rows.
    """
    place, labels, batch_size = place_of(hps), {}, len(z)
    codes = {place.level.name: _codes("z", z, place.level, batch_size)}
    if z.shape[1] > place.hps["n_ctx"]:
        raise InputError(f"z: {z.shape[1]} codes; expected {place.hps['n_ctx']}, or the first of them")
    if place.above is not None:
        codes[place.above.name] = above = _codes("z_above", z_above, place.above, batch_size)
        needed = -(-z.shape[1] * place.level.samples_per_step // place.above.samples_per_step)
        if above.shape[-1] < needed:
            raise InputError(f"z_above: {above.shape[-1]} codes; expected {needed}, those above the {z.shape[1]} of z")
    if place.hps["labels"]:
        num_tokens, num_genres = place.hps["n_tokens"], place.hps["max_bow_genre_size"]
        most = 4 + num_tokens + num_genres if num_genres else math.inf
        if y is None or y.ndim != 2 or len(y) != batch_size or not 5 + num_tokens <= y.shape[1] <= most:
            given = "missing" if y is None else f"{list(y.shape)} numbers"
            genres = f"{num_genres or 'any number of'} genres"
            raise InputError(f"y: {given}; expected {batch_size} rows of 4, {genres}, {num_tokens} lyric tokens")
        if y.is_floating_point():
            raise InputError(f"y: {y.dtype} given, expected whole numbers")
        total, start, length, artist = y[:, :4].unbind(1)
        if (length != place.num_samples).any():
            raise InputError(f"y: a window of {length.tolist()} samples; expected this level's {place.num_samples}")
        times = {"total": total, "start": start, "end": start + length}
        labels = {f"{name}_seconds": samples.double() / place.shape.hps["sr"] for name, samples in times.items()}
        genres, artists = place.hps["y_bins"]
        labels |= {
            "artist": _within("artist", artist[:, None], 0, artists),
            "genre": _within("genre", y[:, 4 : y.shape[1] - num_tokens], -1, genres),
        }
        labels |= {LYRICS: _within("lyric token", y[:, -num_tokens:], 0, place.hps["n_vocab"])} if num_tokens else {}
    return Window(codes, labels)


def _codes(name: str, given: Tensor | None, level: Level, batch_size: int) -> Tensor:
    """Codes of a level, [B, T] -> [B, 1, T]. Raises InputError where they are none."""
    if given is None or given.ndim != 2 or given.is_floating_point() or len(given) != batch_size:
        told = "missing" if given is None else f"{given.dtype} {list(given.shape)}"
        raise InputError(f"{name}: {told}; expected the codes of level {level.name} [{batch_size}, T]")
    if wrong := given[(given < 0) | (given >= level.codebook_size)].tolist():
        raise InputError(f"{name}: code {wrong[0]}; expected 0 to {level.codebook_size - 1}")
    return given[:, None]


def _within(what: str, numbers: Tensor, least: int, count: int) -> Tensor:
    """The numbers, which the prior has vectors for. Raises InputError where it has not."""
    if wrong := numbers[(numbers < least) | (numbers >= count)].tolist():
        raise InputError(f"y: {what} {wrong[0]}; expected {least} to {count - 1}, of which this prior has learnt")
    return numbers


def _empty(place: Place) -> JukeboxPrior:
    """A prior of this shape, yet to be filled."""
    hps, level, above = place.hps, place.level, place.above
    dim, prefix = hps["prior_width"], place.prefix or LyricPrefix(0, 0)
    facts = Facts(level, above, _vocabulary(hps))
    conditioners: dict[str, Conditioner] = {}
    if hps["labels"]:
        num_genres, num_artists = hps["y_bins"]
        conditioners["labels"] = JukeboxLabels(num_artists, num_genres, dim)
    if above is not None:
        conditioners["above"] = JukeboxAbove(above.codebook_size, dim, _upsampler(place), above.name)
    elif hps["labels"]:
        seconds, rate = (hps["min_duration"], hps["max_duration"]), place.shape.hps["sr"]
        conditioners["timing"] = JukeboxTiming(dim, hps["t_bins"], hps["n_ctx"], rate, level.samples_per_step, seconds)
    length, vocab_size = prefix.num_tokens + hps["n_ctx"], prefix.vocab_size + level.codebook_size
    lyrics = (
        LyricEncoder(_transformer(hps, "prime_", hps["n_tokens"], hps["n_vocab"]), dim)
        if place.encodes_lyrics
        else place.prefix
    )
    return JukeboxPrior(
        facts,
        _transformer(hps, "", length, vocab_size),
        conditioners,
        lyrics,
        hps["prime_loss_fraction"],
        hps["merged_decoder"],
    )


def _vocabulary(hps: Mapping[str, Any]) -> dict[str, list[str]]:
    """OpenAI's numbers of genres and artists as the values of labels; its 0 is unknown."""
    names = zip(("genre", "artist"), hps["y_bins"] if hps["labels"] else (), strict=False)
    return {name: [UNKNOWN, *map(str, range(1, count))] for name, count in names}


def _transformer(hps: Mapping[str, Any], kind: str, length: int, vocab_size: int) -> JukeboxTransformer:
    """The prior's own, or with `kind` "prime_" the lyrics'."""
    dim, depth = hps[f"{kind}width" if kind else "prior_width"], hps[f"{kind}depth" if kind else "prior_depth"]
    inner_dim, hidden_dim = int(hps[f"{kind}m_attn"] * dim), int(hps[f"{kind}m_mlp"] * dim)
    num_heads, order, blocks = hps[f"{kind}heads"], ORDERS[hps[f"{kind}attn_order"]], hps[f"{kind}blocks"]
    if inner_dim < 1 or inner_dim % num_heads:
        raise InputError(f"hps.{kind}heads={num_heads}: expected a divisor of {inner_dim}, the width of attention")
    if hidden_dim < 1:
        raise InputError(f"hps.{kind}m_mlp={hps[f'{kind}m_mlp']}: leaves nothing of a width of {dim}")
    scale = 1 / depth if hps[f"{kind}res_scale"] else 1.0

    def block(layer: int) -> JukeboxBlock:
        if order(layer) == LYRICS_BESIDE:
            if kind or not hps["n_tokens"] or hps["single_enc_dec"]:
                raise InputError(
                    f"hps.{kind}attn_order={hps[f'{kind}attn_order']}: there are no lyrics of an encoder to attend to"
                )
            return JukeboxBlock(dim, hidden_dim, CrossAttention(dim, inner_dim, num_heads), scale)
        reach = _reach(order(layer), length, blocks, hps["n_tokens"], kind)
        return JukeboxBlock(dim, hidden_dim, JukeboxAttention(dim, inner_dim, num_heads, reach), scale)

    return JukeboxTransformer(vocab_size, dim, length, [block(layer) for layer in range(depth)])


def _reach(function: int, length: int, blocks: Any, num_tokens: int, kind: str) -> Reach:
    """A layer's, with `blocks` rows."""
    if function == PAST:
        return Past()
    whole(f"{kind}blocks", blocks)
    if length % blocks:
        raise InputError(f"hps.{kind}blocks={blocks}: expected a divisor of the {length} steps of the transformer")
    if function == BEGINNING:
        return Beginning((num_tokens // blocks + 1) * blocks)  # a few codes beside the lyrics, as OpenAI has it
    if function == ROW_ENDS:
        return RowEnds(length // blocks, blocks)
    kinds = {ROW: Row, COLUMN: Column, PREVIOUS_ROW: PreviousRow}
    return kinds[function](length // blocks)


def _upsampler(place: Place) -> ConvStack:
    """From the level above to this one's rate."""
    hps, index = place.hps, place.hps["level"] + 1
    width, depth = hps["cond_width"], hps["cond_depth"]
    cycle = hps["cond_dilation_cycle"] or depth
    dilations = [hps["cond_dilation_growth_rate"] ** (layer % cycle) for layer in range(depth)]
    hidden_dim, scale = int(hps["cond_m_conv"] * width), depth**-0.5 if hps["cond_res_scale"] else 1.0
    if hidden_dim < 1:
        raise InputError(f"hps.cond_m_conv={hps['cond_m_conv']}: leaves nothing of a width of {width}")
    strides = [place.shape.strides[index]] * place.shape.downs[index]
    return upward_stack(hps["prior_width"], width, hidden_dim, dilations, strides, scale)


def _their_shape(key: str, ours: Tensor) -> list[int]:
    """Of OpenAI's tensor: matrices lie on their side, convolutions have no height."""
    if key.endswith(".w"):
        return list(ours.T.shape)
    return [*ours.shape[:2], *ours.shape[3:]]


def keys_of(place: Place) -> Iterator[tuple[str, str]]:
    """OpenAI's key and ours, of every tensor."""
    hps = place.hps
    yield from _transformer_keys(hps, "", "prior.", "transformer.")
    yield "prior.x_out.weight", "head.weight" if hps["merged_decoder"] else "transformer.embedding.weight"
    if hps["labels"]:
        yield "y_emb.artist_emb.emb.weight", "conditioners.labels.artist.weight"
        yield "y_emb.bow_genre_emb.emb.weight", "conditioners.labels.genre.weight"
    else:
        yield "prior.start_token", "start"
    if place.above is not None:
        yield from _above_keys(place)
    elif hps["labels"]:
        for theirs, ours in ("total_length", "total"), ("absolute_pos", "absolute"), ("relative_pos", "relative"):
            yield f"y_emb.{theirs}_emb.emb.weight", f"conditioners.timing.{ours}.weight"
    if place.encodes_lyrics:
        yield from _transformer_keys(hps, "prime_", "prime_prior.", "encoder.transformer.")
        yield "prime_prior.start_token", "encoder.start"
        yield from _matrix("prime_state_proj", "encoder.project")
        yield from _pair("prime_state_ln", "encoder.norm")
        yield "prime_x_out.weight", "encoder.head.weight"


def _transformer_keys(hps: Mapping[str, Any], kind: str, theirs: str, ours: str) -> Iterator[tuple[str, str]]:
    yield f"{theirs}x_emb.weight", f"{ours}embedding.weight"
    yield f"{theirs}pos_emb.pos_emb", f"{ours}positions"
    order = ORDERS[hps[f"{kind}attn_order"]]
    for layer in range(hps[f"{kind}depth" if kind else "prior_depth"]):
        their_block, our_block = f"{theirs}transformer._attn_mods.{layer}", f"{ours}blocks.{layer}"
        to_lyrics = {"attn.c_attn": "mixer.query", "attn.c_enc_kv": "mixer.key_value"}
        parts = to_lyrics if order(layer) == LYRICS_BESIDE else {"attn.c_attn": "mixer.qkv"}
        parts |= {"attn.c_proj": "mixer.out", "mlp.c_fc": "widen", "mlp.c_proj": "narrow"}
        for their_part, our_part in parts.items():
            yield from _matrix(f"{their_block}.{their_part}", f"{our_block}.{our_part}")
        yield from _pair(f"{their_block}.ln_0", f"{our_block}.mixer_norm")
        yield from _pair(f"{their_block}.ln_1", f"{our_block}.feed_forward_norm")


def _above_keys(place: Place) -> Iterator[tuple[str, str]]:
    theirs, ours = "conditioner_blocks.0", "conditioners.above"
    yield f"{theirs}.x_emb.weight", f"{ours}.embedding.weight"
    yield from _pair(f"{theirs}.ln", f"{ours}.norm")
    yield from _pair(f"{theirs}.cond.model.0", f"{ours}.stack.0")
    inner = "blocks" if place.hps["cond_c_res"] else "model"
    for step in range(1, place.shape.downs[place.hps["level"] + 1] + 1):
        for layer in range(place.hps["cond_depth"]):
            block, our_block = f"{theirs}.cond.model.{step}.0.{inner}.{layer}", f"{ours}.stack.{2 * step - 1}.{layer}"
            yield from _pair(f"{block}.model.1", f"{our_block}.dilated")
            yield from _pair(f"{block}.model.3", f"{our_block}.pointwise")
        yield from _pair(f"{theirs}.cond.model.{step}.1", f"{ours}.stack.{2 * step}")


def _pair(theirs: str, ours: str) -> Iterator[tuple[str, str]]:
    for kind in ("weight", "bias"):
        yield f"{theirs}.{kind}", f"{ours}.{kind}"


def _matrix(theirs: str, ours: str) -> Iterator[tuple[str, str]]:
    yield f"{theirs}.w", f"{ours}.weight"
    yield f"{theirs}.b", f"{ours}.bias"
