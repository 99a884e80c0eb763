"""What a reconstruction is judged by, against auraloss, librosa and hand-computed numbers."""

import math
import sys
from pathlib import Path
from types import SimpleNamespace

import auraloss
import librosa
import numpy as np
import pytest
import torch
from torch import Tensor

from jukebox_lite.audio import read
from jukebox_lite.errors import InputError
from jukebox_lite.levels import Level
from jukebox_lite.losses import MidSide, MultiScaleMel, WaveformL1, WaveformL2, mel_filters
from jukebox_lite.metrics.bitrate import bitrate
from jukebox_lite.metrics.distances import measure, mel_distance, panning_error, si_sdr, stft_distance
from jukebox_lite.metrics.notes import basic_pitch, note_f1
from jukebox_lite.metrics.signal import spectral_flux

RATE = 44_100


def noise(*shape: int, seed: int = 0, scale: float = 0.3) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


@pytest.mark.parametrize(("fft_size", "num_mels"), [(2048, 150), (512, 80), (32, 5), (2048, 320)])
def test_mel_filters_are_librosas(fft_size: int, num_mels: int):
    """Slaney's scale and norm, up to half the sample rate."""
    with np.errstate(all="ignore"):
        expected = librosa.filters.mel(sr=RATE, n_fft=fft_size, n_mels=num_mels)
    np.testing.assert_allclose(mel_filters(RATE, fft_size, num_mels).numpy(), expected, atol=2e-6)


def of_auraloss(found: Tensor, wanted: Tensor, size: int, num_mels: int | None) -> float:
    """Linear magnitudes, and twice the distance of natural logarithms as log10 of the power."""
    mel = {} if num_mels is None else {"sample_rate": RATE, "scale": "mel", "n_bins": num_mels}
    parts = [
        auraloss.freq.STFTLoss(size, size // 4, size, w_sc=0.0, w_lin_mag=linear, w_log_mag=1 - linear, eps=0.0, **mel)
        for linear in (1.0, 0.0)
    ]
    linear, logarithm = (part(found, wanted).item() for part in parts)
    return linear + 2 / math.log(10) * logarithm


@pytest.mark.parametrize("channels", [1, 2])
def test_spectral_distances_are_auralosss(channels: int):
    """Sums over two windows; noise so loud that the floor below the logarithm plays no part in what is compared."""
    found, wanted = (noise(2, channels, 20_000, seed=seed, scale=3) for seed in (1, 2))
    expected = sum(of_auraloss(found, wanted, size, None) for size in (2048, 512))
    assert stft_distance(found, wanted).item() == pytest.approx(expected, rel=1e-4)
    expected = sum(of_auraloss(found, wanted, size, mels) for size, mels in ((2048, 150), (512, 80)))
    assert mel_distance(found, wanted, RATE).item() == pytest.approx(expected, rel=1e-3)


def test_spectral_distances_by_hand():
    """Ten times the amplitude: two decades of power in each window, and nine times the magnitudes."""
    wanted = noise(1, 1, 30_000, scale=3)
    linear = stft_distance(10 * wanted, wanted).item() - 4
    magnitudes = [
        torch.stft(wanted[0], size, size // 4, window=torch.hann_window(size), return_complex=True).abs().mean().item()
        for size in (2048, 512)
    ]
    assert linear == pytest.approx(9 * sum(magnitudes), rel=1e-4)
    assert stft_distance(wanted, wanted).item() == mel_distance(wanted, wanted, RATE).item() == 0


def test_panning_error_by_hand():
    """Kept 0, to the middle 1, across 2, one of two equal tones to the middle 0.5; loudness is no matter."""
    time = torch.arange(44100) / 44100
    low, high = (torch.sin(2 * math.pi * pitch * time) for pitch in (430.6640625, 4306.640625))  # bins 20 and 200
    hard = torch.stack([low, high])[None]
    assert panning_error(0.1 * hard, hard).item() == pytest.approx(0, abs=1e-4)
    assert panning_error(hard.mean(1, keepdim=True).expand(-1, 2, -1), hard).item() == pytest.approx(1, abs=1e-3)
    assert panning_error(hard.flip(1), hard).item() == pytest.approx(2, abs=1e-3)
    half = torch.stack([low + high / 2, high / 2])[None]
    assert panning_error(half, hard).item() == pytest.approx(0.5, abs=1e-3)


def test_si_sdr_is_auralosss():
    """The mean over clips in dB; the means of the signals are taken off."""
    found, wanted = noise(3, 1, 5000, seed=1) + 0.1, noise(3, 1, 5000, seed=2)
    for share in (0.1, 3.0):
        prediction = wanted + share * found
        expected = -auraloss.time.SISDRLoss(zero_mean=True)(prediction, wanted).item()
        assert si_sdr(prediction, wanted).item() == pytest.approx(expected, abs=1e-3)


def test_si_sdr_by_hand():
    """Orthogonal noise of a tenth of the amplitude is 20 dB at any scale; silent clips are left out."""
    time = torch.arange(1000) / 1000
    tone, other = torch.sin(20 * math.pi * time), torch.cos(20 * math.pi * time)
    for scale in (1.0, -0.3, 7.0):
        assert si_sdr((scale * (tone + 0.1 * other))[None, None], tone[None, None]).item() == pytest.approx(
            20, abs=0.01
        )
    silent = torch.stack([tone, torch.zeros(1000)])[:, None]
    heard = torch.stack([tone + 0.1 * other, other])[:, None]
    assert si_sdr(heard, silent).item() == pytest.approx(20, abs=0.01)
    assert si_sdr(heard[1:], silent[1:]).item() == 0


@pytest.mark.parametrize("scale", [0.0, 1e-4, 1.0])
def test_what_is_measured_is_finite(scale: float):
    """Of silence, of a perfect reconstruction and of stereo; in bfloat16 too."""
    for prediction in (torch.zeros(2, 2, 8192), noise(2, 2, 8192).bfloat16()):
        with torch.autocast("cpu", torch.bfloat16):
            figures = measure(prediction, scale * noise(2, 2, 8192), RATE)
        assert set(figures) == {"spectral_convergence", "mel_distance", "stft_distance", "si_sdr", "panning_error"}
        assert all(value.isfinite() and value.ndim == 0 and value.dtype == torch.float32 for value in figures.values())


def test_bitrate_by_hand():
    """Two of four entries in even use, of two codebooks at 100 steps a second: 1 of 2 bits a code."""
    level = Level("top", 4, 2, 441)
    figures = bitrate(level, RATE, torch.tensor([[5, 5, 0, 0], [0, 7, 7, 0]]))
    assert figures["bits_per_second"] == 400
    assert figures["entropy_bits_per_second"] == pytest.approx(200) and figures["efficiency"] == pytest.approx(0.5)


# --- notes -----------------------------------------------------------------------------------------------------------


def notes(*pairs: tuple[float, float]) -> Tensor:
    return torch.tensor(pairs, dtype=torch.float64).reshape(-1, 2)


def test_note_f1_by_hand():
    """An onset may be 50 ms off and a pitch 50 cents, no more; F1 is twice what is common over all that there is."""
    wanted = notes((1.0, 60), (1.0, 64), (2.0, 60))
    assert note_f1(wanted, wanted) == note_f1(notes(), notes()) == 1
    assert note_f1(notes(), wanted) == note_f1(wanted, notes()) == note_f1(wanted + notes((0.0, 1.0)), wanted) == 0
    assert note_f1(wanted + notes((0.05, -0.5)), wanted) == 1
    assert note_f1(wanted + notes((0.0502, 0.0)), wanted) == note_f1(wanted + notes((0.0, 0.502)), wanted) == 0
    assert note_f1(notes((1.04, 60), (5.0, 60)), wanted) == pytest.approx(2 / 5)


def test_a_note_is_found_once_and_as_many_as_can_be_are():
    """Two of one are one; the note that fits both goes to the one that no other fits, whichever comes first."""
    assert note_f1(notes((1.0, 60), (1.01, 60)), notes((1.0, 60))) == pytest.approx(2 / 3)
    wanted, found = notes((1.0, 60), (1.04, 60)), notes((1.03, 60), (1.08, 60))
    for order in ([0, 1], [1, 0]):
        assert note_f1(found[order], wanted) == note_f1(found, wanted[order]) == note_f1(wanted, found[order]) == 1


def test_basic_pitch_is_given_a_file_and_says_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """By a stand-in for the package: the file holds the audio; of its notes onset and pitch are kept."""
    tone, told = 0.5 * torch.sin(torch.arange(800) / 5)[None], [(0.1, 0.7, 60, 0.9, None), (0.3, 0.4, 64, 0.2, [1, 2])]

    def predict(path: Path, model: str):
        print(f"Predicting MIDI for {path}...")
        assert model == "the model of onnx" and torch.allclose(read(path, 0, 800, 8000, 1), tone, atol=1e-4)
        return {}, None, told

    inference = SimpleNamespace(Model=lambda path: f"the model of {path}", predict=predict)
    package = SimpleNamespace(FilenameSuffix=SimpleNamespace(onnx="onnx"), build_icassp_2022_model_path=str)
    modules = {"onnxruntime": SimpleNamespace(), "basic_pitch": package, "basic_pitch.inference": inference}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    assert torch.equal(basic_pitch()(tone, 8000), notes((0.1, 60), (0.3, 64)))
    told.clear()
    assert basic_pitch()(tone, 8000).shape == (0, 2)
    assert capsys.readouterr() == ("", "")


# --- losses of the same kind -----------------------------------------------------------------------------------------


def test_multi_scale_mel_is_auralosss():
    """The sum over windows of the distance in log10 of mel magnitudes, without their squares."""
    found, wanted = (noise(2, 1, 9000, seed=seed, scale=3) for seed in (1, 2))
    sizes = {2048: 80, 512: 40, 64: 10}
    expected = 0.0
    for size, mels in sizes.items():
        theirs = auraloss.freq.MelSTFTLoss(RATE, size, size // 4, size, w_sc=0.0, n_mels=mels, eps=0.0)
        expected += theirs(found, wanted).item() / math.log(10)
    loss = MultiScaleMel(RATE, list(sizes), list(sizes.values()))
    assert loss(found, wanted).item() == pytest.approx(expected, rel=1e-3)
    assert loss(10 * wanted, wanted).item() == pytest.approx(3, rel=1e-4), "a decade in each of three windows"
    with pytest.raises(InputError, match="one for one"):
        MultiScaleMel(RATE, [2048, 512], [80])


def test_the_mel_loss_and_its_gradient_are_finite_on_silence():
    """Below the floor there is nothing to learn, and no infinity; empty filters add nothing."""
    loss = MultiScaleMel(RATE, [2048, 32], [320, 5])
    for prediction in (torch.zeros(1, 1, 8192), noise(1, 1, 8192)):
        prediction.requires_grad_()
        value = loss(prediction, torch.zeros(1, 1, 8192))
        value.backward()
        assert value.isfinite() and prediction.grad is not None and prediction.grad.isfinite().all()
    assert not any(parameter.requires_grad for parameter in loss.parameters())


def test_mid_and_side_are_judged_each_for_itself():
    """A lost panning: the middle is right, of the side nothing is left; the mean of 0 and 1, however soft the side."""
    left, right = noise(1, 1, 4000, seed=1), noise(1, 1, 4000, seed=2)
    middle = (left + right) / 2
    lost = torch.cat([middle, middle], 1)
    assert MidSide(WaveformL2(power_floor=0.0))(lost, torch.cat([left, right], 1)).item() == pytest.approx(0.5)
    soft = torch.cat([middle + 1e-3 * left, middle - 1e-3 * left], 1)
    assert MidSide(WaveformL2(power_floor=0.0))(lost, soft).item() == pytest.approx(0.5, abs=1e-3)
    assert MidSide(WaveformL1(mean_floor=0.0))(lost, soft).item() == pytest.approx(0.5, abs=1e-3)
    assert WaveformL2()(lost, soft).item() < 1e-4, "unlike a loss of left and right"


@pytest.mark.parametrize("channels", [1, 3])
def test_a_side_takes_two_channels(channels: int):
    with pytest.raises(InputError, match=f"MidSide takes 2 channels, not {channels}: set codec.channels=2"):
        MidSide(WaveformL2())(noise(1, channels, 100), noise(1, channels, 100))


def test_spectral_flux_hears_a_join():
    """Nothing in a steady tone, all of what begins after silence; a jump of phase and another tone lie between."""
    time = torch.arange(8192) / 8192
    tone, other = torch.sin(2 * torch.pi * 512 * time)[None], torch.sin(2 * torch.pi * 768 * time)[None]
    place = 4096
    joined = {
        "steady": tone,
        "begins": tone * (time >= 0.5),
        "turned": torch.where(time < 0.5, tone, -tone),
        "other": torch.where(time < 0.5, tone, other),
    }
    flux = {name: spectral_flux(audio, [place, place + 2048])[0].item() for name, audio in joined.items()}
    assert flux["steady"] < 1e-4 and flux["begins"] > 0.999
    assert 0.05 < flux["turned"] < 0.9 and 0.05 < flux["other"] < 0.9
    assert all(spectral_flux(audio, [place + 2048])[0] < 1e-4 for audio in joined.values())
    assert spectral_flux(0.01 * joined["other"], [place])[0].item() == pytest.approx(flux["other"], rel=1e-3)
