"""The options that `eigs`, `trace`, `density` and `surface` share."""

from pathlib import Path
from typing import Annotated

import typer

_OWN = "A model of your own"

Checkpoints = Annotated[
    list[Path] | None,
    typer.Argument(metavar="[CKPT]...", help="Checkpoints of flatlab train.", show_default=False),
]
Samples = Annotated[
    int | None,
    typer.Option(min=1, help="Samples of the loss (default: of a checkpoint 2000, or all if fewer; of --data all)."),
]
Full = Annotated[bool, typer.Option("--full", help="Take all the training data, in bounded memory.")]
Dtype = Annotated[str, typer.Option(help="float32 or float64.")]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]
DataRoot = Annotated[Path | None, typer.Option(help="Folder that holds local copies of data sets (or FLATLAB_DATA).")]
Figure = Annotated[
    Path | None, typer.Option(metavar="PATH", help="Draw the numbers into PATH.png, PATH.pdf and PATH.csv.")
]
Json = Annotated[Path | None, typer.Option(help="Write the numbers to this file too.")]

Model = Annotated[
    str | None,
    typer.Option(
        metavar="package.module:function",
        help="Measure the model this returns (called without arguments); beside checkpoints that name it: let it run.",
        rich_help_panel=_OWN,
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        help="Its parameters: a state_dict, a trainer's checkpoint, safetensors or .npz; no code in it runs.",
        rich_help_panel=_OWN,
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        metavar="package.module:function",
        help="Returns (inputs, targets), or batches of these that come the same each time.",
        rich_help_panel=_OWN,
    ),
]
Loss = Annotated[
    str | None,
    typer.Option(
        help="cross_entropy (default), mse, binary_cross_entropy, or package.module:function of (outputs, targets) "
        "that returns the mean over samples, or (sum, normaliser).",
        rich_help_panel=_OWN,
    ),
]
