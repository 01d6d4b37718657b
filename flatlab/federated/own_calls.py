"""A user's own algorithm as it is called: what goes wrong in one of its functions is a sentence that names it.

Wrong is to raise, to return something else than `Algorithm` says, and to change what it is given, which others hold
too. The trial (`algorithm_trial.py`) sees three rounds; a run looks at every one of its own.
"""

import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from flatlab.errors import FlatlabError, UsageError, first_line
from flatlab.federated.algorithms import ALGORITHMS
from flatlab.federated.algorithms.base import Algorithm
from flatlab.federated.arguments import ARGUMENTS, by_name, changed, versions
from flatlab.federated.config import RunConfig
from flatlab.functions import import_named

_USING = ("local_step_", "_load_terms")
"""Functions of the engines that compute with what an algorithm's functions returned."""


@dataclass
class Calls:
    """Calls of the functions of `rules`, the algorithm of `config`; raises `error`, which says that it `failed`."""

    config: RunConfig
    rules: Algorithm
    failed: str = "cannot be used"
    error: type[FlatlabError] = UsageError
    typed: bool = True  # whether tensors must be of the run's dtype

    def call(self, function: str, *arguments: Any) -> Any:
        """What that function returns; refused where it raises or changes an argument."""
        with self.named(function), self.unchanged(function, by_name(function, arguments)):
            return getattr(self.rules, function)(*arguments)

    @contextmanager
    def named(self, function: str) -> Iterator[None]:
        """Turn whatever a user's function raises into one sentence that says where."""
        try:
            yield
        except FlatlabError:
            raise
        except (Exception, SystemExit) as error:
            line = _line_in(self.config.algorithm, error)
            raise self.wrong(f"its {function} raised {first_line(error)}{line}") from error

    @contextmanager
    def unchanged(self, function: str, given: Mapping[str, object]) -> Iterator[None]:
        """Refuse where a tensor of these is changed within the block."""
        before = versions(given)
        yield
        for what in changed(before, versions(given)):
            raise self.wrong(
                f"its {function} changes {what} in place: return a new tensor, as a * b rather than a.mul_(b)"
            )

    def require_combined(self, found: object, w: Tensor, server: Mapping[str, Tensor]) -> None:
        """Refuse what is no next w and no new vectors of the server, as they are."""
        pair = found if isinstance(found, tuple) and len(found) == 2 else None
        self.require("combine", pair is not None, "no pair (w, vectors)")
        assert pair is not None
        form = f"tensor {tuple(w.shape)} of {self.config.dtype}"
        self.require("combine", self.is_like(pair[0], w), f"a w that is no {form}")
        self.require_vectors("combine", pair[1], server)

    def require_start(self, found: object, w: Tensor) -> None:
        """Refuse what is no model."""
        vector = f"the vector {tuple(w.shape)} it starts from, of {self.config.dtype}"
        self.require("start", self.is_like(found, w), f"something else than {vector}")

    def require_models(self, found: object, w: Tensor) -> None:
        """Refuse what is no dictionary of models."""
        self.require_vectors("models", found, dict.fromkeys(found, w) if isinstance(found, Mapping) else {})

    def is_like(self, found: object, like: Tensor) -> bool:
        """Whether it is a tensor of this shape, and of the run's dtype where that is looked at."""
        if not isinstance(found, Tensor) or found.shape != like.shape:
            return False
        return found.dtype == like.dtype or not self.typed

    def is_rows(self, found: object, like: Tensor) -> bool:
        """Likewise; where `like` is a stack (C, P), one vector (P,) is that of every client."""
        return self.is_like(found, like) or (like.dim() == 2 and self.is_like(found, like[0]))

    def require_vectors(self, function: str, found: object, like: Mapping[str, Tensor]) -> None:
        """Refuse what is no dictionary of exactly the tensors `like`, by name, shape and dtype."""
        self.require_dictionary(function, found, like, self.is_like)

    def require_rows(self, function: str, found: object, like: Mapping[str, Tensor]) -> None:
        """Likewise, of a client or of every client in a stack."""
        self.require_dictionary(function, found, like, self.is_rows)

    def require_dictionary(
        self, function: str, found: object, like: Mapping[str, Tensor], fits: Callable[[object, Tensor], bool]
    ) -> None:
        """Likewise, as far as `fits` says."""
        right = isinstance(found, Mapping) and set(found) == set(like) and all(fits(found[n], like[n]) for n in like)
        vectors = f"its vectors ({', '.join(map(str, like)) or 'none'}), each of its shape and of {self.config.dtype}"
        self.require(function, right, f"something else than a dictionary of {vectors}")

    def require(self, function: str, right: bool, returned: str) -> None:
        """Refuse what the function returned unless it is right."""
        if not right:
            raise self.wrong(f"its {function} returns {returned}")

    def wrong(self, what: str) -> FlatlabError:
        """The error of a sentence that says what is wrong."""
        return self.error(f"The algorithm {self.config.algorithm} {self.failed}: {what}.")


def in_round(config: RunConfig, t: int) -> Calls | None:
    """What the calls of round t go through; None for flatlab's own algorithms, which its tests look at."""
    if config.algorithm in ALGORITHMS:
        return None
    return Calls(config, config.rules, f"failed in round {t + 1}, before which the state is kept", FlatlabError)


@contextmanager
def clients_named(config: RunConfig, t: int, given: Mapping[str, object]) -> Iterator[None]:
    """Where clients are trained: raise `FlatlabError` for what an own algorithm raises, or changes of what is given.

    What a user's model raises is left as it is.
    """
    calls = in_round(config, t)
    if calls is None:
        yield
        return
    try:
        with calls.unchanged("client's part (terms, ascent, keep, ...)", given):
            yield
    except FlatlabError:
        raise
    except (Exception, SystemExit) as error:
        function = _function_in(calls.rules, error)
        if function is None:
            raise
        with calls.named(function):
            raise


def require_kept(config: RunConfig, t: int, after: object, own: Mapping[str, Tensor]) -> None:
    """Raise `FlatlabError` unless an own algorithm's `keep` returned the clients' vectors, as those in `own` are."""
    calls = in_round(config, t)
    if calls is not None:
        calls.require_rows("keep", after, own)


def _function_in(rules: Algorithm, error: BaseException) -> str | None:
    """Which of the algorithm's functions an error arose in, or in what they returned; None where it is a model's."""
    codes = {getattr(getattr(rules, name), "__code__", None): name for name in ARGUMENTS}
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    for frame in frames:
        if frame.f_code in codes:
            return codes[frame.f_code]
    if frames[-1].f_code.co_name in _USING:
        return "terms, or what another of its functions returned,"
    return None


def _line_in(name: str, error: BaseException) -> str:
    """Where in the user's file the error arose, for a sentence."""
    file = import_named(name.partition(":")[0] + ":__file__", "algorithm")
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f" ({Path(file).name}, line {lines[-1]})" if lines else ""
