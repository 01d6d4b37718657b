"""In which arithmetic clients train, and that nothing else is touched by it."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from flatlab.errors import UsageError
from flatlab.federated.config import make_config
from flatlab.federated.engine.base import Engine
from flatlab.federated.engine.batched import BatchedEngine
from flatlab.federated.engine.process import ProcessEngine
from flatlab.federated.engine.sequential import SequentialEngine
from flatlab.federated.execution import Execution, carry_out
from flatlab.federated.man import penalty_terms
from flatlab.federated.participants import most_participants
from flatlab.federated.precision import arithmetic, missing_kernels
from flatlab.federated.rounds import Run
from flatlab.federated.world import World

CPU = torch.device("cpu")
CNN: dict[str, Any] = {
    "sizes": (9, 14, 11, 6), "shape": (3, 20, 20), "model": "cifar-cnn", "augment": True, "dtype": "float32",
    "batch_size": 5, "lr": 0.05, "rounds": 3, "algorithm": "feddc", "man": True,
}  # fmt: skip


def after_a_round(world: World, folder: Path, engine: Engine) -> Run:
    run = Run(world, folder)
    with engine:
        run.advance(engine)
    return run


class Watched(TorchDispatchMode):
    """Sees what kernels are asked for."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtypes: set[torch.dtype] = set()
        self.rounded = False

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        tensors = [a for a in args if isinstance(a, Tensor)]
        if any(name in str(func) for name in ("convolution", "mm")):
            self.dtypes |= {t.dtype for t in tensors}
        self.rounded |= any(t.dtype == torch.bfloat16 for t in tensors)
        return func(*args, **(kwargs or {}))


def convolutions() -> tuple[str, str]:
    """How float32 convolutions are multiplied now, on a GPU and on a CPU."""
    return torch.backends.cudnn.conv.fp32_precision, torch.backends.mkldnn.conv.fp32_precision  # type: ignore[attr-defined]


@pytest.mark.parametrize(("precision", "inside"), [("ieee", "ieee"), ("bf16", "ieee"), ("tf32", "tf32")])
def test_a_clients_passes_see_the_precision_and_the_caller_does_not(
    precision: str, inside: str, toy_world: Callable[..., World], tmp_path: Path
) -> None:
    world = toy_world(**CNN, precision=precision)
    engine = SequentialEngine(world)
    seen = []

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append((convolutions(), output.dtype, torch.is_grad_enabled()))

    engine.model.conv1.register_forward_hook(record)  # type: ignore[union-attr]
    before = convolutions()
    with torch.autocast("cpu", torch.bfloat16):  # a caller's own, which must not reach a client
        run = after_a_round(world, tmp_path, engine)
        engine.evaluate([run.server.w])
    assert convolutions() == before
    training = {(switches, dtype) for switches, dtype, differentiated in seen if differentiated}
    assert training == {((inside, inside), torch.bfloat16 if precision == "bf16" else torch.float32)}
    evaluating = {(switches, dtype) for switches, dtype, differentiated in seen if not differentiated}
    assert evaluating == {(("ieee", "ieee"), torch.float32)}


def test_bf16_rounds_the_passes_alone(toy_world: Callable[..., World], tmp_path: Path) -> None:
    """Another model than in float32, near it, in float32; the same in worker processes and, to rounding, as a stack."""
    world, exact = toy_world(**CNN, precision="bf16"), toy_world(**CNN)
    run = after_a_round(world, tmp_path / "1", SequentialEngine(world))
    reference = after_a_round(exact, tmp_path / "2", SequentialEngine(exact))
    moved = (reference.server.w - Run(exact, tmp_path / "3").server.w).norm()
    assert run.server.w.dtype == torch.float32
    assert 0 < (run.server.w - reference.server.w).norm() < 0.2 * moved
    workers = ProcessEngine(world, 2, most_participants(world.config))
    assert torch.equal(after_a_round(world, tmp_path / "4", workers).server.w, run.server.w)
    stack = after_a_round(world, tmp_path / "5", BatchedEngine(world, CPU))
    assert (stack.server.w - reference.server.w).norm() < 0.2 * moved


def test_a_callers_autocast_does_not_keep_a_clients_first_weights(
    toy_world: Callable[..., World], tmp_path: Path
) -> None:
    world = toy_world(dtype="float32", precision="bf16", rounds=1)
    exact = after_a_round(world, tmp_path / "1", SequentialEngine(world)).server.w
    with torch.autocast("cpu", torch.bfloat16):
        ours = after_a_round(world, tmp_path / "2", SequentialEngine(world)).server.w
    assert torch.equal(ours, exact)


def test_man_keeps_its_exact_gradient_in_bf16() -> None:
    """What is added to the gradient of a is 2 a zeta / 2 / numel to within bfloat16's rounding, without a bias."""
    zeta = 0.2345
    a = torch.randn(20, 1000, generator=torch.Generator().manual_seed(0)).bfloat16().abs().requires_grad_()
    model = nn.ReLU()
    _, (term,) = penalty_terms(lambda x: model(x) + 0, a)  # type: ignore[arg-type]
    assert term.dtype == torch.float32
    (gradient,) = torch.autograd.grad(zeta / 2 * term, a)
    exact = a.detach().double() * zeta / a.numel()
    error = (gradient.double() - exact) / exact
    assert error.abs().max() <= 2**-8
    assert abs(error.mean().item()) < 1e-4


def test_arithmetic_is_restored_after_an_exception() -> None:
    before = convolutions()
    with pytest.raises(RuntimeError), arithmetic("tf32", CPU):
        raise RuntimeError
    assert convolutions() == before


def test_half_precision_and_float64_do_not_go_together() -> None:
    with pytest.raises(UsageError, match="precision = bf16 goes with dtype = float32, not float64"):
        make_config({"precision": "bf16", "dtype": "float64"})


@pytest.fixture
def plain_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """One without instructions for bfloat16."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)


@pytest.mark.usefixtures("plain_processor")
def test_only_a_processor_without_bfloat16_is_spoken_of() -> None:
    assert missing_kernels("ieee", CPU) == ""
    assert "emulated" in missing_kernels("bf16", CPU)
    assert missing_kernels("bf16", torch.device("cuda")) == ""


@pytest.mark.parametrize(("capability", "supported"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_tf32_is_spoken_of_where_it_is_ieee(
    capability: tuple[int, int], supported: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cpu, "_is_amx_fp16_supported", lambda: supported)
    said = "has no TF32 instructions: precision = tf32 is computed as ieee here"
    for device in (torch.device("cuda"), CPU):
        assert (said in missing_kernels("tf32", device)) != supported
        assert missing_kernels("ieee", device) == ""
    told: list[str] = []
    config = make_config({"precision": "tf32", "rounds": 1, "clients": 2})
    carry_out(config, tmp_path / "run", execution=Execution(workers=1), tell=told.append)
    assert any(said in line for line in told) != supported


def products(x: Tensor, kernel: Tensor, matrix: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    """A convolution, a linear layer and a stack of products, and a gradient's way back through them."""
    inputs = [t.detach().requires_grad_() for t in (x, kernel, matrix, bias)]
    y = F.conv2d(inputs[0], inputs[1], padding=1)
    z = F.linear(y.flatten(2), inputs[2], inputs[3])
    out = z @ z.transpose(1, 2)
    return y, z, out, *torch.autograd.grad(out.square().sum(), inputs)


@pytest.mark.usefixtures("plain_processor")
def test_emulated_bfloat16_rounds_what_float32_adds_up() -> None:
    draw = torch.Generator().manual_seed(0)
    a = torch.randn(4, 3, 9, 9, generator=draw), torch.randn(5, 3, 3, 3, generator=draw)
    rounded = [t.bfloat16() for t in (*a, torch.randn(7, 81, generator=draw), torch.randn(7, generator=draw))]
    with arithmetic("bf16", CPU):
        found = products(*rounded)
    exact = F.conv2d(rounded[0].float(), rounded[1].float(), padding=1)
    assert torch.equal(found[0], exact.bfloat16())
    for ours, theirs in zip(found, products(*rounded), strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours.double() - theirs.double()).norm() <= 2**-7 * theirs.double().norm()


@pytest.mark.usefixtures("plain_processor")
@pytest.mark.parametrize("stacked", [False, True])
def test_clients_train_in_emulated_bfloat16(stacked: bool, toy_world: Callable[..., World], tmp_path: Path) -> None:
    """Every product of a client's passes is one that float32's kernels made, and the model is bfloat16's."""
    world, exact = toy_world(**CNN, precision="bf16"), toy_world(**CNN)
    engine = BatchedEngine(world, CPU) if stacked else SequentialEngine(world)
    with Watched() as watched:
        run = after_a_round(world, tmp_path / "1", engine)
    reference = after_a_round(exact, tmp_path / "2", SequentialEngine(exact))
    moved = (reference.server.w - Run(exact, tmp_path / "3").server.w).norm()
    assert 0 < (run.server.w - reference.server.w).norm() < 0.2 * moved
    assert watched.dtypes == {torch.float32}
    assert watched.rounded
