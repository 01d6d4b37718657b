"""The statements on a small network by dense matrices, every one made by differentiating the loss, in float64."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.func import hessian, jacrev, vmap
from torch.nn import functional as F

from analysis.calls import call
from analysis.theory.networks import is_piecewise_linear, modules_after, squared_lipschitz
from analysis.theory.statements import LEAST_BLOCK, ROUNDING, Check, exactly


@dataclass(frozen=True)
class DenseLayer:
    """What the statements need to know of one fully connected layer."""

    name: str
    linear: nn.Linear
    block: slice  # its place in theta, weight then bias
    inputs: Tensor  # (N, d_in), or (N, d_in + 1) with a bias: a~
    outputs: Tensor  # (N, d_out): s
    curvatures: Tensor  # (N, d_out, d_out): B_n
    after: Sequence[nn.Module]  # what s goes through on its way to the loss

    @property
    def norms(self) -> Tensor:
        """|a~_n|^2, (N,)."""
        return self.inputs.square().sum(1)

    @property
    def tops(self) -> Tensor:
        """max(lambda_max(B_n), 0), (N,)."""
        values: Tensor = torch.linalg.eigvalsh(self.curvatures)
        return values[:, -1].clamp(min=0)


@dataclass(frozen=True)
class DenseNetwork:
    """A chain of fully connected layers at one point, with the mean cross-entropy as its loss."""

    hessian: Tensor  # (p, p)
    gauss_newton: Tensor  # (p, p)
    layers: Sequence[DenseLayer]

    @cached_property
    def eigenvalues(self) -> Tensor:
        """Of the Hessian, ascending, (p,)."""
        values: Tensor = torch.linalg.eigvalsh(self.hessian)
        return values

    @property
    def norm(self) -> float:
        """Spectral norm of the Hessian."""
        return self.eigenvalues.abs().max().item()


def examine(model: nn.Sequential, x: Tensor, y: Tensor) -> DenseNetwork:
    """Differentiate `model` (float64) on inputs `x` (N, ...) with labels `y` (N,)."""
    return DenseNetwork(dense_hessian(model, x, y), _gauss_newton(model, x), list(examine_layers(model, x, y)))


def dense_hessian(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """d^2 L / d theta^2, (p, p)."""

    def loss(theta: Tensor) -> Tensor:
        return F.cross_entropy(_outputs(model, theta, x), y)

    matrix: Tensor = torch.autograd.functional.hessian(loss, _theta(model), vectorize=True)
    return (matrix + matrix.T) / 2


def kronecker_block(layer: DenseLayer) -> Tensor:
    """1/N sum_n (a~_n a~_n^T) (x) B_n, in the order of theta."""
    a, B = layer.inputs, layer.curvatures
    d_out, d_in, width = layer.linear.out_features, layer.linear.in_features, a.shape[1]
    block = torch.einsum("ni,nj,nab->aibj", a, a, B).reshape(d_out * width, d_out * width) / len(a)
    places = torch.arange(d_out * width).reshape(d_out, width)
    order = torch.cat([places[:, :d_in].reshape(-1), places[:, d_in:].reshape(-1)])
    return block[order][:, order]


def dense_checks(network: DenseNetwork, clients: Sequence[tuple[float, Tensor]] = ()) -> list[Check]:
    """Check every statement; `clients` are the shares p_k and the Hessians (p, p) of parts of the samples."""
    tops: list[float] = []
    checks: list[Check] = []
    for layer in network.layers:
        H = network.hessian[layer.block, layer.block]
        values = torch.linalg.eigvalsh(H)
        tops.append(values[-1].item())
        checks += _layer_checks(layer, H, values, max(values.abs().max().item(), LEAST_BLOCK * network.norm))
    return [*checks, *_network_checks(network, sum(tops), clients)]


def _layer_checks(layer: DenseLayer, H: Tensor, values: Tensor, scale: float) -> Iterator[Check]:
    top, norms, tops = exactly(values[-1].item()), layer.norms, layer.tops
    difference = float(torch.linalg.matrix_norm(H - kronecker_block(layer)))
    yield Check("K", layer.name, exactly(difference), exactly(0.0), scale)
    yield Check("A1", layer.name, top, exactly((norms * tops).mean().item()), scale)
    yield Check("A2", layer.name, top, exactly((norms.mean() * tops.max()).item()), scale)
    lipschitz2 = squared_lipschitz(layer.after, layer.outputs)
    if lipschitz2 is not None:
        yield Check("A3", layer.name, top, lipschitz2.times(norms.mean().item() / 2), scale)
    smallest = exactly(values[0].item())
    yield Check("P", layer.name, exactly(0.0), smallest, scale, is_piecewise_linear(layer.after))


def _network_checks(network: DenseNetwork, layers: float, clients: Sequence[tuple[float, Tensor]]) -> Iterator[Check]:
    """`layers` is sum_l lambda_max(H_ll)."""
    norm, m = network.norm, len(network.layers)
    top, smallest = exactly(network.eigenvalues[-1].item()), network.eigenvalues[0].item()
    yield Check("S1", "", top, exactly(layers), norm, claimed=smallest >= -ROUNDING * norm)
    G = network.gauss_newton
    G_layers = sum(_top(G[layer.block, layer.block]) for layer in network.layers)
    yield Check("S1 (G)", "", exactly(_top(G)), exactly(G_layers), norm)
    yield Check("S2", "", top, exactly(layers - (m - 1) * smallest), norm)
    if clients:
        yield Check("F", "", top, exactly(sum(p * _top(H) for p, H in clients)), norm)


def _top(matrix: Tensor) -> float:
    return float(torch.linalg.eigvalsh(matrix)[-1])


def examine_layers(model: nn.Sequential, x: Tensor, y: Tensor) -> Iterator[DenseLayer]:
    """The layers of `model` with their inputs and the curvatures at their outputs."""
    start = 0
    for name, module in model._modules.items():  # with modules that are used twice
        assert module is not None
        s = module(x)
        if isinstance(module, nn.Linear):
            size = sum(parameter.numel() for parameter in module.parameters())
            after = modules_after(model, name) or []
            inputs = torch.cat([x, x.new_ones(len(x), 1)], 1) if module.bias is not None else x
            curvatures = _output_curvatures(nn.Sequential(*after), s, y)
            place = slice(start, start + size)
            yield DenseLayer(name, module, place, inputs.detach(), s.detach(), curvatures, after)
            start += size
        x = s


def _output_curvatures(after: nn.Module, s: Tensor, y: Tensor) -> Tensor:
    """B_n = d^2 loss_n / ds^2 for every sample, (N, d_out, d_out)."""

    def loss(s: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(after(s[None]), y[None])

    curvatures: Tensor = vmap(hessian(loss))(s.detach(), y).detach()
    return curvatures


def _gauss_newton(model: nn.Module, x: Tensor) -> Tensor:
    """1/N sum_n J_n^T (diag(p_n) - p_n p_n^T) J_n with J = dz/dtheta, p = softmax(z); (p, p)."""
    theta = _theta(model)

    def logits(theta: Tensor, x: Tensor) -> Tensor:
        return _outputs(model, theta, x[None])[0]

    J = vmap(jacrev(logits), in_dims=(None, 0))(theta, x).detach()
    p = F.softmax(_outputs(model, theta, x), dim=1).detach()
    S = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    return torch.einsum("nci,ncd,ndj->ij", J, S, J) / len(x)


def _theta(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])


def _outputs(model: nn.Module, theta: Tensor, x: Tensor) -> Tensor:
    """The logits (N, C) with parameters `theta` (p,)."""
    named = dict(model.named_parameters())
    pieces = theta.split([parameter.numel() for parameter in named.values()])
    replaced = {name: piece.view_as(p) for (name, p), piece in zip(named.items(), pieces, strict=True)}
    logits: Tensor = call(model, replaced, (x,))
    return logits
