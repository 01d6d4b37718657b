"""Ways to run a round's clients; all agree. To add one, write its file and register it here.

The file has a function `open_engine(world, means)`; it is imported when the engine is used, so that commands can list
the names at once.
"""

ENGINES = {
    "process": "flatlab.federated.engine.process",
    "batched": "flatlab.federated.engine.batched",
    "flower": "flatlab.federated.engine.flower",
}
"""Modules by the names on the command line: worker processes, one stack on a device, or a federation's nodes."""
