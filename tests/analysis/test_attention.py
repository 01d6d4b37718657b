"""Self-attention is cut at its projections, and its blocks are the dense ones; so are those of transformers' Conv1D."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from analysis.attention import OpenAttention
from analysis.layer_blocks import LayerBlocks
from analysis.problem import Problem, make_problem

N, T, WIDTH, HEADS = 5, 3, 4, 2


def dense(problem: Problem, inputs: Tensor, y: Tensor) -> Mapping[tuple[str, str], Tensor]:
    """Every block of the Hessian by pairs of parameters, by autograd on all samples at once."""
    names = list(problem.parameters)

    def loss(*pieces: Tensor) -> Tensor:
        return F.cross_entropy(problem.outputs(((inputs,), y), dict(zip(names, pieces, strict=True))), y)

    parts: Any = torch.autograd.functional.hessian(loss, tuple(problem.parameters.values()))
    return {(a, b): parts[i][j].flatten(0, problem.parameters[a].dim() - 1).flatten(1)
            for i, a in enumerate(names) for j, b in enumerate(names)}  # fmt: skip


def assert_blocks(problem: Problem, inputs: Tensor, y: Tensor) -> LayerBlocks:
    exact, blocks = dense(problem, inputs, y), LayerBlocks(problem)
    for name, layer in blocks.layers.items():
        own = [full for full in problem.parameters if full in layer.parameters.values()]
        found = blocks({name: torch.eye(blocks.size(name), dtype=torch.float64)})[name]
        expected = torch.cat([torch.cat([exact[a, b] for b in own], 1) for a in own])
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    return blocks


class Attending(nn.Module):
    """Attention as its options have it, between two layers."""

    def __init__(self, batch_first: bool = True, given: str = "self", calls: int = 1, **options: Any) -> None:
        super().__init__()
        self.enter = nn.Linear(WIDTH, WIDTH)
        self.attend = nn.MultiheadAttention(WIDTH, HEADS, batch_first=batch_first, **options)
        self.leave = nn.Linear(WIDTH, 3)
        self.batch_first, self.given, self.calls = batch_first, given, calls
        self.need_weights, self.average = False, True
        self.attn_mask: Tensor | None = None
        self.padded = self.causal = False

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.enter(x))
        if not self.batch_first:
            x = x.transpose(0, 1)
        padding = torch.arange(T).ge(T - 1).expand(N, T)[: x.shape[0 if self.batch_first else 1]]
        key = x if self.given == "self" else torch.sin(x)
        for _ in range(self.calls):
            mixed, weights = self.attend(
                x, key, key, need_weights=self.need_weights, attn_mask=self.attn_mask, is_causal=self.causal,
                key_padding_mask=padding if self.padded else None, average_attn_weights=self.average,
            )  # fmt: skip
            x = key = x + mixed
        z: Tensor = self.leave(x.mean(1 if self.batch_first else 0))
        return z if weights is None else z + 0.3 * weights.square().sum((-1, -2)).reshape(len(z), -1).sum(1)[:, None]


def problem_of(model: nn.Module) -> tuple[Problem, Tensor, Tensor]:
    x = torch.randn(N, T, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.arange(N) % 3
    return make_problem(model, "cross_entropy", (x, y), dtype=torch.float64, chunk_size=2), x, y


ATTENTION = ["attend", "attend.out_proj"]
CAUSAL = torch.ones(T, T).triu(1).bool()


@settings(max_examples=8)
@given(
    batch_first=st.booleans(),
    bias=st.booleans(),
    need_weights=st.booleans(),
    average=st.booleans(),
    mask=st.sampled_from(["none", "boolean", "added", "causal"]),
    padded=st.booleans(),
)
def test_blocks_of_self_attention(
    batch_first: bool, bias: bool, need_weights: bool, average: bool, mask: str, padded: bool
) -> None:
    torch.manual_seed(1)
    model = Attending(batch_first, bias=bias, dropout=0.2)
    model.need_weights, model.average, model.padded = need_weights, average, padded
    added = torch.zeros(T, T, dtype=torch.float64).masked_fill(CAUSAL, -torch.inf) + 0.1 * torch.eye(T).double()
    model.attn_mask = {"none": None, "added": added}.get(mask, CAUSAL)
    if mask == "added" and padded:
        model.attn_mask = CAUSAL  # torch wants both masks of one kind
    model.causal = mask == "causal"
    blocks = assert_blocks(*problem_of(model))
    assert set(ATTENTION) <= set(blocks._cut)
    for name in ATTENTION:
        assert list(blocks.suffixes(name))


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        ({"given": "other"}, {}),
        ({"calls": 2}, {}),
        ({"add_bias_kv": True}, {}),
        ({"add_zero_attn": True}, {}),
        ({"kdim": WIDTH, "vdim": 2}, {}),
    ],
    ids=str,
)
def test_what_cannot_be_cut_there_has_the_same_blocks(options: dict[str, Any], changed: dict[str, Any]) -> None:
    torch.manual_seed(1)
    if "vdim" in options:

        class Apart(Attending):
            def forward(self, x: Tensor) -> Tensor:
                x = torch.tanh(self.enter(x))
                z: Tensor = self.leave((x + self.attend(x, x, x[..., :2])[0]).mean(1))
                return z

        blocks = assert_blocks(*problem_of(Apart(**options)))
    else:
        blocks = assert_blocks(*problem_of(Attending(**options)))
    assert "attend" not in blocks._cut
    assert {"enter", "leave"} <= set(blocks._cut)


def test_frozen_and_shared_weights() -> None:
    torch.manual_seed(1)
    frozen = Attending()
    frozen.attend.in_proj_weight.requires_grad_(False)
    frozen.attend.out_proj.bias.requires_grad_(False)
    assert set(ATTENTION) <= set(assert_blocks(*problem_of(frozen))._cut)
    tied = Attending()
    tied.leave = nn.Linear(WIDTH, WIDTH)
    tied.leave.weight = tied.attend.out_proj.weight
    blocks = assert_blocks(*problem_of(tied))
    assert "attend" in blocks._cut
    assert "attend.out_proj" not in blocks._cut


@pytest.mark.parametrize("norm_first", [False, True])
def test_every_layer_of_an_encoder_is_cut(norm_first: bool) -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 5, batch_first=True, norm_first=norm_first)
            self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
            self.head = nn.Linear(WIDTH, 3)

        def forward(self, x: Tensor) -> Tensor:
            z: Tensor = self.head(self.layers(x, nn.Transformer.generate_square_subsequent_mask(T).to(x)).mean(1))
            return z

    torch.manual_seed(0)
    blocks = assert_blocks(*problem_of(Encoder()))
    assert len(blocks.layers) == 13
    assert blocks._cut == list(blocks.layers)


@settings(max_examples=20)
@given(
    need_weights=st.booleans(),
    average=st.booleans(),
    mask=st.sampled_from(["none", "boolean", "by head", "all"]),
    causal=st.booleans(),
    padded=st.booleans(),
)
def test_what_is_computed_in_its_place_is_the_same(
    need_weights: bool, average: bool, mask: str, causal: bool, padded: bool
) -> None:
    """Also where a row is masked altogether, and where the mask is not the causal one that it is said to be."""
    torch.manual_seed(0)
    attend = nn.MultiheadAttention(WIDTH, HEADS).double().eval()
    x = torch.randn(T, N, WIDTH, dtype=torch.float64)
    by_head = (torch.rand(N * HEADS, T, T) < 0.3) & ~torch.eye(T).bool()
    masks = {"none": None, "boolean": ~torch.eye(T).bool(), "by head": by_head, "all": torch.ones(T, T).bool()}
    options = {
        "need_weights": need_weights, "average_attn_weights": average, "attn_mask": masks[mask],
        "is_causal": causal and mask != "none",
        "key_padding_mask": torch.rand(N, T) < 0.3 if padded else None,
    }  # fmt: skip
    seen = []

    def project(a: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        seen.append(weight.shape)
        return F.linear(a, weight, bias)

    theirs = attend(x, x, x, **options)
    with OpenAttention(project):
        ours = attend(x, x, x, **options)
    assert seen == [(3 * WIDTH, WIDTH), (WIDTH, WIDTH)]
    torch.testing.assert_close(ours, theirs, equal_nan=True)


def test_conv1d_of_transformers() -> None:
    utils = pytest.importorskip("transformers.pytorch_utils")

    class Feed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = utils.Conv1D(6, WIDTH), utils.Conv1D(3, 6)

        def forward(self, x: Tensor) -> Tensor:
            z: Tensor = self.down(F.gelu(self.up(x))).mean(1)
            return z

    torch.manual_seed(0)
    blocks = assert_blocks(*problem_of(Feed()))
    assert blocks._cut == ["up", "down"]
