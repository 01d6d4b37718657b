"""Clients on the nodes of a Flower federation, each node with the samples and the vectors of its own clients.

A round's share of a node that dies is repeated: the node is named, and what it owes is sent again as soon as a node
with its clients is there. What a node computes does not depend on how often it is asked, so the round ends as it would
have without the death. Where no node has a client for `Means.patience` seconds the run ends, and its state is saved.
"""

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor

from flatlab.errors import FlatlabError
from flatlab.federated.engine.base import SIMULATION, Engine, Evaluation, Means, RoundInputs, RoundOutputs
from flatlab.federated.engine.sequential import SequentialEngine
from flatlab.federated.flower.dispatch import Answer, Dispatch
from flatlab.federated.flower.link import Link
from flatlab.federated.flower.local import NAME, LocalFederation
from flatlab.federated.flower.messages import pack
from flatlab.federated.flower.needs import needs_of
from flatlab.federated.flower.programs import require_flower
from flatlab.federated.flower.share import save_shares, split_digest
from flatlab.federated.participants import sample_clients
from flatlab.federated.world import World
from flatlab.functions import names_function


def open_engine(world: World, means: Means) -> Engine:
    """A federation that is there, or one of `means.workers` nodes on this machine."""
    require_flower(simulated=means.superlink == SIMULATION)
    return FlowerEngine(world, means)


class FlowerEngine:
    """Runs the round's clients on the nodes, and evaluates in this process, which has the test set."""

    def __init__(self, world: World, means: Means) -> None:
        self.world, self.means = world, means
        self.needs = needs_of(world)
        self.local = SequentialEngine(world)
        self.dates: dict[int, int] = {}  # client: rounds after which its vectors date
        self.dated = 0  # rounds that `dates` covers
        self.stack = ExitStack()

    def run(self, inputs: RoundInputs) -> RoundOutputs:
        """Train the participants of one round; their own vectors are the nodes', and `inputs.own` is empty."""
        self._date(inputs.t)
        vectors = {"w": inputs.w} | {f"server.{name}": vector for name, vector in inputs.server.items()}
        common = {
            "do": "train",
            "config": self.world.config.plain(),
            "own_code": dict(self.world.own_code),
            "t": inputs.t,
            "saved": inputs.saved,
            "before": self.needs.before,
            "after": self.needs.after,
        }

        def message(ids: tuple[int, ...]) -> bytes:
            return pack({**common, "ids": ids, "dated": [self.dates.get(k, 0) for k in ids]}, vectors)

        return self._gathered(inputs.ids, self.dispatch.carry(inputs.t, inputs.ids, message))

    def evaluate(self, models: Sequence[Tensor]) -> list[Evaluation]:
        """Evaluate each flat vector (P,) on the test set."""
        return self.local.evaluate(models)

    def __enter__(self) -> "FlowerEngine":
        means = self.means
        try:
            self.stack.enter_context(self.local)
            federation = self._federation() if means.superlink in (None, SIMULATION) else None
            if federation:
                link = Link(NAME, federation.home, len(federation.shares) if federation.simulated else 0)
            else:
                link = Link(str(means.superlink))
            self.link = self.stack.enter_context(link)
        except BaseException:
            self.stack.close()
            raise

        def look_after() -> None:
            if federation:
                federation.look_after(means.tell)

        self.dispatch = Dispatch(self.link, split_digest(self.world), means.patience, means.tell, look_after)
        return self

    def __exit__(self, *exception: object) -> None:
        self.stack.close()

    def _federation(self) -> LocalFederation:
        folder, config = self.means.folder / "nodes", self.world.config
        shares = save_shares(folder / "shares", self.world, min(self.means.workers, config.clients))
        code = {"--model": config.model, "--algorithm": config.algorithm}
        own = [word for option, name in code.items() if names_function(name) for word in (option, name)]
        simulated = self.means.superlink == SIMULATION
        return self.stack.enter_context(LocalFederation(shares, folder, own, simulated=simulated))

    def _date(self, t: int) -> None:
        """Bring `dates` to the beginning of round t."""
        if t < self.dated:
            self.dates, self.dated = {}, 0
        for before in range(self.dated, t):
            self.dates |= dict.fromkeys(sample_clients(self.world.config, before), before + 1)
        self.dated = t

    def _gathered(self, ids: Sequence[int], answers: Sequence[Answer]) -> RoundOutputs:
        """The nodes' answers as one, in the order of `ids`."""
        places = {k: (answer, row) for answer in answers for row, k in enumerate(answer.ids)}

        def stacked(name: str) -> Tensor:
            rows = [answer.tensors[name][row] for answer, row in (places[k] for k in ids)]
            stack = torch.stack(rows)
            if stack.shape != (len(ids), self.world.layout.size) or stack.dtype != self.world.dtype:
                raise FlatlabError("A node's vectors are not of the run's model: run the same flatlab everywhere.")
            return stack

        return RoundOutputs(
            theta=stacked("theta"),
            after={name: stacked(f"after.{name}") for name in self.needs.after},
            losses=[float(answer.plain["losses"][row]) for answer, row in (places[k] for k in ids)],
            images=sum(int(answer.plain["images"]) for answer in answers),
            before={name: stacked(f"before.{name}") for name in self.needs.before},
        )
