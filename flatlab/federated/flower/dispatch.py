"""Who has which clients, what has been sent to whom, and what becomes of a round when a node dies."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from torch import Tensor

from flatlab.errors import FlatlabError, UsageError, shown
from flatlab.federated.flower.link import Link, Reply
from flatlab.federated.flower.messages import pack, unpack
from flatlab.tell import Tell

POLL_SECONDS = 0.1
"""Between two looks for replies."""

LOOK_SECONDS = 1.0
"""Between two looks for nodes that came or went."""

AGAIN_SECONDS = 5.0
"""Until a node that failed is asked again who it is."""

LOSSES = 5
"""How often in one round a client's node may be lost on its way before the round is given up."""

LISTED = 8
"""Clients that a sentence names."""


@dataclass(frozen=True)
class Home:
    """A node that said which clients it has."""

    name: str
    clients: frozenset[int]


@dataclass(frozen=True)
class Sent:
    """A message without a reply: clients' share of a round or, without clients, the question who a node is."""

    node: int  # Flower's number
    ids: tuple[int, ...] = ()  # ascending


@dataclass(frozen=True)
class Answer:
    """What a node sent back for its share of a round."""

    ids: tuple[int, ...]
    plain: dict[str, Any]
    tensors: dict[str, Tensor]


class Dispatch:
    """Brings messages to the nodes that have the clients; `look_after` is called every second, to mend what it can."""

    def __init__(self, link: Link, split: str, patience: float, tell: Tell, look_after: Callable[[], None]) -> None:
        self.link, self.split, self.patience, self.tell, self.look_after = link, split, patience, tell, look_after
        self.homes: dict[int, Home] = {}  # by Flower's number
        self.asked: dict[int, float] = {}  # nodes that were asked who they are, and when
        self.waiting: dict[str, Sent] = {}  # by message
        self.looked = 0.0
        self.lost = Counter[int]()  # in this round, by client
        self.reasons: dict[int, str] = {}  # of the newest, by client

    def carry(self, t: int, ids: Sequence[int], message: Callable[[tuple[int, ...]], bytes]) -> list[Answer]:
        """Send the message of some clients to the node that has them, until all `ids` of round t are answered.

        Raises `FlatlabError` where a node says that it cannot, where for `patience` seconds no node has a client that
        is still to be trained, and where a client's node was lost again and again.
        """
        todo, answers = set(ids), list[Answer]()
        self.lost.clear()
        alone = time.monotonic()
        while True:
            self._look(t, todo)
            self._send(t, todo, message)
            if not todo:
                alone = time.monotonic()
            for sent, reply in self._replies():
                answer = self._take(t, sent, reply, todo)
                answers += [] if answer is None else [answer]
            if hopeless := [k for k in todo if self.lost[k] >= LOSSES]:
                why = _short(self.reasons[hopeless[0]])
                raise FlatlabError(
                    f"In round {t + 1} the node with {_listed(hopeless)} was lost {LOSSES} times on the way (at last: "
                    f"{why}), perhaps for want of memory; what was saved is safe: go on with --resume."
                )
            if todo and time.monotonic() - alone > self.patience:
                raise FlatlabError(self._missing(t, todo))
            if not todo and not any(sent.ids for sent in self.waiting.values()):
                return answers
            time.sleep(POLL_SECONDS)

    def _look(self, t: int, todo: set[int]) -> None:
        """Ask nodes that are new who they are."""
        now = time.monotonic()
        if now - self.looked < LOOK_SECONDS:
            return
        self.looked = now
        self.look_after()
        there = set(self.link.nodes())
        for node in [node for node in self.homes if node not in there]:
            self._lose(t, node, "Flower no longer hears of it", todo)
        questioned = {sent.node for sent in self.waiting.values()}
        new = [
            node
            for node in there - self.homes.keys() - questioned
            if now - self.asked.get(node, -AGAIN_SECONDS) >= AGAIN_SECONDS
        ]
        self.asked |= dict.fromkeys(new, now)
        self._push([(Sent(node), pack({"do": "present"})) for node in new], t)

    def _send(self, t: int, todo: set[int], message: Callable[[tuple[int, ...]], bytes]) -> None:
        messages = []
        for node, home in self.homes.items():
            ids = tuple(sorted(todo & home.clients))
            if ids:
                messages.append((Sent(node, ids), message(ids)))
                todo -= home.clients
        self._push(messages, t)

    def _push(self, messages: Sequence[tuple[Sent, bytes]], t: int) -> None:
        if messages:
            made = self.link.push([(sent.node, payload) for sent, payload in messages], f"{t + 1}")
            self.waiting |= {identity: sent for identity, (sent, _) in zip(made, messages, strict=True)}

    def _replies(self) -> Iterable[tuple[Sent, Reply]]:
        for reply in self.link.pull(list(self.waiting)) if self.waiting else ():
            sent = self.waiting.pop(reply.id, None)
            if sent is not None:  # else it is of a node that was given up
                yield sent, reply

    def _take(self, t: int, sent: Sent, reply: Reply, todo: set[int]) -> Answer | None:
        if reply.payload is None:
            todo |= set(sent.ids)
            self._lose(t, sent.node, reply.reason, todo, sent.ids)
            return None
        plain, tensors = unpack(reply.payload)
        if "error" in plain:
            kind = UsageError if plain.get("code") == UsageError.exit_code else FlatlabError
            name = self.homes[sent.node].name if sent.node in self.homes else "A node"
            raise kind(f"{name} says: {plain['error']}")
        if sent.ids:
            return Answer(sent.ids, plain, tensors)
        self._welcome(t, sent.node, plain, todo)
        return None

    def _welcome(self, t: int, node: int, plain: dict[str, Any], todo: set[int]) -> None:
        """Enter a node; one that had its clients before is given up."""
        home = Home(str(plain["name"]), frozenset(plain["clients"]))
        if plain["split"] != self.split:
            raise UsageError(
                f"{home.name} holds a share of other data or of another split: write the shares of this run with "
                "flatlab train --save-shares, and start the nodes with them."
            )
        for other in [other for other, known in self.homes.items() if known.clients & home.clients]:
            self._lose(t, other, "its clients are with another one now", todo)
            self.asked[other] = inf
        self.homes[node] = home

    def _lose(self, t: int, node: int, reason: str, todo: set[int], owed: tuple[int, ...] = ()) -> None:
        """Give a node up; what it owes is to be sent again."""
        home = self.homes.pop(node, None)
        for identity, sent in list(self.waiting.items()):
            if sent.node == node:
                del self.waiting[identity]
                owed += sent.ids
        todo |= set(owed)
        self.lost.update(owed)
        self.reasons |= dict.fromkeys(owed, reason)
        if home is not None:
            repeated = f": its {_listed(owed)} will be trained again when a node has them" if owed else ""
            self.tell(f"{home.name} is gone in round {t + 1} ({_short(reason)}){repeated}.")

    def _missing(self, t: int, todo: set[int]) -> str:
        there = ", ".join(sorted(home.name for home in self.homes.values())) or "none"
        return (
            f"In round {t + 1} no node had {_listed(todo)} for {self.patience:g} s (nodes that are there: {there}); "
            "what was saved is safe: start the node again, and go on with --resume."
        )


def _listed(ids: Iterable[int]) -> str:
    some = sorted(ids)
    words = ", ".join(map(str, some[:LISTED])) + (", ..." if len(some) > LISTED else "")
    return f"client {words}" if len(some) == 1 else f"clients {words}"


def _short(reason: str) -> str:
    return shown(reason).strip("'\"")
