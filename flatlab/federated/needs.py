"""Fields that have an effect only beside others: what each needs, in one table, so that none is ignored unsaid.

Only what a user gave is held to it. A run's own configuration names every field, whatever its split and model.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flatlab.errors import UsageError, shown
from flatlab.federated.config import RunConfig
from flatlab.federated.models import usual_model
from flatlab.federated.partition import KINDS

Fields = Mapping[str, Any]
"""All fields of a run; of a file's they may be of any type."""

USUAL: Fields = {name: field.get_default(call_default_factory=True) for name, field in RunConfig.model_fields.items()}


def _of_split(parameter: str) -> Callable[[Fields], str]:
    kinds = [name for name, kind in KINDS.items() if kind.parameter == parameter]

    def lacking(fields: Fields) -> str:
        here = fields["partition"]
        return "" if here in kinds else f"it goes with partition = {' or '.join(kinds)}, not {here}"

    return lacking


def _of_mlp(fields: Fields) -> str:
    named, dataset = fields["model"], fields["dataset"]
    model = usual_model(dataset) if named == "auto" and isinstance(dataset, str) else named
    return "" if model in ("mlp", None) else f"it goes with model = mlp, not {model}"  # None: the data will say


def _of_man(fields: Fields) -> str:
    return _adding(fields) if fields["man"] else "it is the coefficient of MAN, which is off; add --man, or man = true"


def _adding(fields: Fields) -> str:
    adds = not fields["man"] or fields["zeta"] != 0 or fields["zeta_logits"] != 0
    return "" if adds else "MAN with zeta = 0 adds nothing to the loss; raise zeta, or leave man out"


def _of_average(fields: Fields) -> str:
    asked = fields["swa_start"] is not None
    return "" if asked else "it is part of an average that nothing asks for; set swa_start, as to 0.75"


NEEDS: Mapping[str, Callable[[Fields], str]] = {
    **{name: _of_split(name) for name in ("delta", "classes_per_client", "shards_per_client", "sigma")},
    "hidden": _of_mlp,
    "activation": _of_mlp,
    "man": _adding,
    "zeta": _of_man,
    "swa_every": _of_average,
}
"""By a field's name: what it lacks among the others, empty where it has an effect.

What needs another field to be legal at all, such as man_layers, is the affair of `RunConfig`."""


def lack(name: str, fields: Fields) -> str:
    """Say why the field `name` changes nothing beside the other `fields`; empty where it does, as most always do."""
    return NEEDS[name](fields) if name in NEEDS else ""


def require_effect(given: Fields, source: str, *among: Fields) -> None:
    """Raise `UsageError` where a field `given` in `source` has no effect, whichever of `among` the fields beside it."""
    for name, value in given.items():
        lacks = [lack(name, fields) for fields in among]
        if all(lacks):
            raise UsageError(f"In {source}, {name} = {word(value)} has no effect: {lacks[0]}.")


def is_whole(fields: Iterable[str]) -> bool:
    """Whether a file of these `fields` is a run's own, which names all of its version's; by hand nobody writes half."""
    return len(set(fields) & set(USUAL)) > len(USUAL) / 2


def word(value: object) -> str:
    """A field's value as a sentence says it, true and false as in TOML."""
    return str(value).lower() if isinstance(value, bool) else shown(value)
