"""Rounds over Flower: what crosses between server and nodes, what a node holds, and the processes between them.

    train ── engine/flower.py ── link.py ══ carriers.py (ServerApp) ── SuperLink ── SuperNode ── carriers.py (ClientApp) ══ node.py

══ is a socket on one machine: Flower starts a process for every message, and server and nodes outlive all of them.
"""
