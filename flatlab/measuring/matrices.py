"""The matrices whose spectra are measured, as options name them."""

from typing import get_args

from analysis.operators import Matrix
from flatlab.errors import UsageError


def read_matrix(matrix: str) -> Matrix:
    """Raises `UsageError` for a name that is none."""
    names = get_args(Matrix)
    if matrix not in names:
        raise UsageError(f"--matrix is {', '.join(names[:-1])} or {names[-1]}, not {matrix!r}.")
    return matrix  # type: ignore[return-value]


def kind_of(measurement: str, matrix: str, *more: str) -> str:
    """The name under which a measurement is saved: the plain one is of the Hessian, which tables and figures read."""
    return "-".join([measurement, *([] if matrix == "hessian" else [matrix]), *more])
