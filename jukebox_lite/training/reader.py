"""Batches, each read by a thread while the one before it is learnt from."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch


class Reader:
    """Calls `batch(split, index)` in one thread, so that whatever it reads from needs no lock; a context manager."""

    def __init__(self, batch: Callable[[str, int], Any]) -> None:
        self.waited = 0.0  # seconds that training stood still for its data
        self._batch = batch
        # One that uses OpenMP's threads beside the model's makes both sleep at every step of a computation.
        alone = {"initializer": torch.set_num_threads, "initargs": (1,)}  # of this thread alone
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches", **alone)
        self._ahead: tuple[int, Future[Any]] | None = None

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def train(self, index: int, following: int | None) -> Any:
        """The training batch `index`; begins to read the one that is wanted after it."""
        began = time.perf_counter()
        expected, future = self._ahead or (None, None)
        if future is None or expected != index:
            future = self._thread.submit(self._batch, "train", index)
        batch = future.result()
        self.waited += time.perf_counter() - began
        ahead = None if following is None else self._thread.submit(self._batch, "train", following)
        self._ahead = (following, ahead) if following is not None and ahead is not None else None
        return batch

    def validation(self, index: int) -> Any:
        """The validation batch `index`."""
        return self._thread.submit(self._batch, "val", index).result()
