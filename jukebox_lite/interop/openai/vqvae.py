"""OpenAI's VQ-VAE as our codec (Jukebox, section 3)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from operator import mul
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from jukebox_lite.codecs.jukebox_vq import JukeboxVQ
from jukebox_lite.codecs.vqvae import HierarchicalVQVAE
from jukebox_lite.errors import InputError
from jukebox_lite.interop.openai.weights import check_keys, check_mapping, flag, load, number, plain_keys, whole
from jukebox_lite.nn.conv import ResidualConv

_PUBLISHED = {  # the hyperparameters of the VQ-VAE that OpenAI released
    "sr": 44100,
    "levels": 3,
    "downs_t": (3, 2, 2),
    "strides_t": (2, 2, 2),
    "hvqvae_multipliers": (2, 1, 1),
    "emb_width": 64,
    "l_bins": 2048,
    "l_mu": 0.99,
    "commit": 0.02,
    "revival_threshold": 1.0,
    "width": 32,
    "depth": 4,
    "m_conv": 1.0,
    "dilation_growth_rate": 3,
    "dilation_cycle": None,
    "vqvae_reverse_decoder_dilation": True,
    "use_bottleneck": True,
    "sample_length": 0,
}


@dataclass(frozen=True)
class Shape:
    """OpenAI's hyperparameters of a VQ-VAE, checked; level 0 is the finest."""

    levels: int
    downs: list[int]  # how often each level halves, or divides by its stride
    strides: list[int]
    multipliers: list[int]
    hps: dict[str, Any]

    @property
    def names(self) -> list[str]:
        """Our names of the levels, finest first."""
        between = ["middle"] if self.levels == 3 else [f"middle_{i}" for i in range(1, self.levels - 1)]
        return ["bottom", *between, "top"][: self.levels]

    @property
    def hop_lengths(self) -> list[int]:
        """Samples per code, finest first."""
        return list(accumulate((s**d for s, d in zip(self.strides, self.downs, strict=True)), mul))


def read(path: str | Path, hps: Mapping[str, object] | None = None) -> HierarchicalVQVAE:
    """The codec in OpenAI's `vqvae.pth.tar`; `hps` go before those the file may hold. Nothing in it is executed.

    Raises InputError on a file that cannot be read, holds more than data, or does not fit.
    """
    return codec(*load(path, hps))


def codec(weights: Mapping[str, Tensor], hps: Mapping[str, object]) -> HierarchicalVQVAE:
    """OpenAI's VQ-VAE of these weights, under their own keys, and hyperparameters; what `hps` lacks is as published.

    The codec is in evaluation mode. In training mode its codebooks learn as OpenAI's do. Raises InputError where a key
    is unknown, missing or of another shape, and on hyperparameters that no HierarchicalVQVAE has.
    """
    shape = shape_of(hps)
    weights = plain_keys(weights)
    with torch.device("meta"):  # what does not fit may be too large to make
        keys, wanted = dict(keys_of(shape)), _empty(shape, _channels(weights)).state_dict()
    expected = {key: [*wanted[ours].shape[:2], *wanted[ours].shape[3:]] for key, ours in keys.items()}  # no height
    check_keys(weights, expected)
    model = _empty(shape, _channels(weights))
    wanted = model.state_dict()
    with torch.no_grad():
        for key, ours in keys.items():
            wanted[ours].copy_(weights[key].view_as(wanted[ours]))
    for name, hop_length in zip(shape.names, shape.hop_lengths, strict=True):
        quantizer = model.quantizers[name]
        assert isinstance(quantizer, JukeboxVQ)
        # As OpenAI resumes training: the averages stand as if every entry had had its share of one window.
        use = shape.hps["sample_length"] // hop_length / shape.hps["l_bins"]
        quantizer.set_entries(quantizer.entries.clone(), use or 1.0)
    return model.eval()


def shape_of(hps: Mapping[str, object]) -> Shape:
    """The hyperparameters with what is published in the place of what is absent, or an InputError."""
    check_mapping("hps", hps)
    defaults = _PUBLISHED | ({"hvqvae_multipliers": None} if "levels" in hps else {})
    given: dict[str, Any] = {key: hps.get(key, default) for key, default in defaults.items()}
    for key in ("use_bottleneck", "vqvae_reverse_decoder_dilation"):
        given[key] = flag(key, given[key])
    if not given["use_bottleneck"]:
        raise InputError("hps.use_bottleneck=False: a codec without codes; expected True")
    for key in ("levels", "emb_width", "l_bins", "width", "depth", "sr", "dilation_growth_rate"):
        given[key] = whole(key, given[key])
    for key in ("commit", "revival_threshold", "sample_length"):
        given[key] = number(key, given[key])
    given |= {"l_mu": number("l_mu", given["l_mu"], most=1), "m_conv": number("m_conv", given["m_conv"], most=1024)}
    if given["dilation_cycle"] is not None:
        given["dilation_cycle"] = whole("dilation_cycle", given["dilation_cycle"])
    levels = given["levels"]
    for key, most in {"downs_t": 32, "strides_t": 1 << 12, "hvqvae_multipliers": 1 << 12}.items():
        values = [1] * levels if given[key] is None and key == "hvqvae_multipliers" else given[key]
        if not isinstance(values, Sequence | np.ndarray) or len(values) < levels:
            raise InputError(f"hps.{key}={values}: expected {levels} numbers, one per level, finest first")
        given[key] = [whole(key, value, most) for value in values[:levels]]
    if odd := [stride for stride in given["strides_t"] if stride % 2]:
        raise InputError(f"hps.strides_t: {odd[0]} is odd, which divides no length exactly; expected even strides")
    if int(given["m_conv"] * given["width"]) < 1:
        raise InputError(f"hps.m_conv={given['m_conv']}: leaves nothing of a width of {given['width']}")
    return Shape(levels, given["downs_t"], given["strides_t"], given["hvqvae_multipliers"], given)


def _empty(shape: Shape, channels: int) -> HierarchicalVQVAE:
    """A codec of this shape, yet to be filled."""
    hps, coarse_first = shape.hps, list(reversed(range(shape.levels)))
    quantizer = partial(
        JukeboxVQ,
        codebook_size=hps["l_bins"],
        decay=hps["l_mu"],
        commitment_weight=hps["commit"],
        dead_below=hps["revival_threshold"],
    )
    model = HierarchicalVQVAE(
        sample_rate=hps["sr"],
        strides={shape.names[i]: [shape.strides[i]] * shape.downs[i] for i in coarse_first},
        dim=hps["width"],
        depth=hps["depth"],
        latent_dim=hps["emb_width"],
        quantizer=quantizer,
        channels=channels,
        dilation_growth=hps["dilation_growth_rate"],
        dilation_cycle=hps["dilation_cycle"],
        inner_factor=hps["m_conv"],
        multipliers={shape.names[i]: shape.multipliers[i] for i in coarse_first},
    )
    if not hps["vqvae_reverse_decoder_dilation"]:
        for stack in model.decoders.modules():
            if isinstance(stack, nn.Sequential) and all(isinstance(each, ResidualConv) for each in stack):
                _turn_round(stack)
    return model


def _turn_round(stack: nn.Sequential) -> None:
    """The dilations of a decoder's stack in the encoder's order, as before OpenAI reversed them."""
    convs = [each.dilated for each in stack if isinstance(each, ResidualConv)]
    for each, dilation in zip(convs, [each.dilation for each in reversed(convs)], strict=True):
        each.dilation, each.padding = dilation, (0, dilation[1])


def _channels(weights: Mapping[str, Tensor]) -> int:
    """Audio channels, which OpenAI's hyperparameters do not tell: theirs are those of the files, before mixing."""
    first = weights.get("encoders.0.level_blocks.0.model.0.0.weight")
    return first.shape[1] if first is not None and first.dim() == 3 else 1


def keys_of(shape: Shape) -> Iterator[tuple[str, str]]:
    """OpenAI's key and ours, of every tensor."""
    for level, name in enumerate(shape.names):
        yield f"bottleneck.level_blocks.{level}.k", f"quantizers.{name}.entries"
        depth = shape.hps["depth"] * shape.multipliers[level]
        pairs = [*_encoder(shape.downs[: level + 1], depth), *_decoder(shape.downs[: level + 1], depth)]
        for theirs, ours in pairs:
            (their_side, their_rest), (side, rest) = theirs.split(".", 1), ours.split(".", 1)
            for kind in ("weight", "bias"):
                yield f"{their_side}.{level}.{their_rest}.{kind}", f"{side}.{name}.{rest}.{kind}"


def _encoder(downs: list[int], depth: int) -> Iterator[tuple[str, str]]:
    """Convolutions of an encoder whose blocks divide `downs` times: their module and ours."""
    ours = 0
    for block, down in enumerate(downs):
        theirs = f"encoders.level_blocks.{block}.model"
        for step in range(down):
            yield f"{theirs}.{step}.0", f"encoders.{ours}"
            yield from _stack(f"{theirs}.{step}.1", f"encoders.{ours + 1}", depth)
            ours += 2
        yield f"{theirs}.{down}", f"encoders.{ours}"
        ours += 1


def _decoder(downs: list[int], depth: int) -> Iterator[tuple[str, str]]:
    """The same of a decoder, whose coarsest block comes first."""
    ours = 0
    for block, down in reversed(list(enumerate(downs))):
        theirs = f"decoders.level_blocks.{block}.model"
        yield f"{theirs}.0", f"decoders.{ours}"
        ours += 1
        for step in range(1, down + 1):
            yield from _stack(f"{theirs}.{step}.0", f"decoders.{ours}", depth)
            yield f"{theirs}.{step}.1", f"decoders.{ours + 1}"
            ours += 2
    yield "decoders.out", f"decoders.{ours}"


def _stack(theirs: str, ours: str, depth: int) -> Iterator[tuple[str, str]]:
    for index in range(depth):
        yield f"{theirs}.model.{index}.model.1", f"{ours}.{index}.dilated"
        yield f"{theirs}.model.{index}.model.3", f"{ours}.{index}.pointwise"
