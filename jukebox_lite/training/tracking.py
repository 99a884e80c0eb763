"""Where a run's numbers and sounds go. Every tracker hears the same; the first process alone has any."""

import json
import secrets
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from matplotlib.image import imread
from torch.utils.tensorboard.writer import SummaryWriter

from jukebox_lite.errors import InputError
from jukebox_lite.files import staged, write_text
from jukebox_lite.generation.report import Clip, Section, write_page
from jukebox_lite.tasks.base import Listening


class Tracker(ABC):
    """Hears of a run: scalars every few steps, and something to listen to after a validation."""

    @abstractmethod
    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers by name, after `step` steps."""

    @abstractmethod
    def listening(self, step: int, listening: Listening, page: Path) -> None:
        """Clips, and the folder that holds each as a wav and PNGs, in their order."""

    @abstractmethod
    def close(self) -> None:
        """Write what is still in memory."""


class NoTracker(Tracker):
    """Keeps nothing; metrics.jsonl and samples/ are written all the same."""

    def __init__(self, folder: Path, step: int) -> None:
        """The signature of every tracker."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Nothing."""

    def listening(self, step: int, listening: Listening, page: Path) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class TensorBoard(Tracker):
    """Event files in <folder>/tensorboard; shows nothing of the steps after `step` that a resumed run will repeat."""

    def __init__(self, folder: Path, step: int) -> None:
        self.writer = SummaryWriter(folder / "tensorboard", purge_step=step + 1 if step else None)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One curve a name."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def listening(self, step: int, listening: Listening, page: Path) -> None:
        """A player (mono: TensorBoard knows no more) and a picture a clip."""
        pictures = sorted(page.glob("*-mels.png"))
        for (title, audio), picture in zip(listening.clips.items(), pictures, strict=True):
            mono = audio.detach().float().cpu().mean(0, keepdim=True).clamp(-1, 1)
            self.writer.add_audio(title, mono, step, listening.sample_rate)
            self.writer.add_image(title, imread(picture), step, dataformats="HWC")
        self.writer.flush()

    def close(self) -> None:
        """Write the last events."""
        self.writer.close()


class WeightsAndBiases(Tracker):
    """A run of Weights & Biases, kept in <folder>/wandb; resuming goes on with that of the id in <folder>/wandb_id.

    `mode` is online, or offline, which sends nothing (`wandb sync` does so later); None: as WANDB_MODE says. There is
    no way back: steps that a resumed run repeats are drawn on top of themselves. Raises InputError where wandb is not
    installed or refuses to start.
    """

    def __init__(self, folder: Path, step: int, project: str = "jukebox_lite", mode: str | None = None) -> None:
        try:
            import wandb
        except ImportError:
            raise InputError(
                "tracker=wandb: the package is not installed: pip install -c constraints.txt -e '.[wandb]', "
                "or choose tracker=tensorboard"
            ) from None
        known, config = folder / "wandb_id", folder / "config.yaml"
        if not step or not known.exists():
            write_text(known, secrets.token_hex(8))
        try:
            self.run = wandb.init(
                project=project,
                name=folder.name,
                dir=folder,
                id=known.read_text(encoding="utf-8"),
                resume="allow",
                mode=mode,  # pyright: ignore[reportArgumentType]  a plain str, checked by wandb
                config=yaml.safe_load(config.read_text(encoding="utf-8")) if config.exists() else None,
                settings=wandb.Settings(silent=True, console="off"),
            )
        except (wandb.Error, ValueError) as error:  # pydantic's errors are ValueErrors
            told = str(error).splitlines()[0]
            raise InputError(f"tracker=wandb: {told}; run 'wandb login' first, or set tracker.mode=offline") from error
        self.run.define_metric("*", step_metric="step")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One curve a name."""
        self.run.log({"step": step, **values})

    def listening(self, step: int, listening: Listening, page: Path) -> None:
        """A player and a picture a clip."""
        import wandb

        media: dict[str, Any] = {"step": step}
        pictures = sorted(page.glob("*-mels.png"))
        for (title, audio), picture in zip(listening.clips.items(), pictures, strict=True):
            samples = audio.detach().float().cpu().clamp(-1, 1).T.numpy()  # [N, C]
            media[f"audio/{title}"] = wandb.Audio(samples, sample_rate=listening.sample_rate)
            media[f"spectrogram/{title}"] = wandb.Image(str(picture))
        self.run.log(media)

    def close(self) -> None:
        """Send what is still to be sent."""
        self.run.finish()


class Journal(Tracker):
    """metrics.jsonl, one line for every time scalars come; forgets the steps after `step`, which will be repeated."""

    def __init__(self, folder: Path, step: int) -> None:
        path = folder / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
        kept = [line for line in lines if 0 <= _step_of(line) <= step]
        if kept != lines:
            write_text(path, "".join(f"{line}\n" for line in kept))
        self.file = path.open("a", encoding="utf-8", buffering=1)  # line by line

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """A line {"step": ..., name: value}, to six significant digits."""
        self.file.write(json.dumps({"step": step} | {name: float(f"{v:.6g}") for name, v in values.items()}) + "\n")

    def listening(self, step: int, listening: Listening, page: Path) -> None:
        """Nothing: numbers only."""

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def write_samples(folder: Path, step: int, listening: Listening) -> Path:
    """samples/<step>/ in the run's folder: a wav and pictures a clip, and a page to hear them side by side."""
    page = folder / "samples" / f"{step:08d}"
    clips = [
        Clip(title, [audio], audio.shape[-1], listening.sample_rate, listening.codes.get(title))
        for title, audio in listening.clips.items()
    ]
    with staged(page) as beside:
        write_page(beside, f"{folder.name}, step {step:,}", [Section("Validation", clips, listening.figures)])
    return page


def _step_of(line: str) -> int:
    """The step of a line of metrics.jsonl; -1 where a killed process left half a line."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return -1
    return step if isinstance(step, int) else -1
