"""Fields of a grid that change none of its runs and measurements, which a grid that is asked for must not name."""

from collections.abc import Sequence

from flatlab.errors import UsageError
from flatlab.federated.needs import require_effect
from flatlab.grid.plan import Cell, Grid


def require_effects(grid: Grid, cells: Sequence[Cell], source: str) -> None:
    """Raise `UsageError` where a field of the grid `source` has no effect in any of the `cells`, or MAN none in one.

    A grid beside results that are there is read without this, so that they can always be reported.
    """
    require_effect(grid.common, f"[common] of the grid {source}", *(dict(cell.config) for cell in cells))
    for name in grid.common.get("hyper", {}):
        if all(name in grid.hyper.get(algorithm, {}) for algorithm in grid.axes.algorithms):
            raise UsageError(
                f"In [common] of the grid {source}, hyper.{name} has no effect: [hyper] gives each algorithm its own."
            )
    for cell in cells:
        require_effect({"man": cell.config.man}, f"the cell {cell.name} of the grid {source}", dict(cell.config))
    if grid.measure.local_clients is not None and not grid.measure.keep_clients:
        raise UsageError(
            f"In [measure] of the grid {source}, local_clients = {grid.measure.local_clients} has no effect: it is of "
            "the clients that are kept; set keep_clients, as to [40]."
        )
