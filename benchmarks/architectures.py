"""Products on networks of timm, beside plain double backward in float64: `python -m benchmarks architectures`.

timm imports torchvision, which is not among what `make` installs: run it where both are.
"""

import copy
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from analysis.errors import MeasurementError
from analysis.operators import hessian
from analysis.problem import make_problem

NAMES = (
    "test_resnet", "test_efficientnet", "test_efficientnet_gn", "test_efficientnet_evos", "test_byobnet", "test_nfnet",
    "test_convnext", "test_convnext3", "test_vit", "test_vit3", "test_vit_relpos", "test_maxvit", "test_coatnet",
    "test_mambaout", "mobilenetv3_small_050", "lcnet_050", "ghostnet_050", "tinynet_e", "starnet_s050", "regnetx_002",
    "repghostnet_050", "mobilevit_xxs", "edgenext_xx_small", "xcit_nano_12_p8_224", "levit_128s", "pit_ti_224",
    "pvt_v2_b0", "efficientvit_b0", "fastvit_t8",
)  # fmt: skip
"""Of most of timm's families one that is small."""

IMAGES, SIZE, CLASSES = 3, 64, 5


def main() -> None:
    """Print a row for each network."""
    import timm

    print(f"| timm {timm.__version__}, torch {torch.__version__} | parameters | product off by |\n|---|---:|---:|")
    for name in NAMES:
        torch.manual_seed(0)
        model = _made(timm, name).eval()
        x, y = torch.randn(IMAGES, 3, SIZE, SIZE), torch.randint(CLASSES, (IMAGES,))
        size = sum(parameter.numel() for parameter in model.parameters())
        print(f"| {name} | {size:,} | {_off(model, x, y)} |", flush=True)


def _made(timm: object, name: str) -> nn.Module:
    made = timm.create_model  # type: ignore[attr-defined]
    try:
        model: nn.Module = made(name, num_classes=CLASSES, img_size=SIZE)
    except TypeError:  # a convolutional network takes images of any size
        model = made(name, num_classes=CLASSES)
    return model


def _off(model: nn.Module, x: Tensor, y: Tensor) -> str:
    """How far a float32 product with a random vector is from the truth, as a share of it; or why there is none."""
    try:
        problem = make_problem(model, "cross_entropy", (x, y))
    except MeasurementError as error:
        return str(error)
    v = torch.randn(problem.size)
    found = hessian(problem)(v).double()
    known = _plain_product(copy.deepcopy(model).double(), x.double(), y, v.double())
    return f"{float((found - known).norm() / known.norm()):.1e}"


def _plain_product(model: nn.Module, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
    """By torch's own second derivatives, of operations that have one."""
    parameters = list(model.parameters())
    with sdpa_kernel(SDPBackend.MATH), patch.object(F, "hardsigmoid", lambda z, inplace=False: F.relu6(z + 3) / 6):
        loss = F.cross_entropy(model(x), y)
        slopes = torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)
    along = torch.cat([slope.flatten() for slope in slopes]) @ v
    images = torch.autograd.grad(along, parameters, materialize_grads=True)
    return torch.cat([image.flatten() for image in images])
