"""The two apps that Flower runs: they carry bytes between it and the processes that train, and know nothing of them.

Flower starts a process for every message to a node; so this imports Flower and nothing that takes long.
"""

import json
from collections.abc import Sequence
from multiprocessing.connection import Client
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

PAYLOAD = "payload"
"""The record, and the array in it, that holds a message's bytes; Flower cuts a large array into pieces."""


def carry(grid: Grid, context: Context) -> None:
    """Do what flatlab's server asks over its socket, until it closes it."""
    with Client(str(context.run_config["socket"]), "AF_UNIX") as server:
        while True:
            try:
                asked = json.loads(server.recv_bytes())
                payloads = [server.recv_bytes() for _ in asked.get("to", ())]
            except EOFError:
                return
            answer, replies = _do(grid, asked, payloads)
            server.send_bytes(json.dumps(answer).encode())
            for reply in replies:
                server.send_bytes(reply)


def relay(message: Message, context: Context) -> Message:
    """Hand the message to this node's process, and send back what that answers."""
    with Client(_socket(context), "AF_UNIX") as node:
        node.send_bytes(_bytes(message))
        return Message(_record(node.recv_bytes()), reply_to=message)


def _do(grid: Grid, asked: dict[str, Any], payloads: Sequence[bytes]) -> tuple[dict[str, Any], list[bytes]]:
    if asked["do"] == "nodes":
        return {"nodes": list(grid.get_node_ids())}, []
    if asked["do"] == "push":
        messages = [
            Message(_record(payload), to, MessageType.TRAIN, group_id=asked["group"])
            for to, payload in zip(asked["to"], payloads, strict=True)
        ]
        return {"ids": list(grid.push_messages(messages))}, []
    replies = list(grid.pull_messages(asked["ids"]))
    said = [
        {"id": reply.metadata.reply_to_message_id, "reason": reply.error.reason if reply.has_error() else None}
        for reply in replies
    ]
    return {"replies": said}, [_bytes(reply) for reply in replies if not reply.has_error()]


def _socket(context: Context) -> str:
    """A node of a deployment is told at its start; one of a simulation knows its number alone."""
    if "socket" in context.node_config:
        return str(context.node_config["socket"])
    return str(Path(str(context.run_config["nodes"])) / f"node-{context.node_config['partition-id']}")


def _record(payload: bytes) -> RecordDict:
    return RecordDict({PAYLOAD: ArrayRecord({PAYLOAD: Array(np.frombuffer(payload, dtype=np.uint8))})})


def _bytes(message: Message) -> bytes:
    array: np.ndarray[Any, Any] = message.content.array_records[PAYLOAD][PAYLOAD].numpy()
    return array.tobytes()


server = ServerApp()
server.main()(carry)

client = ClientApp()
client.train()(relay)
