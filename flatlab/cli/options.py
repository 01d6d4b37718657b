"""The options that `eigs`, `trace`, `density` and `surface` share, listed once."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

if TYPE_CHECKING:
    from flatlab.measuring.subjects import Measurement

_OWN = "A model of your own"


def choice(*names: str, help: str, **more: Any) -> Any:
    """An option that takes one of `names`, in letters of either size: help and completion list them."""
    return typer.Option(
        metavar="|".join(names), parser=str.lower, autocompletion=lambda: list(names), help=help, **more
    )


def folder(text: str | Path) -> Path:
    """The folder that an option names: an empty word is a variable that is not set, and not the working folder."""
    if not str(text).strip():
        raise typer.BadParameter("it is empty: name a folder (. is the working folder)")
    return Path(text)


MATRIX = choice(
    "hessian",
    "gauss-newton",
    "fisher",
    "empirical-fisher",
    help="Whose numbers: the generalised Gauss-Newton, the Fisher (exact, of the usual losses), or the mean of outer "
    "products of samples' gradients.",
)
"""The option that names the matrix."""


@dataclass(frozen=True)
class Given:
    """What is measured, how exactly, and where the numbers go: every field is an option."""

    checkpoints: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[CKPT]...",
            help="Checkpoints of flatlab train, or folders of runs for their final.pt.",
            show_default=False,
        ),
    ] = None
    samples: Annotated[
        int | None,
        typer.Option(
            min=1, help="Samples of the loss (default: of a checkpoint 2000, or all if fewer; of --data all)."
        ),
    ] = None
    full: Annotated[bool, typer.Option("--full", help="Take all the training data, in bounded memory.")] = False
    dtype: Annotated[str, choice("float32", "float64", help="Of the products.")] = "float32"
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto: cuda where there is one.")] = "auto"
    data_root: Annotated[
        Path | None, typer.Option(help="Folder that holds local copies of data sets (or FLATLAB_DATA).")
    ] = None
    figure: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Draw the numbers into PATH.png, PATH.pdf and PATH.csv.")
    ] = None
    json: Annotated[
        Path | None, typer.Option(help="Write the numbers to this file too; -: to standard output, and tables beside.")
    ] = None
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="package.module:function|hf:NAME|timm:NAME",
            help="Measure the model that this function returns, called as function(), or one of Hugging Face or timm, "
            "by name or from a folder (hf:./folder); beside checkpoints that name it, let it run, called as by flatlab "
            "train: function(input_shape=..., classes=...); may be repeated for several checkpoints.",
            rich_help_panel=_OWN,
        ),
    ] = None
    dataset: Annotated[
        list[str] | None,
        typer.Option(
            metavar="package.module:function",
            help="Beside checkpoints whose data set it is: let this function run; may be repeated.",
        ),
    ] = None
    weights: Annotated[
        Path | None,
        typer.Option(
            help="Its parameters: a state_dict, a trainer's checkpoint, safetensors or .npz; no code in it runs.",
            rich_help_panel=_OWN,
        ),
    ] = None
    data: Annotated[
        str | None,
        typer.Option(
            metavar="package.module:function",
            help="Returns (inputs, targets), or batches of these that come the same each time.",
            rich_help_panel=_OWN,
        ),
    ] = None
    loss: Annotated[
        str | None,
        typer.Option(
            help="cross_entropy (default), next_token (of hf: language models), mse, binary_cross_entropy; what the "
            "model returns itself as a mean over samples or labels (own_per_sample, own_per_label, "
            "own_per_next_label); or package.module:function of (outputs, targets) that returns the mean over samples, "
            "or (sum, normaliser).",
            rich_help_panel=_OWN,
        ),
    ] = None

    @property
    def paths(self) -> list[Path]:
        """The checkpoints; none where a model of the user's own is measured."""
        return final_checkpoints(self.checkpoints)

    def measurement(self, clients: str | None = None) -> "Measurement":
        """What is asked for; raises `UsageError` where options contradict one another or something is missing."""
        from flatlab.functions import let_run
        from flatlab.measuring.subjects import read_measurement

        let_run(*(self.dataset or ()))
        return read_measurement(
            self.paths,
            samples=self.samples,
            full=self.full,
            dtype=self.dtype,
            device=self.device,
            data_root=self.data_root,
            models=tuple(dict.fromkeys(self.model or ())),  # one named twice is one
            weights=self.weights,
            data=self.data,
            loss=self.loss,
            clients=clients,
        )


def final_checkpoints(paths: list[Path] | None) -> list[Path]:
    """The checkpoints named, with the last one of a run where its folder is named."""
    return [path / "final.pt" if path.is_dir() else path for path in paths or []]


def measuring(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `Given` in place of its first parameter, which receives them all."""
    own = list(inspect.signature(command).parameters.values())[1:]
    hints = get_type_hints(Given, include_extras=True)
    shared = [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )
        for field in fields(Given)
    ]
    first, *rest = shared
    parameters = [first, *(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own), *rest]

    @wraps(command)
    def with_options(**values: Any) -> None:
        given = Given(**{field.name: values.pop(field.name) for field in fields(Given)})
        command(given, **values)

    with_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    with_options.__annotations__ = {p.name: p.annotation for p in parameters}
    return with_options
