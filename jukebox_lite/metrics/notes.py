"""How many of a recording's notes are found again in its reconstruction, as a transcriber hears both."""

import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching
from torch import Tensor

from jukebox_lite import audio
from jukebox_lite.errors import InputError

# audio [C, N] and its sample rate in Hz -> notes [M, 2], each its onset in seconds and its MIDI pitch
Transcriber = Callable[[Tensor, int], Tensor]
_TOLERANCES = (0.05, 0.5)  # of an onset in seconds, of a pitch in semitones


def note_f1(found: Tensor, wanted: Tensor) -> float:
    """Notes [M, 2] twice -> F1 of those found: from 0 to 1, where all are found.

    Onsets may differ by 50 ms and pitches by 50 cents, when notes end is not asked, and no note is found twice:
    MIREX's rule as mir_eval has it (Raffel et al. 2014). Where there are no notes at all, all are found.
    """
    if not len(found) and not len(wanted):
        return 1.0
    off = (found[:, None] - wanted).abs().round(decimals=4)  # as mir_eval rounds
    near = (off <= off.new_tensor(_TOLERANCES)).all(-1)
    matched = maximum_bipartite_matching(csr_array(near.numpy())) >= 0
    return 2 * int(matched.sum()) / (len(found) + len(wanted))


def basic_pitch() -> Transcriber:
    """Basic Pitch with its own thresholds (Bittner et al. 2022), which hears notes of any instrument from A0 to C8.

    It takes a file, mixes it to mono and resamples it to 22,050 Hz by itself. Raises InputError if not installed.
    """
    with _quiet():
        try:
            import_module("onnxruntime")  # without it Basic Pitch ends in a NameError
            package, inference = import_module("basic_pitch"), import_module("basic_pitch.inference")
        except ImportError as error:
            raise InputError(
                f"notes are not compared ({error}): pip install --no-deps basic-pitch onnxruntime resampy mir_eval"
            ) from error
        model = inference.Model(package.build_icassp_2022_model_path(package.FilenameSuffix.onnx))

    def transcribe(heard: Tensor, sample_rate: int) -> Tensor:
        with TemporaryDirectory() as folder, _quiet():
            path = Path(folder) / "heard.wav"
            audio.write(path, heard, sample_rate)
            _, _, notes = inference.predict(path, model)
        return torch.tensor([(start, pitch) for start, _, pitch, *_ in notes], dtype=torch.float64).reshape(-1, 2)

    return transcribe


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps to itself what Basic Pitch prints of each file, and warns of: of silence, of frameworks not needed."""
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(logging.NOTSET)
