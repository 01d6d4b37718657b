"""Rounds over Flower: what crosses between server and nodes, what a node holds, and the processes between them.

    server  engine/flower.py ── dispatch.py ── link.py ══ carriers.py (ServerApp) ── SuperLink
                                                                                        │
    node                                        node.py ══ carriers.py (ClientApp) ── SuperNode

══ is a socket on one machine: Flower starts a process for every message, and server and nodes outlive all of them.
"""
