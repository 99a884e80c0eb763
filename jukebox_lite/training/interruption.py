"""Ctrl-C, SIGTERM, and the SIGUSR2 of schedulers, noticed now and obeyed when a step is whole."""

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)


class Interruption:
    """Remembers the first SIGINT, SIGTERM or SIGUSR2 while it is entered; the second one ends the process at once."""

    def __init__(self) -> None:
        self.signal = 0  # the number of the signal that came; 0: none
        self._handlers: dict[int, Callable[..., Any] | int | None] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():  # Python lets no other thread set handlers
            self._handlers = {number: signal.getsignal(number) for number in _SIGNALS}
            self._listen()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def hand_over(self, number: int) -> bool:
        """Leave signal `number` to whoever handled it before; False where nobody did, or only Python's Ctrl-C.

        Under Slurm that is submitit: it puts a job that runs out of time or is preempted into the queue again and ends
        the process, and lets SIGTERM pass. When this returns True, what was noticed is forgotten: training goes on.
        """
        handler = self._handlers.get(number)
        if not callable(handler) or handler is signal.default_int_handler:
            return False
        handler(number, None)
        self.signal = 0
        self._listen()
        return True

    def _listen(self) -> None:
        for number in self._handlers:
            signal.signal(number, self._notice)

    def _notice(self, number: int, _frame: FrameType | None) -> None:
        self.signal = number
        for other in _SIGNALS:
            signal.signal(other, signal.SIG_DFL)
