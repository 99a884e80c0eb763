"""What the trackers keep of a run, and that a resumed run goes on in the same place."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from wandb.proto.wandb_internal_pb2 import Record
from wandb.sdk.internal.datastore import DataStore

from jukebox_lite.errors import InputError
from jukebox_lite.tasks.base import Listening
from jukebox_lite.training.tracking import WeightsAndBiases, write_samples

RATE = 8_000


def history(folder: Path) -> list[dict[str, object]]:
    """Every line that an offline run kept, by the names of its values."""
    (path,) = folder.glob("*.wandb")
    store, lines = DataStore(), []
    store.open_for_scan(str(path))
    while (data := store.scan_data()) is not None:
        record = Record()
        record.ParseFromString(data)
        if record.HasField("history"):
            items = record.history.item
            lines.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    return lines


def test_weights_and_biases_keeps_curves_and_sounds_offline_and_resumes_the_run(tmp_path: Path):
    """Two starts of one run have one id; another run, and one that begins anew in the same folder, has its own."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text("optimizer: {lr: 0.5}\n")
    audio = torch.sin(torch.arange(RATE) / 20)[None].expand(2, -1) / 2
    listening = Listening({"top": audio}, RATE)
    tracker = WeightsAndBiases(folder, 0, mode="offline")
    tracker.scalars(1, {"loss/codec": 2.5, "grad_norm/codec": 0.25})
    tracker.scalars(2, {"loss/codec": 2.0})
    tracker.listening(2, listening, write_samples(folder, 2, listening))
    tracker.close()
    first = (folder / "wandb_id").read_text()
    tracker = WeightsAndBiases(folder, 1, mode="offline")  # resumed from step 1: step 2 comes again
    tracker.scalars(2, {"loss/codec": 2.0})
    tracker.close()
    assert (folder / "wandb_id").read_text() == first
    kept = sorted((folder / "wandb").glob("offline-run-*"))
    assert len(kept) == 2 and all(first in path.name for path in kept)  # "-1" behind it, within a second
    lines = [line for path in kept for line in history(path)]
    curve = [(line["step"], line["loss/codec"]) for line in lines if "loss/codec" in line]
    assert curve == [(1, 2.5), (2, 2.0), (2, 2.0)]
    assert any(line.get("grad_norm/codec") == 0.25 for line in lines)
    (sound,) = kept[0].rglob("*.wav")
    heard, rate = soundfile.read(sound)
    assert rate == RATE and np.allclose(heard, audio.T.numpy(), atol=1e-3)
    assert list(kept[0].rglob("*.png")), "no spectrogram"
    WeightsAndBiases(folder, 0, mode="offline").close()
    assert (folder / "wandb_id").read_text() != first


def test_a_tracker_that_is_not_installed_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """And one that wandb refuses is told in one line."""
    with pytest.raises(InputError, match="tracker=wandb: .*mode"):
        WeightsAndBiases(tmp_path, 0, mode="sometimes")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match=r"pip install -c constraints.txt -e '\.\[wandb\]'"):
        WeightsAndBiases(tmp_path, 0)
