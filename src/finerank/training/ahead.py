"""Batches on the device that trains. For a GPU a thread makes those of the next step while it computes this one.

On a CPU that gains nothing: the step keeps all cores at work (benchmarks/README.md).
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from finerank.data.batch import Batch
from finerank.data.builder import BatchBuilder
from finerank.data.order import Step


class Ahead:
    """The batches of step after step. feed: makes them; device: where they are wanted; threaded: made a step ahead."""

    def __init__(self, feed: BatchBuilder, device: torch.device, threaded: bool) -> None:
        self.feed, self.device = feed, device
        self._thread = ThreadPoolExecutor(1, "batches") if threaded else None
        self._coming: tuple[Step, Future[list[Batch]]] | None = None

    def batches(self, step: Step, epoch: int, coming: Step | None = None) -> Iterable[Batch]:
        """The batches of a step (several where a request was cut into chunks). coming: the next step of the epoch, if any."""
        if self._thread is None or step.chunks:  # chunks come one by one: there may be more than memory holds
            return (batch.to(self.device) for batch in self.feed.batches(step, epoch))
        ready = self._coming[1].result() if self._coming and self._coming[0] is step else self._made(step, epoch)
        self._coming = None
        if coming is not None and not coming.chunks:
            self._coming = coming, self._thread.submit(self._made, coming, epoch)
        return ready

    def _made(self, step: Step, epoch: int) -> list[Batch]:
        return [batch.to(self.device) for batch in self.feed.batches(step, epoch)]
