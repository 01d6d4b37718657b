"""Parameters from files of others: state_dicts, trainers' checkpoints, safetensors and NumPy archives.

Files are read as tensors and plain data, never as code. What was chosen in them is said: the entry that was read, the
prefix that was taken off the names, the entries that were left.
"""

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from analysis.errors import some
from analysis.model_copy import rounded
from flatlab.errors import UsageError
from flatlab.measuring.weight_files import ADVICE, read_weights
from flatlab.runs.checkpoint import fill, versioned

ENTRIES = ("state_dict", "model_state_dict", "model", "net", "network", "weights", "params")
"""Names under which trainers keep the parameters, the likeliest first."""

WRAPPERS = ("module", "_orig_mod", "model", "net", "network", "_forward_module")
"""Prefixes of wrappers around the model."""

_COMPILED = "_orig_mod."
_OF_A_LOSS = re.compile(r"(^|_)(loss|criterion)", re.IGNORECASE)
_DEPTH = 3  # dictionaries in dictionaries that are looked through


@dataclass(frozen=True)
class _Found:
    """Tensors that fit the model."""

    tensors: Mapping[str, Tensor]  # by the model's names
    entry: tuple[str, ...]  # where in the file
    prefix: str
    left: tuple[str, ...]  # names beside them


def load_weights(model: nn.Module, path: Path, named: str) -> list[str]:
    """Load the file's parameters into the model, and return what there is to say of it, a sentence each.

    `named` is what the model is called. Raises `UsageError` for a file that cannot be read safely, or does not fit.
    """
    content = read_weights(path)
    complaint = f"The weights {path} do not fit the model {named}"
    if isinstance(content, list) and content and all(isinstance(array, Tensor) for array in content):
        found = _Found(_in_order(model, content, complaint), (), "", ())
    else:
        found = _chosen(model, content, path, complaint)
    state = nn.Module.state_dict(model)  # whatever of it a model's own leaves out
    for name, tensor in found.tensors.items():
        _require_numbers(tensor, state[name], name, path)
    own, kept = _extra_states(state, found, content)
    fill(model, versioned({**found.tensors, **own}, _metadata(found, content)), complaint)
    narrower = [
        tensor
        for name, tensor in found.tensors.items()
        if isinstance(tensor, Tensor) and state[name].dtype.itemsize < tensor.dtype.itemsize
    ]
    sentences = list(_sentences(found, path))
    if kept:
        sentences.append(f"{path} lacks {some(kept, 3)}: the model's own stays.")
    if any(map(rounded, narrower)):
        sentences.append(f"The float64 weights of {path} are rounded to float32; --dtype float64 keeps them.")
    return sentences


def _holder(found: _Found, content: Any) -> Any:
    """The dictionary that the tensors were found in."""
    for word in found.entry:
        content = content[word]
    return content


def _extra_states(state: Mapping[str, Any], found: _Found, content: Any) -> tuple[dict[str, Any], list[str]]:
    """What modules keep beside tensors (`get_extra_state`), as the file has it; and the names of those it lacks."""
    wanted = [name for name, value in state.items() if not isinstance(value, Tensor)]
    holder, prefix = _holder(found, content), found.prefix.removeprefix(_COMPILED)
    there = {key.replace(_COMPILED, ""): value for key, value in holder.items()} if isinstance(holder, Mapping) else {}
    own = {name: there[prefix + name] for name in wanted if prefix + name in there}
    return own, [name for name in wanted if name not in own]


def _metadata(found: _Found, content: Any) -> dict[str, Any]:
    """The versions of the modules that wrote the tensors, by the model's names, where the file has them."""
    translated = getattr(found.tensors, "_metadata", None)  # as the model has it, by `_renamed`
    if translated is not None:
        return dict(translated)
    kept, prefix = getattr(_holder(found, content), "_metadata", None), found.prefix.removeprefix(_COMPILED)
    if not isinstance(kept, Mapping):
        return {}
    plain = {key.replace(_COMPILED, "").removesuffix("_orig_mod"): value for key, value in kept.items()}
    named = {f"{key}.".removeprefix(prefix).rstrip("."): value for key, value in plain.items() if _within(key, prefix)}
    return {name: dict(value) for name, value in named.items() if isinstance(value, Mapping)}


def _within(module: object, prefix: str) -> bool:
    return isinstance(module, str) and (not prefix or f"{module}.".startswith(prefix))


def _in_order(model: nn.Module, arrays: Sequence[Tensor], complaint: str) -> dict[str, Tensor]:
    """Arrays as `model.state_dict()` or `model.parameters()` lists them, the latter each tied one once."""
    state = {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    names = list(state)
    if len(arrays) != len(names):
        names = [name for name, _ in model.named_parameters()]
        buffers = state.keys() - {name for name, _ in model.named_parameters(remove_duplicate=False)}
        if len(arrays) != len(names) or any(_is_inexact(state[name]) for name in buffers):
            raise UsageError(f"{complaint}: it has {len(state)} tensors, the file {len(arrays)} arrays.")
    for place, (name, array) in enumerate(zip(names, arrays, strict=True)):
        if array.shape != state[name].shape:
            raise UsageError(
                f"{complaint}: array {place} has shape {tuple(array.shape)}, {name} {tuple(state[name].shape)}."
            )
    return _with_tied(model, dict(zip(names, arrays, strict=True)), names)


def _chosen(model: nn.Module, content: Any, path: Path, complaint: str) -> _Found:
    """The one set of tensors in the file that fits the model, by its usual name where several do."""
    sets = list(_tensor_sets(content))
    if not sets:
        raise UsageError(f"{path} holds something else than a state_dict. {ADVICE}")
    found = [fit for entry, tensors in sets for fit in _fits(model, tensors, entry)]
    found = found or [fit for entry, tensors in sets for fit in _renamed(model, tensors, entry)]
    if not found:
        tensors = _stripped(max((tensors for _, tensors in sets), key=len), model.state_dict())
        fill(model, tensors, complaint)  # says what is missing, or of another shape
        raise UsageError(f"{complaint}: its names are others, such as {next(iter(tensors))}.")
    best = min(map(_rank, found))
    likeliest = [one for one in found if _rank(one) == best]
    if len(likeliest) > 1:
        places = " and ".join(repr(".".join((*one.entry, one.prefix)).rstrip(".")) for one in likeliest)
        raise UsageError(f"{path} holds several sets of weights that fit, {places}: save the one you mean on its own.")
    chosen = likeliest[0]
    others = [".".join((*one.entry, one.prefix)).rstrip(".") for one in found if one is not chosen]
    return _Found(chosen.tensors, chosen.entry, chosen.prefix, (*chosen.left, *filter(None, others)))


def _tensor_sets(content: Any, entry: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Every dictionary in the file that holds tensors by name, and where it is."""
    if not isinstance(content, Mapping) or len(entry) > _DEPTH:
        return
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if tensors:
        yield entry, tensors
    for key, value in content.items():
        if isinstance(key, str) and not key.startswith("optim"):  # whose averages go by the names of the weights
            yield from _tensor_sets(value, (*entry, key))


def _fits(model: nn.Module, tensors: Mapping[str, Tensor], entry: tuple[str, ...]) -> Iterator[_Found]:
    """The tensors by the model's names, for every prefix under which all of these are found."""
    compiled = any(_COMPILED in name for name in tensors)
    plain = {name.replace(_COMPILED, ""): tensor for name, tensor in tensors.items()}
    state = nn.Module.state_dict(model, keep_vars=True)
    needed = _needed(state)
    prefixes = {name.removesuffix(own) for own in needed[0] for name in plain if ("." + name).endswith("." + own)}
    for prefix in sorted(prefixes):
        own = {name: plain[prefix + name] for name in state if prefix + name in plain}
        left = tuple(name for name in plain if name.removeprefix(prefix) not in own or not name.startswith(prefix))
        if any(name.startswith(prefix) and not _is_beside(name.removeprefix(prefix), state) for name in left):
            continue  # more of this model than the model has
        own = {name: tensor for name, tensor in own.items() if tensor.shape == state[name].shape}
        if all(any(name in own for name in names) for names in needed):
            yield _Found(_with_tied(model, own, list(own)), entry, (_COMPILED if compiled else "") + prefix, left)


def _renamed(model: nn.Module, tensors: Mapping[str, Tensor], entry: tuple[str, ...]) -> Iterator[_Found]:
    """The tensors under names that the model's modules translate as they load: torch's former weight normalisation."""
    for prefix in ("", *(f"{wrapper}." for wrapper in WRAPPERS)):
        own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        try:
            twin = copy.deepcopy(model)
            twin.load_state_dict(own)
        except (
            RuntimeError,
            TypeError,
            ValueError,
            AttributeError,
            LookupError,
        ):  # they do not fit, or it cannot be copied
            continue
        yield _Found(twin.state_dict(), entry, prefix, tuple(name for name in tensors if not name.startswith(prefix)))
        return


def _is_beside(name: str, state: Mapping[str, Tensor]) -> bool:
    """Whether a name that the model lacks belongs to a loss, or to another copy of the model."""
    return bool(_OF_A_LOSS.search(name.split(".")[0])) or any(name.endswith("." + own) for own in state)


def _stripped(tensors: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without the prefix under which most of the model's names are found."""
    plain = {name.replace(_COMPILED, ""): tensor for name, tensor in tensors.items()}
    prefixes = {name.removesuffix(own) for name in plain for own in state if name == own or name.endswith("." + own)}
    best = max(sorted(prefixes), key=lambda prefix: sum(prefix + own in plain for own in state), default="")
    return {name.removeprefix(best): tensor for name, tensor in plain.items() if name.startswith(best)}


def _needed(state: Mapping[str, Tensor]) -> list[list[str]]:
    """The names of every tensor of the model, of which a file must have one; it may lack the counters of batch norm."""
    names: dict[int, list[str]] = {}
    for name, tensor in state.items():
        if isinstance(tensor, Tensor) and not name.endswith("num_batches_tracked"):
            names.setdefault(id(tensor), []).append(name)
    return list(names.values()) or [[]]


def _with_tied(model: nn.Module, tensors: Mapping[str, Tensor], given: Sequence[str]) -> dict[str, Tensor]:
    """The tensors, and those that are tied to them, which some formats leave out."""
    state = nn.Module.state_dict(model, keep_vars=True)
    by_identity: dict[int, Tensor] = {}
    for name in given:
        earlier = by_identity.setdefault(id(state[name]), tensors[name])
        if earlier is not tensors[name] and not torch.equal(earlier, tensors[name]):
            raise UsageError(f"The model ties {name} to another tensor, but the file has different values for the two.")
    return {
        name: tensors.get(name, by_identity.get(id(tensor), tensor.detach())) if isinstance(tensor, Tensor) else tensor
        for name, tensor in state.items()
    }


def _rank(found: _Found) -> tuple[int, int, int]:
    """How far a place in the file is from where weights usually are."""
    unusual = sum(word not in WRAPPERS for word in found.prefix.rstrip(".").split(".") if word)
    places = [ENTRIES.index(word) if word in ENTRIES else len(ENTRIES) for word in found.entry]
    return max(places, default=-1) + 1, unusual, found.prefix.count(".")


def _require_numbers(tensor: Any, own: Any, name: str, path: Path) -> None:
    """Refuse what is no ordinary tensor of finite numbers of the kind that the model's `own` are."""
    if not isinstance(tensor, Tensor) or not isinstance(own, Tensor):
        return
    foreign = tensor.is_complex() and not own.is_complex()
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized or foreign:
        raise UsageError(f"{name} in {path} is a sparse, complex, quantised or empty tensor; save it as plain numbers.")
    if _is_inexact(own) and not _is_inexact(tensor):  # codes of a quantiser, or a mask: its scale is not with them
        raise UsageError(
            f"{name} in {path} is {_kind(tensor)}, but in the model {_kind(own)}, whose values whole numbers are not: "
            "save the parameters themselves."
        )
    loaded = tensor.to(own.dtype if _is_inexact(own) else torch.float64)
    if not bool(loaded.isfinite().all()):
        if bool(tensor.isfinite().all()):
            raise UsageError(f"{name} in {path} has entries that are beyond {_kind(own)}: measure in float64.")
        raise UsageError(f"{name} in {path} has entries that are not finite; curvature needs finite weights.")


def _is_inexact(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _sentences(found: _Found, path: Path) -> Iterator[str]:
    if found.entry:
        yield f"The weights were read from the entry {'.'.join(found.entry)!r} of {path}."
    if found.prefix:
        yield f"The prefix {found.prefix!r} was taken off the names in {path}."
    if found.left:
        yield f"Beside the model's weights, {path} holds {some(found.left, 3)}, left unread."
    low = {_kind(t) for t in found.tensors.values() if _is_low(t)}
    if low:
        yield f"The {' and '.join(sorted(low))} weights of {path} are raised to float32, exactly."


def _is_low(tensor: Any) -> bool:
    return isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.dtype.itemsize < 4
