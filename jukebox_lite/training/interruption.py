"""Ctrl-C and SIGTERM, noticed now and obeyed when a step is whole."""

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Remembers the first SIGINT or SIGTERM while it is entered; the second one ends the process at once."""

    def __init__(self) -> None:
        self.signal = 0  # the number of the signal that came; 0: none
        self._handlers: dict[int, Callable[..., Any] | int | None] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():  # Python lets no other thread set handlers
            self._handlers = {number: signal.signal(number, self._notice) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _notice(self, number: int, _frame: FrameType | None) -> None:
        self.signal = number
        for other in _SIGNALS:
            signal.signal(other, signal.SIG_DFL)
