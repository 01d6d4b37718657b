"""Ways to run a round's clients; all agree, on devices to rounding. To add one, write its file and register it here.

The file has a function `open_engine(world, means)`; it is imported when the engine is used, so that commands can list
the names at once.
"""

ENGINES = {
    "process": "flatlab.federated.engine.process",
    "streams": "flatlab.federated.engine.streams",
    "batched": "flatlab.federated.engine.batched",
    "flower": "flatlab.federated.engine.flower",
}
"""Modules by the names on the command line: worker processes, streams of a GPU, one stack, or a federation's nodes."""

ON_DEVICES = ("streams", "batched")
"""Those that train in one process, on whatever device there is."""
