"""What a model keeps from a run: the loss of that run sees it, and the next run, which is to be as the first, does not.

The model that runs is a copy. A loss that reads what forward kept (a balance of experts in an attribute, an activation
that a hook noted) has the caller's model in hand, or whatever else was copied with it, and would read what an earlier
run left there: a constant.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
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
        return type(self)(_writable(model, [new for _, new in copied]), hands)

    @contextmanager
    def forgotten(self) -> Iterator[list[Left]]:
        """Within the block the model may keep what it likes; afterwards all is as it was, and what it kept is listed.

        A cache of what was computed from parameters would be a constant in the next run: no derivative would go through
        it, and no other parameters would reach it. Tensors are not looked into.
        """
        before = [(thing, _content(thing)) for thing in self.own]
        left: list[Left] = []
        try:
            yield left
        finally:
            for thing, content in before:
                after = _content(thing)
                if _identities(after) != _identities(content):
                    left.append(Left(thing, content, after))
                    _write(thing, content)

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
    """Originals and their copies: `copy.deepcopy` lists the originals under the memo's own id."""
    originals = memo.get(id(memo), [])
    attributes = {id(vars(thing)) for thing in originals if hasattr(thing, "__dict__")}  # copied on the way alone
    return [(x, memo[id(x)]) for x in originals if id(x) not in attributes and _can_be_written(memo[id(x)])]


def _can_be_written(thing: Any) -> bool:
    if isinstance(thing, Tensor | torch.UntypedStorage | MethodType):  # a method shows its function's attributes
        return False
    return isinstance(thing, _CONTAINERS) or hasattr(thing, "__dict__")


def _writable(model: nn.Module, copied: Sequence[Any]) -> list[Any]:
    """All `copied`, and the modules with their containers, which one that copies itself has outside of the memo."""
    modules = list(model.modules())
    kept = [value for m in modules for name, value in vars(m).items() if name not in _TORCHS_OWN]
    found = {id(x): x for x in (*modules, *(x for x in kept if isinstance(x, _CONTAINERS)), *copied)}
    torchs = {id(value) for m in modules for name, value in vars(m).items() if name in _TORCHS_OWN}
    return [x for at, x in found.items() if at not in torchs]


def _content(thing: Any) -> Content:
    if isinstance(thing, dict):
        return dict(thing)
    if isinstance(thing, _CONTAINERS):
        return list(thing)
    torchs = _TORCHS_OWN if isinstance(thing, nn.Module) else ()
    return {name: value for name, value in vars(thing).items() if name not in torchs}


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
        held = thing if isinstance(thing, dict) else vars(thing)
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
