"""OpenAI's VQ-VAE, number for number: codes, audio, losses, gradients, a codebook's step (openai/jukebox)."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from goldens import FOLDERS, Golden, goldens, gradient_faults

from jukebox_lite.codecs.jukebox_vq import JukeboxVQ
from jukebox_lite.codecs.vqvae import HierarchicalVQVAE
from jukebox_lite.errors import InputError
from jukebox_lite.interop import openai
from jukebox_lite.interop.openai.vqvae import keys_of, shape_of
from jukebox_lite.losses import (
    MagnitudeDistance,
    ReconstructionLoss,
    WaveformL1,
    WaveformL2,
    WaveformTopK,
    WeightedTerms,
    weighted_sum,
)

LMIX = {"lmix_l1": 0.3, "lmix_l2": 1.0, "lmix_linf": 0.02}  # the weights that every set's "lmix" was made with


def codec_of(golden: Golden) -> HierarchicalVQVAE:
    """Ours with the original's weights."""
    return openai.codec(golden.tensors("weights"), golden.hps)


def names(codec: HierarchicalVQVAE) -> list[str]:
    """Level names in OpenAI's order, finest first."""
    return [level.name for level in reversed(codec.levels)]


@goldens("vqvae")
def test_codes_and_audio_are_the_originals(golden: Golden):
    """Every code equal, the audio of every level within 1e-5, or 1e-4 where it is tens of times louder than audio."""
    codec, tensors = codec_of(golden), golden.tensors("io")
    for prefix, audio in ("out.", "in.x"), ("out.long_", "in.x_long"):
        if audio not in tensors:
            continue
        codes = codec.encode(tensors[audio].mT)
        for index, name in enumerate(names(codec)):
            assert torch.equal(codes[name][:, 0], tensors[f"{prefix}codes_l{index}"])
            wanted = tensors[f"{prefix}decode_l{index}"].mT
            atol = 1e-4 if wanted.abs().max() > 10 else 1e-5
            torch.testing.assert_close(codec.decode({name: codes[name]}), wanted, rtol=0, atol=atol)


def losses(hps: dict[str, Any]) -> dict[str, ReconstructionLoss]:
    """OpenAI's by their names, as shares of the data set's figures."""
    scale = hps["bandwidth"]
    sizes = [hps[f"multispec_loss_{word}"] for word in ("n_fft", "hop_length", "window_size")]
    return {
        "l1": WaveformL1(scale["l1"]),
        "l2": WaveformL2(scale["l2"]),
        "linf": WaveformTopK(hps["linf_k"], scale["l2"]),
        "spectral": MagnitudeDistance([[2048, 256, 1536]], scale["spec"]),
        "convergence": MagnitudeDistance([[2048, 256, 1536]]),
        "multispectral": MagnitudeDistance([list(each) for each in zip(*sizes, strict=True)], scale["spec"]),
    }


@goldens("vqvae")
def test_losses_are_the_originals(golden: Golden):
    """Each loss of each level, and what they add up to, by every choice of loss function, within 1e-5 relative."""
    codec, audio, terms = codec_of(golden), golden.tensors("io")["in.x"].mT, losses(golden.hps)
    output = codec(audio)
    values = {name: {key: term(output[name][0], audio).item() for key, term in terms.items()} for name in names(codec)}
    for name in values:
        each = values[name]
        each["lmix"] = sum(weight * each[key.removeprefix("lmix_")] for key, weight in LMIX.items())
    commitment = sum(quantized.loss for _, quantized in output.values()).item() / golden.hps["commit"]
    for choice, wanted in golden.figures["eval_losses"].items():
        waveform, spectral = choice.split("|")
        spectral = "convergence" if spectral == "spec_convergence" else "spectral"
        found = {"commit_loss": commitment}
        for ours, theirs in (waveform, "recons"), (spectral, "spectral"), ("multispectral", "multispectral"):
            by_level = {f"{theirs}_loss_l{i + 1}": values[name][ours] for i, name in enumerate(names(codec))}
            found |= by_level | {f"{theirs}_loss": sum(by_level.values())}
        finest = values[names(codec)[0]]
        found |= {"spectral_convergence": finest["convergence"]}
        found |= {f"{kind}_loss": finest[kind] for kind in ("l1", "l2", "linf")}
        found["loss"] = found["recons_loss"] + golden.hps["spectral"] * found["spectral_loss"]
        found["loss"] += golden.hps["multispectral"] * found["multispectral_loss"] + golden.hps["commit"] * commitment
        assert found == pytest.approx(wanted, rel=1e-5)


@goldens("vqvae", lambda golden: "grads" in golden.figures)
def test_a_training_step_is_the_originals(golden: Golden):
    """Its loss, the gradient of every parameter, and the codebooks after it, restarts included."""
    codec, tensors, figures = codec_of(golden).train(), golden.tensors("io"), golden.figures
    audio, levels = tensors["in.x"].mT, names(codec)
    for index, name in enumerate(levels):
        quantizer = codec.quantizers[name]
        assert isinstance(quantizer, JukeboxVQ)
        for ours, theirs in ("entries", "k"), ("sums", "k_sum"), ("counts", "k_elem"):
            getattr(quantizer, ours).copy_(tensors[f"train.{theirs}_before_l{index}"])
        quantizer.dead_below = figures["train_restore_k"][index]["threshold"]
        rows = tensors[f"train.perm_l{index}"]
        quantizer.draw = lambda latents, rows=rows: latents[rows]  # the same random choice
    weights: dict[str, float | dict[str, float]] = {key.removeprefix("lmix_"): LMIX[key] for key in LMIX}
    weights |= {key: golden.hps[key] for key in ("spectral", "multispectral")}
    loss = WeightedTerms({key: term for key, term in losses(golden.hps).items() if key in weights}, weights)
    output = codec(audio)
    by_level = loss({name: reconstruction for name, (reconstruction, _) in output.items()}, audio)
    total = torch.stack([weighted_sum(by_level[name]) + output[name][1].loss for name in levels]).sum()
    assert total.item() == pytest.approx(figures["train_metrics"]["loss"], rel=1e-5)
    total.backward()
    found = {ours: parameter.grad for ours, parameter in codec.named_parameters()}
    keys = {theirs: ours for theirs, ours in keys_of(shape_of(golden.hps)) if ours in found}
    assert set(keys.values()) == set(found)
    assert gradient_faults({theirs: found[ours] for theirs, ours in keys.items()}, golden) == []
    for index, name in enumerate(levels):
        for ours, theirs in ("entries", "k"), ("sums", "k_sum"), ("counts", "k_elem"):
            wanted = tensors[f"train.{theirs}_after_l{index}"]
            torch.testing.assert_close(getattr(codec.quantizers[name], ours), wanted, rtol=1e-5, atol=1e-5)


@pytest.fixture
def mono() -> Golden:
    return Golden(FOLDERS[0] / "vqvae_mono.json")


def test_levels_are_named_coarse_to_fine(mono: Golden):
    """Three levels are top, middle and bottom; hops are the products of what OpenAI calls strides and downs."""
    codec = codec_of(mono)
    assert [(level.name, level.hop_length) for level in codec.levels] == [("top", 64), ("middle", 16), ("bottom", 4)]


def test_misfits_are_named(mono: Golden):
    """What is unknown, missing or of another shape is named, in one line."""
    weights = mono.tensors("weights")
    first, second, *_ = weights
    weights["decoders.9.out.bias"] = weights.pop(first)
    weights[second] = weights[second].flatten()
    with pytest.raises(InputError) as caught:
        openai.codec(weights, mono.hps)
    told = str(caught.value)
    assert "\n" not in told and f"missing: {first};" in told and second in told
    assert "unknown: decoders.9.out.bias;" in told


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"use_bottleneck": False}, "use_bottleneck"),
        ({"strides_t": [2, 3, 2]}, "strides_t: 3 is odd"),
        ({"downs_t": [2, 1]}, "downs_t"),
        ({"downs_t": [2, 0, 2]}, "downs_t"),
        ({"width": "8"}, "width"),
        ({"levels": 0}, "levels"),
        ({"emb_width": 9}, "of another shape"),
        ({"depth": 3}, "missing"),
        ({"depth": 10**9}, "depth"),
        ({"width": 2**20}, "of another shape"),
        ({"downs_t": 2}, "downs_t"),
        ({"m_conv": "1"}, "m_conv: '1' given, expected numbers"),
        ({"m_conv": float("nan")}, "m_conv"),
        ({"l_mu": None}, "l_mu"),
        ({"commit": [0.02]}, "commit"),
        ({"sample_length": "long"}, "sample_length"),
        ({"vqvae_reverse_decoder_dilation": "False"}, "vqvae_reverse_decoder_dilation: 'False' given, expected True"),
    ],
)
def test_hyperparameters_that_cannot_be_are_refused(mono: Golden, change: dict[str, Any], told: str):
    """One line names the hyperparameter, or the tensors it does not fit.

    What is no number or no flag once failed in the middle of things, and "False" was taken for True.
    """
    with pytest.raises(InputError, match=told) as caught:
        openai.codec(mono.tensors("weights"), mono.hps | change)
    assert "\n" not in str(caught.value)


def test_what_is_not_given_by_key_is_refused(mono: Golden):
    """A whole checkpoint in the place of its weights, a file's name, nothing: one line each."""
    weights: Any = mono.tensors("weights")
    for given in (
        {"model": weights, "step": 1},
        {0: weights["decoders.0.out.bias"]},
        list(weights),
        "vqvae.pth.tar",
        None,
    ):
        with pytest.raises(InputError, match="weights: "):
            openai.codec(given, mono.hps)
    for given in (None, 3, ["levels"]):
        with pytest.raises(InputError, match="hps: "):
            openai.codec(weights, given)


def test_numbers_by_numpy_and_weights_of_other_precision_are_as_good(mono: Golden):
    """Numbers of 32 bits overflowed, once the dilations they grow to went beyond."""
    kinds = {int: np.int32, float: np.float32, bool: np.bool_, list: np.array}
    hps = {key: kinds[type(value)](value) if type(value) in kinds else value for key, value in mono.hps.items()}
    hps["vqvae_reverse_decoder_dilation"] = np.bool_(True)
    weights, audio = mono.tensors("weights"), mono.tensors("io")["in.x"].mT
    found = openai.codec({key: value.double() for key, value in weights.items()}, hps).encode(audio)
    assert all(torch.equal(codes, found[name]) for name, codes in codec_of(mono).encode(audio).items())
    shape = shape_of({"levels": 1, "depth": np.int32(40), "dilation_growth_rate": np.int32(3), "strides_t": (2,)})
    assert shape.hps["dilation_growth_rate"] ** 39 == 3**39


def test_a_decoder_that_is_not_reversed_has_the_encoders_dilations(mono: Golden):
    """vqvae_reverse_decoder_dilation is False in OpenAI's oldest models."""
    codec = openai.codec(mono.tensors("weights"), mono.hps | {"vqvae_reverse_decoder_dilation": False})
    usual = codec_of(mono)
    for name in names(codec):
        found, wanted = (
            [stack[0].dilated.dilation[1] for stack in side if isinstance(stack, torch.nn.Sequential)]
            for side in (codec.decoders[name], codec.encoders[name])
        )
        assert set(found) == set(wanted) == {1}
        assert next(s for s in usual.decoders[name] if isinstance(s, torch.nn.Sequential))[0].dilated.dilation[1] > 1


def test_a_checkpoint_is_read_with_its_own_hyperparameters(mono: Golden, tmp_path: Path):
    """OpenAI's file holds weights, perhaps saved by several processes, hyperparameters, and numbers by numpy."""
    weights, tensors = mono.tensors("weights"), mono.tensors("io")
    hps = mono.hps | {"bandwidth": {"l2": np.float64(0.5)}}
    for legacy, prefix in (True, ""), (False, "module."):
        file = {"model": {prefix + key: value for key, value in weights.items()}, "hps": hps, "step": 3, "opt": None}
        path = tmp_path / f"vqvae{legacy}.pth.tar"
        torch.save(file, path, _use_new_zipfile_serialization=not legacy)
        codec = openai.read(path)
        codes = codec.encode(tensors["in.x"].mT)
        assert torch.equal(codes["bottom"][:, 0], tensors["out.codes_l0"])


class Trap:
    """Runs a command when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_checkpoint_with_code_in_it_is_refused(tmp_path: Path):
    """Nothing of it runs, and one line says why it is not read; so too of files that are nothing of the kind."""
    torch.save({"model": {}, "hps": Trap(tmp_path / "sprung")}, tmp_path / "code.pth.tar")
    (tmp_path / "noise.pth.tar").write_bytes(b"not a checkpoint")
    torch.save([1, 2], tmp_path / "list.pth.tar")
    for name in ("code", "noise", "list", "absent"):
        with pytest.raises(InputError, match=name) as caught:
            openai.read(tmp_path / f"{name}.pth.tar")
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "sprung").exists()


def test_a_dead_entry_restarts_from_the_batch():
    """OpenAI's rule: once its moving count is too low it becomes a latent of the batch, its averages left alone."""
    torch.manual_seed(0)
    quantizer = JukeboxVQ(dim=4, codebook_size=8, decay=0.5).train()
    entries = torch.randn(8, 4)
    entries[3] = 1e3  # so far away that nothing chooses it
    quantizer.set_entries(entries, use=4.0)
    for count in (2.0, 1.0, 0.5):
        latents = torch.randn(2, 4, 16)
        revived = quantizer(latents).revived
        assert revived is not None and revived[0, 3].item() == (count < 1)
        assert quantizer.counts[3].item() == count and (quantizer.sums[3] == 1e3 * count).all()
    assert (latents.mT.flatten(0, 1) == quantizer.entries[3]).all(-1).any()


@pytest.mark.parametrize(("length", "noise"), [(40, 0.0), (3, 0.05)])
def test_the_first_batch_sets_the_entries(length: int, noise: float):
    """To as many rows of it as there are entries; where it has fewer, they are repeated with a little noise."""
    torch.manual_seed(0)
    quantizer, rows = JukeboxVQ(dim=4, codebook_size=16).train(), torch.randn(length, 4)
    quantizer.start(rows)
    distance = (quantizer.entries[:, None] - rows).norm(dim=-1).min(-1).values
    assert distance.max() <= noise and quantizer.counts.eq(1).all()
    assert len(quantizer.entries.unique(dim=0)) == 16
