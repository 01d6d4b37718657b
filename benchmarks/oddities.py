"""Content that is wrong by structure: a tree of tables, lists, numbers, texts and tensors with one node changed."""

import copy
import json
import os
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tomli_w
import torch
from torch import Tensor

CANARY = "canary"
"""A module in the current folder, and what it leaves there when it runs."""


class RunsCode:
    """What a hostile pickle holds."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (CANARY,)


def mutate(content: Any, odd: Callable[[Any, random.Random], Any], rng: random.Random) -> tuple[Any, str]:
    """Return a copy of the tree `content` with one node changed, and what was done where."""
    content = copy.deepcopy(content)
    parent: Any = None
    key: Any = None
    node, path = content, ""
    while isinstance(node, dict | list) and node and (parent is None or rng.random() < 0.75):
        parent, key = node, rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
        node = parent[key]
        path += f".{key}"
    if parent is None:
        return odd(node, rng), "whole"
    action = rng.choice(("replace", "replace", "replace", "remove", "wrap", "repeat", "add"))
    if action == "remove":
        del parent[key]
    elif action == "wrap":
        parent[key] = rng.choice(([node], {"x": node}))
    elif action == "repeat" and isinstance(parent, list):
        parent.insert(key, copy.deepcopy(node))
    elif action == "add" and isinstance(parent, dict):
        parent[rng.choice(("x", "", "a b", "__class__", "é"))] = odd(node, rng)
    else:
        parent[key] = odd(node, rng)
    return content, f"{action} {path}"


def odd_plain(value: Any, rng: random.Random) -> Any:
    """A value of another type, or one that makes no sense."""
    nested: Any = 1
    for _ in range(rng.choice((3, 50))):
        nested = [nested]
    near = [-value, value * 2, value * 1e9, value + 0.5, str(value)] if isinstance(value, int | float) else []
    odd: list[Any] = [
        True, False, 0, -1, 1, 2**31, 2**63, 10**30, -(10**30), 0.5, -0.5, 1e9, 1e308, -1e308, 5e-324,
        float("nan"), float("inf"), -float("inf"), "", "x", "nan", "\x00", "two\nlines", "a" * 5000, "\u202e",
        f"{CANARY}:run", "os:system", "../../etc/passwd", "<script>alert(1)</script>", r"\input{x}", "=1+1", "[/x]",
        [], {}, [[]], {"x": 1}, [None], nested, list(range(1000)), [-1], ["x"], [0.0], *near,
    ]  # fmt: skip
    return rng.choice(odd)


def odd_tensor(value: Any, rng: random.Random) -> Any:
    """As `odd_plain`, and for a tensor one of another kind, type, shape or of other numbers."""
    if not isinstance(value, Tensor) or rng.random() < 0.2:
        return rng.choice((odd_plain(value, rng), torch.zeros(2), {1: 2}, b"x", RunsCode(), 1 + 2j))
    return rng.choice(
        (
            lambda: value.to_sparse(),
            lambda: value.to("meta"),
            lambda: value.to(torch.complex64),
            lambda: value.to(torch.float64),
            lambda: value.to(torch.bfloat16),
            lambda: value.to(torch.int64),
            lambda: value.to(torch.float8_e4m3fn),
            lambda: torch.quantize_per_tensor(value.float(), 0.1, 0, torch.qint8),
            lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
            lambda: value.reshape(1, -1),
            lambda: value[:0] if value.dim() else value,
            lambda: torch.zeros(1).expand(10**6, 10**6),
            lambda: torch.full_like(value, float("nan")) if value.is_floating_point() else value,
            lambda: torch.full_like(value, float("inf")) if value.is_floating_point() else value,
            lambda: value * 1e30,
            lambda: torch.full_like(value, -1),
            lambda: value.clone().requires_grad_() if value.is_floating_point() else value,
        )
    )()


def toml_text(content: Any) -> str:
    """The content as TOML; what has no form there is left out."""
    return tomli_w.dumps(_without_none(content if isinstance(content, dict) else {"x": content}))


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _without_none(v) for k, v in value.items() if v is not None}
    return [_without_none(v) for v in value if v is not None] if isinstance(value, list) else value


def json_text(content: Any) -> str:
    """The content as JSON."""
    return json.dumps(content)


def scarred(text: str, rng: random.Random) -> str:
    """Rarely, a text that no tree gives: numbers of thousands of digits, deep nesting, no text at all."""
    draw = rng.random()
    if draw < 0.02:
        return text.replace("1", "9" * 5000, 1)
    if draw < 0.04:
        return text.rstrip("}\n") + rng.choice(("[" * 100_000, '{"x":' * 50_000, "\x00", "\ud7ff"))
    return text


def write_mutated(path: Path, content: Any, rng: random.Random) -> str:
    """Write a mutation of tensors and plain data as `torch.save` does; returns what was done."""
    while True:
        try:
            with warnings.catch_warnings(action="ignore"):  # about kinds of tensors that are not finished
                mutated, what = mutate(content, odd_tensor, rng)
                torch.save(mutated, path)
        except Exception:  # some kinds of tensors have no form in a file
            continue
        return what
