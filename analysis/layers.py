"""The diagonal blocks of the Hessian that belong to single layers, all from one gradient graph per chunk.

The loss depends on a layer's weights only through the layer's output s = W a + b, and s is linear in them. So

    H_l v = A^T ( B (A v) ),      A v: the layer run on its input with v in place of its weights,
                                  B = d^2 L / ds^2: the suffix of the network after the layer, differentiated twice,
                                  A^T u: the gradient of <s, u> with respect to the weights.

One forward and one backward pass record every layer's input, s and dL/ds; a product then touches only the suffix.
Layers for which this cannot be done (weights used elsewhere too, modules called twice or never, outputs not linear in
the weights) fall back to the Hessian of L in their parameters, with the same result.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from analysis.distributed import summed
from analysis.graphs import GraphCache
from analysis.operators import SymmetricOperator, hessian
from analysis.problem import Chunk, Problem
from flatlab.errors import UsageError

_LINEAR_IN_WEIGHTS = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
    nn.GroupNorm, nn.LayerNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d,
)  # fmt: skip


@dataclass(frozen=True)
class Layer:
    """A module that owns selected parameters directly; weight and bias together are its block."""

    name: str  # as in model.named_modules()
    module: nn.Module  # of the problem's private copy
    parameters: Mapping[str, str]  # the parameter's name in the module -> its name in the model


def find_layers(problem: Problem, names: Sequence[str] | None = None) -> list[Layer]:
    """The layers `names`, or all, in the model's order. A tied parameter belongs to the first layer that owns it.

    Raises `UsageError` for a name that is no layer with selected parameters.
    """
    owned: set[str] = set()
    layers = []
    names_of = {id(tensor): name for name, tensor in problem.parameters.items()}
    for name, module in problem.model.named_modules():
        own = {short: names_of[id(p)] for short, p in module.named_parameters(recurse=False) if id(p) in names_of}
        own = {short: full for short, full in own.items() if full not in owned}
        owned.update(own.values())
        if own:
            layers.append(Layer(name, module, own))
    known = [layer.name for layer in layers]
    for name in names or ():
        if name not in known:
            raise UsageError(f"There is no layer {name!r} with selected parameters; the layers are {', '.join(known)}.")
    return [layer for layer in layers if names is None or layer.name in names]


class LayerBlocks:
    """Products with the blocks of several layers at once; `products` counts them by layer."""

    def __init__(self, problem: Problem, names: Sequence[str] | None = None) -> None:
        self.layers = {layer.name: layer for layer in find_layers(problem, names)}
        self.products: Counter[str] = Counter()
        self._problem = problem
        self._blocks = {name: problem.select(layer.parameters.values()) for name, layer in self.layers.items()}
        self._cut = _can_be_cut(problem, list(self.layers.values()))
        whole = [name for name in self.layers if name not in self._cut]
        share = problem.cached_samples // max(1, bool(self._cut) + len(whole))
        self._whole = {name: hessian(replace(self._blocks[name], cached_samples=share)) for name in whole}
        layers = [self.layers[name] for name in self._cut]
        self._graphs = GraphCache(
            replace(problem, cached_samples=share), lambda chunk: SuffixGraphs.build(problem, layers, chunk)
        )

    def __call__(self, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Multiply rows (b, p_l) of any of the layers by their blocks, in one pass over the data."""
        self.products.update({name: len(row) for name, row in rows.items()})
        products = {name: self._whole[name].rows(row) for name, row in rows.items() if name in self._whole}
        totals = {name: torch.zeros_like(rows[name], dtype=torch.float64) for name in rows if name in self._cut}
        for graphs in self._graphs if totals else ():
            for name, total in totals.items():
                block, suffix = self._blocks[name], graphs.suffixes[name]
                for row, sum_of_chunks in zip(rows[name], total, strict=True):
                    sum_of_chunks += block.flatten(suffix.product(block.split(row)))
        return products | {name: self._summed(total) for name, total in totals.items()}

    def _summed(self, total: Tensor) -> Tensor:
        return summed(total, self._problem.distributed).to(self._problem.dtype)

    def size(self, name: str) -> int:
        """Number of parameters of a layer's block."""
        return self._blocks[name].size

    def suffixes(self, name: str) -> Iterator["Suffix"]:
        """The suffix after one layer, chunk by chunk.

        Raises `UsageError` for a layer after which the network cannot be cut.
        """
        if name not in self._cut:
            raise UsageError(
                f"Layer {name!r} shares its weights or is no linear map of them, so nothing is after it alone."
            )
        return (graphs.suffixes[name] for graphs in self._graphs)

    def operator(self, name: str) -> SymmetricOperator:
        """The block of one layer as an operator."""
        problem = self._problem
        return SymmetricOperator(self.size(name), problem.dtype, problem.device, lambda rows: self({name: rows})[name])


@dataclass(frozen=True)
class Suffix:
    """One chunk's network after one layer, as a function of the layer's output s."""

    module: nn.Module
    weights: Mapping[str, Tensor]  # the block's parameters, by their names in the module
    inputs: Tensor  # a, (n, ...)
    outputs: Tensor  # s, (n, ...)
    slope: Tensor  # dL/ds with its graph, the shape of s

    def product(self, pieces: Sequence[Tensor]) -> Sequence[Tensor]:
        """The block's product with a vector cut into pieces shaped like the weights."""
        return self.pull_back(self.curve(self.push_forward(pieces)))

    def push_forward(self, pieces: Sequence[Tensor]) -> Tensor:
        """A v, the change of s when the weights change by v."""
        change = {name: torch.zeros_like(p) for name, p in self.module.named_parameters(recurse=False)}
        change.update(zip(self.weights, pieces, strict=True))
        with torch.no_grad():
            moved: Tensor = functional_call(self.module, change, (self.inputs,))
        return moved

    def curve(self, u: Tensor) -> Tensor:
        """B u for all samples at once, u of the shape of s; B is d^2 L / ds^2, block-diagonal over samples."""
        if not self.slope.requires_grad:
            return torch.zeros_like(u)
        (curved,) = torch.autograd.grad(self.slope, self.outputs, u, retain_graph=True, materialize_grads=True)
        return curved

    def pull_back(self, u: Tensor) -> Sequence[Tensor]:
        """A^T u, pieces shaped like the weights."""
        return torch.autograd.grad(self.outputs, list(self.weights.values()), u, retain_graph=True)


@dataclass(frozen=True)
class SuffixGraphs:
    """The suffixes of several layers for one chunk, which share one forward and one backward pass."""

    loss: float
    suffixes: Mapping[str, Suffix]

    @classmethod
    def build(cls, problem: Problem, layers: Sequence[Layer], chunk: Chunk) -> "SuffixGraphs":
        """Run the model on the chunk; the layers must be such that `_can_be_cut` names them."""
        leaves = problem.select(full for layer in layers for full in layer.parameters.values()).leaves()
        with _recorded(layers) as calls:
            loss = problem.chunk_loss(chunk, leaves)
        outputs = [calls[layer.name][0].outputs for layer in layers]
        slopes = torch.autograd.grad(loss, outputs, create_graph=True, materialize_grads=True)
        suffixes = {
            layer.name: Suffix(
                module=layer.module,
                weights={short: leaves[full] for short, full in layer.parameters.items()},
                inputs=calls[layer.name][0].inputs.detach(),
                outputs=output,
                slope=slope,
            )
            for layer, output, slope in zip(layers, outputs, slopes, strict=True)
        }
        return cls(loss.item(), suffixes)


@dataclass(frozen=True)
class _Call:
    """One run of a layer; `version` tells whether its output was overwritten later."""

    inputs: Tensor
    outputs: Tensor
    version: int
    plain: bool  # called with one tensor and nothing else


@contextmanager
def _recorded(layers: Iterable[Layer]) -> Iterator[dict[str, list[_Call]]]:
    """Within the block, note every call of the layers' modules."""
    calls: dict[str, list[_Call]] = {layer.name: [] for layer in layers}

    def record(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            plain = len(args) == 1 and not kwargs and isinstance(args[0], Tensor) and isinstance(output, Tensor)
            if plain:
                calls[name].append(_Call(args[0], output, output._version, plain))
            else:
                calls[name].append(_Call(torch.empty(0), torch.empty(0), 0, plain))

        return hook

    handles = [layer.module.register_forward_hook(record(layer.name), with_kwargs=True) for layer in layers]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _can_be_cut(problem: Problem, layers: Sequence[Layer]) -> list[str]:
    """The layers whose weights act on L through the output of one plain call only, found by trying a few samples.

    For those, dL/dW is the pull-back of dL/ds; a weight that is used elsewhere too shows in the difference.
    """
    few = next(replace(problem, chunk_size=2, data=[next(iter(problem.data))]).chunks())
    candidates = [layer for layer in layers if type(layer.module) in _LINEAR_IN_WEIGHTS and not _hooked(layer.module)]
    leaves = problem.leaves()
    with _recorded(candidates) as calls:
        loss = problem.chunk_loss(few, leaves)
    cut = []
    for layer in candidates:
        made = calls[layer.name]
        if len(made) != 1 or not made[0].plain or made[0].outputs._version != made[0].version:
            continue
        weights = [leaves[full] for full in layer.parameters.values()]
        direct = torch.autograd.grad(loss, [*weights, made[0].outputs], retain_graph=True, materialize_grads=True)
        through = torch.autograd.grad(made[0].outputs, weights, direct[-1], retain_graph=True, materialize_grads=True)
        if all(_agree(a, b) for a, b in zip(direct, through, strict=False)):
            cut.append(layer.name)
    return cut


def _hooked(module: nn.Module) -> bool:
    """Whether a hook may change what the module computes (as spectral normalisation does)."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _agree(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).norm() <= 100 * torch.finfo(a.dtype).eps * (a.norm() + b.norm()))
