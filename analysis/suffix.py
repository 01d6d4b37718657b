"""The network after one layer, for one chunk, as a function of the layer's output.

The network is run once for all layers with its weights as constants; what requires a gradient is the layers' outputs.
So a product follows only the activations through the suffix, and no derivative with respect to a later weight is
computed.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from analysis.problem import Chunk, Problem
from analysis.second_derivatives import weight_gradients

if TYPE_CHECKING:
    from analysis.layers import Layer

_LINEAR_IN_WEIGHTS = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
    nn.GroupNorm, nn.LayerNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d,
)  # fmt: skip


@dataclass(frozen=True)
class Suffix:
    """One chunk's network after one layer, as a function of the layer's output s."""

    layer: "Layer"
    inputs: Tensor  # a, (n, ...)
    outputs: Tensor  # s, (n, ...)
    slope: Tensor  # dL/ds with its graph, the shape of s

    def product(self, pieces: Sequence[Tensor]) -> Sequence[Tensor]:
        """The block's product with a vector cut into pieces shaped like the weights."""
        return self.pull_back(self.curve(self.push_forward(pieces)))

    def push_forward(self, pieces: Sequence[Tensor]) -> Tensor:
        """A v, the change of s when the weights change by v."""
        change = {name: torch.zeros_like(p) for name, p in self.layer.module.named_parameters(recurse=False)}
        change.update(zip(self.layer.parameters, pieces, strict=True))
        with torch.no_grad():
            moved: Tensor = functional_call(self.layer.module, change, (self.inputs,))
        return moved

    def curve(self, u: Tensor) -> Tensor:
        """B u for all samples at once, u of the shape of s; B is d^2 L / ds^2, block-diagonal over samples."""
        if not self.slope.requires_grad:
            return torch.zeros_like(u)
        (curved,) = torch.autograd.grad(self.slope, self.outputs, u, retain_graph=True, materialize_grads=True)
        return curved

    def pull_back(self, u: Tensor) -> Sequence[Tensor]:
        """A^T u, pieces shaped like the weights."""
        gradients = _weight_gradients(self.layer.module, self.inputs, u)
        return [gradients[name] for name in self.layer.parameters]


def _weight_gradients(module: nn.Module, a: Tensor, u: Tensor) -> Mapping[str, Tensor]:
    """d<s, u> / dW for every parameter of the module, without computing s where that is not needed."""
    if isinstance(module, nn.Linear):
        rows = u.flatten(0, -2)
        return {"weight": rows.T @ a.flatten(0, -2), "bias": rows.sum(0)}
    if (
        isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
        and a.dim() == module.weight.dim()
    ):
        geometry = (module.stride, module.padding, module.dilation, module.groups)
        by_weight, by_bias = weight_gradients(a, module.weight, u, geometry)
        return {"weight": by_weight, "bias": by_bias}
    weights = {name: p.detach().requires_grad_() for name, p in module.named_parameters(recurse=False)}
    outputs = functional_call(module, weights, (a,))
    return dict(zip(weights, torch.autograd.grad(outputs, list(weights.values()), u), strict=True))


@dataclass(frozen=True)
class SuffixGraphs:
    """The suffixes of several layers for one chunk, which share one forward and one backward pass."""

    loss: float
    suffixes: Mapping[str, Suffix]

    @classmethod
    def build(cls, problem: Problem, layers: Sequence["Layer"], chunk: Chunk) -> "SuffixGraphs":
        """Run the model on the chunk; the layers must be such that `can_be_cut` names them."""
        with _recorded(layers, differentiable=True) as calls:
            loss = problem.chunk_loss(chunk, {})
        made = {layer.name: calls[layer.name][0] for layer in layers}
        outputs = [call.outputs for call in made.values()]
        slopes = torch.autograd.grad(loss, outputs, create_graph=True, materialize_grads=True)
        suffixes = {
            layer.name: Suffix(layer, made[layer.name].inputs.detach(), made[layer.name].outputs, slope)
            for layer, slope in zip(layers, slopes, strict=True)
        }
        return cls(loss.item(), suffixes)


def can_be_cut(problem: Problem, layers: Sequence["Layer"]) -> list[str]:
    """The layers whose weights act on L through the output of one plain call only, found by trying a few samples.

    For those, dL/dW is the pull-back of dL/ds; a weight that is used elsewhere too shows in the difference.
    """
    few = next(replace(problem, chunk_size=2).chunks())
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
        through = Suffix(layer, made[0].inputs.detach(), made[0].outputs, direct[-1]).pull_back(direct[-1])
        if all(_agree(a, b) for a, b in zip(direct, through, strict=False)):
            cut.append(layer.name)
    return cut


@dataclass(frozen=True)
class _Call:
    """One run of a layer; `version` tells whether its output was overwritten later."""

    inputs: Tensor
    outputs: Tensor
    version: int
    plain: bool  # called with one tensor and nothing else


@contextmanager
def _recorded(layers: Iterable["Layer"], *, differentiable: bool = False) -> Iterator[dict[str, list[_Call]]]:
    """Within the block, note every call of the layers' modules; their outputs may be made to require a gradient."""
    calls: dict[str, list[_Call]] = {layer.name: [] for layer in layers}

    def record(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            if len(args) == 1 and not kwargs and isinstance(args[0], Tensor) and isinstance(output, Tensor):
                if differentiable:
                    output.requires_grad_()
                calls[name].append(_Call(args[0], output, output._version, plain=True))
            else:
                calls[name].append(_Call(torch.empty(0), torch.empty(0), 0, plain=False))

        return hook

    handles = [layer.module.register_forward_hook(record(layer.name), with_kwargs=True) for layer in layers]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _hooked(module: nn.Module) -> bool:
    """Whether a hook may change what the module computes (as spectral normalisation does)."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _agree(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).norm() <= 100 * torch.finfo(a.dtype).eps * (a.norm() + b.norm()))
