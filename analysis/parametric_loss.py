"""A loss as a function of some of a model's parameters: its values, samples in pieces, and vectors of its parameters.

`analysis.problem` makes and checks what is here only evaluated.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map

from analysis.batches import Batch, Inputs, batch_length, copied, moved, sliced
from analysis.calls import call
from analysis.casts import widened
from analysis.distributed import Distributed, failing_together
from analysis.errors import MeasurementError, some
from analysis.first_pass import FirstPass, fingerprint
from analysis.ieee import NoAutocast, ieee
from analysis.losses import Reduction, Share, SummedLoss
from analysis.members import canonical_names, in_modes, named_parameters
from analysis.model_copy import as_own, as_real, convert, private_copy
from analysis.model_state import Left, State
from analysis.recomputed import nothing_recomputed
from analysis.recording import recordable, recording
from analysis.second_derivatives import LeanSecondDerivatives
from analysis.stand_ins import StandIns


@dataclass(frozen=True)
class Chunk:
    """Consecutive samples on the problem's device, and the factor of their loss in L."""

    inputs: Inputs
    targets: Tensor  # (n, ...)
    weight: float  # 1 / M
    fingerprint: int  # of the samples


@dataclass(frozen=True)
class ParametricLoss:
    """L as a function of the selected parameters, which together make a vector of `size` numbers.

    The order of the vector is that of `named_parameters(model)`.
    """

    model: nn.Module  # a private copy on `device` in `dtype`, none of whose parameters requires a gradient
    loss: SummedLoss  # the sum over the samples of a batch
    reduction: Reduction
    parameters: Mapping[str, Tensor]  # the selection, by name; complex ones as pairs of real numbers, (..., 2)
    trained: frozenset[str]  # those that require a gradient for whoever asks them, selected or not
    modes: Sequence[tuple[nn.Module, bool]]  # the caller's modules, and whether they are to be in training
    aliases: Sequence[tuple[Tensor, str]]  # the parameters of the caller's model and of the copy, with their names
    state: State  # what the model can write to, and what of the caller's it stands for
    data: Iterable[Batch]
    samples: int  # N, over all ranks
    normaliser: float  # M, over all ranks; 1 for a sum
    dtype: torch.dtype
    device: torch.device
    chunk_size: int  # samples whose first-order graph is held at once
    cached_samples: int  # samples whose first-order graphs fit the memory budget and are kept between products
    memory: int  # bytes that graphs may take, and whatever else is held between products
    distributed: Distributed  # whether `data` are this rank's share; `samples` counts those of all ranks
    first_pass: FirstPass  # what it met, for later ones to be compared with

    @property
    def size(self) -> int:
        """Number of selected parameters, p."""
        return sum(parameter.numel() for parameter in self.parameters.values())

    def chunks(self) -> Iterator[Chunk]:
        """Go through the data in pieces of at most `chunk_size` samples; the weighted losses of all add up to L.

        Those of a batch are as few as there must be, and none is larger than it must be. Raises `MeasurementError`
        where a whole pass met other samples than the first one.
        """
        met = []
        for batch in self.data:
            length = batch_length(batch)
            size = ceil(length / ceil(length / self.chunk_size)) if length else self.chunk_size
            for start in range(0, length, size):
                part = sliced(batch, start, start + size)
                met.append(fingerprint(part))
                inputs, targets = moved(part, self.device, self.dtype)
                yield Chunk(inputs, targets, 1.0 / self.normaliser, met[-1])
        self.first_pass.compare(met)

    @contextmanager
    def passing(self) -> Iterator[None]:
        """Within the block goes a pass over the data: ranks fail together, and graphs are recorded whatever is off."""
        with failing_together(self.device, self.distributed), recording():
            try:
                yield
            except RuntimeError as error:
                if "does not require grad" in str(error) and self.trained - self.parameters.keys():
                    raise MeasurementError(
                        "The model or loss takes derivatives by its own parameters as it runs, which works for all "
                        "that train together alone: measure no layers, blocks or selections of them."
                    ) from error
                raise

    def leaves(self) -> dict[str, Tensor]:
        """The selected parameters as fresh leaves of a graph (sharing memory with the model)."""
        return {name: parameter.detach().requires_grad_() for name, parameter in self.parameters.items()}

    def run(self, batch: Batch, parameters: Mapping[str, Tensor]) -> tuple[Any, Sequence[Left]]:
        """The model's outputs with `parameters` in place of its own, and what it left for the loss of these to read.

        One that returns its loss is given the targets. What it changes in place is a copy: the caller's tensors stay as
        they are, and are met as they were next time. The loss is to run after it, once: it may empty a list that the
        model fills.
        """
        inputs, targets = copied(batch)
        args, kwargs = ((), inputs) if isinstance(inputs, dict) else (inputs, {})
        beside = self.loss.arguments(self.model, targets)
        with self.state.forgotten() as left, self.at(parameters) as replaced:
            outputs = call(self.model, replaced, args, {**kwargs, **beside})
        return outputs, left

    def outputs(self, batch: Batch, parameters: Mapping[str, Tensor]) -> Any:
        """The model's outputs alone, after a run of the loss on copies of them, as it would have after every run."""
        outputs, left = self.run(batch, parameters)
        taken = tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, outputs)
        with self.at(parameters, left):
            self.loss.share(taken, batch[1])
        return outputs

    @contextmanager
    def at(self, parameters: Mapping[str, Tensor], left: Sequence[Left] = ()) -> Iterator[dict[str, Tensor]]:
        """Within the block, torch computes in IEEE arithmetic, with second derivatives, and with `parameters`.

        Wherever a model or loss holds on to its parameters, they are replaced, and what a run `left` is where the loss
        looks for it; modules of the caller's that it holds on to are in the copy's modes. Yields the parameters as the
        model's modules have them, for anything that asks parameters that require a gradient, whether graphs are
        recorded or not.
        """
        own = dict(named_parameters(self.model))
        if not torch.is_grad_enabled():
            parameters = {n: p.detach().requires_grad_() for n, p in {**self.parameters, **parameters}.items()}
        replaced = {n: as_own(p, own[n]) for n, p in parameters.items()}
        for name, tensor in replaced.items():
            for key, note in vars(own[name]).items():  # what somebody noted on the parameter
                vars(tensor).setdefault(key, note)
            tensor._is_param = True  # what isinstance(tensor, nn.Parameter) looks for
        table = {id(tensor): replaced.get(name, own[name]) for tensor, name in self.aliases}
        trained = {id(tensor) for tensor, name in self.aliases if name in self.trained}
        trained |= {id(tensor) for name, tensor in replaced.items() if name in self.trained}
        # Fused attention has no second derivative. The mode entered last is asked first.
        with (
            in_modes(self.modes),
            ieee(),
            nothing_recomputed(),
            sdpa_kernel(SDPBackend.MATH),
            NoAutocast(),
            LeanSecondDerivatives(),
            widened(self.dtype),
            StandIns(table, trained),
            self.state.shown(left),
        ):
            yield replaced

    def share(self, batch: Batch, parameters: Mapping[str, Tensor]) -> Share:
        """The loss of a batch, summed over its samples, and its normaliser."""
        outputs, left = self.run(batch, parameters)
        with self.at(parameters, left):
            return self.loss.share(outputs, batch[1])

    def chunk_loss(self, chunk: Chunk, parameters: Mapping[str, Tensor]) -> Tensor:
        """The chunk's share of L, a scalar."""
        return chunk.weight * self.share((chunk.inputs, chunk.targets), parameters).total

    def of_a_copy(self, dtype: torch.dtype | None = None) -> Self:
        """The same L of a copy of the model, in another dtype if one is named.

        Raises RuntimeError or TypeError where the model or the device does not have that.
        """
        memo: dict[int, Any] = {}
        model = private_copy(self.model, memo)
        convert(model, self.device, dtype or self.dtype)
        named = dict(named_parameters(model))
        return replace(
            self,
            model=model,
            parameters={name: as_real(named[name]) for name in self.parameters},
            aliases=[*self.aliases, *((p, name) for name, p in named.items())],
            state=self.state.copied(model, memo),
            dtype=dtype or self.dtype,
        )

    @torch.no_grad()
    def moved_to(self, parameters: Mapping[str, Tensor]) -> Self:
        """The same L at other values of the selected parameters, given by name in shapes as the model has them."""
        other = self.of_a_copy()
        for name, own in named_parameters(other.model):
            if name in self.parameters:
                own.copy_(parameters[name])
        return other

    def select(self, names: Iterable[str]) -> Self:
        """The same L as a function of the parameters `names` only (a block of the Hessian).

        Raises `MeasurementError` for names of no parameter, or of one that is not selected.
        """
        wanted = canonical_names(self.model, names)
        if others := wanted - self.parameters.keys():
            raise MeasurementError(
                f"The parameter {min(others)} is none of those selected; these are {some(self.parameters)}."
            )
        return replace(self, parameters={n: p for n, p in self.parameters.items() if n in wanted})

    def split(self, vector: Tensor) -> list[Tensor]:
        """Cut (p,) into views shaped like the parameters."""
        pieces = recordable(vector).split([parameter.numel() for parameter in self.parameters.values()])
        return [piece.view_as(parameter) for piece, parameter in zip(pieces, self.parameters.values(), strict=True)]

    def flatten(self, pieces: Sequence[Tensor]) -> Tensor:
        """The vector (p,) whose parts are `pieces`."""
        return torch.cat([piece.reshape(-1) for piece in pieces])

    def add_to(self, total: Tensor, pieces: Sequence[Tensor]) -> None:
        """Add `pieces`, shaped like the parameters, to the vector `total` (p,) in place."""
        for part, piece in zip(self.split(total), pieces, strict=True):
            part.add_(piece)

    def point(self) -> Tensor:
        """theta, the selected parameters' values, shape (p,)."""
        return self.flatten([parameter.detach() for parameter in self.parameters.values()])
