"""Ends a run's processes when one of them fails, is killed or stands still: the others would wait in torch for long."""

import os
import secrets
import select
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Self

from lightning_fabric import Fabric

from jukebox_lite.errors import InputError, one_line
from jukebox_lite.training.meter import TrainingDiverged

_ALIVE = b"\0"  # said now and then
_DONE, _FAILED = b".", b"!"  # a process's last word, with the line of an error that has one; who was killed has none
_BEAT = 5.0  # seconds between two signs of life
_SILENCE = 18  # signs of its own after which a process gives up one that gave none: 90 s
_PATIENCE = 60  # seconds for the processes to meet
_GRACE = 5  # seconds for an error to be told by the process that has it
_LINE_BYTES = 1000  # of an error's line: what fits into one packet
_ADVICE = "; the same command resumes from the last checkpoint"
_KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 4, "TCP_KEEPCNT": 3}  # s, s, times: for a machine that is off
_Sockets = dict[socket.socket, int]  # connections, and the number of the process at their other end


class Lifeline:
    """Connects the first process with each of the others; a context manager around what they do together.

    The kernel closes a killed process's connections at once, and a stopped one gives no sign of life. Whoever sees that
    says so through `say` and ends its own process, from a thread: the main one may wait in a collective, where no
    signal reaches it. One that works long by itself, as the first does at a checkpoint, gives signs all the while.

    An InputError or OSError of any process is told once: by the first one, and the others leave quietly.
    """

    def __init__(self, fabric: Fabric, num_nodes: int, say: Callable[[str], None]) -> None:
        host = "127.0.0.1" if num_nodes == 1 else os.environ.get("MASTER_ADDR", "127.0.0.1")
        self._first, self._size = fabric.is_global_zero, fabric.world_size
        self._say = say if self._first else partial(print, file=sys.stderr)
        self._peers, self._left = _connect(fabric, host), threading.Event()
        self._thread = threading.Thread(target=self._watch, args=(dict(self._peers),), name="lifeline", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None or isinstance(error, TrainingDiverged | SystemExit):  # shared by all processes
            self._leave(_DONE)
        elif not isinstance(error, InputError | OSError):
            if self._peers:
                self._thread.join(2 * _GRACE)  # it may be that a collective failed because of another process
            self._leave(_FAILED)
        else:
            self._leave(_FAILED + one_line(error).encode())
            if not self._first:
                raise SystemExit(0) from error  # not 1: Fabric's observer would kill the first process before it tells

    def _watch(self, peers: _Sockets) -> None:
        """Gives signs of life, and waits for what the peers say, until all or this process have left.

        Silence is counted in signs of its own: it means nothing while this process was stopped itself (Ctrl-Z, a
        scheduler that suspends jobs).
        """
        silence = dict.fromkeys(peers, 0)
        beat = time.monotonic()
        while peers and not self._left.is_set():
            for peer in select.select(list(peers), [], [], max(0.0, beat - time.monotonic()))[0]:
                heard, silence[peer] = _read(peer), 0
                if word := heard.strip(_ALIVE):
                    self._hear(word, peers.pop(peer))
                elif not heard:
                    self._end(peers.pop(peer), "was killed (kill -9, out of memory, a machine lost)")
            if time.monotonic() >= beat:
                beat = time.monotonic() + _BEAT
                self._send(_ALIVE)
                for peer in peers:
                    silence[peer] += 1
                    if silence[peer] > _SILENCE:
                        self._end(peers[peer], f"gave no sign of life for {_SILENCE * _BEAT:g} s (stopped, or stuck)")

    def _hear(self, word: bytes, process: int) -> None:
        """What a process's last word leads to."""
        if word == _DONE or self._left.is_set():
            return
        line = word.removeprefix(_FAILED).decode(errors="replace")
        if line and not self._first:  # which tells it
            os._exit(0)
        if self._left.wait(_GRACE):  # with the same error, or one of its own
            return
        if line:
            self._end(process, f"stopped: {line}", advice="")
        else:
            self._end(process, "stopped on an error")

    def _end(self, process: int, how: str, advice: str = _ADVICE) -> None:
        """Says how another process ended, and ends this one, and those that hear of it; not if it has left."""
        if self._left.is_set():
            return
        line = f"error: process {process} of {self._size} {how}{advice}"
        with suppress(OSError):  # the disk may be full
            self._say(line)
            sys.stderr.flush()
        self._leave(_FAILED + line.encode() if self._first else _FAILED)
        os._exit(1)

    def _leave(self, word: bytes) -> None:
        self._left.set()
        self._send(word[:_LINE_BYTES])
        for peer in self._peers:
            with suppress(OSError):
                peer.shutdown(socket.SHUT_WR)

    def _send(self, word: bytes) -> None:
        for peer in self._peers:
            with suppress(OSError):  # it was killed, or this process has left
                peer.sendall(word)


def _connect(fabric: Fabric, host: str) -> _Sockets:
    """The first process's connections with the others, or another's with it, the first being on `host`."""
    if fabric.world_size == 1:
        return {}
    if not fabric.is_global_zero:
        port, token = fabric.broadcast((0, b""))
        first = socket.create_connection((host, port), _PATIENCE)
        first.sendall(token + fabric.global_rank.to_bytes(4))
        return {_kept_alive(first): 0}
    peers: _Sockets = {}
    with socket.create_server(("" if host != "127.0.0.1" else host, 0), backlog=fabric.world_size) as server:
        server.settimeout(_PATIENCE)
        token = secrets.token_bytes(16)
        fabric.broadcast((server.getsockname()[1], token))
        while len(peers) < fabric.world_size - 1:
            peer, _ = server.accept()
            peer.settimeout(_PATIENCE)
            greeting = peer.recv(len(token) + 4, socket.MSG_WAITALL)
            if secrets.compare_digest(greeting[: len(token)], token):  # else a stranger's
                peers[_kept_alive(peer)] = int.from_bytes(greeting[len(token) :])
    return peers


def _kept_alive(peer: socket.socket) -> socket.socket:
    peer.settimeout(None)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):  # not on every system
            peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return peer


def _read(peer: socket.socket) -> bytes:
    """What a process has said; nothing where it was killed."""
    try:
        return peer.recv(2 * _LINE_BYTES)
    except OSError:
        return b""
