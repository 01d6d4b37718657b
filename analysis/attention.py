"""`nn.MultiheadAttention` opened up: its two projections, linear in their weights, as calls that can be seen.

torch runs them inside one function, with the weights of a module that never runs (`out_proj`). What is computed here in
its place is the same, for attention of a sequence to itself; anything else goes to torch's function as ever.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from analysis.function_mode import FunctionMode

Project = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(inputs, weight, bias) -> inputs W^T + bias."""

_SIGNATURE = inspect.signature(F.multi_head_attention_forward)


class OpenAttention(FunctionMode):
    """Within the block, self-attention projects by `project`."""

    def __init__(self, project: Project) -> None:
        super().__init__()
        self.project = project

    def _instead(self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if func is F.multi_head_attention_forward:
            call = _SIGNATURE.bind(*args, **kwargs)
            call.apply_defaults()
            if _is_plain(call.arguments):
                return _self_attention(self.project, **call.arguments)
        return func(*args, **kwargs)


def _is_plain(given: Mapping[str, Any]) -> bool:
    """Whether sequences attend to themselves, with one matrix for queries, keys and values, and nothing added."""
    query = given["query"]
    added = ("bias_k", "bias_v", "static_k", "static_v")
    return (
        query.dim() == 3
        and given["key"] is query
        and given["value"] is query
        and given["embed_dim_to_check"] == query.shape[-1]
        and not given["use_separate_proj_weight"]
        and not given["add_zero_attn"]
        and not (given["training"] and given["dropout_p"])
        and not (given["is_causal"] and given["attn_mask"] is None)  # torch has a sentence for it
        and all(given[name] is None for name in added)
    )


def _self_attention(
    project: Project,
    query: Tensor,  # (T, n, width)
    num_heads: int,
    in_proj_weight: Tensor,  # (3 width, width)
    in_proj_bias: Tensor | None,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    key_padding_mask: Tensor | None,  # (n, T)
    need_weights: bool,
    attn_mask: Tensor | None,  # (T, T) or (n num_heads, T, T)
    average_attn_weights: bool,
    is_causal: bool,
    **_: Any,
) -> tuple[Tensor, Tensor | None]:
    """softmax(Q K^T / sqrt(d) + mask) V by head, projected (Vaswani et al. 2017): (T, n, width), (n, [heads,] T, T)."""
    length, samples, width = query.shape
    packed = project(query, in_proj_weight, in_proj_bias).view(length, samples, 3, num_heads, width // num_heads)
    q, k, v = packed.permute(2, 1, 3, 0, 4)  # each (n, heads, T, d)
    causal = is_causal and key_padding_mask is None and not need_weights  # then torch does not look at the mask
    mask = None if causal else _added(attn_mask, query)
    if mask is not None and mask.dim() == 3:
        mask = mask.view(samples, num_heads, length, length)
    if key_padding_mask is not None:
        padding = _added(key_padding_mask, query)[:, None, None, :]  # type: ignore[index]
        mask = padding.expand(-1, num_heads, length, -1) if mask is None else mask + padding
    if need_weights:
        scores = q @ k.mT / math.sqrt(width // num_heads)
        weights = torch.softmax(scores if mask is None else scores + mask, -1)
        mixed = weights @ v
    else:
        weights, mixed = None, F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal)
    outputs = project(mixed.permute(2, 0, 1, 3).reshape(length, samples, width), out_proj_weight, out_proj_bias)
    return outputs, weights.mean(1) if weights is not None and average_attn_weights else weights


def _added(mask: Tensor | None, like: Tensor) -> Tensor | None:
    """A mask as what is added to scores: -inf where a boolean one is True."""
    if mask is None or mask.is_floating_point():
        return mask
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, -math.inf)


def projection_weight(module: nn.Module) -> str | None:
    """The name of the module's matrix that self-attention projects by, where it has one and nothing else that acts."""
    if type(module) is nn.MultiheadAttention:
        alone = module._qkv_same_embed_dim and module.bias_k is None and module.bias_v is None
        return "in_proj_weight" if alone else None
    return "weight" if type(module) is nn.modules.linear.NonDynamicallyQuantizableLinear else None
