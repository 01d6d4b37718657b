"""What a model keeps from a run: the loss of that run sees it, and the next run, which is to be as the first, does not.

The model that runs is a copy. A loss that reads what forward kept (a balance of experts in an attribute, an activation
that a hook noted) has the caller's model in hand, or whatever else was copied with it, and would read what an earlier
run left there: a constant.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import product
from types import MethodType
from typing import Any, Self

import torch
from torch import Tensor, nn

_TORCHS_OWN = set(vars(nn.Module())) - {"_buffers", "training"}
"""Attributes of a module that hold its parameters, parts and hooks."""

_CONTAINERS = (list, dict, set, deque)

Content = dict[Any, Any] | list[Any]
"""An object's attributes by name, or what a container holds."""

Hand = Mapping[int, Any]
"""By the id of what a copied model can write to: what it is a copy of."""

Place = tuple[Any, Any]
"""An object, and the name (key, index) under which it holds something."""


@dataclass(frozen=True)
class Left:
    """What a run wrote to one object."""

    thing: Any
    before: Content
    after: Content


@dataclass(frozen=True)
class State:
    """What a copied model can write to: its modules, whatever else was copied with them, and their containers."""

    own: Sequence[Any]
    hands: Sequence[Hand]  # the caller's; that of a loss, which is copied with the first copy of the model
    renewed: Sequence[Place] = ()  # tensors that are written to: each run is given copies of them

    @classmethod
    def of(cls, model: nn.Module, memo: dict[int, Any]) -> Self:
        """That of a copy, and of the memo that `copy.deepcopy` left of it."""
        copied = _copied(memo)
        own = _writable(model, [copy for _, copy in copied])
        return cls(own, [{id(copy): original for original, copy in copied}, {id(thing): thing for thing in own}])

    def copied(self, model: nn.Module, memo: dict[int, Any]) -> Self:
        """That of a copy of the copy."""
        copied = _copied(memo)
        hands = [{id(new): hand[id(old)] for old, new in copied if id(old) in hand} for hand in self.hands]
        new_of = {id(old): new for old, new in copied}
        renewed = [(new_of[id(thing)], name) for thing, name in self.renewed if id(thing) in new_of]
        return type(self)(_writable(model, [new for _, new in copied]), hands, renewed)

    def tensors(self) -> list[tuple[Place, Tensor]]:
        """Buffers, and whatever other dense tensors it holds that are no parameters."""
        return [
            ((thing, name), value)
            for thing in self.own
            if not isinstance(thing, set)  # which has no places
            for name, value in _items(_content(thing))
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter) and _is_dense(value)
        ]

    @contextmanager
    def forgotten(self) -> Iterator[list[Left]]:
        """Within the block the model may keep what it likes; afterwards all is as it was, and what it kept is listed.

        A cache of what was computed from parameters would be a constant in the next run: no derivative would go through
        it, and no other parameters would reach it. Tensors are not looked into, but for those that are `renewed`.
        """
        before = [(thing, _content(thing)) for thing in self.own]
        left: list[Left] = []
        try:
            self._renew()
            yield left
        finally:
            for thing, content in before:
                after = _content(thing)
                if _identities(after) != _identities(content):
                    left.append(Left(thing, content, after))
                    _write(thing, content)

    def renewing(self, clean: Sequence[tuple[Place, Tensor]]) -> Self:
        """The same with `clean` tensors in places that the model writes to, for every run to begin with."""
        for (thing, name), tensor in clean:
            _held_by(thing)[name] = tensor
        return replace(self, renewed=[place for place, _ in clean])

    def _renew(self) -> None:
        copies: dict[int, Tensor] = {}  # one of a tensor that is held in two places
        for thing, name in self.renewed:
            held = _held_by(thing)
            tensor = held[name]
            held[name] = copies.setdefault(id(tensor), tensor.detach().clone())

    @contextmanager
    def shown(self, left: Sequence[Left]) -> Iterator[None]:
        """Within the block, what a run left is in the hands of the caller and the loss, in place of what was there."""
        with ExitStack() as stack:
            for hand, one in product(self.hands, left):
                if id(one.thing) in hand:
                    place = hand[id(one.thing)]
                    content = _content(place)
                    stack.callback(_write, place, content)
                    _write(place, _with(one, content, hand))
            yield


def _copied(memo: dict[int, Any]) -> list[tuple[Any, Any]]:
    """Originals and their copies: `copy.deepcopy` lists the originals under the memo's own id.

    It lists the dictionaries of attributes too, which it copies on the way alone: an object's own, a module's by copy.
    """
    originals = memo.get(id(memo), [])
    attributes = {id(vars(x)) for x in originals if hasattr(x, "__dict__")}
    parts = {id(x._modules) for x in originals if isinstance(x, nn.Module)}
    things = [x for x in originals if not isinstance(x, dict) or id(x.get("_modules")) not in parts]
    copied = [(x, memo[id(x)]) for x in things if id(x) not in attributes and _can_be_written(memo[id(x)])]
    modules = [(old, new) for old, new in copied if isinstance(old, nn.Module)]
    return [*copied, *(pair for old, new in modules for pair in zip(*_held(old, new), strict=True))]


def _held(old: nn.Module, new: nn.Module) -> tuple[list[Any], list[Any]]:
    """The containers of a module and of its copy: one that copies itself leaves them out of the memo."""
    held = [one for one in _containers(old) if one in vars(new)]
    return [vars(old)[name] for name in held], [vars(new)[name] for name in held]


def _containers(module: nn.Module) -> list[str]:
    return [n for n, value in vars(module).items() if n not in _TORCHS_OWN and isinstance(value, _CONTAINERS)]


def _can_be_written(thing: Any) -> bool:
    if isinstance(thing, Tensor | torch.UntypedStorage | MethodType):  # a method shows its function's attributes
        return False
    return isinstance(thing, _CONTAINERS) or hasattr(thing, "__dict__")


def _writable(model: nn.Module, copied: Sequence[Any]) -> list[Any]:
    """All `copied`, and the modules with their containers."""
    modules = list(model.modules())
    found = {id(x): x for x in (*modules, *(vars(m)[name] for m in modules for name in _containers(m)), *copied)}
    torchs = {id(value) for m in modules for name, value in vars(m).items() if name in _TORCHS_OWN}
    return [x for at, x in found.items() if at not in torchs]


def _content(thing: Any) -> Content:
    if isinstance(thing, dict):
        return dict(thing)
    if isinstance(thing, _CONTAINERS):
        return list(thing)
    torchs = _TORCHS_OWN if isinstance(thing, nn.Module) else ()
    return {name: value for name, value in vars(thing).items() if name not in torchs}


def _held_by(thing: Any) -> Any:
    """What it holds, to be changed in place by name, key or index."""
    return thing if isinstance(thing, _CONTAINERS) else vars(thing)


def _is_dense(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not (tensor.is_nested or tensor.is_quantized or tensor.is_meta)


def _items(content: Content) -> Iterable[tuple[Any, Any]]:
    return content.items() if isinstance(content, dict) else enumerate(content)


def _identities(content: Content) -> list[int]:
    return [id(x) for x in ((*content.keys(), *content.values()) if isinstance(content, dict) else content)]


def _write(thing: Any, content: Any) -> None:
    """Make it an object's whole content."""
    if isinstance(thing, list | deque):
        thing.clear()
        thing.extend(content)
    elif isinstance(thing, set):
        thing.clear()
        thing.update(content)
    else:
        held = _held_by(thing)
        for name in set(_content(thing)) - set(content):
            del held[name]
        for name, value in content.items():
            held[name] = value


def _with(left: Left, content: Any, hand: Hand) -> Content:
    """What an object holds once it is left as its copy was."""

    def original(x: Any) -> Any:
        return hand.get(id(x), x)

    if isinstance(left.before, list) or isinstance(left.after, list):
        return [original(x) for x in left.after]
    before = {original(name): value for name, value in left.before.items()}
    after = {original(name): value for name, value in left.after.items()}
    kept = {name: value for name, value in content.items() if name in after or name not in before}
    written = {name: original(x) for name, x in after.items() if name not in before or x is not before[name]}
    return {**kept, **written}
