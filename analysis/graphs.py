"""First-order graphs, one per chunk of the data, kept between products while they fit the memory budget."""

import math
from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar

from analysis.agreement import same_loss
from analysis.errors import MeasurementError
from analysis.parametric_loss import Chunk
from analysis.problem import Problem


class Graph(Protocol):
    """What can be differentiated again, with the share of L that it was built from."""

    @property
    def loss(self) -> float: ...  # noqa: D102


G = TypeVar("G", bound=Graph)


class GraphCache(Generic[G]):
    """Iterate over the graphs of all chunks; the first ones are built once, the others anew at each pass.

    Raises `MeasurementError` where the loss is not finite or a later pass meets other data.
    """

    def __init__(self, problem: Problem, build: Callable[[Chunk], G]) -> None:
        self.problem = problem
        self.build = build
        self.kept: list[G] = []
        self.met: list[int] = []  # fingerprints of the kept graphs' samples
        self.complete = False  # whether all graphs are kept
        self.loss: float | None = None  # this process's share of L, known after the first pass

    def __iter__(self) -> Iterator[G]:
        if self.complete:
            yield from self.kept
            return
        loss, seen, index, chunk = 0.0, 0, -1, None
        for index, chunk in enumerate(self.problem.chunks()):
            seen += len(chunk.targets)
            keep = index == len(self.kept) and seen <= self.problem.cached_samples
            if index < len(self.met) and chunk.fingerprint != self.met[index]:
                raise MeasurementError("The data changed between two passes: switch shuffling and augmentation off.")
            graph = self.kept[index] if index < len(self.kept) else self.build(chunk)
            if keep:
                self.kept.append(graph)
                self.met.append(chunk.fingerprint)
            loss += graph.loss
            yield graph
            del graph
        self._compare(loss, chunk, seen)
        self.complete = index + 1 == len(self.kept)

    def _compare(self, loss: float, last: Chunk | None, samples: int) -> None:
        if self.loss is None:
            if not math.isfinite(loss):
                raise MeasurementError(f"The loss over the data is {loss}; curvature needs a finite loss.")
            self.loss = loss
        elif last is not None and not same_loss(self.problem, last, samples, self.loss, loss):
            raise MeasurementError(
                f"The data changed between two passes (loss {self.loss:.6g}, then {loss:.6g}): "
                "switch shuffling and augmentation off."
            )
