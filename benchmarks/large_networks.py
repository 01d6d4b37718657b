"""Networks of the size that people bring, randomly initialised, with the data their loss is the mean over.

GPT-2 small as Radford et al. (2019) describe it, 124 million parameters, its embedding tied to its head, and the same
with half its width, words and tokens, which takes a quarter of the memory; ViT-tiny as Touvron et al. (2021),
in patches of 4 pixels; and the ResNet-18 with GroupNorm that flatlab trains.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.curvature_peers import Subject
from flatlab.data import load_images, normalise
from flatlab.federated.models import build_model

VOCABULARY, CONTEXT = 50257, 1024
SEQUENCES, TOKENS = 8, 128
IMAGES = 64


class Block(nn.Module):
    """Attention and an MLP, each on a normalised input and added to what came in."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, width) -> the same."""
        n, t, width = x.shape
        q, k, v = (part.view(n, t, self.heads, -1).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, dim=-1))
        scores = q @ k.transpose(-1, -2) * (width // self.heads) ** -0.5
        if self.causal:
            scores = scores.masked_fill(torch.ones_like(scores[0, 0], dtype=torch.bool).triu(1), -torch.inf)
        x = x + self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(n, t, width))
        hidden: Tensor = x + self.mlp(self.norm2(x))
        return hidden


class GPT(nn.Module):
    """A decoder whose head is its embedding."""

    def __init__(self, vocabulary: int, context: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads, causal=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.apply(_small)

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, T) -> logits (N, vocabulary, T)."""
        x = self.token(tokens) + self.place(torch.arange(tokens.shape[1], device=tokens.device))
        return F.linear(self.norm(self.blocks(x)), self.token.weight).transpose(1, 2)


class ViT(nn.Module):
    """An encoder of patches, read off at a class token."""

    def __init__(self, size: int, patch: int, classes: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.first = nn.Parameter(torch.zeros(1, 1, width))
        self.place = nn.Parameter(torch.randn(1, (size // patch) ** 2 + 1, width) * 0.02)
        self.blocks = nn.Sequential(*(Block(width, heads, causal=False) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)
        self.apply(_small)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, size, size) -> logits (N, classes)."""
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(len(x), -1, -1), x], dim=1) + self.place
        logits: Tensor = self.head(self.norm(self.blocks(x))[:, 0])
        return logits


def _small(module: nn.Module) -> None:
    """Weights of standard deviation 0.02, as both papers start from."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)


def _gpt2(vocabulary: int = VOCABULARY, tokens: int = TOKENS, width: int = 768) -> Subject:
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(vocabulary, (SEQUENCES, tokens + 1), generator=generator)
    return Subject(GPT(vocabulary, CONTEXT, width, 12, width // 64), text[:, :-1].clone(), text[:, 1:].clone())


def _on_images(model: nn.Module) -> Subject:
    data = load_images("cifar100").subset(IMAGES, None, 0)
    return Subject(model, normalise(data.train.images, data.mean, data.std), data.train.labels)


NETWORKS: Mapping[str, Callable[[], Subject]] = {
    "vit-tiny": lambda: _on_images(ViT(32, 4, 100, 192, 12, 3)),
    "resnet18-gn": lambda: _on_images(build_model("resnet18-gn", input_shape=(3, 32, 32), classes=100)),
    "gpt2-half": lambda: _gpt2(VOCABULARY // 2, TOKENS // 2, 384),
    "gpt2": _gpt2,
}


def make_network(name: str, device: torch.device) -> Subject:
    """The network with seed 0, and its data, moved to `device`: the same numbers on each."""
    torch.manual_seed(0)
    subject = NETWORKS[name]()
    return Subject(subject.model.to(device), subject.x.to(device), subject.y.to(device))
