"""Ends a run's processes when one of them has been killed; the others would wait in torch for many minutes."""

import os
import secrets
import select
import socket
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import NoReturn, Self

from lightning_fabric import Fabric

from jukebox_lite.errors import InputError
from jukebox_lite.training.meter import TrainingDiverged

_DONE, _FAILED = b".", b"!"  # a process's last word; one that was killed has none
_PATIENCE = 60  # seconds for the processes to meet
_GRACE = 5  # seconds for an error to be told by the process that has it
_KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 4, "TCP_KEEPCNT": 3}  # s, s, times: for a machine that is off
_Sockets = dict[socket.socket, int]  # connections, and the number of the process at their other end


class Lifeline:
    """Connects the first process with each of the others; a context manager around what they do together.

    The kernel closes a killed process's connections at once. Whoever sees that says so through `say` and ends its own
    process, from a thread: the main one may wait in a collective, where no signal reaches it.
    """

    def __init__(self, fabric: Fabric, num_nodes: int, say: Callable[[str], None]) -> None:
        host = "127.0.0.1" if num_nodes == 1 else os.environ.get("MASTER_ADDR", "127.0.0.1")
        self._say = say if fabric.is_global_zero else partial(print, file=sys.stderr)
        self._size, self._peers = fabric.world_size, _connect(fabric, host)
        self._thread = threading.Thread(target=self._watch, args=(dict(self._peers),), name="lifeline", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        shared = error is None or isinstance(error, InputError | TrainingDiverged | SystemExit)  # by all processes
        if not shared and self._peers:
            self._thread.join(_GRACE)  # it may be that a collective failed because another process was killed
        self._leave(_DONE if shared else _FAILED)

    def _watch(self, peers: _Sockets) -> None:
        while peers:
            for peer in select.select(list(peers), [], [])[0]:
                word, process = _read(peer), peers.pop(peer)
                if word != _DONE:
                    self._end(process, word)

    def _end(self, process: int, word: bytes) -> NoReturn:
        if word == _FAILED:
            time.sleep(_GRACE)
        told = "stopped on an error" if word == _FAILED else "was killed (kill -9, out of memory, a machine lost)"
        self._say(f"error: process {process} of {self._size} {told}; the same command resumes from the last checkpoint")
        sys.stderr.flush()
        self._leave(_FAILED)
        os._exit(1)

    def _leave(self, word: bytes) -> None:
        for peer in self._peers:
            try:
                peer.sendall(word)
                peer.shutdown(socket.SHUT_WR)
            except OSError:  # it was killed
                continue


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
    """A process's last word; nothing where it was killed."""
    try:
        return peer.recv(1)
    except OSError:
        return b""
