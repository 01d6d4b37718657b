"""The network after one layer, for one chunk, as a function of the layer's output.

The network is run once for all layers with its weights as constants; what requires a gradient is the layers' outputs.
So a product follows only the activations through the suffix, and no derivative with respect to a later weight is
computed.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node, get_gradient_edge
from torch.func import functional_call
from torch.nn import functional as F

from analysis.attention import OpenAttention, projection_weight
from analysis.derivatives import ancestors, gradients, within_transform
from analysis.distributed import least
from analysis.ieee import ieee
from analysis.layers import Layer
from analysis.members import named_parameters, parameters_of
from analysis.parametric_loss import Chunk
from analysis.problem import Problem
from analysis.recomputed import nothing_recomputed
from analysis.second_derivatives import LeanSecondDerivatives, weight_gradients

_LINEAR_IN_WEIGHTS = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
    nn.GroupNorm, nn.LayerNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d,
    nn.modules.linear.NonDynamicallyQuantizableLinear,
)  # fmt: skip


@dataclass(frozen=True)
class Suffix:
    """One chunk's network after one layer, as a function of the layer's output s."""

    layer: Layer
    inputs: Tensor  # a, (n, ...)
    outputs: Tensor  # s, (n, ...)
    slope: Tensor  # dL/ds with its graph, the shape of s

    def product(self, pieces: Sequence[Tensor]) -> Sequence[Tensor]:
        """The block's product with a vector cut into pieces shaped like the weights."""
        return self.pull_back(self.curve(self.push_forward(pieces)))

    @ieee()
    def push_forward(self, pieces: Sequence[Tensor]) -> Tensor:
        """A v, the change of s when the weights change by v."""
        change = {name: torch.zeros_like(p) for name, p in named_parameters(self.layer.module, recurse=False)}
        change.update(zip(self.layer.parameters, pieces, strict=True))
        with torch.no_grad():
            if isinstance(self.layer.module, nn.MultiheadAttention):
                return F.linear(self.inputs, change["in_proj_weight"], change.get("in_proj_bias"))
            moved: Tensor = functional_call(self.layer.module, change, (self.inputs,))
        return moved

    def curve(self, u: Tensor) -> Tensor:
        """B u for all samples at once, u of the shape of s; B is d^2 L / ds^2, block-diagonal over samples."""
        (curved,) = gradients([self.slope], [self.outputs], [u])
        return curved

    @ieee()
    def pull_back(self, u: Tensor) -> Sequence[Tensor]:
        """A^T u, pieces shaped like the weights."""
        gradients = _weight_gradients(self.layer.module, self.inputs, u)
        return [gradients[name] for name in self.layer.parameters]


def _weight_gradients(module: nn.Module, a: Tensor, u: Tensor) -> Mapping[str, Tensor]:
    """d<s, u> / dW for every parameter of the module, without computing s where that is not needed."""
    if isinstance(module, nn.Linear | nn.MultiheadAttention) or _is_conv1d_of_transformers(module):
        rows, inputs = (torch.atleast_2d(x).flatten(0, -2) for x in (u, a))
        if isinstance(module, nn.MultiheadAttention):
            return {"in_proj_weight": rows.T @ inputs, "in_proj_bias": rows.sum(0)}
        return {"weight": rows.T @ inputs if isinstance(module, nn.Linear) else inputs.T @ rows, "bias": rows.sum(0)}
    if (
        isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
        and a.dim() == module.weight.dim()
    ):
        geometry = (module.stride, module.padding, module.dilation, module.groups)
        by_weight, by_bias = weight_gradients(a, module.weight, u, geometry)
        return {"weight": by_weight, "bias": by_bias}
    weights = {name: p.detach().requires_grad_() for name, p in named_parameters(module, recurse=False)}
    with nothing_recomputed(), LeanSecondDerivatives():
        outputs = functional_call(module, weights, (a,))
    return dict(zip(weights, gradients([outputs], list(weights.values()), [u]), strict=True))


@dataclass(frozen=True)
class SuffixGraphs:
    """The suffixes of several layers for one chunk, which share one forward and one backward pass."""

    loss: float
    suffixes: Mapping[str, Suffix]

    @classmethod
    def build(cls, problem: Problem, layers: Sequence[Layer], chunk: Chunk) -> "SuffixGraphs":
        """Run the model on the chunk; the layers must be such that `can_be_cut` names them."""
        with _recorded(layers, {}, differentiable=True) as calls:
            loss = problem.chunk_loss(chunk, {})
        made = {layer.name: calls[layer.name][0] for layer in layers}
        outputs = [call.outputs for call in made.values()]
        slopes = gradients([loss], outputs, create_graph=True)
        suffixes = {
            layer.name: Suffix(layer, made[layer.name].inputs.detach(), made[layer.name].outputs, slope)
            for layer, slope in zip(layers, slopes, strict=True)
        }
        return cls(loss.item(), suffixes)


def can_be_cut(problem: Problem, layers: Sequence[Layer]) -> list[str]:
    """The layers whose weights act on L through the output s of one plain call only, in every chunk, on every rank.

    Read off the graph of L: without the node that made s no way leads from L to the weights, and none from the layer's
    input. What has no gradient at this point is in the graph all the same.
    """
    cut = [layer for layer in layers if _is_linear_in_weights(layer)]
    with problem.passing():
        for chunk in problem.chunks() if cut else ():
            leaves = problem.leaves()
            with _recorded(cut, leaves) as calls:
                loss = problem.chunk_loss(chunk, leaves)
            weights = {layer.name: [leaves[full] for full in layer.parameters.values()] for layer in cut}
            cut = [layer for layer in cut if _acts_through_one_call(loss, calls[layer.name], weights[layer.name])]
    everywhere = least([layer in cut for layer in layers], problem.device, problem.distributed)
    return [layer.name for layer, agreed in zip(layers, everywhere, strict=True) if agreed]


def _is_linear_in_weights(layer: Layer) -> bool:
    """Whether the module is one of those known to be, is real, and nothing changes what it computes."""
    module = layer.module
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    known = type(module) in _LINEAR_IN_WEIGHTS or projection_weight(module) or _is_conv1d_of_transformers(module)
    return (
        bool(known)
        and "forward" not in vars(module)
        and not any(hooks)  # as spectral normalisation has
        and not any(p.is_complex() for p in parameters_of(module))
    )


def _is_conv1d_of_transformers(module: nn.Module) -> bool:
    """Whether it is Hugging Face's linear layer whose weight is (inputs, outputs)."""
    kind = type(module)
    return (kind.__module__, kind.__name__) == ("transformers.pytorch_utils", "Conv1D")


def _acts_through_one_call(loss: Tensor, calls: Sequence["_Call"], weights: Sequence[Tensor]) -> bool:
    if len(calls) != 1 or not calls[0].plain or calls[0].made_by is None or calls[0].overwritten:
        return False
    own = {get_gradient_edge(weight).node for weight in weights}
    elsewhere = ancestors(loss, without=calls[0].made_by) | ancestors(calls[0].inputs)
    return own <= ancestors(calls[0].outputs) and not own & elsewhere


@dataclass(frozen=True)
class _Call:
    """One run of a layer."""

    inputs: Tensor
    outputs: Tensor
    made_by: Node | None  # of the graph; None where the output requires no gradient
    versions: tuple[int, int]  # of inputs and outputs when it ended
    plain: bool  # called with one tensor and nothing else

    @property
    def overwritten(self) -> bool:
        """Whether input or output were changed in place later."""
        return self.versions != (self.inputs._version, self.outputs._version)


def _by_projection(layers: Sequence[Layer], leaves: Mapping[str, Tensor]) -> dict[int, str]:
    """The layer whose weight attention projects by, by the tensor that the model has for it."""
    found = {}
    for layer in layers:
        if short := projection_weight(layer.module):
            weight = leaves.get(layer.parameters.get(short, ""), layer.module.get_parameter(short))
            found[id(weight)] = layer.name
    return found


@contextmanager
def _recorded(
    layers: Sequence[Layer], leaves: Mapping[str, Tensor], *, differentiable: bool = False
) -> Iterator[dict[str, list[_Call]]]:
    """Within the block, note every call of the layers' modules, and every projection of attention by their weights.

    `leaves` are given to the model in place of parameters. Outputs may be made to require a gradient.
    """
    calls: dict[str, list[_Call]] = {layer.name: [] for layer in layers}
    projecting = _by_projection(layers, leaves)

    def note(name: str, inputs: Tensor, output: Tensor) -> None:
        if differentiable:
            output.requires_grad_()
        calls[name].append(_Call(inputs, output, output.grad_fn, (inputs._version, output._version), plain=True))

    def project(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        output = F.linear(inputs, weight, bias)
        if id(weight) in projecting:
            note(projecting[id(weight)], inputs, output)
        return output

    def record(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            tensors = len(args) == 1 and not kwargs and isinstance(args[0], Tensor) and isinstance(output, Tensor)
            if tensors and not within_transform(output):
                note(name, args[0], output)
            else:
                calls[name].append(_Call(torch.empty(0), torch.empty(0), None, (0, 0), plain=False))

        return hook

    handles = [
        layer.module.register_forward_hook(record(layer.name), with_kwargs=True)
        for layer in layers
        if not isinstance(layer.module, nn.MultiheadAttention)  # its call is more than its projection
    ]
    try:
        with OpenAttention(project):
            yield calls
    finally:
        for handle in handles:
            handle.remove()
