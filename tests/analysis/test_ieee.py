"""Products are IEEE float32 whatever the caller or the model has switched on, and the switches are put back."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from analysis.activations import forward_pass
from analysis.ieee import ieee
from analysis.layer_blocks import LayerBlocks
from analysis.objective import loss_and_gradient, loss_at
from analysis.operators import gauss_newton, hessian
from analysis.problem import Problem, make_problem
from analysis.pyhessian_backend import pyhessian_operator
from analysis.vectors import combine

SWITCHES = [("generic", "all"), *[(b, op) for b in ("cuda", "mkldnn") for op in ("all", "matmul", "conv", "rnn")]]
read, write = torch._C._get_fp32_precision_getter, torch._C._set_fp32_precision_setter


def switches() -> dict[Any, Any]:
    """All that torch has, and what each would be if the general one changed."""
    found: dict[Any, Any] = {switch: read(*switch) for switch in SWITCHES}
    for general in ("ieee", "tf32"):
        write("generic", "all", general)
        found |= {(general, *switch): read(*switch) for switch in SWITCHES[1:]}
    write("generic", "all", found["generic", "all"])
    for old in (torch.get_float32_matmul_precision, lambda: torch.backends.cudnn.allow_tf32):
        try:
            found[old] = old()
        except RuntimeError as error:  # old and new switches disagree
            found[old] = str(error)
    return {**{k if not callable(k) else i: v for i, (k, v) in enumerate(found.items())}, "autocast": autocast()}


def autocast() -> tuple[bool, bool]:
    return torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")


def arithmetic() -> set[Any]:
    """What holds here; {"ieee", False, "highest"} where all is right."""
    old = {torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32}
    return {read(*switch) for switch in SWITCHES} | old | set(autocast())


class Watched(torch.autograd.Function):
    """x -> x^2, which notes the arithmetic of its forward, first and second backward passes."""

    met: list[set[Any]] = []  # noqa: RUF012

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        Watched.met.append(arithmetic())
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        Watched.met.append(arithmetic())
        (x,) = ctx.saved_tensors
        slope: Tensor = Watched.apply(gradients[0] + x) - Watched.apply(gradients[0]) - x * x  # type: ignore[no-untyped-call]
        return slope


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.hidden, self.head = nn.Conv2d(1, 3, 3), nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).flatten(1)
        logits: Tensor = self.head(Watched.apply(torch.tanh(self.hidden(x))))  # type: ignore[no-untyped-call]
        return logits


def the_problem() -> Problem:
    torch.manual_seed(0)
    data = torch.randn(6, 1, 4, 4), torch.randint(3, (6,))
    return make_problem(Network(), "cross_entropy", data, chunk_size=3, memory=1)


def medium() -> None:
    torch.set_float32_matmul_precision("medium")


def tf32_in_new_switches() -> None:
    write("generic", "all", "tf32")


def a_mixture() -> None:
    torch.set_float32_matmul_precision("high")
    write("cuda", "conv", "ieee")
    write("mkldnn", "all", "bf16")
    write("cuda", "rnn", "tf32")


def nothing() -> None:
    pass


@pytest.fixture(params=[nothing, medium, tf32_in_new_switches, a_mixture])
def caller(request: Any) -> Any:
    """The switches as a caller may have set them; put back by hand."""
    as_usual()  # what torch begins with, a TF32 that follows, cannot be brought back once anything was written
    request.param()
    yield
    as_usual()


def as_usual() -> None:
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True
    for switch in SWITCHES:
        write(*switch, "tf32" if switch in (("cuda", "conv"), ("cuda", "rnn")) else "none")


MEASURES: dict[str, Callable[[Problem], Any]] = {
    "hessian": lambda p: hessian(p)(torch.ones(p.size)),
    "gauss_newton": lambda p: gauss_newton(p)(torch.ones(p.size)),
    "start": lambda p: hessian(p).start(),  # type: ignore[misc]
    "layers": lambda p: LayerBlocks(p)({"conv": torch.ones(1, 30)})["conv"],
    "starts": lambda p: LayerBlocks(p).starts()["conv"],
    "suffix": lambda p: next(LayerBlocks(p).suffixes("conv")).curve(torch.ones(3, 3, 2, 2)),
    "gradient": lambda p: loss_and_gradient(p)[1],
    "loss": lambda p: torch.tensor(loss_at(p, p.point())),
    "forward": lambda p: torch.tensor(forward_pass(p).loss),
    "pyhessian": lambda p: pyhessian_operator(p)(torch.ones(p.size)),
}


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("cast", [False, True])
def test_what_is_measured_is_ieee_from_within(caller: Any, measure: str, cast: bool) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=cast):
        before = switches()
        Watched.met.clear()
        MEASURES[measure](the_problem())
        assert len(Watched.met) > 2
        assert all(met == {"ieee", False, "highest"} for met in Watched.met)
        assert switches() == before


def test_numbers_are_the_same_under_every_setting(caller: Any) -> None:
    """On a CPU with bfloat16 instructions "medium" and autocast change a matrix product that is not protected."""
    problem = the_problem()
    rows = torch.randn(4, 300, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        found = [measure(problem) for measure in MEASURES.values()] + [combine(rows[:, :4], rows)]
    with ieee():
        expected = [measure(problem) for measure in MEASURES.values()] + [rows[:, :4] @ rows]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_autocast_of_the_model_itself_is_off() -> None:
    class Cast(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return super().forward(x).float()

    torch.manual_seed(0)
    model, data = Cast(5, 3), (torch.randn(6, 5), torch.randint(3, (6,)))
    plain = nn.Linear(5, 3)
    plain.load_state_dict(model.state_dict())
    found, expected = (hessian(make_problem(m, "cross_entropy", data))(torch.ones(18)) for m in (model, plain))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


def test_old_switches_can_be_read_within() -> None:
    with ieee():
        assert arithmetic() == {"ieee", False, "highest"}
        with torch.backends.cudnn.flags(enabled=False):  # reads them all and would raise where they disagree
            pass


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_products_of_a_cpu_in_float64() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.Flatten(), nn.Linear(4608, 10))
    data = torch.randn(16, 3, 16, 16), torch.randint(10, (16,))
    exact = make_problem(model, "cross_entropy", data, dtype=torch.float64)
    ours = make_problem(model, "cross_entropy", data, device="cuda")
    v = torch.randn(exact.size)
    for make in (hessian, gauss_newton):
        expected = make(exact)(v.double())
        error = (make(ours)(v).cpu().double() - expected).norm() / expected.norm()
        assert error < 2e-5  # TF32 is off by some 1e-3


def test_a_process_that_touched_no_switch_finds_them_as_they_were() -> None:
    """torch's own state at its start cannot be written; what is read afterwards must be the same, old switches too."""
    code = """
import torch
from analysis.ieee import ieee
read = torch._C._get_fp32_precision_getter
def state():
    pairs = [(b, op) for b in ("cuda", "mkldnn") for op in ("all", "matmul", "conv", "rnn")]
    return [read(*p) for p in pairs], torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
before = state()
for _ in range(2):
    with ieee():
        pass
    assert state() == before, (before, state())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
